"""An exponential moving average of the adapter: the teacher of a consistency objective, and what `--use_ema` exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """Keeps `average <- decay average + (1 - decay) parameter`, with decay at most `(1 + step) / (10 + step)`.

    Only a pointer is swapped to use the average, so the adapter can be averaged in the middle of a training step.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the parameters after optimiser step number `step` (from 1) in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters are the averages."""
        live = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = self.average[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = live[name]

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, average in self.average.items():
            average.copy_(state[name])
