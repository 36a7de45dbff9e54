"""The model's own reverse process, in steps equal in log-SNR."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..schedule import NoiseSchedule
from ..tweedie import ancestral_step, variance

RowDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(x_t (M, ...), t (M,), rows (M,)) -> (M, ...)`: for states that belong to rows `rows` of the batch."""


def timestep_for_log_snr(log_snr: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The timesteps, of `0..T-1`, whose log-SNR is nearest; long, of the shape of log_snr (float64)."""
    # Negated, the table ascends; the nearest entry is one of the two around the place of insertion.
    table = -schedule.log_snr(torch.arange(schedule.num_train_timesteps))
    right = torch.searchsorted(table, -log_snr.contiguous()).clamp(1, len(table) - 1)
    return right - (-log_snr - table[right - 1] <= table[right] + log_snr).long()


def log_snr_ladder(t_n: Tensor, fraction: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Timesteps on the way down from t_n to timestep 0, by the fraction of the log-SNR between the two.

    Equal steps in timestep would say nothing until near 0, where one of them spans as much as hundreds before.

    Args:
        t_n: Long, `(M,)`, at least 0.
        fraction: `(L,)` or `(M, L)`, in `[0, 1]`.

    Returns:
        Long, `(M, L)`.
    """
    top, bottom = schedule.log_snr(t_n)[:, None], schedule.log_snr(0)
    return timestep_for_log_snr(top + fraction * (bottom - top), schedule)


class Rollout:
    r"""States `(M, ...)` on their way down the reverse process, each at its own timestep.

    The usual ancestral step leaves out Cov[x_0 | x_t], which makes its draws too narrow. It is, averaged over the elements,
    `(sigma_t^2 / alpha_t) tr(dh/dx) / d`. A step moves the state off its mean by a random displacement w, under which
    h, being consistent, changes by about `(dh/dx) w`: so `<w, change of h> / <w, w>` estimates the trace with the step's own noise as
    the probe, at no further evaluation. For a Gaussian x_0 with isotropic covariance it is exact.

    Args:
        x: States, `(M, ...)`; t: their timesteps, long, `(M,)`.
        widened: Widen the steps so. The first step of a state, before which nothing is known, is the usual one.
    """

    def __init__(self, x: Tensor, t: Tensor, schedule: NoiseSchedule, widened: bool = True):
        self.x, self.t, self.schedule, self.widened = x, t, schedule, widened
        self._displacement, self._x_0_hat = torch.zeros_like(x), torch.zeros_like(x)

    def x_0_variance(self, x_0_hat: Tensor, where: Tensor) -> Tensor:
        """The estimate of Cov[x_0 | x_t], `(N,)`, for states `where` `(N,)` whose posterior mean is x_0_hat `(N, ...)`."""
        t, w = self.t[where], self._displacement[where].flatten(1)
        change = (x_0_hat.detach() - self._x_0_hat[where]).flatten(1)
        slope = ((w * change).sum(1) / w.square().sum(1).clamp(min=torch.finfo(w.dtype).tiny)).to("cpu", torch.float64)
        sigma_squared, alpha = variance(t, self.schedule), self.schedule.alpha(t)
        # Between 0 and the variance of x_t / alpha_t, which is that under a flat prior.
        return (slope * sigma_squared / alpha).clamp(min=0).minimum(sigma_squared / alpha.square())

    def step(self, x_0_hat: Tensor, s: Tensor, noise: Tensor, where: Tensor) -> None:
        """Takes states `where` (long, `(N,)`) down to s `(N,)`, given their posterior mean and noise, `(N, ...)`."""
        x, t = self.x[where], self.t[where]
        spread = self.x_0_variance(x_0_hat, where) if self.widened else None
        x_s = ancestral_step(x, x_0_hat, t, s, self.schedule, noise, spread)
        mean = ancestral_step(x, x_0_hat, t, s, self.schedule, torch.zeros_like(noise))
        # Out of place, so that a copy of the rollout is a fork of it and a gradient may pass.
        on_device = where.to(self.x.device)
        self.x, self.t = self.x.index_copy(0, on_device, x_s), self.t.index_copy(0, where, s)
        self._displacement = self._displacement.index_copy(0, on_device, (x_s - mean).detach())
        self._x_0_hat = self._x_0_hat.index_copy(0, on_device, x_0_hat.detach())
