"""The captioned pictures of the diffusion model, encoded once."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from .config import BuildConfig
from .emoji import Emoji, draw_emoji
from .shapes import draw_shape
from .vae import to_tensor

CATEGORY_WEIGHTS = {
    "Flags": 0.2,
    "Symbols": 0.5,
    "Food & Drink": 1.5,
    "Smileys & Emotion": 1.5,
    "Animals & Nature": 1.5,
}


def captioned_pictures(config: BuildConfig, emoji: list[Emoji]) -> Iterator[tuple[Image.Image, str, list[int], float]]:
    """Picture, caption, SDXL's size conditioning and sampling weight (0 stands for a drawn shape)."""
    rng, data = np.random.default_rng([config.seed, 3]), config.data
    jobs: list[Emoji | None] = [None] * data.shapes
    jobs += [e for e in emoji if not e.held_out for _ in range(data.emoji_variants)]
    target = data.image_size
    for job in jobs:
        size = data.crop_from if rng.random() < data.crop_fraction else target
        picture, caption = draw_shape(rng, size) if job is None else draw_emoji(job, rng, size)
        top, left = (int(v) for v in rng.integers(0, size - target + 1, 2))
        picture = picture.crop((left, top, left + target, top + target))
        weight = 0.0 if job is None else CATEGORY_WEIGHTS.get(job.category, 1.0)
        yield picture, caption, [size, size, top, left, target, target], weight


def encode_dataset(config: BuildConfig, emoji: list[Emoji], encode, folder: Path) -> None:
    """Write `latents.safetensors` (unit variance, fp16) and `captions.json`; `encode`: (B, 3, H, W) -> latents."""
    total = config.data.shapes + config.data.emoji_variants * sum(not e.held_out for e in emoji)
    latents, captions, time_ids, weights = [], [], [], []
    for picture, caption, ids, weight in tqdm(
        captioned_pictures(config, emoji), total=total, desc="latents", mininterval=10
    ):
        latents.append(encode(to_tensor([np.asarray(picture)])).half())
        captions.append(caption)
        time_ids.append(ids)
        weights.append(weight)
    tensors = {
        "latents": torch.cat(latents).contiguous(),
        "time_ids": torch.tensor(time_ids, dtype=torch.float32),
        "weights": torch.tensor(weights),
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    save_file(tensors, folder / "latents.safetensors")


def load_dataset(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    return load_file(folder / "latents.safetensors"), json.loads((folder / "captions.json").read_text())
