"""What the model card reports: reconstruction of pictures never trained on, and samples that follow their captions."""

import numpy as np
import torch
from PIL import Image

from .emoji import Emoji, on_background, open_rgba
from .sampling import caption_accuracy
from .vae import to_tensor

PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "coins",
    "camera",
)
PARTS = ("vae", "text_encoder", "text_encoder_2", "unet")


def held_out_photograph(name: str, image_size: int = 64, part: float = 1.0) -> np.ndarray:
    """The central square of a scikit-image picture, `part` of its width, as uint8 (image_size, image_size, 3)."""
    import skimage.data

    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    side = int(min(picture.size) * part)
    left, top = ((n - side) // 2 for n in picture.size)
    crop = picture.crop((left, top, left + side, top + side))
    return np.asarray(crop.resize((image_size, image_size), Image.Resampling.LANCZOS))


@torch.no_grad()
def reconstruct(vae, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (B, H, W, 3) -> reconstructions in 0 .. 1 and their PSNR in dB (B,)."""
    x = to_tensor(pictures)
    y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    psnr = -10 * torch.log10((x - y).square().mean((1, 2, 3)) / 4)
    return (y / 2 + 0.5).permute(0, 2, 3, 1).numpy(), psnr.numpy()


def describe(module: torch.nn.Module, name: str) -> tuple[str, str, int]:
    """Name, shape in words and number of parameters of a part of the pipeline."""
    c = module.config
    if hasattr(c, "block_out_channels"):
        shape = f"channels {', '.join(map(str, c.block_out_channels))}"
    else:
        shape = f"{c.num_hidden_layers} layers of width {c.hidden_size}, {c.vocab_size} tokens"
    return name, shape, sum(p.numel() for p in module.parameters())


def evaluate(pipeline, emoji: list[Emoji]) -> dict:
    held_out = np.stack([np.asarray(on_background(open_rgba(e), 64, (255, 255, 255))) for e in emoji if e.held_out])
    results: dict = {"parts": [describe(getattr(pipeline, name), name) for name in PARTS]}
    for label, part in (("full", 1.0), ("centre", 0.4)):
        _, psnr = reconstruct(pipeline.vae, np.stack([held_out_photograph(name, part=part) for name in PHOTOGRAPHS]))
        results[f"psnr_{label}"] = {name: round(float(p), 2) for name, p in zip(PHOTOGRAPHS, psnr, strict=True)}
    _, psnr = reconstruct(pipeline.vae, held_out)
    results["psnr_emoji"] = {
        "mean": round(float(psnr.mean()), 2),
        "min": round(float(psnr.min()), 2),
        "count": len(psnr),
    }
    pipeline.set_progress_bar_config(disable=True)
    results["caption_accuracy"] = {k: round(v, 3) for k, v in caption_accuracy(pipeline).items()}
    return results
