"""What happens to an image before it is encoded: resized, cropped and flipped once, with the crop remembered."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import torch
from PIL import Image, ImageColor

SDXL_PORTRAIT_BUCKETS = (
    (2048, 512), (1984, 512), (1920, 512), (1856, 512), (1792, 576), (1728, 576), (1664, 576), (1600, 640),
    (1536, 640), (1472, 704), (1408, 704), (1344, 704), (1344, 768), (1280, 768), (1216, 832), (1152, 832),
    (1152, 896), (1088, 896), (1088, 960), (1024, 960), (1024, 1024),
)  # fmt: skip


@dataclass(frozen=True)
class Transform:
    """Covers the target with the resized image, takes one crop, and flips it or not: drawn once per image.

    Args:
        resolution: The side of the square target in pixels; with buckets, the nominal one.
        center_crop: The middle of the image rather than a random place.
        random_flip: Mirror half of the images.
        buckets: Targets as `(height, width)`; each image takes the one nearest to its aspect ratio. None: the square.
        interpolation: A filter of `PIL.Image.Resampling`, in lower case.
        background: What shows through transparent images: a colour that `PIL.ImageColor` knows.

    Raises:
        ValueError: for an unknown filter or colour, and for sizes below 1.
    """

    resolution: int
    center_crop: bool = False
    random_flip: bool = False
    buckets: tuple[tuple[int, int], ...] | None = None
    interpolation: str = "lanczos"
    background: str = "white"

    def __post_init__(self):
        if self.buckets is not None:
            if not self.buckets:
                raise ValueError("buckets must name at least one (height, width), got none")
            object.__setattr__(self, "buckets", tuple((int(h), int(w)) for h, w in self.buckets))
        if min(side for target in self.targets for side in target) < 1:
            raise ValueError(f"resolution and buckets must be at least 1 pixel, got {self.targets}")
        if self.interpolation.upper() not in Image.Resampling.__members__:
            allowed = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"interpolation must be one of {allowed}, got {self.interpolation!r}")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise ValueError(f"background must be a colour that PIL knows, got {self.background!r}") from error

    @property
    def targets(self) -> tuple[tuple[int, int], ...]:
        """Every `(height, width)` that an image can become."""
        return self.buckets or ((self.resolution, self.resolution),)

    @property
    def key(self) -> str:
        """A string that two transforms share if and only if they are the same."""
        return json.dumps(asdict(self), sort_keys=True)

    def check(self, multiple: int) -> None:
        """Raises a ValueError unless the VAE's scale factor divides every side."""
        for height, width in self.targets:
            if height % multiple or width % multiple:
                name = "resolution" if self.buckets is None else "buckets"
                raise ValueError(f"{name} must be divisible by {multiple}, got {height}x{width}")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The target nearest in aspect ratio; among equals, the largest that needs no upscaling."""

        def distance(target: tuple[int, int]) -> tuple[float, bool, int]:
            off = abs(math.log(target[0] * width / (target[1] * height)))
            upscales = target[0] > height or target[1] > width
            area = target[0] * target[1]
            return round(off, 9), upscales, area if upscales else -area

        return min(self.targets, key=distance)

    def __call__(self, image: Image.Image, generator: torch.Generator) -> tuple[Image.Image, tuple[int, ...]]:
        """Applies the transform with the draws of this generator.

        Returns:
            The crop, and SDXL's size conditioning `(original height, original width, crop top, crop left, target
            height, target width)`. The original size is that before resizing, the crop's corner counts pixels of the
            resized image, and for a flipped image it is the corner of the crop in the flipped image.

        References:
            Podell et al., "SDXL", arXiv 2307.01952, section 2.2.
        """
        # All three are always drawn, so that switching one choice leaves the others as they were.
        down, right, flip = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        height, width = self.target(image.height, image.width)
        original = (image.height, image.width)
        scale = max(height / image.height, width / image.width)
        resized = (max(height, round(image.height * scale)), max(width, round(image.width * scale)))
        if resized != original:
            image = image.resize(resized[::-1], Image.Resampling[self.interpolation.upper()])
        spare_height, spare_width = resized[0] - height, resized[1] - width
        if self.center_crop:
            top, left = round(spare_height / 2), round(spare_width / 2)
        else:
            top, left = int(down * (spare_height + 1)), int(right * (spare_width + 1))
        image = image.crop((left, top, left + width, top + height))
        if self.random_flip and flip < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left = spare_width - left
        return image, (*original, top, left, height, width)


def sdxl_buckets(resolution: int = 1024, multiple: int = 8) -> tuple[tuple[int, int], ...]:
    """SDXL's multi-aspect targets `(height, width)`, scaled from 1024 to another resolution.

    Args:
        multiple: What every side must be divisible by: the VAE's scale factor. (The UNet itself takes any latent size.)

    References:
        Podell et al., "SDXL", arXiv 2307.01952, appendix I.
    """

    def scaled(side: int) -> int:
        return max(1, round(side * resolution / 1024 / multiple)) * multiple

    portrait = [(scaled(height), scaled(width)) for height, width in SDXL_PORTRAIT_BUCKETS]
    return tuple(dict.fromkeys(portrait + [(width, height) for height, width in reversed(portrait)]))
