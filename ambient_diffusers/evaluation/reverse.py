"""The model's own reverse process, from any noise level down."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..objectives.rollout import Rollout, RowDenoiser, timestep_for_log_snr
from ..randomness import randn
from ..schedule import NoiseSchedule


def reverse_levels(t: int, lowest: int, steps: int, schedule: NoiseSchedule) -> list[int]:
    """At most `steps` falling timesteps from t to lowest, equal in log-SNR; only t where it is not above lowest."""
    if t <= lowest or steps == 1:
        return [t]
    ends = schedule.log_snr(torch.tensor([t, lowest]))
    fractions = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = timestep_for_log_snr(ends[0] + fractions * (ends[1] - ends[0]), schedule)
    return levels.unique_consecutive().tolist()


def posterior_sample(
    h: RowDenoiser,
    x_t: Tensor,
    t: int,
    schedule: NoiseSchedule,
    ids: Sequence[int | str],
    seed: int,
    steps: int = 25,
    lowest: int = 0,
) -> Tensor:
    """A draw of x_0 given x_t, by ancestral steps; the last evaluation, at `lowest`, returns `E[x_0 | x_lowest]`.

    Args:
        h: `(x_t, t, rows) -> E[x_0 | x_t]`, evaluated at most `steps` times.
        x_t: `(B, ...)`, all at timestep t.
        ids: Name the streams of the rows' noise, with the seed.
        lowest: t_n for a model that was trained above it only.

    Returns:
        `(B, ...)`; with one step, or t at or below `lowest`, `E[x_0 | x_t]` itself.
    """
    levels = reverse_levels(t, lowest, steps, schedule)
    rows = torch.arange(len(x_t))
    rollout = Rollout(x_t, torch.full((len(x_t),), t), schedule)
    for number, s in enumerate(levels[1:]):
        noise = randn(ids, x_t.shape[1:], seed, "posterior sample", t, number).to(x_t.dtype)
        rollout.step(h(rollout.x, rollout.t, rows), torch.full((len(x_t),), s), noise, rows)
    return h(rollout.x, rollout.t, rows)
