"""Which box of an image is hidden: a given one, what a detector finds, or a random one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..randomness import philox

Box = tuple[float, float, float, float]
"""Left, upper, right, lower edge as fractions of width and height."""


class Boxes:
    """`(name of the image, image) -> mask`, bool `(H, W)`, true within the box; at least one pixel.

    Args:
        boxes: A JSON file `{"file name": box}`, or one box for all; what lies outside of the image is cut off.
        detector: Name or folder of an object detection model for `transformers.pipeline`; its surest box counts.
        area: Of the random box for images without another.
        seed: Of the random boxes; each belongs to the image's name.

    Raises:
        ValueError: for a file that cannot be read, and a box that is empty or outside of the image.
    """

    def __init__(self, boxes: str | Path | Box | None, detector: str | None, area: float, seed: int):
        self.detector, self.area, self.seed = detector, area, seed
        self._given: dict | None = None
        self._for_all: Box | None = None
        if isinstance(boxes, str | Path):
            try:
                self._given = json.loads(Path(boxes).read_text())
            except (OSError, ValueError) as error:
                raise ValueError(f"boxes must be a JSON file, got {str(boxes)!r}: {error}") from error
            self._given = {name: _checked(box, name) for name, box in self._given.items()}
        elif boxes is not None:
            self._for_all = _checked(boxes, "all images")

    @property
    def key(self):
        """The given boxes, as plain values."""
        return self._given or self._for_all

    def check(self, names: Sequence[str]) -> None:
        """Raises a ValueError unless a file of boxes has one for each image."""
        missing = [] if self._given is None else [name for name in names if name not in self._given]
        if missing:
            raise ValueError(f"boxes must name every image, got none for {', '.join(missing[:10])}")

    def __call__(self, name: str, image: Image.Image) -> np.ndarray:
        if self._given is not None:
            box = self._given[name]
        else:
            box = self._for_all or self._detected(image) or random_box(self.area, philox(self.seed, "box", name))
        return box_mask(box, image.height, image.width)

    def _detected(self, image: Image.Image) -> Box | None:
        if self.detector is None:
            return None
        found = max(self._detect(image), key=lambda found: found["score"], default=None)
        if found is None:
            return None
        edges = [found["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")]
        width, height = image.size
        box = tuple(edge / side for edge, side in zip(edges, (width, height, width, height), strict=True))
        return box if _overlaps(box) else None

    @cached_property
    def _detect(self):
        from transformers import pipeline

        try:
            return pipeline("object-detection", model=self.detector)
        except Exception as error:  # no network, unknown names, missing packages: each raises its own
            raise ValueError(
                f"detector must be an object detection model that can be loaded, got {self.detector!r}: {error}"
            ) from error


def box_mask(box: Box, height: int, width: int) -> np.ndarray:
    """Bool `(height, width)`, true within the box; at least one pixel."""
    left, upper, right, lower = (min(max(edge, 0.0), 1.0) for edge in box)
    x0, y0 = min(int(left * width), width - 1), min(int(upper * height), height - 1)
    x1, y1 = max(round(right * width), x0 + 1), max(round(lower * height), y0 + 1)
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def random_box(area: float, generator: np.random.Generator) -> Box:
    """A box of this area, up to twice as long as high or high as long, anywhere in the image."""
    limit = min(2.0, 1 / area)  # neither side may exceed 1
    aspect = limit ** generator.uniform(-1, 1)
    width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
    left, upper = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
    return left, upper, left + width, upper + height


def _overlaps(box: Box) -> bool:
    left, upper, right, lower = box
    return max(left, 0) < min(right, 1) and max(upper, 0) < min(lower, 1)


def _checked(box, name: str) -> Box:
    if not (isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(e, int | float) for e in box)):
        raise ValueError(f"boxes must be [left, upper, right, lower], got {box!r} for {name}")
    if not _overlaps(box):
        raise ValueError(f"boxes must overlap the image, in fractions of width and height, got {list(box)} for {name}")
    return tuple(box)
