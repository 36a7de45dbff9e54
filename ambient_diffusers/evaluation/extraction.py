"""Features of many images, computed once, kept on disk in blocks, and read back block by block."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..processes import processes
from .features import Features
from .image_set import ImageSet
from .sharing import share

BLOCK = 128
"""Images in one file; also what two processes share the work in."""


class FeatureTable:
    """The features of an image set, `(N, D)` in blocks of files; unreadable images have no row.

    Attributes:
        images: The image set.
        index: For each row the number of its image, `(N,)`.
        skipped: `(name, reason)` of the images that could not be read.
    """

    def __init__(self, images: ImageSet, files: list[Path]):
        self.images, self._files = images, files
        self.skipped: list[tuple[str, str]] = []
        rows = []
        for number, file in enumerate(files):
            with safe_open(file, "pt") as reader:
                rows.append(reader.get_tensor("index") + number * BLOCK)
                self.skipped += map(tuple, json.loads(reader.metadata()["skipped"]))
        self.index = torch.cat(rows)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def names(self) -> list[str]:
        """The image of each row."""
        return [self.images.names[i] for i in self.index.tolist()]

    def blocks(self) -> Iterator[Tensor]:
        """Consecutive rows, float32, one file at a time."""
        for file in self._files:
            with safe_open(file, "pt") as reader:
                yield reader.get_tensor("features")

    def tensor(self) -> Tensor:
        """All rows, float32 `(N, D)`."""
        return torch.cat(list(self.blocks()))


def extract(images: ImageSet, features: Features, folder: str | Path, strict: bool = False) -> FeatureTable:
    """Computes what `folder` does not hold yet, shared by the processes of this run.

    Blocks are fixed by the images' numbers, so that the features are the same whoever computes them. A block belongs to
    its images' names, sizes and times: a changed image redoes its block.

    Args:
        folder: Where the blocks of any number of image sets and features are kept.
        strict: Make an unreadable image an error instead of a warning that it is left out.

    Raises:
        ValueError: where the features cannot be loaded, no image can be read, or, with `strict`, one cannot.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(images), BLOCK)
    files = [folder / f"{features.name}-{_block_key(images, features, start)}.safetensors" for start in starts]
    missing = [(start, file) for start, file in zip(starts, files, strict=True) if not file.exists()]
    processes().wait_for_everyone()  # nobody writes before all have looked
    for start, file in share(missing, f"{features.label} of {Path(images.path).name}"):
        _write_block(images, features, start, file)
    processes().wait_for_everyone()
    table = FeatureTable(images, files)
    if table.skipped:
        some = ", ".join(f"{name} ({reason})" for name, reason in table.skipped[:10])
        message = f"{len(table.skipped)} of {len(images)} images of {images.path!r} cannot be read: {some}"
        if strict or not len(table):
            raise ValueError(message)
        warnings.warn(f"{message}; left out", stacklevel=2)
    return table


def _block_key(images: ImageSet, features: Features, start: int) -> str:
    parts = [features.name, features.weights, images.key(start, start + BLOCK)]
    return sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _write_block(images: ImageSet, features: Features, start: int, file: Path) -> None:
    pictures, index, skipped = [], [], []
    for number in range(start, min(start + BLOCK, len(images))):
        try:
            pictures.append(images[number])
            index.append(number - start)
        except (ValueError, OSError) as error:
            skipped.append((images.names[number], str(error)))
    aside = file.with_suffix(".tmp")
    tensors = {"features": features(pictures), "index": torch.tensor(index, dtype=torch.long)}
    save_file(tensors, aside, metadata={"skipped": json.dumps(skipped)})
    os.replace(aside, file)
