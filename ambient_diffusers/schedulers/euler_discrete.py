"""The Euler sampler, SDXL's own, that ends at the noise level of the data."""

from __future__ import annotations

import torch
from diffusers import EulerDiscreteScheduler, SchedulerMixin  # noqa: F401 (a pipeline looks for it beside the class)

from ..schedule import CLEAN, NoiseSchedule
from .stock import sigma_over_alpha, stock_truncated_config
from .truncation import AmbientSchedulerMixin, ambient_init


class AmbientEulerDiscreteScheduler(AmbientSchedulerMixin, EulerDiscreteScheduler):
    """`EulerDiscreteScheduler` whose trajectory ends at `ambient_timestep`, the last step returning `E[x_0 | x_tn]`.

    Args:
        ambient_timestep: t_n, in `-1..num_train_timesteps - 1`. `-1`: every step is the parent's, bit for bit.

    All other arguments are those of `diffusers.EulerDiscreteScheduler`; `from_config(stock_config, ambient_timestep=500)` makes
    one from any stock config. A truncated run goes down the sigmas of `stock_truncated_config`.
    A saved pipeline that uses this class needs this package to load: publish that config, which makes the same images.

    References:
        arXiv 2404.10177: a denoiser learnt above t_n samples by stopping at t_n and returning its x_0.
    """

    __init__ = ambient_init(EulerDiscreteScheduler.__init__)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
    ) -> None:
        """As the parent's; a truncated run ends at the timestep t_n exactly, its sigmas at `sigma_n / alpha_n` and 0.

        Raises:
            ValueError: for more steps than `t_n..T-1` holds, for so few that the `timestep_spacing` starts at or below
                t_n, and for a list of timesteps or sigmas that ends elsewhere.
        """
        t_n = self.config.ambient_timestep
        if t_n == CLEAN:
            return super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        sigma_n = sigma_over_alpha(t_n, NoiseSchedule.from_scheduler(self))
        if num_inference_steps is not None and timesteps is None and sigmas is None:
            self._check_num_inference_steps(num_inference_steps)
            sigmas = self._stock_sigmas(num_inference_steps) if num_inference_steps > 1 else [sigma_n, 0.0]
            num_inference_steps = None
        super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        if not abs(self.sigmas[-2] / sigma_n - 1) < 1e-2 or (sigmas is not None and sigmas[-1] != 0):
            raise ValueError(
                f"timesteps must end at ambient_timestep={t_n} and sigmas at {sigma_n}, 0, got timesteps that end at "
                f"{self.timesteps[-1]} and sigmas at {self.sigmas[-2]}, {self.sigmas[-1]}"
            )
        # Exactly, where the way through sigmas gives 499.9999.
        self.sigmas[-2:] = torch.tensor([sigma_n, 0.0])
        continuous = self.config.timestep_type == "continuous" and self.config.prediction_type == "v_prediction"
        if not continuous:  # where a timestep is log(sigma) / 4
            self.timesteps[-1] = t_n

    def _stock_sigmas(self, num_inference_steps: int) -> list[float]:
        stock = EulerDiscreteScheduler.from_config(stock_truncated_config(self.config, self.config.ambient_timestep))
        stock.set_timesteps(num_inference_steps)
        sigmas = stock.sigmas.tolist()
        if sigmas[0] <= sigmas[-2]:
            raise ValueError(
                f"num_inference_steps must be larger for timestep_spacing={self.config.timestep_spacing!r} to start "
                f"above ambient_timestep={self.config.ambient_timestep}, got {num_inference_steps}; 'trailing' starts at "
                f"{self.config.num_train_timesteps - 1} for any number"
            )
        return sigmas
