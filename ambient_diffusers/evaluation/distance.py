r"""Distances between two sets of images by their features, each with a bootstrap interval.

Features are matrices `(N, D)`, one row an image; everything is computed in float64. An interval is that of the
percentile bootstrap over images, moved so that its mean is the estimate: resampling draws images twice, which by itself
makes two sets look less alike, and the plain percentiles of a Frechet distance lie above the distance they are for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..randomness import stream

BLOCK = 2048
"""Rows whose distances to the other set are in memory at one time."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; without resamples `low` and `high` are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"


def frechet_distance(
    x: Tensor, y: Tensor, resamples: int = 100, confidence: float = 0.95, seed: int = 0, progress: bool = False
) -> Estimate:
    r"""`|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))`, the squared Wasserstein-2 distance of two Gaussians.

    With centred data `S_x = A^T A`, `S_y = B^T B` the last trace is the sum of the singular values of `A B^T`, which
    needs neither a matrix root nor an inverse: nothing turns complex or NaN where a set has fewer images than features
    have dimensions. Such sets are warned of: their distance is too large, so compare only sets of one size.

    Args:
        x, y: Features `(N, D)` and `(M, D)`, at least two rows each.
        resamples: Bootstrap samples for the interval; 0 for none.

    Raises:
        ValueError: for fewer than two rows, another number of columns, or values that are not finite.

    References:
        Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", NeurIPS 2017, eq. 6.
    """
    x, y = _checked(x, y)
    dimension = x.shape[1]
    if min(len(x), len(y)) <= dimension:
        warnings.warn(
            f"{min(len(x), len(y))} images are no more than the {dimension} dimensions of the features: the Frechet "
            "distance is biased upwards and comparable only among sets of the same size",
            stacklevel=2,
        )
    value = _frechet(x, y)
    draws = [_frechet(x[i], y[j]) for i, j in _resamples(len(x), len(y), resamples, seed, progress, "Frechet distance")]
    return _interval(value, torch.tensor(draws, dtype=torch.float64), confidence, lowest=0.0)


def _frechet(x: Tensor, y: Tensor) -> float:
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    traces = a.square().sum() + b.square().sum()
    # S = R^T R too, so that no matrix is larger than D x D.
    a, b = (torch.linalg.qr(m, mode="r").R if len(m) > m.shape[1] else m for m in (a, b))
    distance = (mean_x - mean_y).square().sum() + traces - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, distance.item())


def kernel_distance(
    x: Tensor, y: Tensor, resamples: int = 100, confidence: float = 0.95, seed: int = 0, progress: bool = False
) -> Estimate:
    r"""The unbiased squared maximum mean discrepancy under the kernel `(x^T y / D + 1)^3`; may be slightly negative.

    `mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)` over all pairs, so it has no random
    subsets and, unlike the Frechet distance, no bias for small sets. Resampled images are not paired with themselves.

    Raises:
        ValueError: as `frechet_distance`.

    References:
        Binkowski et al., "Demystifying MMD GANs", ICLR 2018, eq. 4 and section 3.
    """
    x, y = _checked(x, y)
    # Column 0 weighs every image once; the others say how often a resample has drawn it.
    counts = [torch.ones(len(x), 1 + resamples, dtype=x.dtype), torch.ones(len(y), 1 + resamples, dtype=x.dtype)]
    for column, drawn in enumerate(_resamples(len(x), len(y), resamples, seed, False, ""), 1):
        for count, index in zip(counts, drawn, strict=True):
            count[:, column] = torch.bincount(index, minlength=len(count)).to(x.dtype)
    w, v = counts
    values = (
        _mean_kernel(x, x, w, w, progress) + _mean_kernel(y, y, v, v, progress) - 2 * _mean_kernel(x, y, w, v, progress)
    )
    return _interval(values[0].item(), values[1:], confidence)


