"""The order in which training sees the cache."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch

from ..randomness import stream
from .cache import LatentCache


class BatchSampler:
    """An infinite sequence of batches, each of one latent shape; `sampler[m]` gives the rows of the m-th.

    An epoch has every row exactly as often as it repeats, in an order that depends on the seed and the epoch alone: any
    batch can be had without those before it, so that resuming needs no state, and process p of P takes the batches p,
    p + P, ... of the same sequence. The last batch of a shape may be short.

    Args:
        cache: Or anything with `shapes` and `repeats`.
        exclude: Rows that are never given, those held out for validation.

    Raises:
        ValueError: unless batch_size is at least 1.
    """

    def __init__(self, cache: LatentCache, batch_size: int, seed: int, exclude: Collection[int] = ()):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed = batch_size, seed
        rows_of: dict[tuple[int, int], list[int]] = {}
        exclude = set(exclude)
        for row, (shape, repeats) in enumerate(zip(cache.shapes, cache.repeats, strict=True)):
            if row not in exclude:
                rows_of.setdefault(shape, []).extend([row] * repeats)
        self._buckets = {shape: torch.tensor(rows) for shape, rows in sorted(rows_of.items())}
        self.batches_per_epoch = sum(math.ceil(len(rows) / batch_size) for rows in self._buckets.values())
        self._epoch, self._batches = -1, []

    def __getitem__(self, m: int) -> list[int]:
        """Row numbers of the m-th batch, m >= 0."""
        if m < 0:
            raise IndexError(f"batches count from 0, got {m}")
        epoch, position = divmod(m, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffle(epoch)
        return self._batches[position]

    batch = __getitem__

    def _shuffle(self, epoch: int) -> list[list[int]]:
        batches = []
        for shape, rows in self._buckets.items():
            order = torch.randperm(len(rows), generator=stream(self.seed, "shuffle rows", epoch, *shape))
            batches += [chunk.tolist() for chunk in rows[order].split(self.batch_size)]
        order = torch.randperm(len(batches), generator=stream(self.seed, "shuffle batches", epoch))
        return [batches[i] for i in order.tolist()]
