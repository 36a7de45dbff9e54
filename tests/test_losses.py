"""The two losses against quadrature, closed forms and diffusers' own losses."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from ambient_diffusers import NoiseSchedule
from ambient_diffusers.losses import WEIGHTINGS, ambient_dsm_loss, consistency_loss
from ambient_diffusers.parametrization import PREDICTION_TYPES, model_output_from_x_0

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SHAPES = [(4, 8, 8), (3,), ()]


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.from_scheduler(SCHEDULER)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- The minimiser of the expected ambient loss is E[x_0 | x_t]: exact, by Gauss-Hermite quadrature.
WEIGHTS, MEANS, STD = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.1, 0.8]).double(), 0.5


def posterior_mean(x_t, alpha, sigma, std=STD):
    """E[x_0 | x_t] of the mixture of N(m_k, std^2) with these weights."""
    variance = alpha**2 * std**2 + sigma**2
    log_density = WEIGHTS.log() - (x_t[:, None] - alpha * MEANS) ** 2 / (2 * variance)
    by_component = MEANS + alpha * std**2 / variance * (x_t[:, None] - alpha * MEANS)
    return (log_density.softmax(1) * by_component).sum(1)


def gradient_of_expected_loss(schedule, t_n, t, denoiser, weighting, prediction_type):
    """d/dtheta at theta = 0 of E || ... ||^2 for h = denoiser + theta_0 + theta_1 x_t + theta_2 tanh(2 x_t)."""
    nodes, node_weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(80))
    node_weights = node_weights / node_weights.sum()
    alpha_n, sigma_n = float(schedule.alpha(t_n)), float(schedule.sigma(t_n))
    spread = math.sqrt(alpha_n**2 * STD**2 + sigma_n**2)
    k, i, j = (x.flatten() for x in torch.meshgrid(torch.arange(2), torch.arange(80), torch.arange(80), indexing="ij"))
    x_tn, eta = alpha_n * MEANS[k] + spread * nodes[i], nodes[j]
    probability = WEIGHTS[k] * node_weights[i] * node_weights[j]
    theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def model(x_t, t):
        h = denoiser(x_t) + theta[0] + theta[1] * x_t + theta[2] * (2 * x_t).tanh()
        return model_output_from_x_0(h, x_t, t, schedule, prediction_type)

    times = {"t_n": torch.full((len(x_tn),), t_n), "t": torch.full((len(x_tn),), t)}
    loss = ambient_dsm_loss(
        model, x_tn, schedule=schedule, noise=eta, weighting=weighting, prediction_type=prediction_type, **times
    )
    return torch.autograd.grad((probability * loss).sum(), theta)[0]


@pytest.mark.parametrize("t_n, t", [(-1, 300), (100, 150), (300, 350), (300, 700), (600, 900)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_true_denoiser_is_a_stationary_point(schedule, t_n, t, weighting, prediction_type):
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))

    def gradient(denoiser):
        return gradient_of_expected_loss(schedule, t_n, t, denoiser, weighting, prediction_type)

    assert gradient(lambda x_t: posterior_mean(x_t, alpha, sigma)).abs().max() < 1e-9
    # The denoiser of the wrong answer: p(x_tn) / alpha_n taken for clean data, a mixture too wide.
    sigma_over_alpha = float(schedule.sigma(t_n) / schedule.alpha(t_n))
    too_wide = math.sqrt(STD**2 + sigma_over_alpha**2)
    wrong = [lambda x_t: posterior_mean(x_t, alpha, sigma) + 0.05, lambda x_t: x_t / alpha]
    if t_n >= 0:
        wrong.append(lambda x_t: posterior_mean(x_t, alpha, sigma, too_wide))
    for denoiser in wrong:
        assert gradient(denoiser).abs().max() > 1e-4


# --- Clean data: diffusers' own losses.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_clean_epsilon_loss_is_diffusers_bit_for_bit(schedule, dtype, memory_format):
    x_0, noise, prediction = (normal(16, 4, 12, 8, seed=seed) for seed in range(3))
    prediction = prediction.to(dtype).to(memory_format=memory_format)
    t, seen = torch.randint(1000, (16,), generator=torch.Generator().manual_seed(3)), []

    def model(x_t, t):
        seen.append((x_t, t))
        return prediction

    loss = ambient_dsm_loss(model, x_0, torch.full((16,), -1), schedule, t=t, noise=noise)
    expected = F.mse_loss(prediction.float(), noise.float(), reduction="none").mean(dim=list(range(1, 4)))
    assert torch.equal(loss, expected)
    ((x_t, time),) = seen
    assert torch.equal(time, t)
    torch.testing.assert_close(x_t, SCHEDULER.add_noise(x_0, noise, t), rtol=0, atol=1e-6)


def test_clean_velocity_loss_is_diffusers(schedule):
    x_0, noise, prediction = (normal(1000, 4, 2, 2, seed=seed) for seed in range(3))
    t = torch.arange(1000)
    loss = ambient_dsm_loss(
        lambda x_t, t: prediction, x_0, torch.full((1000,), -1), schedule, t=t, noise=noise,
        prediction_type="v_prediction", weighting="velocity",
    )  # fmt: skip
    target = SCHEDULER.get_velocity(x_0, noise, t)
    torch.testing.assert_close(loss, (prediction - target).square().mean((1, 2, 3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [5.0, 1.0])
def test_clean_min_snr_loss_is_diffusers(schedule, prediction_type, snr_gamma):
    """As in diffusers' scripts: min(snr, gamma) over snr for epsilon, over snr + 1 for velocity."""
    x_0, noise, prediction = (normal(1000, 4, 2, 2, seed=seed) for seed in range(3))
    t = torch.arange(1000)
    snr = compute_snr(SCHEDULER, t)
    weight = torch.stack([snr, snr_gamma * torch.ones_like(t)], dim=1).min(dim=1)[0]
    if prediction_type == "epsilon":
        target, weight = noise, weight / snr
    else:
        target, weight = SCHEDULER.get_velocity(x_0, noise, t), weight / (snr + 1)
    loss = ambient_dsm_loss(
        lambda x_t, t: prediction, x_0, torch.full((1000,), -1), schedule, t=t, noise=noise,
        prediction_type=prediction_type, weighting="min_snr", snr_gamma=snr_gamma,
    )  # fmt: skip
    torch.testing.assert_close(loss, weight * (prediction - target).square().mean((1, 2, 3)), rtol=1e-4, atol=1e-6)


