"""A few hundred captioned crops of the photographs that come with scikit-image: real images without a download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..randomness import stream
from .source import Source

NAME = "skimage-photographs"
"""The `dataset_name` that stands for this set."""

CAPTIONS = {
    "astronaut": "a photograph of an astronaut in an orange suit",
    "brick": "a photograph of a brick wall",
    "camera": "a black and white photograph of a man with a camera",
    "chelsea": "a photograph of a ginger cat",
    "clock": "a black and white photograph of a clock",
    "coffee": "a photograph of a cup of coffee on a wooden table",
    "coins": "a black and white photograph of old coins",
    "grass": "a black and white photograph of grass",
    "gravel": "a black and white photograph of gravel",
    "hubble_deep_field": "a photograph of galaxies in a black sky",
    "immunohistochemistry": "a microscope photograph of brown and blue tissue",
    "moon": "a black and white photograph of the moon",
    "retina": "a photograph of an orange retina",
    "rocket": "a photograph of a rocket launch",
    "stereo_motorcycle": "a photograph of a motorcycle in a garage",
}


def unpack(source: Source, folder: Path) -> Source:
    """The same source; where it names this set, as the folder `folder/skimage-photographs`, which is written first."""
    if source.dataset_name != NAME:
        return source
    return replace(source, dataset_name=None, train_data_dir=str(write_photographs(folder / NAME)))


def write_photographs(folder: str | Path, crops: int = 24, size: int = 128) -> Path:
    """Writes `crops` square crops of each photograph, `size` pixels a side, with `metadata.jsonl`.

    The crops are the same on every machine: place and side (a quarter to three quarters of the photograph's shorter
    side) come from a stream of their own. A folder that is already whole is left alone.

    Returns:
        The folder.
    """
    import skimage.data

    folder = Path(folder)
    if (folder / "metadata.jsonl").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, caption in CAPTIONS.items():
        picture = getattr(skimage.data, name)()
        picture = Image.fromarray(picture[0] if isinstance(picture, tuple) else picture).convert("RGB")
        for number in range(crops):
            u, v, w = torch.rand(3, generator=stream(0, NAME, name, number)).tolist()
            side = round(min(picture.size) * (0.25 + 0.5 * u))
            left, top = round(v * (picture.width - side)), round(w * (picture.height - side))
            crop = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
            file_name = f"{name}-{number:02d}.png"
            crop.save(folder / file_name)
            rows.append(json.dumps({"file_name": file_name, "text": caption}))
    # Last, so that a folder that has it is whole.
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder
