"""Exact nearest neighbours by cosine similarity, with one block of the searched images in memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm


def mean_feature(*sets: Iterable[Tensor]) -> Tensor:
    """The mean row of several sets of blocks, float64 `(D,)`."""
    total, count = 0, 0
    for blocks in sets:
        for block in blocks:
            total, count = total + block.sum(0, dtype=torch.float64), count + len(block)
    return total / count


def nearest_neighbours(
    queries: Tensor,
    blocks: Iterable[Tensor],
    k: int,
    centre: Tensor | None = None,
    description: str = "nearest neighbours",
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k rows of all blocks that are most similar to each query.

    Args:
        queries: `(Q, D)`.
        blocks: Consecutive rows of the searched set, each `(B, D)`.
        k: Neighbours wanted; fewer come where the set is smaller.
        centre: Subtracted from both sides before they are normalised, `(D,)`.

    Returns:
        Cosine similarities, float32, and row numbers, long, both `(Q, k)`, the most similar first; of equally similar
        rows the lowest number first.
    """

    def directions(rows: Tensor) -> Tensor:
        rows = rows.double() if centre is None else rows.double() - centre
        return normalize(rows).float()

    queries = directions(queries)
    similarity, index = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    start = 0
    for block in tqdm(blocks, desc=description, unit="block", disable=not progress, leave=False):
        rows = torch.arange(start, start + len(block)).expand(len(queries), -1)
        similarity = torch.cat([similarity, queries @ directions(block).T], 1)
        # Stable, so that the order of equals does not depend on the blocks.
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        index = torch.cat([index, rows], 1).gather(1, order)
        similarity, index = similarity[:, :k], index[:, :k]
        start += len(block)
    return similarity.contiguous(), index.contiguous()
