"""Captioned drawings of one coloured shape on a coloured background."""

import math

import numpy as np
from PIL import Image, ImageDraw

from .colours import COLOURS, with_article

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
SIZES = {"small": (0.17, 0.23), "": (0.26, 0.36), "large": (0.38, 0.45)}  # half extent, in picture widths
PLACES = {
    "": (0.0, 0.0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}
SUPERSAMPLING = 4


def outline(shape: str) -> list[tuple[float, float]]:
    """Vertices of `shape` in the unit square -1 .. 1, y downwards."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0, -0.95), (1, 0.85), (-1, 0.85)]
    if shape == "diamond":
        return [(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]
    if shape == "cross":
        w = 0.34
        return [
            (-w, -1),
            (w, -1),
            (w, -w),
            (1, -w),
            (1, w),
            (w, w),
            (w, 1),
            (-w, 1),
            (-w, w),
            (-1, w),
            (-1, -w),
            (-w, -w),
        ]
    if shape == "star":
        radii = [1.05 if k % 2 == 0 else 0.42 for k in range(10)]
        return [(r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5)) for k, r in enumerate(radii)]
    if shape == "heart":
        s = np.linspace(0, 2 * math.pi, 60)
        x, y = 16 * np.sin(s) ** 3, 13 * np.cos(s) - 5 * np.cos(2 * s) - 2 * np.cos(3 * s) - np.cos(4 * s)
        return [(float(a) / 16.5, -float(b + 2.5) / 15) for a, b in zip(x, y, strict=True)]
    return [(math.cos(k * math.pi / 30), math.sin(k * math.pi / 30)) for k in range(60)]  # circle, ring


def draw_mask(shape: str, image_size: int, centre: tuple[float, float], half_extent: float) -> Image.Image:
    """Anti-aliased mask, mode L; `centre` and `half_extent` in picture widths."""
    side = image_size * SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)

    def place(points, scale=1.0):
        return [
            ((centre[0] + x * scale * half_extent) * side, (centre[1] + y * scale * half_extent) * side)
            for x, y in points
        ]

    draw.polygon(place(outline(shape)), fill=255)
    if shape == "ring":
        draw.polygon(place(outline(shape), 0.55), fill=0)
    return mask.resize((image_size, image_size), Image.Resampling.BOX)


def jittered(colour: str, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(np.asarray(COLOURS[colour]) + rng.normal(0, 7, 3), 0, 255))


def draw_shape(rng: np.random.Generator, image_size: int) -> tuple[Image.Image, str]:
    """One picture and its caption, e.g. "a small red circle on a blue background"."""
    shape = str(rng.choice(SHAPES))
    colour, background = (str(c) for c in rng.choice(list(COLOURS), 2, replace=False))
    if colour != "white" and rng.random() < 0.25:
        background = "white"
    size = str(rng.choice(list(SIZES), p=[0.15, 0.7, 0.15]))
    place = str(rng.choice(list(PLACES), p=[0.8, 0.05, 0.05, 0.05, 0.05])) if size != "large" else ""
    half = rng.uniform(*SIZES[size])
    shift = rng.normal(0, 0.025, 2) + np.asarray(PLACES[place]) * (0.47 - half)
    mask = draw_mask(shape, image_size, (0.5 + shift[0], 0.5 + shift[1]), half)
    picture = Image.composite(
        Image.new("RGB", mask.size, jittered(colour, rng)), Image.new("RGB", mask.size, jittered(background, rng)), mask
    )
    noun = " ".join(word for word in (size, colour, shape) if word)
    tail = "" if background == "white" and rng.random() < 0.3 else f" on {with_article(background)} background"
    caption = with_article(noun) + (f" {place}" if place else "") + tail
    return picture, caption
