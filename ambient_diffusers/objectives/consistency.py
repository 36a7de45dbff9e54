"""The consistency term: what is known at t_n, carried down to the noise levels below it."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from ..losses import consistency_product
from ..schedule import NoiseSchedule
from .config import AmbientObjectiveConfig
from .draws import Draws
from .rollout import Rollout, RowDenoiser, log_snr_ladder, timestep_for_log_snr

BUDGET = 5
"""Evaluations a noisy row and step, a backward pass counting 2; the ambient loss takes 3 more."""


class Consistency:
    """Chooses states of noise level t <= t_n and estimates the squared violation of consistency there.

    From a rolled-out start a row costs more than `BUDGET`, so a random share of the rows, at random levels, takes part. The
    budget not yet spent (`credit`) is all the state there is.
    """

    def __init__(self, schedule: NoiseSchedule, config: AmbientObjectiveConfig):
        self.schedule, self.config, self.credit = schedule, config, 0
        between = 2 * (config.consistency_steps - 1)  # evaluations inside the two reverse runs
        if config.consistency_stop_gradient:
            self._cost = 1 + between + 1 + 3  # h(x_t), inside the runs, one end without and one with gradient
        else:
            self._cost = 3 + (2 * between if config.consistency_sampling_gradient else between) + 1 + 3

    @property
    def share(self) -> float:
        """The mean share of noisy rows that take part."""
        if self.config.consistency_start != "rollout":
            return 1.0
        return min(1.0, BUDGET / (self._cost + (self.config.consistency_levels - 1) / 2))

    def start(
        self, h: RowDenoiser, h_teacher: RowDenoiser, x_tn: Tensor, t_n: Tensor, x_t: Tensor, t: Tensor, draws: Draws
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]] | None:
        """Prepares the term.

        Args:
            h, h_teacher: `(x_t, t, rows) -> E[x_0 | x_t]` of the model in training and of its teacher.
            x_tn, t_n: The data, `(B, ...)` and `(B,)`; x_t, t: the states of the ambient loss.

        Returns:
            States `(x, t, rows)` to evaluate with gradient together with others, and a function that takes their
            `E[x_0 | x]` to the loss of `rows`, `(M,)`; None where no row takes part.
        """
        config = self.config
        rows, level = self._choose_rows(t_n, draws)
        if len(rows) == 0:
            return None
        jitter = draws.rand("consistency_jitter", rows)
        start = self._noisier_state(h_teacher, x_tn, t_n, x_t, t, rows, level, jitter, draws)
        below = self._timesteps_below(start.t, t_n[rows], rows, jitter, draws)

        def run(branch: int, x_0_hat: Tensor, model: RowDenoiser) -> Tensor:
            fork, everywhere = copy(start), torch.arange(len(rows))
            for i in range(config.consistency_steps):
                x_0_hat = x_0_hat if i == 0 else model(fork.x, fork.t, rows)
                fork.step(x_0_hat, below[:, i], draws.randn("consistency", rows, x_tn, branch, i), everywhere)
            return fork.x

        s = below[:, -1]
        if config.consistency_stop_gradient:
            with torch.no_grad():
                h_t = h_teacher(start.x, start.t, rows)
                x_s, other_x_s = run(0, h_t, h_teacher), run(1, h_t, h_teacher)
                other = h(other_x_s, s, rows) - h_t
            return (x_s, s, rows), lambda h_s: consistency_product(h_s - h_t, other)

        def finish(h_t: Tensor) -> Tensor:
            with torch.no_grad():
                other = h(run(1, h_t, h), s, rows) - h_t
            with torch.set_grad_enabled(config.consistency_sampling_gradient and torch.is_grad_enabled()):
                x_s = run(0, h_t, h)
            return consistency_product(h(x_s, s, rows) - h_t, other)

        return (start.x, start.t, rows), finish

    def _choose_rows(self, t_n: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Rows with noise levels below their data's, as far as the budget lasts, and how many levels below t_n each starts."""
        levels = self.config.consistency_levels
        rows = (t_n > 0).nonzero()[:, 0]
        if self.config.consistency_start != "rollout" or len(rows) == 0:
            return rows, torch.zeros_like(rows)
        rows = rows[draws.rand("consistency_rows", rows).argsort()]
        level = (draws.rand("consistency_level", rows) * levels).long()
        self.credit += BUDGET * len(rows)
        admitted = 0
        # Whether a row is admitted does not depend on its own cost, which would favour the cheap levels near t_n.
        while admitted < len(rows) and self.credit >= self._cost + levels - 1:
            self.credit -= self._cost + int(level[admitted])
            admitted += 1
        order = rows[:admitted].argsort()
        return rows[order], level[order]

    def _noisier_state(
        self,
        h_teacher: RowDenoiser,
        x_tn: Tensor,
        t_n: Tensor,
        x_t: Tensor,
        t: Tensor,
        rows: Tensor,
        level: Tensor,
        jitter: Tensor,
        draws: Draws,
    ) -> Rollout:
        """The states x_t of the chosen rows, as `consistency_start` says."""
        if self.config.consistency_start == "everywhere":
            return Rollout(x_t[rows], t[rows], self.schedule, self.config.widened_variance)
        rollout = Rollout(x_tn[rows], t_n[rows], self.schedule, self.config.widened_variance)
        with torch.no_grad():
            for i in range(int(level.max())):
                where = (level > i).nonzero()[:, 0]
                x_0_hat = h_teacher(rollout.x[where], rollout.t[where], rows[where])
                fraction = (i + jitter[where, None]) / self.config.consistency_levels
                s = log_snr_ladder(t_n[rows[where]], fraction, self.schedule)[:, 0]
                s = s.clamp(min=1).minimum(rollout.t[where])  # at least one timestep is left below
                rollout.step(x_0_hat, s, draws.randn("consistency_rollout", rows[where], x_tn, i), where)
        return rollout

    def _timesteps_below(self, t: Tensor, t_n: Tensor, rows: Tensor, jitter: Tensor, draws: Draws) -> Tensor:
        """The timesteps `(M, consistency_steps)` of the reverse run from t; it rests where it reaches timestep 0."""
        part = (self.schedule.log_snr(0) - self.schedule.log_snr(t_n)) / self.config.consistency_levels
        below = [t]
        for i in range(self.config.consistency_steps):
            t = below[-1]
            if self.config.consistency_max_step is None:
                # The random part of the first step makes the levels of a sample differ from one time to the next.
                s = timestep_for_log_snr(
                    self.schedule.log_snr(t) + torch.where(t == t_n, jitter, 1) * part, self.schedule
                )
            else:
                s = t - 1 - (draws.rand("consistency_step", rows, i) * self.config.consistency_max_step).long()
            below.append(s.minimum(t - 1).clamp(min=0))
        return torch.stack(below[1:], 1)
