"""What the ambient schedulers share: the config field `ambient_timestep` and the timesteps of a truncated run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from ..schedule import CLEAN


def ambient_init(stock_init: Callable) -> Callable:
    """The constructor `stock_init` of a scheduler with one more registered argument, `ambient_timestep`.

    diffusers reads the fields of a config off the signature of `__init__`: with the parent's own, whatever the installed
    version has, `from_config`, `save_pretrained` and `from_pretrained` work as they do for the parent.
    """

    @functools.wraps(stock_init)
    def __init__(self, *args, ambient_timestep: int = CLEAN, **kwargs):
        stock_init(self, *args, **kwargs)
        last = self.config.num_train_timesteps - 1
        if not isinstance(ambient_timestep, Integral) or not CLEAN <= ambient_timestep <= last:
            raise ValueError(f"ambient_timestep must be an integer in {CLEAN}..{last}, got {ambient_timestep!r}")
        self.register_to_config(ambient_timestep=int(ambient_timestep))

    stock_parameters = inspect.signature(stock_init).parameters.values()
    own = inspect.Parameter("ambient_timestep", inspect.Parameter.KEYWORD_ONLY, default=CLEAN, annotation=int)
    __init__.__signature__ = inspect.Signature([*stock_parameters, own])
    return __init__


class AmbientSchedulerMixin:
    """Goes before the stock scheduler among the base classes."""

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        # diffusers looks the names up in its own namespace, where this class is not.
        return [cls, *super()._get_compatibles()]

    def _check_num_inference_steps(self, num_inference_steps: int) -> None:
        available = self.config.num_train_timesteps - self.config.ambient_timestep
        if not 1 <= num_inference_steps <= available:
            raise ValueError(
                f"num_inference_steps must be in 1..{available}, the number of timesteps from ambient_timestep="
                f"{self.config.ambient_timestep} to {self.config.num_train_timesteps - 1}, got {num_inference_steps}"
            )


class DiscreteTruncationMixin(AmbientSchedulerMixin):
    """For the schedulers that step over integer timesteps (DDPM, DDIM)."""

    def _truncated_timesteps(self, num_inference_steps: int) -> Tensor:
        """Falling integers that end at t_n exactly, `(n,)`: the `timestep_spacing` on `t_n..T-1` instead of `0..T-1`.

        `leading`: equal integer strides `(T - t_n) // n` up from t_n, which takes the place of `steps_offset`. `linspace`:
        even from T-1 to t_n, both included, rounded. `trailing` starts at T-1; with its end pinned it is `linspace`.
        """
        T, t_n = self.config.num_train_timesteps, self.config.ambient_timestep
        if self.config.timestep_spacing == "leading":
            timesteps = t_n + torch.arange(num_inference_steps) * ((T - t_n) // num_inference_steps)
        else:
            timesteps = torch.linspace(t_n, T - 1, num_inference_steps, dtype=torch.float64).round().long()
        return timesteps.flip(0)

    def _check_timestep(self, timestep: int | Tensor) -> None:
        if timestep < self.config.ambient_timestep:
            raise ValueError(
                f"timestep must be at least ambient_timestep={self.config.ambient_timestep}, where the run ends, "
                f"got {int(timestep)}"
            )
