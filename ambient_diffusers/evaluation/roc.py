"""How well a score tells members from non-members."""

from __future__ import annotations

import torch
from torch import Tensor

from ..randomness import philox
from .distance import Estimate


def roc_auc(members: Tensor, others: Tensor) -> float:
    """The probability that a member scores higher than another, ties counted half: the area under the ROC curve."""
    others = others.contiguous().sort().values
    below = torch.searchsorted(others, members.contiguous())
    not_above = torch.searchsorted(others, members.contiguous(), right=True)
    return ((below + not_above).double() / 2).mean().item() / len(others)


def true_positive_rate(members: Tensor, others: Tensor, false_positive_rate: float = 0.01) -> float:
    """The largest share of members above a threshold that no more than this share of the others exceeds.

    Of fewer than `1 / false_positive_rate` others none may exceed it.

    References:
        Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022.
    """
    allowed = int(false_positive_rate * len(others) + 1e-9)
    threshold = others.sort(descending=True).values[min(allowed, len(others) - 1)]
    return (members > threshold).double().mean().item() if allowed < len(others) else 1.0


def roc_curve(members: Tensor, others: Tensor) -> tuple[list[float], list[float]]:
    """False and true positive rates at every threshold, from 0, 0 to 1, 1."""
    thresholds = torch.cat([members, others]).unique().flip(0)
    rates = ((scores[:, None] >= thresholds).double().mean(0).tolist() for scores in (others, members))
    return tuple([0.0, *rate] for rate in rates)


def bootstrap(statistic, members: Tensor, others: Tensor, resamples: int = 500, seed: int = 0) -> Estimate:
    """A statistic of two samples of scores and its 95 % percentile interval, resampling both."""
    value = statistic(members, others)
    if not resamples:
        return Estimate(value)
    generator = philox(seed, "roc bootstrap")
    draws = torch.tensor(
        [
            statistic(*(s[torch.from_numpy(generator.integers(len(s), size=len(s)))] for s in (members, others)))
            for _ in range(resamples)
        ],
        dtype=torch.float64,
    )
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high)