def _mean_kernel(x: Tensor, y: Tensor, w: Tensor, v: Tensor, progress: bool) -> Tensor:
    """The weighted mean of the kernel over pairs, one for each column of weights; no image is paired with itself."""
    total = torch.zeros(w.shape[1], dtype=x.dtype)
    same = x is y
    for start in tqdm(range(0, len(x), BLOCK), desc="kernel distance", disable=not progress, leave=False):
        kernel = (x[start : start + BLOCK] @ y.T / x.shape[1] + 1) ** 3
        if same:
            kernel[torch.arange(len(kernel)), torch.arange(start, start + len(kernel))] = 0
        total += (w[start : start + BLOCK] * (kernel @ v)).sum(0)
    pairs = w.sum(0) * v.sum(0) - ((w * v).sum(0) if same else 0)
    return total / pairs


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision: the share of generated images within the manifold of the reference images; recall: the converse."""

    precision: Estimate
    recall: Estimate


def precision_recall(
    generated: Tensor,
    reference: Tensor,
    neighbours: int = 3,
    resamples: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> PrecisionRecall:
    """Improved precision and recall: a set's manifold is the union of balls that reach to the k-th neighbour.

    The interval resamples the images that are judged; the manifold they are judged by stays, since an image drawn twice
    would be its own nearest neighbour.

    Raises:
        ValueError: where a set has no k-th neighbour, and as `frechet_distance`.

    References:
        Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019, eq. 1-3.
    """
    generated, reference = _checked(generated, reference)
    if not 1 <= neighbours < min(len(generated), len(reference)):
        raise ValueError(
            f"neighbours must lie in 1..{min(len(generated), len(reference)) - 1}, below the number of images of both "
            f"sets ({len(generated)} and {len(reference)}), got {neighbours}"
        )
    inside = (
        _within(generated, reference, neighbours, progress),
        _within(reference, generated, neighbours, progress),
    )
    drawn = list(_resamples(len(generated), len(reference), resamples, seed, False, ""))
    return PrecisionRecall(
        *(
            _interval(hits.mean().item(), torch.tensor([hits[d[k]].mean() for d in drawn]), confidence, 0.0, 1.0)
            for k, hits in enumerate(inside)
        )
    )


def _within(x: Tensor, manifold: Tensor, neighbours: int, progress: bool) -> Tensor:
    """1 where a row of x lies in a ball of the manifold, else 0; `(N,)`."""
    radii = torch.cat(
        [
            # The nearest is the image itself, at distance 0.
            _distances(manifold[start : start + BLOCK], manifold).kthvalue(neighbours + 1, dim=1).values
            for start in tqdm(range(0, len(manifold), BLOCK), desc="manifold", disable=not progress, leave=False)
        ]
    )
    inside = [
        (_distances(x[start : start + BLOCK], manifold) <= radii).any(1)
        for start in tqdm(range(0, len(x), BLOCK), desc="precision, recall", disable=not progress, leave=False)
    ]
    return torch.cat(inside).to(x.dtype)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # Through a matrix product two equal rows are 1e-7 apart, and an image would lie outside of its own ball.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _checked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = (torch.as_tensor(features).detach().to(dtype=torch.float64) for features in (x, y))
    for name, features in (("first", x), ("second", y)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"a set must have at least 2 images, features (N, D); the {name} has shape {tuple(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError(f"features must be finite, got NaN or infinity in the {name} set")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets must have the same features, got {x.shape[1]} and {y.shape[1]} dimensions")
    return x, y


def _resamples(n: int, m: int, resamples: int, seed: int, progress: bool, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of two sets drawn with replacement."""
    for number in tqdm(range(resamples), desc=f"{name}, bootstrap", disable=not progress, leave=False):
        generator = stream(seed, "bootstrap", number)
        yield torch.randint(n, (n,), generator=generator), torch.randint(m, (m,), generator=generator)


def _interval(
    value: float, draws: Tensor, confidence: float, lowest: float = -torch.inf, highest: float = torch.inf
) -> Estimate:
    if not len(draws):
        return Estimate(value)
    tail = (1 - confidence) / 2
    quantiles = draws.to(torch.float64).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64))
    low, high = (value + quantiles - draws.mean()).clamp(lowest, highest).tolist()
    return Estimate(value, low, high)
