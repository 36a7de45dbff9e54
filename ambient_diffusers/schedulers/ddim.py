"""The implicit sampler that ends at the noise level of the data."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, SchedulerMixin  # noqa: F401 (a pipeline looks for it beside the class)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..parametrization import predict_epsilon
from ..schedule import CLEAN, NoiseSchedule
from ..tweedie import variance
from .truncation import DiscreteTruncationMixin, ambient_init


class AmbientDDIMScheduler(DiscreteTruncationMixin, DDIMScheduler):
    """`DDIMScheduler` whose trajectory ends at `ambient_timestep`, the last step returning `E[x_0 | x_tn]`.

    Args:
        ambient_timestep: t_n, in `-1..num_train_timesteps - 1`. `-1`: every step is the parent's, bit for bit.

    All other arguments are those of `diffusers.DDIMScheduler`; `from_config(stock_config, ambient_timestep=500)` makes
    one from any stock config. The timesteps are those of `DiscreteTruncationMixin._truncated_timesteps`;
    `set_alpha_to_one` has no say in the last step.
    A saved pipeline that uses this class needs this package to load: publish `stock_truncated_config` instead.

    References:
        Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, eq. 12 and 16; arXiv 2404.10177.
    """

    __init__ = ambient_init(DDIMScheduler.__init__)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As the parent's; raises a ValueError for more steps than `t_n..T-1` holds."""
        if self.config.ambient_timestep == CLEAN:
            return super().set_timesteps(num_inference_steps, device)
        self._check_num_inference_steps(num_inference_steps)
        super().set_timesteps(num_inference_steps)
        self.timesteps = self._truncated_timesteps(num_inference_steps).to(device)

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """As the parent's; a truncated run steps to the next timestep of the list, and from t_n to `pred_original_sample`.

        The parent goes down by `T // num_inference_steps`, whatever the list says.
        """
        if self.config.ambient_timestep == CLEAN:
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        self._check_timestep(timestep)
        # The parent's prediction of x_0, with its clipping and thresholding, does not depend on where the step leads.
        prev_sample = x_0 = super().step(model_output, timestep, sample).pred_original_sample
        if timestep > self.config.ambient_timestep:
            if generator is not None and variance_noise is not None:
                raise ValueError("generator and variance_noise must not both be given: the noise has one source")
            if eta > 0 and variance_noise is None:
                variance_noise = randn_tensor(model_output.shape, generator, model_output.device, model_output.dtype)
            t, schedule = int(timestep), NoiseSchedule.from_scheduler(self)
            s = int(self.timesteps[self.timesteps.tolist().index(t) + 1])
            if use_clipped_model_output:
                epsilon = predict_epsilon(x_0, sample, t, schedule, "sample")
            else:
                epsilon = predict_epsilon(model_output, sample, t, schedule, self.config.prediction_type)
            prev_sample = implicit_step(x_0, epsilon, t, s, schedule, eta, variance_noise)
        return DDIMSchedulerOutput(prev_sample, x_0) if return_dict else (prev_sample, x_0)


def implicit_step(
    x_0: Tensor, epsilon: Tensor, t: int, s: int, schedule: NoiseSchedule, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """`x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std noise`; std is eta times that of the ancestral step.

    References:
        Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, eq. 12 and 16.
    """
    _, v = schedule.transition(t, s)
    std = eta * (v * variance(s, schedule) / variance(t, schedule)).sqrt()
    x_s = schedule.alpha(s) * x_0 + (variance(s, schedule) - std**2).sqrt() * epsilon
    return x_s + std * noise if eta > 0 else x_s
