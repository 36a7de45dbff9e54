"""The loss of samples that are never trained on, at noise that never changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import randomness
from ..data import LatentCache
from ..losses import ambient_dsm_loss
from ..schedule import NoiseSchedule

LEVELS = 8
"""Timesteps at which each sample is measured."""


def held_out_rows(cache: LatentCache, count: int, seed: int) -> list[int]:
    """Rows to hold out, drawn by image: rows that share an image are held out together.

    Raises:
        ValueError: where nothing would be left to train on.
    """
    images = sorted(set(cache.latent_ids.tolist()))
    if count >= len(images):
        raise ValueError(f"num_validation_samples must be below the number of images, {len(images)}, got {count}")
    order = torch.randperm(len(images), generator=randomness.stream(seed, "held out"))[:count].tolist()
    chosen = {images[i] for i in order}
    return [row for row, image in enumerate(cache.latent_ids.tolist()) if image in chosen]


@torch.no_grad()
def held_out_loss(
    denoiser_of: Callable[[dict[str, Tensor]], Callable[[Tensor, Tensor], Tensor]],
    cache: LatentCache,
    rows: list[int],
    schedule: NoiseSchedule,
    prediction_type: str,
    seed: int,
    device: torch.device,
) -> float:
    """The mean ambient loss of the rows, each at `LEVELS` timesteps spread evenly over `t_n + 1 .. T - 1`.

    The same noise every time, so two values differ by the model alone.

    Args:
        denoiser_of: From a batch of the cache to `(x_t, t) -> model output` under its conditioning.
    """
    losses = []
    for row in rows:
        batch = cache.batch([row])
        t_n, denoiser = batch["t_n"], denoiser_of(batch)
        for level in range(LEVELS):
            t = t_n + 1 + ((level + 0.5) / LEVELS * (schedule.num_train_timesteps - 1 - t_n)).long()
            noise = randomness.randn([row], batch["latents"].shape[1:], seed, "held-out noise", level)
            loss = ambient_dsm_loss(
                denoiser, batch["latents"].to(device), t_n.to(device), schedule,
                t=t.to(device), noise=noise.to(device), prediction_type=prediction_type,
            )  # fmt: skip
            losses.append(loss)
    return torch.cat(losses).mean().item()
