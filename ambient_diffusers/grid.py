"""A labelled grid of images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def image_grid(rows: dict[str, list[Image.Image]], captions: Sequence[str] = (), cell: int = 128) -> Image.Image:
    """Images in rows, each row under its name at the left, each column under its caption at the top.

    Args:
        rows: Name of a row (may hold line breaks) to its images; rows may differ in length.
        captions: One for each column, or none.
        cell: Smallest side in pixels at which an image is shown; small images are enlarged without smoothing.
    """
    font = ImageFont.load_default(13)
    images = [image for row in rows.values() for image in row]
    factor = max(1, round(cell / max(max(image.size) for image in images)))
    width, height = (factor * max(image.size[axis] for image in images) for axis in (0, 1))
    names = {name: "\n".join(textwrap.fill(line, 24) for line in name.split("\n")) for name in rows}
    titles = [textwrap.fill(caption, max(8, width // 7)) for caption in captions]
    left, top, gap = 180, 8 + 16 * max((title.count("\n") + 1 for title in titles), default=0), 4
    columns = max(len(row) for row in rows.values())
    canvas = Image.new("RGB", (left + columns * (width + gap), top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.multiline_text((left + column * (width + gap) + 2, 4), title, fill="black", font=font)
    for line, (name, row) in enumerate(rows.items()):
        y = top + line * (height + gap)
        draw.multiline_text(
            (8, y + height // 2 - 8 * (names[name].count("\n") + 1)), names[name], fill="black", font=font
        )
        for column, image in enumerate(row):
            enlarged = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left + column * (width + gap), y))
    return canvas
