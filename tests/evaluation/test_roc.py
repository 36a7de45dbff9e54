import pytest
import sklearn.metrics
import torch

from ambient_diffusers.evaluation.roc import bootstrap, roc_auc, roc_curve, true_positive_rate


def scores(n, m, shift, seed, ties=False):
    generator = torch.Generator().manual_seed(seed)
    a = shift + torch.randn(n, generator=generator, dtype=torch.float64)
    b = torch.randn(m, generator=generator, dtype=torch.float64)
    return (a.round(), b.round()) if ties else (a, b)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("n", "m"), [(40, 300), (7, 5), (250, 100)])
def test_auc_and_rates_equal_scikit_learn(n, m, ties):
    members, others = scores(n, m, 0.7, n, ties)
    labels, pooled = [1] * n + [0] * m, torch.cat([members, others])
    assert roc_auc(members, others) == pytest.approx(sklearn.metrics.roc_auc_score(labels, pooled), abs=1e-12)
    false, true, _ = sklearn.metrics.roc_curve(labels, pooled, drop_intermediate=False)
    assert true_positive_rate(members, others) == pytest.approx(true[false <= 0.01].max())
    assert true_positive_rate(members, others, 0.2) == pytest.approx(true[false <= 0.2].max())
    curve = roc_curve(members, others)
    assert curve[0] == pytest.approx(false.tolist()) and curve[1] == pytest.approx(true.tolist())


def test_extremes():
    low, high = torch.arange(5.0), torch.arange(10.0, 15.0)
    assert roc_auc(high, low) == 1 and roc_auc(low, high) == 0 and roc_auc(low, low) == 0.5
    assert true_positive_rate(high, low) == 1 and true_positive_rate(low, low) == 0


def test_interval_covers_the_truth_and_is_the_same_every_time():
    truth = 0.5 * (1 + torch.erf(torch.tensor(0.7 / 2)).item())  # P(a > b) of two normals 0.7 apart
    estimates = [bootstrap(roc_auc, *scores(60, 60, 0.7, seed), resamples=200) for seed in range(30)]
    assert sum(e.low <= truth <= e.high for e in estimates) >= 25
    assert estimates[0] == bootstrap(roc_auc, *scores(60, 60, 0.7, 0), resamples=200)
    assert bootstrap(roc_auc, *scores(9, 9, 0, 0), resamples=0).low is None
