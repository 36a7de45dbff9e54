"""Crops to latents of their own noise level, each with one draw that belongs to it."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .. import tweedie
from ..models.sdxl import SDXLBase
from ..randomness import randn
from ..schedule import NoiseSchedule
from .transform import Transform

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


class LatentEncoder:
    """`x_tn = alpha_n x_0 + sigma_n z` from pixels; x_0 never leaves this object.

    The VAE's own draw and z come from streams that belong to the image's bytes and the seed, z moreover to the VAE, the
    noise schedule, the transform and t_n: the same key gives the same noise in every process and after every restart,
    and two different keys never share a draw.

    Args:
        vae_dtype: In which the VAE runs; SDXL's own overflows in fp16.
    """

    def __init__(
        self,
        base: SDXLBase,
        transform: Transform,
        seed: int,
        device: torch.device | str = "cpu",
        vae_dtype: torch.dtype = torch.float32,
    ):
        self.vae, self.schedule, self.seed, self.device = base.vae(vae_dtype).to(device), base.schedule, seed, device
        self.draw = draw_key(base, transform)

    @torch.no_grad()
    def __call__(self, crops: list[np.ndarray], draw_ids: list[str], t_n: list[int], files: list[str]) -> Tensor:
        """Encodes and noises a batch.

        Args:
            crops: RGB, uint8 `(H, W, 3)`, all of one size.
            draw_ids: What each image's noise is drawn under, see `draw_id`.
            t_n: The noise level of each.
            files: Their names, for the error.

        Returns:
            `x_tn (B, C, h, w)`, float32, on the CPU.

        Raises:
            ValueError: naming the files where the VAE gives NaN or infinity.
        """
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).to(self.device, self.vae.dtype) / 127.5 - 1
        posterior = self.vae.encode(pixels).latent_dist
        mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
        x_0 = scale(mean + std * randn(draw_ids, mean.shape[1:], self.seed, "vae posterior"), self.vae)
        broken = [file for file, latent in zip(files, x_0, strict=True) if not latent.isfinite().all()]
        if broken:
            raise ValueError(
                f"the VAE in {str(self.vae.dtype).removeprefix('torch.')} gives NaN or infinity for "
                f"{', '.join(broken)}: run it in float32, or use "
                "--pretrained_vae_model_name_or_path madebyollin/sdxl-vae-fp16-fix"
            )
        ids = [f"{image} {t}" for image, t in zip(draw_ids, t_n, strict=True)]
        noise = randn(ids, x_0.shape[1:], self.seed, "ambient noise", self.draw)
        return tweedie.add_noise(x_0, noise, torch.tensor(t_n), self.schedule)


def scale(latents: Tensor, vae: AutoencoderKL) -> Tensor:
    """The VAE's latents to those of the UNet, the inverse of what `StableDiffusionXLPipeline` does before decoding."""
    config = vae.config
    if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return (latents - mean) * config.scaling_factor / std
    return latents * config.scaling_factor


def draw_key(base: SDXLBase, transform: Transform) -> str:
    """What z depends on beside the image, t_n and the seed."""
    return digest(base.vae_fingerprint, schedule_fingerprint(base.schedule), transform.key)


def schedule_fingerprint(schedule: NoiseSchedule) -> str:
    """A hash of alpha_t^2 at every t."""
    table = schedule.alphas_cumprod(torch.arange(schedule.num_train_timesteps))
    return digest(*(value.hex() for value in table.tolist()))


def digest(*parts: str) -> str:
    """The first 128 bits of SHA-256, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
