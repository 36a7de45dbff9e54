"""Bytes of an image file to 8-bit RGB, whatever the file's own colour model is."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageColor, ImageOps

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .fit .fits .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pfm .pgm .png .pnm .ppm .tga .tif .tiff "
    ".webp".split()
)
"""What an image folder is searched for; Pillow decides by the bytes what a file really is."""


class UnreadableImageError(ValueError):
    """A file that is no image, is cut off, or holds values of unknown scale."""


def read_image(data: bytes, background: str = "white") -> Image.Image:
    """Decodes an image as a viewer would show it: turned by its EXIF tag, transparency over the background.

    16-bit grey is scaled from its full range `0..65535`; floating-point grey must lie in `[0, 1]`, since any other
    scale would be a guess. The first frame of an animation counts.

    Args:
        data: The content of the file.
        background: A colour name or code that `PIL.ImageColor` knows.

    Returns:
        An image of mode RGB.

    Raises:
        UnreadableImageError: with the reason.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            image = _eight_bits(np.asarray(image))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, ImageColor.getrgb(background))
            image = Image.alpha_composite(canvas, image)
        return image.convert("RGB")
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        reason = "no image file" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImageError(reason if data else "empty file") from error


def _eight_bits(values: np.ndarray) -> Image.Image:
    """Grey values of more than 8 bits, `(H, W)`, to 8-bit grey."""
    white = 1.0 if values.dtype.kind == "f" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (0 <= low and high <= white):  # also false for NaN
        raise UnreadableImageError(f"grey values must lie in [0, {white:g}], got {low:g}..{high:g}")
    return Image.fromarray(np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8))
