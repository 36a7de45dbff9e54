"""The paper's first attack: can the model restore an image from extreme noise?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from .. import tweedie
from ..losses import mean_flat
from ..randomness import randn
from .attack import Attempts, attack_sets, run_attack
from .denoiser import Denoiser
from .reverse import posterior_sample


def attack_noise(
    model: Denoiser,
    train: str | Path,
    output_dir: str | Path,
    *,
    held_out: str | Path | None = None,
    timestep: int = 900,
    attempts: int = 4,
    steps: int = 25,
    captions: bool = True,
    features: str = "efficientnet-lite0",
    weights: str | None = None,
    thresholds: tuple[float, ...] = (0.9, 0.95, 0.99),
    permutations: int = 2000,
    size: tuple[int, int] | None = None,
    max_images: int | None = None,
    batch_size: int = 8,
    top: int = 8,
    seed: int = 0,
    strict: bool = False,
) -> dict:
    """Encodes images, noises them to a timestep and runs the reverse process, whole and in one step.

    Args:
        train: Images that may have been memorised, a folder or a data set.
        held_out: Images of the same origin that were never trained on.
        timestep: Noise level, in `0..T-1`; 900 leaves SDXL nearly nothing of the image.
        attempts: Noise draws an image; the one that comes nearest counts.
        steps: Evaluations of a whole reverse process.
        captions: Condition on the image's caption; else on the empty prompt.
        features, weights, thresholds, permutations: As for `memorisation`.
        size: `(height, width)` of the images; default what the base was trained on.
        max_images: Attack only so many of each set.

    Returns:
        The content of `attack_noise.json`; see `run_attack`. `error` is that of the latent.

    Raises:
        ValueError: for a timestep outside the schedule and no attempts, and as `run_attack`.
    """
    model.schedule.check_timestep(timestep, "timestep", lowest=0)
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    size = size or model.size

    def produce(_, numbers: Sequence[int], pictures: list[Image.Image], prompts: list[str]) -> list[Attempts]:
        return restore_from_noise(model, numbers, pictures, prompts, timestep, attempts, steps, seed)

    settings = {
        "attack": "noise", "model": model.describe(), "timestep": timestep, "attempts": attempts, "steps": steps,
        "captions": captions, "size": size, "seed": seed,
    }  # fmt: skip
    return run_attack(
        "attack_noise", produce, settings, attack_sets(train, held_out, size, max_images), Path(output_dir),
        features=features, weights=weights, thresholds=thresholds, permutations=permutations, captions=captions,
        batch_size=batch_size, top=top, seed=seed, strict=strict, label=model.label,
    )  # fmt: skip


def restore_from_noise(
    model: Denoiser,
    numbers: Sequence[int],
    pictures: list[Image.Image],
    prompts: list[str],
    timestep: int,
    attempts: int,
    steps: int,
    seed: int,
) -> list[Attempts]:
    """Attempt k of image i has the noise of `(seed, i, k)`, whatever the batch around it."""
    x_0, h = model.encode(pictures), model.conditioned(prompts)
    t = torch.full((len(x_0),), timestep)
    restored, one_step, errors, seen = [], [], [], []
    for k in range(attempts):
        ids = [f"{number} {k}" for number in numbers]
        x_t = tweedie.add_noise(x_0, randn(ids, x_0.shape[1:], seed, "attack noise"), t, model.schedule)
        sample = posterior_sample(h, x_t, timestep, model.schedule, ids, seed, steps, model.lowest_timestep)
        restored.append(model.decode(sample))
        one_step.append(model.decode(h(x_t, t)))
        errors.append(mean_flat((sample - x_0).square()).tolist())
        if k == 0:
            seen = model.decode(x_t)
    return [
        Attempts(seen[i], [r[i] for r in restored], [e[i] for e in errors], [o[i] for o in one_step])
        for i in range(len(pictures))
    ]
