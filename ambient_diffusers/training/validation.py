"""Pictures of a run: samples of the adapter by the truncated and by the full sampler, beside the base's and the data."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers import SchedulerMixin
from diffusers.training_utils import free_memory
from PIL import Image

from .. import randomness
from ..data import LatentCache
from ..grid import image_grid
from ..models.sdxl import SDXLBase
from ..schedulers import stock_truncated_config
from .config import TrainingConfig
from .trackers import log_images


class Validation:
    """Draws validation images from the adapter as it stands; the VAE is in memory only while it decodes.

    Args:
        unet: The UNet with its adapter, not wrapped.
    """

    def __init__(self, base: SDXLBase, config: TrainingConfig, cache: LatentCache, unet, accelerator: Accelerator):
        self.base, self.config, self.cache, self.accelerator = base, config, cache, accelerator
        self.unet = unet
        self.folder = Path(config.output_dir) / "validation"
        stock = base.pipeline_scheduler
        t_n = int(cache.t_n.max())
        self.samplers = {"full sampler": stock}
        if t_n >= 0:
            truncated = EulerDiscreteScheduler.from_config(stock_truncated_config(stock.config, t_n))
            self.samplers = {f"truncated at {t_n}": truncated} | self.samplers

    def run(self, step: int) -> None:
        """Writes `validation/step-<step>.png`: a row for each prompt and sampler."""
        prompts = self.config.validation_prompts
        if not prompts or not self.accelerator.is_main_process:
            return
        rows = {
            f"{prompt}\n{name}": self.sample([prompt] * self.config.num_validation_images, scheduler)
            for prompt in prompts
            for name, scheduler in self.samplers.items()
        }
        self._show(rows, self.folder / f"step-{step:06d}.png", step)

    def finish(self, step: int) -> None:
        """Writes `samples.png`: training images as the model saw them, the base's samples, the adapter's."""
        if not self.accelerator.is_main_process:
            return
        chosen = torch.randperm(len(self.cache), generator=randomness.stream(self.config.seed, "samples.png"))
        chosen = [row for row in chosen.tolist() if self.cache.shapes[row] == self.cache.shapes[chosen[0]]][
            : 2 * self.config.num_validation_images
        ]
        prompts = self.config.validation_prompts
        prompts = [prompts[i % len(prompts)] if prompts else self.cache.captions[row] for i, row in enumerate(chosen)]
        height, width = (side * self.base.vae_scale_factor for side in self.cache.shapes[chosen[0]])
        size = {"height": height, "width": width}
        rows = {"training images\nas the model saw them": self.decode(self.cache.batch(chosen)["latents"])}
        self.unet.disable_adapters()
        rows["base"] = self.sample(prompts, self.base.pipeline_scheduler, **size)
        self.unet.enable_adapters()
        for name, scheduler in self.samplers.items():
            rows[f"fine-tuned\n{name}"] = self.sample(prompts, scheduler, **size)
        self._show(rows, Path(self.config.output_dir) / "samples.png", step, captions=prompts)

    @torch.no_grad()
    def sample(self, prompts: list[str], scheduler: SchedulerMixin, batch_size: int = 8, **size) -> list[Image.Image]:
        """One image a prompt; image i has the seed of `(seed, "sample", i)`, whatever the batch size."""
        pipeline = StableDiffusionXLPipeline(
            vae=self.base.vae().to(self.accelerator.device), unet=self.unet, scheduler=scheduler,
            text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            force_zeros_for_empty_prompt=self.base.force_zeros_for_empty_prompt, add_watermarker=False,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        images = []
        self.unet.eval()
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            embeds, pooled = (torch.stack(part) for part in zip(*map(self.cache.prompt, batch), strict=True))
            empty = [
                part.expand_as(full) for part, full in zip(self.cache.empty_prompt(), (embeds, pooled), strict=True)
            ]
            embeds, pooled, *empty = (
                part.to(self.accelerator.device, self.unet.dtype) for part in (embeds, pooled, *empty)
            )
            generators = [randomness.stream(self.config.seed, "sample", start + i) for i in range(len(batch))]
            with self.accelerator.autocast():
                images += pipeline(
                    prompt_embeds=embeds, pooled_prompt_embeds=pooled, negative_prompt_embeds=empty[0],
                    negative_pooled_prompt_embeds=empty[1], generator=generators,
                    num_inference_steps=self.config.num_inference_steps, guidance_scale=self.config.guidance_scale,
                    **size,
                ).images  # fmt: skip
        self.unet.train()
        del pipeline
        free_memory()
        return images

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents `(B, C, h, w)`, scaled as the UNet sees them, to images."""
        vae = self.base.vae()
        shift = getattr(vae.config, "shift_factor", None) or 0
        decoded = vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0]
        return VaeImageProcessor(vae_scale_factor=self.base.vae_scale_factor).postprocess(decoded)

    def _show(self, rows: dict[str, list[Image.Image]], file: Path, step: int, captions: list[str] = ()) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        grid = image_grid(rows, captions)
        grid.save(file)
        log_images(self.accelerator, file.stem, [grid], step)
