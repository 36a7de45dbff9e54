"""A model as the denoiser that experiments look at: images to latents and back, and `h(x_t, t) = E[x_0 | x_t]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from ..data.latent_encoder import scale
from ..finetuned import FineTuned, FineTunedOptions
from ..models.sdxl import PromptEncoder
from ..parametrization import predict_epsilon, predict_x_0
from ..processes import processes
from ..sampling import PRECISIONS
from ..schedule import NoiseSchedule


class Denoiser:
    """A base, or a LoRA on it. Opening reads configurations only; the models load when they are first used.

    The VAE runs in float32 whatever the precision of the rest.

    Args:
        model: A base and a LoRA, or the folder of an SDXL pipeline.
        mixed_precision: `no`, `fp16` or `bf16`, of UNet and text encoders.
        label: What tables and plots call it; default the name of the LoRA's folder, else of the base's.

    Raises:
        ValueError: where model is no SDXL base or LoRA.
    """

    def __init__(self, model: FineTunedOptions | str | Path, mixed_precision: str = "no", label: str | None = None):
        if mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision must be one of {', '.join(PRECISIONS)}, got {mixed_precision!r}")
        if not isinstance(model, FineTunedOptions):
            model = FineTunedOptions(pretrained_model_name_or_path=str(model))
        self.opened, self.mixed_precision = FineTuned(model), mixed_precision
        lora = self.opened.lora
        self.label = label or (Path(self.opened.base.name).name if lora is None else lora.parent.name)

    def describe(self) -> dict:
        """What decides its figures, in plain values."""
        return self.opened.describe() | {"mixed_precision": self.mixed_precision}

    @property
    def schedule(self) -> NoiseSchedule:
        return self.opened.base.schedule

    @property
    def has_lora(self) -> bool:
        return self.opened.lora is not None

    @property
    def lowest_timestep(self) -> int:
        """Where its reverse process ends with `E[x_0 | x_t]`: t_n with the truncated sampler, else 0."""
        return self.opened.ambient_timestep if self.opened.sampler == "truncated" else 0

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` that the base was trained on."""
        return (self.opened.base.default_resolution,) * 2

    @cached_property
    def pipeline(self) -> StableDiffusionXLPipeline:
        pipeline = self.opened.pipeline(PRECISIONS[self.mixed_precision], add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.to(torch.float32)
        for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
            part.eval().requires_grad_(False)
        return pipeline.to(processes().device)

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of one size to x_0, the mean of the VAE's posterior as the UNet sees it; float32 `(B, C, h, w)`, CPU."""
        pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        pixels = pixels.permute(0, 3, 1, 2).to(self.pipeline.device, torch.float32) / 127.5 - 1
        return scale(self.pipeline.vae.encode(pixels).latent_dist.mean.cpu(), self.pipeline.vae)

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> list[Image.Image]:
        """Latents `(B, C, h, w)` as the UNet sees them to images."""
        vae = self.pipeline.vae
        latents = x_0.to(self.pipeline.device, torch.float32)
        config = vae.config
        if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
            mean, std = (
                torch.tensor(v, device=latents.device).view(1, -1, 1, 1)
                for v in (config.latents_mean, config.latents_std)
            )
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor
        decoded = vae.decode(latents, return_dict=False)[0]
        return self.pipeline.image_processor.postprocess(decoded)

    def conditioned(self, prompts: Sequence[str]) -> ConditionedDenoiser:
        """The denoiser for images with these prompts, one a row."""
        with torch.no_grad():
            embeds, pooled = PromptEncoder(self.pipeline, self.pipeline.device)(list(prompts))
        return ConditionedDenoiser(self, embeds, pooled)

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Within, the model is its base; what was conditioned outside keeps the LoRA's embeddings."""
        parts = [self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.text_encoder_2]
        adapted = [part for part in parts if getattr(part, "peft_config", None)]
        for part in adapted:
            part.disable_adapters()
        try:
            yield
        finally:
            for part in adapted:
                part.enable_adapters()


class ConditionedDenoiser:
    """`(x_t (M, ...), t (M,), rows (M,)) -> (M, ...)`: of states that belong to rows of the prompts, on the CPU, float32."""

    def __init__(self, model: Denoiser, embeds: Tensor, pooled: Tensor):
        self.model, self.embeds, self.pooled = model, embeds, pooled

    def epsilon(self, x_t: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """`E[eps | x_t]`."""
        return self._predict(x_t, t, rows, predict_epsilon)

    def __call__(self, x_t: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """`E[x_0 | x_t]`."""
        return self._predict(x_t, t, rows, predict_x_0)

    @torch.no_grad()
    def _predict(self, x_t: Tensor, t: Tensor, rows: Tensor | None, predict: Callable) -> Tensor:
        unet, base = self.model.pipeline.unet, self.model.opened.base
        rows = torch.arange(len(x_t)) if rows is None else rows
        embeds, pooled = (part[rows.to(part.device)] for part in (self.embeds, self.pooled))
        height, width = (side * base.vae_scale_factor for side in x_t.shape[-2:])
        time_ids = torch.tensor([[height, width, 0, 0, height, width]] * len(x_t), device=unet.device)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        output = unet(x_t.to(unet.device, unet.dtype), t.to(unet.device), embeds, added_cond_kwargs=added)
        return predict(output.sample.float().cpu(), x_t, t, self.model.schedule, base.prediction_type)
