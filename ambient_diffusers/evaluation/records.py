"""Figures of single images, computed block by block and kept, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from PIL import Image

from ..processes import processes
from .image_set import ImageSet
from .output import read_json, write_json
from .sharing import share


def image_records(
    images: ImageSet,
    folder: str | Path,
    key: dict,
    compute: Callable[[Sequence[int], list[Image.Image]], list[dict]],
    block: int,
    description: str,
    strict: bool = False,
) -> list[dict]:
    """What `compute` says of each readable image, with its `index`, `file` and `caption`, in order.

    The processes share the blocks. A block is computed again if its images, captions or the key are others than those
    it was computed for; blocks are fixed by the images' numbers, so figures do not depend on who computes them.

    Args:
        folder: Where blocks are kept, of any number of image sets and keys.
        key: What decides the figures beside the images: the model and the settings, as plain values.
        compute: `(numbers of the images, images) -> records`, one a picture.
        block: Images in one call.
        strict: Make an unreadable image an error instead of a warning that it is left out.

    Raises:
        ValueError: where no image can be read, or, with `strict`, one cannot.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [range(start, min(start + block, len(images))) for start in range(0, len(images), block)]

    def file(numbers: range) -> Path:
        parts = [key, numbers.start, images.key(numbers.start, numbers.stop), [images.captions[n] for n in numbers]]
        return folder / f"{sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]}.json"

    missing = [numbers for numbers in blocks if not file(numbers).exists()]
    processes().wait_for_everyone()  # nobody writes before all have looked
    for numbers in share(missing, description):
        pictures, readable, skipped = [], [], []
        for number in numbers:
            try:
                pictures.append(images[number])
                readable.append(number)
            except (ValueError, OSError) as error:
                skipped.append([images.names[number], str(error)])
        records = compute(readable, pictures) if pictures else []
        labels = [{"index": n, "file": images.names[n], "caption": images.captions[n]} for n in readable]
        rows = [label | record for label, record in zip(labels, records, strict=True)]
        write_json(file(numbers), {"records": rows, "skipped": skipped})
    processes().wait_for_everyone()
    contents = [read_json(file(numbers)) for numbers in blocks]
    skipped = [pair for content in contents for pair in content["skipped"]]
    records = [record for content in contents for record in content["records"]]
    if skipped:
        some = ", ".join(f"{name} ({reason})" for name, reason in skipped[:10])
        message = f"{len(skipped)} of {len(images)} images of {images.path!r} cannot be read: {some}"
        if strict or not records:
            raise ValueError(message)
        warnings.warn(f"{message}; left out", stacklevel=2)
    return records
