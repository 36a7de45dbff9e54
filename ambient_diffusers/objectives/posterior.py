"""Posterior draws `x_0 ~ p(x_0 | x_tn)`, one kept for every sample that has had its turn."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedule import CLEAN, NoiseSchedule
from .config import AmbientObjectiveConfig
from .draws import Draws
from .rollout import Rollout, RowDenoiser, log_snr_ladder


def draw_posterior(
    h: RowDenoiser,
    x_tn: Tensor,
    t_n: Tensor,
    rows: Tensor,
    schedule: NoiseSchedule,
    draws: Draws,
    steps: int = 12,
    widened: bool = True,
) -> Tensor:
    """A draw of x_0 for every state, by a reverse run from x_tn in steps equal in log-SNR.

    Args:
        h: `(x_t, t, rows) -> E[x_0 | x_t]`, evaluated `steps` times.
        x_tn: `(M, ...)`; t_n: long, `(M,)`, at least 0; rows: long, `(M,)`, the rows of the batch they belong to.

    References:
        Lu et al., "Stochastic Forward-Backward Deconvolution", ICML 2025, arXiv 2502.05446, algorithm 1.
    """
    # A short first step: nothing widens it, and it tells by how much to widen the next.
    below = torch.arange(steps - 1, dtype=torch.float64) + 0.25
    levels = log_snr_ladder(t_n, torch.cat([below.new_zeros(1), below / (steps - 1.75)]), schedule)
    levels = torch.cat([levels, torch.full_like(t_n, CLEAN)[:, None]], 1)
    rollout, everywhere = Rollout(x_tn, levels[:, 0], schedule, widened), torch.arange(len(rows))
    for i in range(steps):
        x_0_hat = h(rollout.x, rollout.t, rows)
        rollout.step(x_0_hat, levels[:, i + 1], draws.randn("posterior", rows, x_tn, i), everywhere)
    return rollout.x


class PosteriorStore:
    """The last draw of every sample and the training step it was made at, on the CPU.

    Kept in half precision: its rounding (5e-4) is far below the noise of timestep 0 (sigma_0 = 0.029 for SDXL).
    """

    def __init__(self):
        self._draws: dict[int, Tensor] = {}
        self._steps: dict[int, int] = {}

    def put(self, ids: list[int], x_0: Tensor, step: int) -> None:
        """Keeps `(len(ids), ...)` draws made at this training step."""
        for sample, draw in zip(ids, x_0.detach().to("cpu", torch.float16, copy=True), strict=True):
            self._draws[sample], self._steps[sample] = draw.clone(), step

    def get(self, ids: list[int], like: Tensor) -> Tensor:
        """The draws of these samples, stacked, in the dtype and on the device of like."""
        return torch.stack([self._draws[sample] for sample in ids]).to(like.device, like.dtype)

    def made_at(self, sample: int) -> int | None:
        """The training step at which the sample's draw was made; None without a draw."""
        return self._steps.get(sample)

    def state_dict(self) -> dict[str, Tensor]:
        """The draws (`draw.ID`) and, for all of them, `draw_ids` and `draw_steps`."""
        ids = list(self._draws)
        return {
            "draw_ids": torch.tensor(ids, dtype=torch.long),
            "draw_steps": torch.tensor([self._steps[sample] for sample in ids], dtype=torch.long),
            **{f"draw.{sample}": draw for sample, draw in self._draws.items()},
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replaces what is held by what `state_dict` returned."""
        ids = state["draw_ids"].tolist()
        self._steps = dict(zip(ids, state["draw_steps"].tolist(), strict=True))
        self._draws = {sample: state[f"draw.{sample}"].to("cpu", torch.float16).clone() for sample in ids}


class PosteriorDraws:
    """Gives rows with a timestep at or below t_n their posterior draw, and makes and renews draws as the budget allows.

    Without `sfbd_refresh_every`, every noisy row and step earns one evaluation, and a draw spends `sfbd_steps`: so the mean cost stays
    within one extra evaluation a row and step whatever the size of the data set.
    """

    def __init__(self, schedule: NoiseSchedule, config: AmbientObjectiveConfig):
        self.schedule, self.config, self.store, self.credit = schedule, config, PosteriorStore(), 0

    def assign(
        self, h_teacher: RowDenoiser, x_tn: Tensor, t_n: Tensor, wanted: Tensor, draws: Draws, step: int
    ) -> tuple[Tensor, Tensor]:
        """Posterior draws for the rows `wanted` (long, `(M,)`), as far as they have one or can be given one now.

        Returns:
            The rows that have one, long `(N,)`, and their draws, `(N, ...)`.
        """
        fresh = self._to_draw(t_n, wanted, draws.ids, step)
        if len(fresh):
            with torch.no_grad():
                x_0 = draw_posterior(
                    h_teacher,
                    x_tn[fresh],
                    t_n[fresh],
                    fresh,
                    self.schedule,
                    draws,
                    self.config.sfbd_steps,
                    self.config.widened_variance,
                )
            self.store.put([draws.ids[row] for row in fresh.tolist()], x_0, step)
        rows = [row for row in wanted.tolist() if self.store.made_at(draws.ids[row]) is not None]
        held = self.store.get([draws.ids[row] for row in rows], x_tn) if rows else x_tn[:0]
        return torch.tensor(rows, dtype=torch.long), held

    def _to_draw(self, t_n: Tensor, wanted: Tensor, ids: list[int], step: int) -> Tensor:
        """The rows of wanted to draw anew: those without a draw first, then by the age of the draw."""
        made_at = {row: self.store.made_at(ids[row]) for row in wanted.tolist()}
        refresh_every, cost = self.config.sfbd_refresh_every, self.config.sfbd_steps
        if refresh_every is not None:
            rows = [row for row, made in made_at.items() if made is None or step - made >= refresh_every]
        else:
            noisy = int((t_n >= 0).sum())
            # What small batches save up is kept, but no more than a whole batch can use at once.
            self.credit = min(self.credit + noisy, noisy * cost)
            oldest_first = sorted(made_at, key=lambda row: -1 if made_at[row] is None else made_at[row])
            rows = oldest_first[: self.credit // cost]
            self.credit -= len(rows) * cost
        return torch.tensor(sorted(rows), dtype=torch.long)
