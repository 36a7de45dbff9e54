"""The truncated sampler for users who have diffusers alone: a stock scheduler config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from diffusers import EulerDiscreteScheduler

from ..schedule import NoiseSchedule


def stock_truncated_config(scheduler_config: Mapping[str, Any], ambient_timestep: int) -> dict[str, Any]:
    r"""The config of a stock `EulerDiscreteScheduler` that runs down to t_n and there returns `E[x_0 | x_tn]`.

    The sigmas fall evenly in their logarithm, and so in log-SNR, from the usual start of the `timestep_spacing` to
    `sigma_min = sigma_n / alpha_n`; the last Euler step, from there to zero, returns the predicted x_0. A Karras or beta
    ladder that the config asks for is kept, and so is all the rest of the config.

    Args:
        scheduler_config: The config of any discrete diffusers scheduler, say `pipe.scheduler.config`.
        ambient_timestep: t_n, in `0..num_train_timesteps - 1`.

    Returns:
        What `save_pretrained` writes as `scheduler_config.json`; `EulerDiscreteScheduler.from_config` takes it. With
        `timestep_spacing="leading"` a run has to start above t_n: it needs more than `T / (T - t_n)` steps.

    Raises:
        ValueError: for an ambient_timestep outside its range, and where the config's own sigma_max is below sigma_min.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", NeurIPS 2022, section 3.
    """
    config = {name: value for name, value in scheduler_config.items() if name != "ambient_timestep"}
    schedule = NoiseSchedule.from_scheduler(EulerDiscreteScheduler.from_config(config))
    schedule.check_timestep(ambient_timestep, "ambient_timestep", lowest=0)
    sigma_min, sigma_max = sigma_over_alpha(ambient_timestep, schedule), config.get("sigma_max")
    if sigma_max is not None and sigma_max < sigma_min:
        raise ValueError(f"sigma_max must be at least {sigma_min}, that of ambient_timestep, got {sigma_max}")
    has_ladder = config.get("use_karras_sigmas") or config.get("use_beta_sigmas")
    truncated = EulerDiscreteScheduler.from_config(
        config, sigma_min=sigma_min, use_exponential_sigmas=not has_ladder, final_sigmas_type="zero"
    )
    return json.loads(truncated.to_json_string())


def sigma_over_alpha(t: int, schedule: NoiseSchedule) -> float:
    """The noise level as `EulerDiscreteScheduler` counts it, for `x_t / alpha_t`."""
    return float(schedule.sigma(t) / schedule.alpha(t))
