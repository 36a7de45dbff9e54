"""The random draws of one training step."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import randomness


class Draws:
    """Draws for the rows of a batch, from a generator if one is given, else from streams named by sample id.

    Args:
        ids: Sample ids of the rows, length B.
        seed: Seed of the streams.
        counter: What tells this step from others: the training step, or the ordinal of the micro-batch.
        generator: None: row i's draws depend on `(seed, purpose, counter, ids[i])` alone, whatever the batch around it.
    """

    def __init__(self, ids: list[int], seed: int, counter: int, generator: torch.Generator | None = None):
        self.ids, self.seed, self.counter, self.generator = ids, seed, counter, generator

    def rand(self, purpose: str, rows: Tensor, *keys: int) -> Tensor:
        """Uniform float64 in `[0, 1)`, shape `(M,)` for rows `(M,)`, on the CPU."""
        if self.generator is not None:
            device = self.generator.device
            return torch.rand(len(rows), generator=self.generator, dtype=torch.float64, device=device).cpu()
        return randomness.rand(self._names(rows), self.seed, purpose, self.counter, *keys)

    def randn(self, purpose: str, rows: Tensor, like: Tensor, *keys: int) -> Tensor:
        """Standard normal `(M, ...)` for rows `(M,)`, with the trailing shape, dtype and device of like."""
        shape = like.shape[1:]
        if self.generator is not None:
            noise = torch.randn(len(rows), *shape, generator=self.generator, device=self.generator.device)
        else:
            noise = randomness.randn(self._names(rows), shape, self.seed, purpose, self.counter, *keys)
        return noise.to(like.device, like.dtype)

    def _names(self, rows: Tensor) -> list[int]:
        return [self.ids[row] for row in rows.tolist()]
