"""A base, a LoRA on it, and the sampler that suits what the LoRA was trained for."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.schedulers import SchedulerMixin
from safetensors import SafetensorError

from .models.lora import WEIGHTS_NAME, read_provenance
from .models.sdxl import SDXLBase
from .parsing import option
from .schedulers import AmbientEulerDiscreteScheduler, stock_truncated_config

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAMPLERS = ("truncated", "full")


@dataclass(frozen=True)
class FineTunedOptions:
    """The options that name one; every verb that loads a model has them."""

    pretrained_model_name_or_path: str | None = option(
        "Folder or hub name of the SDXL base. Default: the base that the LoRA names.", aliases=["--base"]
    )
    pretrained_vae_model_name_or_path: str | None = option("Another VAE for the base, such as an fp16-safe one.")
    variant: str | None = option("File variant of the base's weights, such as fp16.")
    revision: str | None = option("Revision of the base on the hub.")
    lora: str | None = option("LoRA: a training's output_dir, or a .safetensors file.")
    sampler: str | None = option(
        "`truncated` stops at ambient_timestep and returns E[x_0|x_tn]; `full` is the base's own. Default: truncated for a "
        "LoRA that was trained on noisy data without a low-noise objective."
    )
    ambient_timestep: int | None = option("t_n of the truncated sampler. Default: what the LoRA names.")


class FineTuned:
    """Opens and checks configurations only; `pipeline` loads the models.

    Args:
        options: Which base, LoRA and sampler. What is left out is read off the LoRA's provenance.

    Raises:
        ValueError: where the LoRA or the base is missing, and for a truncated sampler whose t_n is not known or not one
            of the base's timesteps.
    """

    def __init__(self, options: FineTunedOptions):
        if options.sampler not in (None, *SAMPLERS):
            raise ValueError(f"sampler must be one of {SAMPLERS}, got {options.sampler!r}")
        self.vae = options.pretrained_vae_model_name_or_path
        self.lora = None if options.lora is None else lora_file(options.lora)
        self.provenance = {} if self.lora is None else _provenance(self.lora)
        base = options.pretrained_model_name_or_path or self.provenance.get("base")
        if base is None:
            raise ValueError("pretrained_model_name_or_path must be given: no LoRA names its base")
        self.base = SDXLBase(
            base, options.pretrained_vae_model_name_or_path, options.variant, revision=options.revision
        )
        t_n = options.ambient_timestep
        if t_n is None:
            # Of data at several levels, the level above which every image was learnt from; as validation does.
            t_n = max(self.provenance.get("ambient_timestep", [-1]))
        trained_below = self.provenance.get("low_noise_objective", "none") != "none"
        self.sampler = options.sampler or ("truncated" if t_n >= 0 and not trained_below else "full")
        if self.sampler == "truncated":
            if t_n < 0 and options.ambient_timestep is None:
                raise ValueError("ambient_timestep must be given for the truncated sampler: no LoRA names one")
            self.base.schedule.check_timestep(t_n, "ambient_timestep", lowest=0)
        self.ambient_timestep = t_n

    def stock_scheduler(self) -> SchedulerMixin:
        """The sampler in diffusers' own classes: what is published."""
        stock = self.base.pipeline_scheduler
        if self.sampler == "full":
            return stock
        return EulerDiscreteScheduler.from_config(stock_truncated_config(stock.config, self.ambient_timestep))

    def scheduler(self) -> SchedulerMixin:
        """The sampler as this package has it; it refuses numbers of steps with which the stock one goes wrong."""
        stock = self.base.pipeline_scheduler
        if self.sampler == "full":
            return stock
        return AmbientEulerDiscreteScheduler.from_config(stock.config, ambient_timestep=self.ambient_timestep)

    def pipeline(self, dtype: torch.dtype = torch.float32, **components) -> StableDiffusionXLPipeline:
        """The stock pipeline with the LoRA as an adapter."""
        pipeline = self.base.pipeline(dtype, **({"scheduler": self.scheduler()} | components))
        if self.lora is not None:
            pipeline.load_lora_weights(str(self.lora.parent), weight_name=self.lora.name)
        return pipeline

    def describe(self) -> dict[str, Any]:
        """What decides the images, in plain values: base, LoRA by its bytes, sampler."""
        return {
            "base": self.base.name,
            "vae": self.vae,
            "lora": None if self.lora is None else sha256(self.lora.read_bytes()).hexdigest()[:16],
            "sampler": self.sampler,
            "ambient_timestep": self.ambient_timestep if self.sampler == "truncated" else None,
        }


def lora_file(path: str | Path) -> Path:
    """The LoRA's safetensors file: the path itself, or the one that a training writes below it.

    Raises:
        ValueError: where there is none.
    """
    path = Path(path)
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(f"lora must be a .safetensors file or a folder with {WEIGHTS_NAME}, got {str(path)!r}")
    return file


def _provenance(file: Path) -> dict:
    try:
        return read_provenance(file)
    except SafetensorError as error:
        raise ValueError(f"lora must be a safetensors file, got {str(file)!r}: {error}") from error
