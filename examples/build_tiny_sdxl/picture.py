"""The figure of the documentation: reconstructions of held-out pictures, and samples with their captions."""

import textwrap
from pathlib import Path

import numpy as np

from .emoji import Emoji, on_background, open_rgba
from .evaluate import PHOTOGRAPHS, held_out_photograph, reconstruct
from .sampling import sample

PROMPTS = (
    "a red circle on a white background",
    "a blue star on a yellow background",
    "a green heart on a pink background",
    "an orange triangle on a black background",
    "a white ring on a purple background",
    "a cyan diamond on a brown background",
    "a small black square on a green background",
    "a purple cross on a gray background",
    "a green apple",
    "a yellow smiling face",
    "a red heart",
    "a strawberry",
    "a cat face",
    "a full moon",
    "a blue book",
    "a woman",
    "an orange",
    "an evergreen tree",
    "a dog face",
    "a soccer ball",
    "a red balloon",
    "a crescent moon",
    "a bus",
    "a blue circle",
)


def draw_figure(pipeline, emoji: list[Emoji], path: Path, columns: int = 12) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{name.replace('_', ' ')}" for name in PHOTOGRAPHS]
    pictures = [held_out_photograph(name) for name in PHOTOGRAPHS]
    for item in [e for e in emoji if e.held_out][3 :: max(1, len(emoji) // 25 // 4)][: columns - len(pictures)]:
        names.append(item.names[0])
        pictures.append(np.asarray(on_background(open_rgba(item), 64, (255, 255, 255))))
    decoded, psnr = reconstruct(pipeline.vae, np.stack(pictures))
    samples = sample(pipeline, list(PROMPTS))
    rows = 2 + -(-len(samples) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.25 * columns, 1.62 * rows + 0.5), dpi=110)
    for axis in axes.flat:
        axis.set_axis_off()

    def show(axis, picture, title):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(textwrap.fill(title, 17, break_long_words=False), fontsize=6.5, pad=3)

    for k in range(len(pictures)):
        show(axes[0, k], pictures[k], names[k])
        show(axes[1, k], decoded[k], f"{psnr[k]:.1f} dB")
    for k, prompt in enumerate(PROMPTS):
        show(axes[2 + k // columns, k % columns], samples[k], prompt)
    figure.tight_layout(rect=(0.025, 0, 1, 0.97), h_pad=0.6, w_pad=0.3)
    labels = ("held out", "VAE") + ("25 Euler steps, guidance 5",) + ("",) * (rows - 3)
    for row, label in enumerate(labels):
        box = axes[row, 0].get_position()
        figure.text(0.012, (box.y0 + box.y1) / 2, label, rotation=90, va="center", ha="center", fontsize=8)
    figure.suptitle(
        "tiny-sdxl: pictures it was not trained on through its VAE, and its samples (64 x 64 pixels)", fontsize=11
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
