"""Captioned Fluent emoji (MIT), joined by code point with the names in `emoji-datasource-google`."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .colours import COLOURS, nearest_colours, with_article
from .shapes import jittered


@dataclass(frozen=True)
class Emoji:
    path: Path
    names: tuple[str, ...]  # lower case, the official name first
    category: str
    held_out: bool


def read_emoji(assets: Path, table: Path, held_out_modulus: int) -> list[Emoji]:
    """Emoji that both packages have, in the table's order; no skin-tone variants."""
    found = []
    for entry in json.loads(table.read_text()):
        codes = [entry["unified"], entry.get("non_qualified") or ""]
        path = next((p for p in (assets / f"{c.lower()}.webp" for c in codes if c) if p.is_file()), None)
        if path is None:
            continue
        names = [entry["name"], *entry["short_names"]]
        names = [re.sub(r"[^a-z0-9 ]+", " ", name.lower()).strip() for name in names]
        names = [re.sub(r" (sign|symbol|mark)$", "", re.sub(r" +", " ", name)) for name in names]
        names = list(dict.fromkeys(n for n in names if len(n) > 2))
        if names:
            found.append(
                Emoji(path, tuple(names), entry["category"], len(found) % held_out_modulus == held_out_modulus - 1)
            )
    return found


def dominant_colour(picture: Image.Image) -> str | None:
    """The colour name of more than half of the opaque pixels, if there is one."""
    rgba = np.asarray(picture.resize((24, 24), Image.Resampling.BOX)).reshape(-1, 4)
    names = nearest_colours(rgba[rgba[:, 3] > 200, :3])
    (best, count), *_ = Counter(names).most_common(1) or [(None, 0)]
    return best if count > 0.5 * len(names) else None


@lru_cache(maxsize=16)  # the variants of an emoji follow one another
def open_rgba(emoji: Emoji) -> Image.Image:
    return Image.open(emoji.path).convert("RGBA")


def on_background(
    picture: Image.Image, image_size: int, rgb: tuple[int, ...], scale=0.92, shift=(0.0, 0.0)
) -> Image.Image:
    """RGBA picture composited at `scale` of the width on a plain background; `shift` in picture widths."""
    side = round(image_size * scale)
    small = picture.resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (image_size, image_size), rgb)
    corner = tuple(round((image_size - side) / 2 + s * image_size) for s in shift)
    canvas.paste(small, corner, small)
    return canvas


def draw_emoji(emoji: Emoji, rng: np.random.Generator, image_size: int) -> tuple[Image.Image, str]:
    """One picture and its caption: mostly on white, sometimes on a named background, often with its colour named."""
    picture = open_rgba(emoji)
    background = "white" if rng.random() < 0.75 else str(rng.choice(list(COLOURS)))
    rgb = (255, 255, 255) if background == "white" else jittered(background, rng)
    image = on_background(picture, image_size, rgb, rng.uniform(0.86, 0.98), rng.normal(0, 0.015, 2))
    name = emoji.names[0] if rng.random() < 0.65 else str(rng.choice(emoji.names))
    colour = dominant_colour(picture)
    if colour and not any(word in COLOURS for word in name.split()) and rng.random() < 0.5:
        name = f"{colour} {name}"
    if rng.random() < 0.6 and emoji.category != "Flags":
        name = with_article(name)
    if background != "white":
        name += f" on {with_article(background)} background"
    elif rng.random() < 0.3:
        name += " on a white background"
    return image, name
