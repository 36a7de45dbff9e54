r"""Train against held-out images: is what looks like memory more than two sets of like images would show anyway?

Under the hypothesis that nothing was memorised, the training images and held-out images of the same origin are
exchangeable: which of them were trained on could be dealt anew. Tests deal anew many times, and a p-value counts how
often chance shows as much as was seen, the real deal included, so that it is never 0.

References:
    Phipson and Smyth, "Permutation P-values Should Never Be Zero", Statistical Applications in Genetics 2010.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..randomness import philox


def p_value(seen: float, chance: Tensor) -> float:
    """One-sided: the share of chance values at least as large as the seen one, itself included."""
    # Shares are sums of equal parts that rounding must not tell apart.
    return (1 + int((chance >= seen - 1e-9).sum())) / (1 + len(chance))


def compare_shares(train: Tensor, held_out: Tensor, permutations: int = 2000, seed: int = 0) -> dict:
    """Two samples of 0 and 1 (or any figures): their means, and the p-value of the first being larger.

    Args:
        train, held_out: `(n,)` and `(m,)`, one value an image.

    Returns:
        `{"train", "held_out", "p"}`.
    """
    pooled, n = torch.cat([train, held_out]).double().numpy(), len(train)
    generator = philox(seed, "permutation of values")
    total = pooled.sum()

    def excess(trained: np.ndarray) -> float:
        return trained.mean() - (total - trained.sum()) / (len(pooled) - n)

    chance = torch.tensor([excess(generator.permutation(pooled)[:n]) for _ in range(permutations)], dtype=torch.float64)
    return {
        "train": train.double().mean().item(),
        "held_out": held_out.double().mean().item(),
        "p": p_value(excess(pooled[:n]), chance),
    }


def compare_neighbours(
    similarity: Tensor,
    index: Tensor,
    trained: int,
    total: int,
    thresholds: tuple[float, ...],
    permutations: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """For each threshold the share of queries whose nearest training image, and nearest held-out image, is as similar.

    The test deals the labels of the pooled images anew, keeping the sizes of both sets, so that it holds for sets of
    different sizes too. What a training set of this size would show by chance is `expected`.

    Args:
        similarity, index: The K nearest of the pooled images `(Q, K)`, those below `trained` being the training images.
        total: Images in the pool.

    Returns:
        One `{"threshold", "train", "held_out", "expected", "p"}` a threshold; the share of `held_out` is that of the
        whole held-out set.
    """
    results = []
    for threshold in thresholds:
        near = similarity >= threshold
        # Only images that are near to a query matter, and there are few of them.
        candidates, position = index[near].unique(return_inverse=True)
        query = near.nonzero()[:, 0]

        def shares(is_trained: Tensor, query: Tensor = query, position: Tensor = position) -> tuple[float, float]:
            trained = is_trained[position]
            return tuple(len(query[side].unique()) / len(similarity) for side in (trained, ~trained))

        train, held_out = shares(candidates < trained)
        deals = _deals(len(candidates), trained, total, permutations, seed)
        chance = torch.tensor([shares(deal) for deal in deals], dtype=torch.float64).reshape(-1, 2)
        results.append(
            {
                "threshold": threshold,
                "train": train,
                "held_out": held_out,
                "expected": chance[:, 0].mean().item() if permutations else None,
                "p": p_value(train - held_out, chance[:, 0] - chance[:, 1]),
            }
        )
    return results


def _deals(candidates: int, trained: int, total: int, permutations: int, seed: int) -> Iterator[Tensor]:
    """Which of the candidates are training images if `trained` labels are dealt to all `total` images."""
    generator = philox(seed, "permutation of labels")
    for _ in range(permutations):
        count = generator.hypergeometric(trained, total - trained, candidates) if candidates else 0
        yield torch.from_numpy(generator.permutation(candidates) < count)
