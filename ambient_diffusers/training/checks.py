"""What can be refused before a model loads or a file is written."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from diffusers.optimization import SchedulerType

from ..data import Source, Transform
from ..models.base_weights import check_base_weights
from ..models.sdxl import SDXLBase
from .config import TrainingConfig
from .optimizer import check_optimizer
from .trackers import check_trackers


def check_run(config: TrainingConfig, base: SDXLBase, sources: list[Source], transform: Transform) -> None:
    """Raises a ValueError that names the argument, its value and what is allowed."""
    check_optimizer(config.optimizer_name)
    check_base_weights(config.base_weights)
    if config.enable_xformers_memory_efficient_attention:
        check_xformers()
    check_trackers(config.report_to)
    schedulers = [str(kind.value) for kind in SchedulerType if kind != SchedulerType.PIECEWISE_CONSTANT]
    if config.lr_scheduler not in schedulers:
        raise ValueError(f"lr_scheduler must be one of {', '.join(schedulers)}, got {config.lr_scheduler!r}")
    highest = base.schedule.num_train_timesteps - 2  # at the last timestep nothing noisier is left to learn from
    for source in sources:
        if not -1 <= source.ambient_timestep <= highest:
            raise ValueError(f"ambient_timestep must lie in -1..{highest}, got {source.ambient_timestep}")
    if not sources and not config.cache_dir.is_dir():
        raise ValueError(
            "one of train_data_dir, dataset_name, sources or a finished latent_cache_dir must be given; there is no "
            f"cache at {str(config.cache_dir)!r}"
        )
    for width, height in transform.buckets or [(transform.resolution, transform.resolution)]:
        if width % base.vae_scale_factor or height % base.vae_scale_factor:
            raise ValueError(
                f"resolution and buckets must be multiples of {base.vae_scale_factor}, the VAE's factor, "
                f"got {width}x{height}"
            )


def check_xformers() -> None:
    """Raises a ValueError where xformers' attention cannot be used."""
    name = "enable_xformers_memory_efficient_attention"
    if find_spec("xformers") is None:
        raise ValueError(f"{name} needs xformers: pip install 'ambient-diffusers[gpu]'")
    if not torch.cuda.is_available():
        raise ValueError(f"{name} needs a CUDA GPU, and there is none; leave it out: PyTorch's own attention is used")
