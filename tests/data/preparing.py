"""Folders of small pictures, and `prepare` with short arguments."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from ambient_diffusers.data import LatentCache, Source, Transform, prepare


def picture(number: int, height: int = 72, width: int = 96) -> Image.Image:
    """Smooth random colours, different for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_folder(folder: Path, count: int, **size) -> Path:
    """Pictures `0.png`, `1.png`, ... with captions beside them, two images a caption."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        picture(number, **size).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"picture {number // 2}\n")
    return folder


def run(folder, cache_dir, base, *, transform=None, ambient_timestep=500, seed=0, dtype="fp32", **kwargs):
    """`prepare` on one folder (or on given sources); returns the report and the cache."""
    sources = folder if isinstance(folder, list) else [Source(str(folder), ambient_timestep=ambient_timestep)]
    transform = transform or Transform(64)
    report = prepare(sources, cache_dir, base, transform, seed=seed, dtype=dtype, progress=False, **kwargs)
    return report, LatentCache(cache_dir)


def image_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