# --- Ambient data.
def mixed_batch(*shape, dtype=torch.float64):
    """x_tn, eta, a denoiser's x_0, and timesteps with t = t_n and clean samples among them."""
    t_n = torch.tensor([-1, -1, 0, 100, 100, 500, 500, 999])
    t = torch.tensor([0, 999, 1, 100, 101, 600, 999, 999])
    return (*(normal(8, *shape, seed=seed, dtype=dtype) for seed in range(3)), t_n, t)


@pytest.mark.parametrize("shape", SHAPES)
def test_x_0_weighting_is_the_papers_loss(schedule, shape):
    """`|| E[x_tn | x_t] - x_tn ||^2`, as the paper's code has it with x0_pred, from x_t and h alone."""
    x_tn, eta, h, t_n, t = mixed_batch(*shape)
    alpha_n, alpha_t, sigma_n, sigma_t = (
        c.reshape(-1, *(1,) * len(shape))
        for c in (schedule.alpha(t_n), schedule.alpha(t), schedule.sigma(t_n), schedule.sigma(t))
    )
    r = alpha_t / alpha_n
    v = (sigma_t**2 - r**2 * sigma_n**2).clamp(min=0)
    x_t = r * x_tn + v.sqrt() * eta
    error = (x_t + v * (alpha_t * h - x_t) / sigma_t**2) / r - x_tn
    loss = ambient_dsm_loss(
        lambda x, t: h, x_tn, t_n, schedule, t=t, noise=eta, prediction_type="sample", weighting="x_0"
    )
    torch.testing.assert_close(loss, error.square().reshape(8, -1).mean(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_does_not_depend_on_the_parametrisation(schedule, shape, weighting):
    x_tn, eta, h, t_n, t = mixed_batch(*shape)

    def loss(prediction_type):
        return ambient_dsm_loss(
            lambda x_t, t: model_output_from_x_0(h, x_t, t, schedule, prediction_type),
            x_tn, t_n, schedule, t=t, noise=eta, prediction_type=prediction_type, weighting=weighting,
        )  # fmt: skip

    assert loss("epsilon").shape == (8,)
    torch.testing.assert_close(loss("v_prediction"), loss("epsilon"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss("sample"), loss("epsilon"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_batch_is_its_rows(schedule, shape, weighting):
    x_tn, eta, _, t_n, t = mixed_batch(*shape, dtype=torch.float32)

    def loss(rows):
        return ambient_dsm_loss(
            lambda x_t, t: x_t.tanh() * (1 + t.reshape(-1, *(1,) * len(shape)) / 1000),
            x_tn[rows], t_n[rows], schedule, t=t[rows], noise=eta[rows], weighting=weighting,
        )  # fmt: skip

    rows = torch.cat([loss([i]) for i in range(8)])
    torch.testing.assert_close(loss(list(range(8))), rows, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_finite_at_t_equal_to_t_n(schedule, prediction_type, weighting):
    """In float32, loss and gradient, for every t_n, and the same for a clean sample at every t."""
    every_t = torch.arange(1000)
    x_tn, eta = normal(2000, 3), normal(2000, 3, seed=1)
    scale = torch.ones((), requires_grad=True)
    loss = ambient_dsm_loss(
        lambda x_t, t: scale * x_t.sin(), x_tn, torch.cat([every_t, every_t * 0 - 1]), schedule,
        t=torch.cat([every_t, every_t]), noise=eta, prediction_type=prediction_type, weighting=weighting,
    )  # fmt: skip
    assert loss.dtype == torch.float32 and bool(loss.isfinite().all())
    assert bool(torch.autograd.grad(loss.sum(), scale)[0].isfinite())
    if weighting == "noise":  # nothing was added, so that nothing of eta can be predicted
        assert torch.equal(loss[:1000], eta[:1000].square().mean(1))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_finite_at_zero_terminal_snr(weighting):
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True))
    t, t_n, scale = torch.full((3,), 999), torch.tensor([-1, 500, 999]), torch.ones((), requires_grad=True)
    loss = ambient_dsm_loss(
        lambda x_t, t: scale * x_t, normal(3, 4), t_n, schedule, t=t, prediction_type="v_prediction",
        weighting=weighting,
    )  # fmt: skip
    assert bool(loss.isfinite().all()) and bool(torch.autograd.grad(loss.sum(), scale)[0].isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_half_precision_stays_near_float32(schedule, dtype, prediction_type):
    t, t_n = torch.tensor([100, 300, 700, 999]), torch.tensor([-1, 100, 500, 100])
    x_tn, eta = normal(4, 4, 8, 8).to(dtype), normal(4, 4, 8, 8, seed=1).to(dtype)

    def loss(dtype):
        return ambient_dsm_loss(
            lambda x_t, t: x_t.tanh(), x_tn.to(dtype), t_n, schedule, t=t, noise=eta.to(dtype),
            prediction_type=prediction_type,
        )  # fmt: skip

    assert loss(dtype).dtype == torch.float32
    torch.testing.assert_close(loss(dtype), loss(torch.float32), rtol=5e-3, atol=1e-4)


def test_timesteps_are_drawn_uniformly_above_t_n():
    schedule = NoiseSchedule(torch.linspace(0.95, 0.05, 10))
    t_n, seen = torch.tensor([-1, 5, 8]).repeat(20000), []

    def model(x_t, t):
        seen.append(t)
        return x_t

    ambient_dsm_loss(model, torch.zeros(60000, 1), t_n, schedule, generator=torch.Generator().manual_seed(0))
    for n, values in ((-1, range(10)), (5, range(6, 10)), (8, range(9, 10))):
        counts = seen[0][t_n == n].bincount(minlength=10)
        expected = torch.tensor([20000 / len(values) if t in values else 0.0 for t in range(10)])
        assert bool(((counts - expected).abs() <= 4 * expected.sqrt()).all())


def test_one_generator_one_loss(schedule):
    x_tn, t_n = normal(4, 3), torch.tensor([-1, 0, 500, 998])
    draws = (torch.Generator().manual_seed(seed) for seed in (0, 0, 1))
    first, again, other = (ambient_dsm_loss(lambda x, t: x, x_tn, t_n, schedule, generator=g) for g in draws)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_ambient_loss_errors_come_before_the_model_runs(schedule):
    def model(x_t, t):
        raise AssertionError("the model ran")

    x, t_n, t = torch.zeros(2, 3), torch.tensor([100, -1]), torch.tensor([500, 500])
    for message, arguments in {
        r"t must be at least t_n, got \[99, 0\]": {"t": torch.tensor([99, 0])},
        r"t must lie in 0\.\.999, got \[500, 1000\]": {"t": torch.tensor([500, 1000])},
        r"t must lie in 0\.\.999, got \[100, -1\]": {"t": torch.tensor([100, -1])},
        "t must hold integers": {"t": torch.tensor([0.5, 500.0])},
        r"t_n must lie in -1\.\.999": {"t_n": torch.tensor([-2, 0])},
        "t_n must hold integers": {"t_n": torch.tensor([0.5, 1.0])},
        "weighting must be one of noise, x_0, velocity, min_snr, got 'snr'": {"weighting": "snr"},
        "prediction_type must be one of epsilon, v_prediction, sample, got 'flow'": {"prediction_type": "flow"},
    }.items():
        with pytest.raises(ValueError, match=message):
            ambient_dsm_loss(model, x, **{"t_n": t_n, "schedule": schedule, "t": t, **arguments})
    with pytest.raises(ValueError, match=r"low \[1000\] is above high 999"):
        ambient_dsm_loss(model, x[:1], torch.tensor([999]), schedule)
    for t_n in (torch.tensor([0.5, 1.0]), torch.tensor([1000, 0]), 1000):
        with pytest.raises(ValueError, match="t_n must"):
            ambient_dsm_loss(model, x, t_n, schedule)


# --- Consistency: h(x, t) = c_t x is linear, and so is every expectation.
class Linear(torch.nn.Module):
    """h(x, t) = c_t x, with a parameter a timestep; one t a batch."""

    def __init__(self, coefficients):
        super().__init__()
        self.c = torch.nn.ParameterDict({str(t): torch.nn.Parameter(torch.tensor(c)) for t, c in coefficients.items()})

    def forward(self, x, t):
        return self.c[str(int(t[0]))] * x


def reverse_mean(schedule, t, s):
    """x_s = on_x_t x_t + on_x_0 h + ..., written out."""
    a_t, a_s = float(schedule.alpha(t)) ** 2, float(schedule.alpha(s)) ** 2
    v = (1 - a_t) - a_t / a_s * (1 - a_s)
    return math.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t), math.sqrt(a_s) * v / (1 - a_t)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("t, s, c_t, c_s, teacher", [
    (500, 100, 0.6, 0.9, None), (500, 100, 0.6, 0.9, 0.2), (300, 299, 0.5, 0.7, None), (900, 0, 0.3, 1.0, None),
])  # fmt: skip
def test_consistency_estimates_the_squared_violation(schedule, stop_gradient, t, s, c_t, c_s, teacher):
    x_t, n = torch.tensor([[1.3, -0.4]]).double(), 100_000
    c_noisier = teacher if teacher is not None and stop_gradient else c_t
    on_x_t, on_x_0 = reverse_mean(schedule, t, s)
    mean_step = on_x_t + on_x_0 * c_noisier
    violation = (c_s * mean_step - c_noisier) * x_t
    model = Linear({t: c_t, s: c_s})
    loss = consistency_loss(
        model, x_t.expand(n, -1), torch.full((n,), t), torch.full((n,), s), schedule, prediction_type="sample",
        stop_gradient=stop_gradient,
        teacher=None if teacher is None else Linear({t: teacher}), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    standard_error = float(loss.detach().std()) / math.sqrt(n)
    expected = float(violation.square().mean())
    assert abs(float(loss.detach().mean()) - expected) < 4 * standard_error
    # Without the independence of the two steps the estimate would be higher by the variance of c_s x_s.
    step_variance = float(1 - schedule.alpha(s) ** 2) * on_x_0 / float(schedule.alpha(s))
    assert c_s**2 * step_variance > 10 * standard_error
    # The gradient of both factors: through h(x_s, s), and in the literal form through h(x_t, t), not through the steps.
    loss.mean().backward()
    gradients = {s: (2 * violation * mean_step * x_t).mean(), t: 0 if stop_gradient else (-2 * violation * x_t).mean()}
    for time, expected in gradients.items():
        actual = model.c[str(time)].grad
        assert float(0 if actual is None else actual) == pytest.approx(float(expected), abs=0.02)


def test_the_flat_prior_has_no_violation(schedule):
    """h = x_t / alpha_t, of an infinitely flat prior, is consistent: the attractor of the literal form."""
    n, t, s = 100_000, 500, 100
    model = Linear({i: float(1 / schedule.alpha(i)) for i in (t, s)})
    loss = consistency_loss(
        model, torch.full((n, 1), 2.0).double(), torch.full((n,), t), torch.full((n,), s), schedule,
        prediction_type="sample", stop_gradient=False, generator=torch.Generator().manual_seed(0),
    ).detach()  # fmt: skip
    assert abs(float(loss.mean())) < 4 * float(loss.std()) / math.sqrt(n)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_consistency_does_not_depend_on_the_parametrisation(schedule, prediction_type, shape):
    x_t, t, s = normal(3, *shape, dtype=torch.float64), torch.tensor([999, 500, 1]), torch.tensor([998, 0, 0])

    def loss(prediction_type, rows=slice(None)):
        return consistency_loss(
            lambda x, t: model_output_from_x_0(x.tanh(), x, t, schedule, prediction_type),
            x_t[rows], t[rows], s[rows], schedule, prediction_type=prediction_type,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    assert loss("epsilon").shape == (3,)
    torch.testing.assert_close(loss(prediction_type), loss("sample"), rtol=1e-9, atol=1e-12)


def test_who_gets_a_gradient(schedule):
    """The corrected form: h(x_s, s) of the denoiser only. The literal form: both sides."""
    x_t, t, s = normal(64, 3), torch.full((64,), 500), torch.full((64,), 100)

    def gradients(denoiser, **arguments):
        consistency_loss(
            denoiser, x_t, t, s, schedule, prediction_type="sample", generator=torch.Generator().manual_seed(0),
            **arguments,
        ).mean().backward()  # fmt: skip
        return {name: c.grad for name, c in denoiser.c.items()}

    values, teacher = {500: 0.6, 100: 0.9}, Linear({500: 0.5, 100: 0.8})
    corrected = gradients(Linear(values))
    assert corrected["500"] is None and float(corrected["100"].abs()) > 0
    taught = gradients(Linear(values), teacher=teacher)
    assert taught["500"] is None and float(taught["100"].abs()) > 0
    assert all(c.grad is None for c in teacher.c.values())
    literal = gradients(Linear(values), stop_gradient=False)
    assert float(literal["500"].abs()) > 0 and float(literal["100"].abs()) > 0
    through_steps = gradients(Linear(values), stop_gradient=False, sampling_gradient=True)
    assert not torch.equal(through_steps["500"], literal["500"])


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_one_of_the_two_steps_is_evaluated_without_gradient(schedule, stop_gradient):
    model, enabled, t, s = Linear({500: 0.6, 100: 0.9}), [], torch.tensor([500, 500]), torch.tensor([100, 100])
    model.register_forward_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    consistency_loss(model, normal(2, 3), t, s, schedule, stop_gradient=stop_gradient)
    assert sorted(enabled) == ([False, False, True] if stop_gradient else [False, True, True])


def test_consistency_errors_name_the_argument(schedule):
    x, t = torch.zeros(2, 3), torch.tensor([500, 100])
    for message, s, prediction_type in (
        (r"t must be at least s \+ 1, got \[500, 100\] below \[500, 101\]", torch.tensor([499, 100]), "epsilon"),
        (r"s must lie in 0\.\.999, got \[10, -1\]", torch.tensor([10, -1]), "epsilon"),
        ("s must hold integers", torch.tensor([10.0, 1.0]), "epsilon"),
        ("prediction_type must be one of", torch.tensor([10, 1]), "flow"),
    ):
        with pytest.raises(ValueError, match=message):
            consistency_loss(lambda x, t: x, x, t, s, schedule, prediction_type=prediction_type)
