"""Samples of a pipeline, and how well they follow their captions."""

import numpy as np
import torch

from .colours import COLOURS, nearest_colours, with_article
from .shapes import SHAPES, draw_mask


def sample(pipeline, prompts: list[str], seed: int = 0, steps: int = 25, guidance_scale: float = 5.0) -> np.ndarray:
    """64 x 64 pictures, uint8 (N, 64, 64, 3), each with its own seeded generator."""
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]
    pictures = []
    for start in range(0, len(prompts), 16):
        part = slice(start, start + 16)
        pictures += pipeline(
            prompts[part],
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators[part],
            height=64,
            width=64,
            output_type="np",
        ).images.tolist()
    return (np.asarray(pictures) * 255).round().astype(np.uint8)


def shape_prompts(count: int, seed: int) -> list[tuple[str, str, str, str]]:
    """Prompt, shape, colour and background; the shapes in turn, the colours at random."""
    rng = np.random.default_rng(seed)
    prompts = []
    for k in range(count):
        shape = SHAPES[k % len(SHAPES)]
        colour, background = (str(c) for c in rng.choice(list(COLOURS), 2, replace=False))
        prompts.append(
            (f"{with_article(f'{colour} {shape}')} on {with_article(background)} background", shape, colour, background)
        )
    return prompts


def foreground(picture: np.ndarray, colour: str, background: str) -> np.ndarray:
    """Pixels nearer to `colour` than to `background`: bool (H, W)."""
    distance = [((picture.astype(float) - COLOURS[c]) ** 2).sum(-1) for c in (colour, background)]
    return distance[0] < distance[1]


def recognise_shape(mask: np.ndarray) -> str | None:
    """The drawn shape with the largest intersection over union, after both are cropped to their bounding boxes."""
    box = _crop(mask)
    if box is None:
        return None
    scores = {}
    for shape in SHAPES:
        template = _crop(np.asarray(draw_mask(shape, 64, (0.5, 0.5), 0.4)) > 127)
        scores[shape] = (box & template).sum() / (box | template).sum()
    return max(scores, key=scores.__getitem__)


def _crop(mask: np.ndarray, side: int = 32) -> np.ndarray | None:
    rows, columns = np.flatnonzero(mask.sum(1) > 1), np.flatnonzero(mask.sum(0) > 1)
    if len(rows) < 4 or len(columns) < 4:
        return None
    y = np.linspace(rows[0], rows[-1], side).round().astype(int)
    x = np.linspace(columns[0], columns[-1], side).round().astype(int)
    return mask[np.ix_(y, x)]


def caption_accuracy(pipeline, count: int = 96, seed: int = 0) -> dict[str, float]:
    """Fraction of samples whose colour, background and shape are the caption's (by chance 1/12, 1/12 and 1/8).

    The colour is the median of the pixels nearer to the asked colour than to the asked background, the background
    the median of the picture's outermost pixels; each must be nearest to the asked one among all twelve.
    """
    prompts = shape_prompts(count, seed)
    hits = {"colour": 0, "background": 0, "shape": 0}
    for picture, (_, shape, colour, background) in zip(
        sample(pipeline, [p[0] for p in prompts], seed), prompts, strict=True
    ):
        mask = foreground(picture, colour, background)
        edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, 0], picture[:, -1]])
        hits["background"] += nearest_colours(np.median(edge, 0)[None])[0] == background
        hits["colour"] += bool(mask.sum() > 40) and nearest_colours(np.median(picture[mask], 0)[None])[0] == colour
        hits["shape"] += recognise_shape(mask) == shape
    return {name: hit / count for name, hit in hits.items()}
