"""The ancestral sampler that ends at the noise level of the data."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, SchedulerMixin  # noqa: F401 (a pipeline looks for it beside the class)
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from ..schedule import CLEAN
from .truncation import DiscreteTruncationMixin, ambient_init


class AmbientDDPMScheduler(DiscreteTruncationMixin, DDPMScheduler):
    """`DDPMScheduler` whose trajectory ends at `ambient_timestep`, the last step returning `E[x_0 | x_tn]`.

    Args:
        ambient_timestep: t_n, in `-1..num_train_timesteps - 1`. `-1`: every step is the parent's, bit for bit.

    All other arguments are those of `diffusers.DDPMScheduler`; `from_config(stock_config, ambient_timestep=500)` makes
    one from any stock config. The timesteps are those of `DiscreteTruncationMixin._truncated_timesteps`, or a
    falling list that ends at t_n. `clip_sample` and `thresholding` hold for the returned x_0 too.
    A saved pipeline that uses this class needs this package to load: publish `stock_truncated_config` instead.

    References:
        arXiv 2404.10177: a denoiser learnt above t_n samples by stopping at t_n and returning its x_0.
    """

    __init__ = ambient_init(DDPMScheduler.__init__)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """As the parent's; a ValueError for more steps than `t_n..T-1` holds or a list that does not end at t_n."""
        t_n = self.config.ambient_timestep
        if t_n != CLEAN and timesteps is not None and timesteps[-1] != t_n:
            raise ValueError(f"timesteps must end at ambient_timestep={t_n}, got {timesteps[-1]}")
        if t_n == CLEAN or timesteps is not None:
            return super().set_timesteps(num_inference_steps, device, timesteps)
        self._check_num_inference_steps(num_inference_steps)
        super().set_timesteps(num_inference_steps)
        self.timesteps = self._truncated_timesteps(num_inference_steps).to(device)

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """As the parent's; at t_n `prev_sample` is `pred_original_sample`, without noise, for every `variance_type`."""
        self._check_timestep(timestep)
        output = super().step(model_output, timestep, sample, generator)
        if timestep == self.config.ambient_timestep:
            output.prev_sample = output.pred_original_sample
        return output if return_dict else (output.prev_sample, output.pred_original_sample)
