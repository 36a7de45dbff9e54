r"""The closed forms of ambient diffusion.

Notation, everywhere: `x_t = alpha_t x_0 + sigma_t eps`; `t_n` is the noise level of the data, per sample, `-1` for
clean; `r = alpha_t / alpha_n` and `v = sigma_t^2 - r^2 sigma_n^2` describe the way from t_n up to t. States have shape
`(B, ...)`, timesteps `(B,)` (long) or are ints. Coefficients are computed in float64 and cast to the dtype of the state
last.

References:
    Daras, Dimakis, Daskalakis, "Consistent Diffusion Meets Tweedie", ICML 2024, arXiv 2404.10177.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .schedule import NoiseSchedule, expand_like


def add_noise(x_0: Tensor, noise: Tensor, t: Tensor | int, schedule: NoiseSchedule) -> Tensor:
    """`x_t = alpha_t x_0 + sigma_t eps`."""
    return expand_like(schedule.alpha(t), x_0) * x_0 + expand_like(schedule.sigma(t), x_0) * noise


def add_extra_noise(x_tn: Tensor, noise: Tensor, t_n: Tensor | int, t: Tensor | int, schedule: NoiseSchedule) -> Tensor:
    """`x_t = r x_tn + sqrt(v) eta`: data of noise level t_n, noised further to t.

    Raises:
        ValueError: where t < t_n (noise cannot be taken away).
    """
    check_above(t, t_n)
    r, v = schedule.transition(t, t_n, names=("t", "t_n"))
    return expand_like(r, x_tn) * x_tn + expand_like(v.sqrt(), x_tn) * noise


def ambient_posterior_mean(
    x_0_hat: Tensor, x_t: Tensor, t: Tensor | int, t_n: Tensor | int, schedule: NoiseSchedule
) -> Tensor:
    r"""`E[x_tn | x_t] = (x_t + v (alpha_t E[x_0 | x_t] - x_t) / sigma_t^2) / r`, the double use of Tweedie's formula.

    Tweedie's formula for `x_0 -> x_t` and for `x_tn -> x_t` names the same score, so one mean gives the other.
    Collected by state it is `(r sigma_n^2 x_t + alpha_n v E[x_0 | x_t]) / sigma_t^2`, the mean of the ancestral step.

    Args:
        x_0_hat: `E[x_0 | x_t]`, shape `(B, ...)`.

    Raises:
        ValueError: where t < t_n.
    """
    check_above(t, t_n)
    on_x_t, on_x_0, _ = reverse_coefficients(t, t_n, schedule, names=("t", "t_n"))
    return expand_like(on_x_t, x_t) * x_t + expand_like(on_x_0, x_t) * x_0_hat


def ancestral_step(
    x_t: Tensor,
    x_0_hat: Tensor,
    t: Tensor | int,
    s: Tensor | int,
    schedule: NoiseSchedule,
    noise: Tensor,
    x_0_variance: Tensor | None = None,
) -> Tensor:
    r"""A draw of the reverse process from t to s <= t: mean `(r sigma_s^2 x_t + alpha_s v h) / sigma_t^2`, variance
    `v sigma_s^2 / sigma_t^2`, with `r = alpha_t / alpha_s` and `v = sigma_t^2 - r^2 sigma_s^2`.

    Args:
        x_0_hat: `h = E[x_0 | x_t]`, shape `(B, ...)`.
        noise: Standard normal, shape `(B, ...)`.
        x_0_variance: `Cov[x_0 | x_t]` as a variance per sample `(B,)` or per element `(B, ...)`; widens the step by
            `(alpha_s v / sigma_t^2)^2 Cov[x_0 | x_t]`, which the usual step leaves out. With it the step is exact for a
            Gaussian x_0.

    Raises:
        ValueError: where s > t.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020, eq. 7, for any s < t.
    """
    check_above(t, s, names=("t", "s"))
    on_x_t, on_x_0, spread = reverse_coefficients(t, s, schedule)
    mean = expand_like(on_x_t, x_t) * x_t + expand_like(on_x_0, x_t) * x_0_hat
    if x_0_variance is None:
        return mean + expand_like(spread.sqrt(), x_t) * noise
    x_0_variance = expand_like(x_0_variance, x_t) if x_0_variance.ndim <= 1 else x_0_variance
    return mean + (expand_like(spread, x_t) + expand_like(on_x_0**2, x_t) * x_0_variance).sqrt() * noise


def reverse_coefficients(
    t: Tensor | int, s: Tensor | int, schedule: NoiseSchedule, names: tuple[str, str] = ("t", "s")
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the reverse step t -> s: the weights of x_t and of x_0_hat in its mean, and its variance given x_0, float64.

    Nothing is divided by r or alpha_t, so that they hold at the end of a schedule of zero terminal SNR too.
    """
    r, v = schedule.transition(t, s, names)
    # 0 / 0 is t = s = clean, where x_s = x_t.
    kept = (variance(s, schedule) / variance(t, schedule)).nan_to_num(nan=1.0)
    removed = (v / variance(t, schedule)).nan_to_num(nan=0.0)
    return r * kept, schedule.alpha(s) * removed, v * kept


def variance(t: Tensor | int, schedule: NoiseSchedule) -> Tensor:
    """sigma_t^2, without the rounding of a square root."""
    return 1 - schedule.alphas_cumprod(t)


def check_above(t: Tensor | int, t_n: Tensor | int, names: tuple[str, str] = ("t", "t_n")) -> None:
    """Raises a ValueError unless t >= t_n for every sample."""
    t, t_n = torch.as_tensor(t), torch.as_tensor(t_n)
    if bool((t < t_n.to(t.device)).any()):
        raise ValueError(f"{names[0]} must be at least {names[1]}, got {t.tolist()} below {t_n.tolist()}")
