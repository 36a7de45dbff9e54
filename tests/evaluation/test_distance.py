import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from ambient_diffusers.evaluation import distance
from ambient_diffusers.evaluation.distance import frechet_distance, kernel_distance, precision_recall


def draw(n, d, seed=0, scale=1.0, shift=0.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_moments(n, mean, covariance, seed=0):
    """Data whose sample mean and covariance are these, exactly."""
    x = draw(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return mean + white @ torch.linalg.cholesky(covariance).T


@pytest.mark.parametrize("rows", [7, 60])  # with and without the detour through QR
def test_frechet_distance_of_two_gaussians_is_the_closed_form(rows):
    root_x, root_y = draw(6, 6, 1), draw(6, 6, 2)
    mean_x, mean_y = draw(1, 6, 3)[0], draw(1, 6, 4)[0]
    covariance_x, covariance_y = root_x @ root_x.T, root_y @ root_y.T
    x, y = exact_moments(rows, mean_x, covariance_x, 5), exact_moments(rows, mean_y, covariance_y, 6)
    root = scipy.linalg.sqrtm((covariance_x @ covariance_y).numpy()).real
    expected = (mean_x - mean_y).square().sum() + torch.trace(covariance_x + covariance_y) - 2 * np.trace(root)
    assert frechet_distance(x, y, resamples=0).value == pytest.approx(expected.item(), rel=1e-9)


def test_distances_of_a_set_to_itself():
    x = draw(50, 8)
    assert frechet_distance(x, x, resamples=0).value == pytest.approx(0, abs=1e-12)
    assert precision_recall(x, x, resamples=0).precision.value == 1
    assert precision_recall(x, x, resamples=0).recall.value == 1


def test_fewer_images_than_dimensions_warn_and_give_the_exact_value():
    x, y = draw(10, 40, 1), draw(12, 40, 2, scale=2, shift=1)
    with pytest.warns(UserWarning, match="10 images are no more than the 40 dimensions"):
        estimate = frechet_distance(x, y, resamples=20)
    covariances = [np.cov(features.numpy(), rowvar=False) for features in (x, y)]
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)
    expected = (x.mean(0) - y.mean(0)).square().sum() + sum(map(np.trace, covariances)) - 2 * np.sqrt(eigenvalues).sum()
    assert estimate.value == pytest.approx(expected.item(), rel=1e-5)
    assert estimate.low < estimate.value < estimate.high


def test_frechet_interval_holds_the_estimate_and_narrows_with_more_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = frechet_distance(draw(50, 4, 1), draw(50, 4, 2, shift=1), seed=3)
        many = frechet_distance(draw(2000, 4, 1), draw(2000, 4, 2, shift=1), seed=3)
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert many.low < 4 < many.high  # |shift|^2
    assert frechet_distance(draw(50, 4, 1), draw(50, 4, 2, shift=1), seed=3) == few


def test_kernel_distance_is_the_u_statistic(monkeypatch):
    monkeypatch.setattr(distance, "BLOCK", 7)
    x, y = draw(20, 5, 1), draw(16, 5, 2, shift=0.5)
    kernels = [polynomial_kernel(a, b, degree=3, gamma=1 / 5, coef0=1) for a, b in ((x, x), (y, y), (x, y))]
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    estimate = kernel_distance(x, y)
    assert estimate.value == pytest.approx(sum(within) - 2 * kernels[2].mean(), rel=1e-10)
    assert estimate.low < estimate.value < estimate.high


def test_kernel_distance_is_unbiased_for_small_sets():
    values = [kernel_distance(draw(6, 3, 2 * i), draw(6, 3, 2 * i + 1), resamples=0).value for i in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_precision_and_recall_equal_brute_force(monkeypatch):
    monkeypatch.setattr(distance, "BLOCK", 7)
    generated, reference = draw(30, 3, 1, scale=0.5), draw(40, 3, 2)

    def share(x, manifold):
        radii = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, -1]
        gaps = np.linalg.norm(x[:, None].numpy() - manifold[None].numpy(), axis=-1)
        return (gaps <= radii).any(1).mean()

    result = precision_recall(generated, reference)
    assert result.precision.value == pytest.approx(share(generated, reference))
    assert result.recall.value == pytest.approx(share(reference, generated))
    assert result.precision.value > result.recall.value > 0  # a narrow set is precise and forgets the rest
    assert 0 <= result.recall.low < result.recall.value < result.recall.high <= 1


def test_sets_far_apart_have_neither_precision_nor_recall():
    result = precision_recall(draw(20, 3, 1), draw(20, 3, 2, shift=100))
    assert result.precision.value == result.recall.value == 0


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall])
def test_unusable_features_are_errors(measure):
    good = draw(10, 4)
    with pytest.raises(ValueError, match="at least 2 images"):
        measure(good, good[:1])
    with pytest.raises(ValueError, match="4 and 3 dimensions"):
        measure(good, draw(10, 3))
    with pytest.raises(ValueError, match="NaN or infinity in the second set"):
        measure(good, good.clone().index_fill(0, torch.tensor([3]), torch.nan))


def test_too_few_images_for_the_neighbours():
    with pytest.raises(ValueError, match="neighbours must lie in 1..2"):
        precision_recall(draw(3, 4), draw(9, 4))
