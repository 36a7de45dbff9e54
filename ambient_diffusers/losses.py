r"""The two losses of the paper, per sample.

References:
    Daras, Dimakis, Daskalakis, "Consistent Diffusion Meets Tweedie", ICML 2024, arXiv 2404.10177.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .parametrization import check_prediction_type, predict_epsilon, predict_x_0
from .schedule import NoiseSchedule, expand_like
from .tweedie import add_extra_noise, ancestral_step, check_above, variance

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(x_t (B, ...), t (B,)) -> model output (B, ...)`."""

WEIGHTINGS = ("noise", "x_0", "velocity", "min_snr")


def ambient_dsm_loss(
    denoiser: Denoiser,
    x_tn: Tensor,
    t_n: Tensor,
    schedule: NoiseSchedule,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    prediction_type: str = "epsilon",
    weighting: str = "noise",
    snr_gamma: float = 5.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Ambient denoising score matching, division-free: `|| (sqrt(v) / sigma_t) eps_hat - eta ||^2`.

    The noise eta that took x_tn to x_t is predicted; its posterior mean is a shrunk `eps_hat`, by the double use of
    Tweedie's formula. Finite for every t >= t_n, and for a clean sample it is the ordinary epsilon loss.

    Args:
        denoiser: Any callable `(x_t, t) -> model output`.
        x_tn: Data of noise level t_n, shape `(B, ...)`.
        t_n: Ambient timesteps, long, shape `(B,)`; `-1` for a clean sample.
        t: Timesteps in `0..T-1`, long, shape `(B,)`; None draws them uniformly from `t_n + 1 .. T - 1`.
        noise: eta, the shape of x_tn; None draws it.
        weighting: See `loss_weight`.

    Returns:
        The mean over the elements of each sample, shape `(B,)`.

    Raises:
        ValueError: where t < t_n or a timestep is out of range, and for an unknown prediction type or weighting.

    References:
        arXiv 2404.10177 (the ambient loss); Ho et al. 2020, eq. 14 (its clean case).
    """
    t_n = torch.as_tensor(t_n, device=x_tn.device).expand(x_tn.shape[0])
    schedule.check_timestep(t_n, "t_n")
    if t is None:
        t = sample_timesteps(t_n + 1, schedule.num_train_timesteps - 1, generator)
    else:
        t = torch.as_tensor(t, device=x_tn.device).expand(x_tn.shape[0])
        schedule.check_timestep(t, lowest=0)  # a model has no output for clean samples
    if noise is None:
        noise = randn_like(x_tn, generator)
    check_prediction_type(prediction_type)
    weight = loss_weight(t, t_n, schedule, weighting, snr_gamma)
    x_t = add_extra_noise(float32(x_tn), float32(noise), t_n, t, schedule)
    epsilon = predict_epsilon(float32(denoiser(x_t.to(x_tn.dtype), t)), x_t, t, schedule, prediction_type)
    error = ambient_noise_error(epsilon, noise, t, t_n, schedule)
    return error * weight.to(error.device, error.dtype)


def ambient_noise_error(epsilon: Tensor, noise: Tensor, t: Tensor, t_n: Tensor, schedule: NoiseSchedule) -> Tensor:
    """`|| (sqrt(v) / sigma_t) eps_hat - eta ||^2`, the mean over the elements of each sample, in float32 at least."""
    _, v = schedule.transition(t, t_n, names=("t", "t_n"))
    epsilon, noise = float32(epsilon), float32(noise)
    # v / sigma_t^2 is exactly 1 for a clean sample, which leaves the plain epsilon loss bit for bit.
    shrink = expand_like((v / variance(t, schedule)).sqrt(), epsilon)
    return mean_flat((shrink * epsilon - noise).square())


def loss_weight(
    t: Tensor, t_n: Tensor, schedule: NoiseSchedule, weighting: str = "noise", snr_gamma: float = 5.0
) -> Tensor:
    r"""The factor on `ambient_noise_error`, float64, shape `(B,)`.

    `noise`: 1, the epsilon loss. `x_0`: `v / r^2`, the paper code's `x0_pred` loss `|| E[x_tn | x_t] - x_tn ||^2`.
    `velocity`: `1 / alpha_t^2`, for clean data the loss of diffusers' v-prediction. `min_snr`: `min(snr_t, gamma) /
    snr_t`; since the error is always one of noise, whatever the model predicts, v-prediction needs no other form. Where
    alpha_t = 0 (zero terminal SNR) the error of noise says nothing of x_0, and `x_0` and `velocity` weigh it 0.

    References:
        Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", ICCV 2023, section 3.4.
    """
    if weighting == "noise":
        return torch.ones(t.shape, dtype=torch.float64, device=t.device)
    if weighting == "x_0":
        r, v = schedule.transition(t, t_n, names=("t", "t_n"))
        return torch.where(r > 0, v / r.square(), 0)
    if weighting == "velocity":
        return torch.where(schedule.alphas_cumprod(t) > 0, 1 / schedule.alphas_cumprod(t), 0)
    if weighting == "min_snr":
        return (snr_gamma / schedule.snr(t)).clamp(max=1)
    raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")


def consistency_loss(
    denoiser: Denoiser,
    x_t: Tensor,
    t: Tensor,
    s: Tensor,
    schedule: NoiseSchedule,
    *,
    teacher: Denoiser | None = None,
    prediction_type: str = "epsilon",
    stop_gradient: bool = True,
    sampling_gradient: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""An unbiased estimate of the squared violation of consistency, `|| h(x_t, t) - E[h(x_s, s) | x_t] ||^2`.

    From two independent reverse steps x_s', x_s'' out of the same x_t: `< h(x_s') - h(x_t), h(x_s'') - h(x_t) >`.

    Args:
        denoiser: Any callable `(x_t, t) -> model output`.
        x_t: States, shape `(B, ...)`.
        t, s: Timesteps, long, shape `(B,)`, 0 <= s < t (a model has no output for clean samples).
        teacher: Gives `h(x_t, t)` on the noisier side in the corrected form (an EMA of the denoiser); default the
            denoiser itself.
        stop_gradient: True, the corrected form: the noisier side is a constant, so that what is known at t flows down
            to s. By symmetry of the two steps one of them carries the whole gradient: one evaluation with gradient, two
            without. False, the paper's literal form: gradient through both sides; `h(x_t, t) = x_t / alpha_t` has zero
            loss and attracts.
        sampling_gradient: With the literal form, let the gradient also pass through the two steps.

    Returns:
        Mean over the elements of each sample, shape `(B,)`. A single value may be negative; its expectation is not.

    Raises:
        ValueError: where t <= s or s < 0, and for an unknown prediction type.

    References:
        Daras et al., "Consistent Diffusion Models", NeurIPS 2023, arXiv 2302.09057; arXiv 2404.10177.
    """
    check_prediction_type(prediction_type)
    schedule.check_timestep(s, "s", lowest=0)
    check_above(t, s + 1, names=("t", "s + 1"))

    def h(model, x, time):
        return predict_x_0(model(x, time), x, time, schedule, prediction_type)

    def step(x_0_hat):
        return ancestral_step(x_t, x_0_hat, t, s, schedule, randn_like(x_t, generator))

    if stop_gradient:
        with torch.no_grad():
            h_t = h(teacher or denoiser, x_t, t)
            x_s, other_x_s = step(h_t), step(h_t)
    else:
        h_t = h(denoiser, x_t, t)
        with torch.set_grad_enabled(sampling_gradient and torch.is_grad_enabled()):
            x_s, other_x_s = step(h_t), step(h_t)
    with torch.no_grad():
        other = h(denoiser, other_x_s, s) - h_t
    return consistency_product(h(denoiser, x_s, s) - h_t, other)


def consistency_product(one: Tensor, other: Tensor) -> Tensor:
    """`< one, other >` a sample `(B,)`, with twice the gradient of its first factor.

    The factors come from two steps alike in distribution, so that `E[<d one, other>] = E[<one, d other>]`: one of them carries
    the gradient of both in expectation, and the other is evaluated without.
    """
    other = other.detach()
    return mean_flat(one.detach() * other + 2 * (one - one.detach()) * other)


def sample_timesteps(low: Tensor, high: Tensor | int, generator: torch.Generator | None = None) -> Tensor:
    """Long tensor `(B,)`, uniform on `low..high`, both included, per sample.

    Raises:
        ValueError: where low > high: data at the last timestep leave nothing to learn.
    """
    high = torch.as_tensor(high, device=low.device)
    if bool((low > high).any()):
        raise ValueError(f"no timestep to draw: low {low.tolist()} is above high {high.tolist()}")
    device = low.device if generator is None else generator.device
    uniform = torch.rand(low.shape, generator=generator, device=device, dtype=torch.float64).to(low.device)
    return low + (uniform * (high - low + 1)).long()


def randn_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal of x's shape, dtype and device, drawn where the generator lives: a CPU one serves all devices."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def float32(x: Tensor) -> Tensor:
    """x in float32 at least: differences of 16-bit numbers keep too few digits."""
    return x.float() if x.dtype.itemsize < 4 else x


def mean_flat(x: Tensor) -> Tensor:
    """The mean over all but the first axis, shape `(B,)`."""
    # The reduction that diffusers' scripts use, so that losses agree to the last bit in any memory format.
    return x.mean(dim=list(range(1, x.ndim))) if x.ndim > 1 else x
