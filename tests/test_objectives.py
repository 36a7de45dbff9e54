"""The objective against closed forms: linear denoisers of Gaussian data, counted evaluations, bit-for-bit invariants."""

import copy
import json
import math

import pytest
import safetensors.torch
import torch

from ambient_diffusers import NoiseSchedule, tweedie
from ambient_diffusers.losses import WEIGHTINGS, ambient_noise_error, consistency_loss, loss_weight
from ambient_diffusers.objectives import AmbientObjective, AmbientObjectiveConfig
from ambient_diffusers.objectives.draws import Draws
from ambient_diffusers.objectives.posterior import draw_posterior
from ambient_diffusers.objectives.rollout import log_snr_ladder
from ambient_diffusers.parametrization import PREDICTION_TYPES, model_output_from_x_0

OBJECTIVES = ("none", "consistency", "sfbd")


@pytest.fixture(scope="module")
def schedule():
    """SDXL's: scaled linear betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseSchedule((1 - betas).cumprod(0))


def config_of(name, **settings):
    return AmbientObjectiveConfig(low_noise_objective=name, **{"low_noise_delay": 0.0} | settings)


def gaussian(schedule, variance):
    """`(x, t, rows) -> E[x_0 | x_t]` for x_0 ~ N(0, variance)."""

    def h(x, t, rows):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        c = alpha * variance / (alpha**2 * variance + sigma**2)
        return c.to(x).reshape(-1, *(1,) * (x.ndim - 1)) * x

    return h


class Coefficients(torch.nn.Module):
    """h(x, t) = c_t x with a parameter for every timestep."""

    def __init__(self, c):
        super().__init__()
        self.c = torch.nn.Parameter(c.clone())

    def forward(self, x, t, rows=None):
        return self.c[t].reshape(-1, *(1,) * (x.ndim - 1)).to(x.dtype) * x


class Counting(torch.nn.Module):
    """Counts evaluations of single states: 1 forward, 2 more backward."""

    def __init__(self, model):
        super().__init__()
        self.model, self.evaluations, self.calls, self.seen = model, 0, [], []

    def forward(self, x, t, rows):
        self.evaluations += len(x) * (3 if torch.is_grad_enabled() else 1)
        self.calls.append((len(x), torch.is_grad_enabled()))
        self.seen.append((t.clone(), rows.clone(), torch.is_grad_enabled()))
        return self.model(x, t, rows)


def run(objective, denoiser, x_tn, t_n, step=0, max_steps=1, index=None, **arguments):
    index = torch.arange(len(x_tn)) if index is None else index
    return objective(denoiser, x_tn, t_n, index=index, step=step, max_steps=max_steps, **arguments)


def normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- The ambient part


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_exact_denoiser_of_a_gaussian_is_a_stationary_point(schedule, prediction_type):
    """The gradient of a h along a, at a = 1, is zero in expectation for noisy data of several t_n, and not at a = 0.95."""
    n, variance = 100_000, 0.7
    t_n = torch.tensor([-1, 0, 100, 500, 800]).repeat_interleave(n // 5)
    x_tn = tweedie.add_noise(variance**0.5 * normal(0, n, 1), normal(1, n, 1), t_n, schedule).double()
    h = gaussian(schedule, variance)
    objective = AmbientObjective(schedule, AmbientObjectiveConfig(loss_weighting="noise"), prediction_type)

    def gradient(at):
        a = torch.full((n,), at, dtype=torch.float64, requires_grad=True)
        run(
            objective,
            lambda x, t, rows: model_output_from_x_0(a[:, None] * h(x, t, rows), x, t, schedule, prediction_type),
            x_tn, t_n, generator=torch.Generator().manual_seed(2),
        ).loss.backward()  # fmt: skip
        g = a.grad * n
        return float(g.mean() / (g.std() / math.sqrt(n)))

    assert abs(gradient(1.0)) < 4
    assert gradient(0.95) < -8


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("weighting", (None, *WEIGHTINGS))
def test_clean_rows_take_the_loss_that_diffusers_takes(schedule, prediction_type, weighting):
    """`F.mse_loss(model output, target)` at the default weighting, at its own min-SNR weights with gamma."""
    x_0, model = normal(0, 6, 4, 3, 2), torch.nn.Conv2d(4, 4, 1)
    gamma = {"snr_gamma": 5.0} if weighting == "min_snr" else {}
    objective = AmbientObjective(schedule, AmbientObjectiveConfig(loss_weighting=weighting, **gamma), prediction_type)
    seen = {}

    def denoiser(x, t, rows):
        seen.update(x=x, t=t, output=model(x))
        return seen["output"]

    out = run(objective, denoiser, x_0, torch.full((6,), -1))
    x_t, t, output = seen["x"].double(), seen["t"], seen["output"].double()
    alpha, sigma = (f(t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    noise = (x_t - alpha * x_0) / sigma
    x_0_hat = {
        "epsilon": (x_t - sigma * output) / alpha,
        "v_prediction": alpha * x_t - sigma * output,
        "sample": output,
    }[prediction_type]
    error_x_0 = (x_0_hat - x_0).square().flatten(1).mean(1)
    snr = schedule.snr(t)
    own = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction_type] * error_x_0
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * x_0, "sample": x_0}[prediction_type]
    torch.testing.assert_close(own, (output - target).square().flatten(1).mean(1), rtol=1e-3, atol=1e-5)
    expected = {
        None: own, "noise": snr * error_x_0, "x_0": error_x_0, "velocity": (snr + 1) * error_x_0,
        "min_snr": snr.clamp(max=5) * error_x_0,
    }[weighting]  # fmt: skip
    torch.testing.assert_close(out.terms["ambient"].double(), expected.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(out.loss, out.terms["ambient"].mean())


def test_timesteps_are_uniform_above_t_n(schedule):
    t_n = torch.tensor([-1, 500, 989, 998]).repeat(5000)
    model = Counting(gaussian(schedule, 1.0))
    run(AmbientObjective(schedule), model, torch.zeros(len(t_n), 1), t_n, generator=torch.Generator().manual_seed(0))
    t = model.seen[0][0].reshape(-1, 4)
    assert bool((t > t_n.reshape(-1, 4)).all())
    assert t.amin(0).tolist() == [0, 501, 990, 999] and t.amax(0).tolist() == [999] * 4
    assert float(t[:, 0].float().mean()) == pytest.approx(499.5, abs=15)


@pytest.mark.parametrize("t_n", [[999], [-2], [1000], [3, 999]])
def test_an_impossible_t_n_is_an_error(schedule, t_n):
    with pytest.raises(ValueError, match=r"t_n must lie in -1\.\.998, got .*at 999 there is nothing to learn above"):
        run(AmbientObjective(schedule), lambda *_: None, torch.zeros(len(t_n), 2), torch.tensor(t_n))


def test_noise_offset_is_for_clean_samples(schedule):
    """One offset a channel in the noise of clean rows; the noise of noisy rows stays as it was."""
    t_n, x = torch.tensor([-1, 300]), torch.zeros(2, 3, 8, 8)
    states = {}
    for offset in (0.0, 0.5):
        model = Counting(gaussian(schedule, 1.0))
        model.model = lambda x, t, rows, offset=offset: states.setdefault(offset, (x, t))[0]
        run(AmbientObjective(schedule, AmbientObjectiveConfig(noise_offset=offset)), model, x, t_n)
    (plain, t), (shifted, _) = states[0.0], states[0.5]
    assert torch.equal(plain[1], shifted[1])
    difference = ((shifted - plain)[0] / schedule.sigma(t)[0]).flatten(1)
    assert float(difference.std(1).max()) < 1e-5 and len(difference[:, 0].unique()) == 3
    assert 0 < float(difference.abs().max()) < 0.5 * 4


# --- Invariants of every objective


@pytest.mark.parametrize("with_generator", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_clean_data_make_every_objective_plain_denoising(schedule, name, with_generator):
    model, x_0, t_n = torch.nn.Linear(2, 2), normal(0, 8, 2), torch.full((8,), -1)
    losses = {}
    for kind in ("none", name):
        objective, generator = AmbientObjective(schedule, config_of(kind)), torch.Generator().manual_seed(1)
        losses[kind] = [
            run(objective, lambda x, t, rows: model(x), x_0, t_n, step=step, max_steps=4,
                generator=generator if with_generator else None).loss
            for step in range(4)
        ]  # fmt: skip
    assert [loss.item() for loss in losses["none"]] == [loss.item() for loss in losses[name]]


MIXED = torch.tensor([-1, 100, 500, -1, 0, 500, 800, 997])


@pytest.mark.parametrize("settings", [
    {}, {"low_noise_objective": "consistency"}, {"low_noise_objective": "consistency", "consistency_start": "boundary"},
    {"low_noise_objective": "consistency", "consistency_start": "everywhere", "consistency_max_step": 50},
    {"low_noise_objective": "sfbd", "sfbd_refresh_every": 1}, {"low_noise_objective": "sfbd", "noise_offset": 0.1},
])  # fmt: skip
def test_a_row_does_not_depend_on_its_batch(schedule, settings):
    """Mixed t_n: the terms of each row are those of the row alone, given enough budget."""
    x_tn, ids, model = normal(0, 8, 4, 2, 2), torch.arange(8) + 40, torch.nn.Conv2d(4, 4, 1).double()
    budget = {"consistency_credit": 10**6, "posterior_credit": 10**6}

    def terms(rows, step):
        objective = AmbientObjective(schedule, config_of(**{"name": settings.get("low_noise_objective", "none")} | {
            key: value for key, value in settings.items() if key != "low_noise_objective"}))  # fmt: skip
        objective.load_state_dict(objective.state_dict() | budget)
        seen_rows = []

        def denoiser(x, t, of_rows):
            seen_rows.append(of_rows)
            scale = 1 + ids[rows][of_rows].reshape(-1, 1, 1, 1) / 100  # the conditioning of the row
            return model(x) * scale

        out = run(objective, denoiser, x_tn[rows].double(), MIXED[rows], step=step, max_steps=20, index=ids[rows])
        return torch.stack([out.terms["ambient"], out.terms["low_noise"], *(a.double() for a in out.acted.values())])

    acted = 0
    for step in range(6):
        together = terms(torch.arange(8), step)
        alone = torch.cat([terms(torch.tensor([row]), step) for row in range(8)], 1)
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
        assert float(together[3][MIXED == -1].sum()) == 0  # clean rows have no low-noise term
        acted += float(together[3].sum())
    assert acted > 0 or not settings


@pytest.mark.parametrize("name", ("consistency", "sfbd"))
def test_the_delay_and_the_warm_up(schedule, name):
    settings = {"low_noise_delay": 0.5, "low_noise_warmup": 0.25, "low_noise_weight": 2.0}
    objective = AmbientObjective(schedule, config_of(name, **settings))
    weights = [objective.low_noise_weight(step, 16) for step in range(16)]
    assert weights == [0] * 8 + [0.5, 1, 1.5, 2, 2, 2, 2, 2]
    x, t_n, model = normal(0, 64, 2), torch.full((64,), 500), gaussian(schedule, 1.0)
    outs = [run(objective, model, x, t_n, step=step, max_steps=16) for step in (7, 8, 15)]
    assert not bool(outs[0].acted["low_noise"].any())
    share = {"consistency": 5 / 10.5, "sfbd": 1}[name]
    for out, weight in zip(outs, (0, 0.5, 2), strict=True):
        expected = out.terms["ambient"].mean() + weight / share * out.terms["low_noise"].mean()
        torch.testing.assert_close(out.loss, expected)
    assert bool(outs[1].acted["low_noise"].any())
    means = outs[1].means()
    for key, term in outs[1].terms.items():
        torch.testing.assert_close(means[key], term[outs[1].acted[key]].mean())


def test_the_budget_is_part_of_the_state(schedule):
    objective, kept = AmbientObjective(schedule), {"consistency_credit": 5, "posterior_credit": 7}
    objective.load_state_dict(objective.state_dict() | kept)
    assert kept.items() <= objective.state_dict().items()


class MLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))

    def forward(self, x, t, rows):
        return self.layers(torch.cat([x, t[:, None].to(x) / 1000], 1))


LITERAL = dict(
    name="consistency", loss_weighting="x_0", low_noise_weight=0.015, consistency_start="everywhere",
    consistency_steps=2, consistency_max_step=50, consistency_stop_gradient=False, consistency_sampling_gradient=True,
)  # fmt: skip


@pytest.mark.parametrize("settings, half", [
    ({"name": "none"}, 100), ({"name": "consistency", "consistency_levels": 2}, 100),
    ({"name": "sfbd", "sfbd_steps": 4}, 100), (LITERAL, 20),
])  # fmt: skip
def test_a_resumed_run_is_the_same_run(schedule, settings, half, tmp_path):
    """200 steps = 100 + save + load + 100, bit for bit, with what a trainer keeps: model, teacher, optimiser, objective."""
    centres = torch.tensor([[1.0, 0], [-1, 0.5]])
    x_0 = centres[torch.arange(60) % 2] + 0.1 * normal(0, 60, 2)
    t_n = torch.tensor([-1, 100, 500]).repeat(20)
    x_tn = tweedie.add_noise(x_0, normal(1, 60, 2), t_n, schedule)

    def make():
        torch.manual_seed(0)
        model = MLP()
        return model, copy.deepcopy(model), torch.optim.Adam(model.parameters(), 1e-3)

    def train(parts, objective, steps):
        model, average, optimizer = parts
        for step in steps:
            index = (torch.arange(4) * 7 + step * 4) % 60
            out = objective(model, x_tn[index], t_n[index], index=index, step=step, max_steps=2 * half, teacher=average)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            for a, b in zip(average.parameters(), model.parameters(), strict=True):
                a.data.lerp_(b.data, 0.1)
        return torch.cat([p.detach().flatten() for p in (*model.parameters(), *average.parameters())])

    settings = AmbientObjectiveConfig(**{"low_noise_objective": settings["name"], "low_noise_delay": 0.2} | {
        key: value for key, value in settings.items() if key != "name"})  # fmt: skip
    straight = train(make(), AmbientObjective(schedule, settings), range(2 * half))

    parts, objective = make(), AmbientObjective(schedule, settings)
    train(parts, objective, range(half))
    state = objective.state_dict()
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    safetensors.torch.save_file(tensors, tmp_path / "state.safetensors")
    numbers = json.loads(json.dumps({key: value for key, value in state.items() if key not in tensors}))
    resumed = AmbientObjective(schedule, settings)
    resumed.load_state_dict(numbers | safetensors.torch.load_file(tmp_path / "state.safetensors"))
    assert torch.equal(train(parts, resumed, range(half, 2 * half)), straight)
    assert bool(straight.isfinite().all())
    if settings.low_noise_objective == "sfbd":  # the state matters
        forgetful = make()
        train(forgetful, AmbientObjective(schedule, settings), range(half))
        assert not torch.equal(train(forgetful, AmbientObjective(schedule, settings), range(half, 2 * half)), straight)


# --- What a step costs


def cost(schedule, settings, batch=4, steps=100, t_n=500, samples=40):
    model, objective, generator = Counting(MLP()), AmbientObjective(schedule, settings), torch.Generator()
    t_n, x_tn = torch.full((samples,), t_n), normal(0, samples, 2)
    for step in range(steps):
        index = (torch.arange(batch) + step * batch) % samples
        run(objective, model, x_tn[index], t_n[index], step=step, max_steps=steps, index=index,
            generator=generator)  # fmt: skip
    return model.evaluations / (steps * batch), model


def test_none_costs_three(schedule):
    evaluations, model = cost(schedule, AmbientObjectiveConfig())
    assert evaluations == 3 and set(model.calls) == {(4, True)}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("t_n", [1, 100, 500])
def test_consistency_costs_at_most_eight(schedule, batch, t_n):
    evaluations, model = cost(schedule, config_of("consistency"), batch, t_n=t_n)
    assert 7.4 < evaluations <= 8
    assert sum(gradient for _, gradient in model.calls) == 100  # ambient and low-noise states share one call


@pytest.mark.parametrize("settings, evaluations", [
    ({"consistency_start": "boundary"}, 8), ({"consistency_start": "boundary", "consistency_stop_gradient": False}, 10),
    ({"consistency_start": "everywhere", "consistency_max_step": 50, "consistency_steps": 2}, 10),
])  # fmt: skip
def test_published_forms_cost_what_they_cost(schedule, settings, evaluations):
    assert cost(schedule, config_of("consistency", **settings), steps=20)[0] == evaluations


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("t_n, samples", [(20, 40), (100, 40), (500, 40), (500, 100_000), (997, 40)])
def test_sfbd_costs_at_most_four(schedule, batch, t_n, samples):
    """For small sets and for sets of which no sample is seen twice."""
    evaluations, model = cost(schedule, config_of("sfbd"), batch, t_n=t_n, samples=samples)
    assert 3 < evaluations <= 4
    if t_n == 500:
        assert evaluations > 3.7
    assert sum(gradient for _, gradient in model.calls) == 100
    assert all(size == batch for size, gradient in model.calls if gradient)  # draws replace rows, they are not added


# --- Consistency


def reverse_mean(schedule, t, s):
    """`x_s = on_x_t x_t + on_x_0 h + noise`."""
    alpha_t, alpha_s = float(schedule.alpha(t)), float(schedule.alpha(s))
    v = 1 - (alpha_t / alpha_s) ** 2
    return alpha_t / alpha_s * (1 - alpha_s**2) / (1 - alpha_t**2), alpha_s * v / (1 - alpha_t**2)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("form", ["corrected", "literal", "through the steps"])
def test_the_gradient_is_that_of_the_squared_violation(schedule, form, steps):
    """h = c_t x, x_tn = 1.5: `|| c_s E[x_s] - c_t ||^2 x^2` and its derivatives, written out, on the way t_n -> .. -> 0."""
    c = torch.linspace(1.0, 0.2, 1000, dtype=torch.float64)
    c[:3] = torch.tensor([0.9, 0.8, 0.5])
    c.requires_grad_()
    m = 1
    for t in range(steps, 0, -1):  # E[x_s / x_t], with the gradient that the form passes
        on_x_t, on_x_0 = reverse_mean(schedule, t, t - 1)
        m = m * (on_x_t + on_x_0 * (c[t] if form == "through the steps" else c[t].detach()))
    noisier = c[steps].detach() if form == "corrected" else c[steps]
    violation = (c[0] * m - noisier) ** 2 * 1.5**2
    exact = torch.autograd.grad(violation, c)[0][: steps + 1]

    n, model = 100_000, Coefficients(c.detach())
    objective = AmbientObjective(schedule, config_of(
        "consistency", low_noise_weight=1.0, consistency_start="boundary", consistency_max_step=1,
        consistency_steps=steps, consistency_stop_gradient=form == "corrected",
        consistency_sampling_gradient=form == "through the steps",
    ), "sample")  # fmt: skip
    out = run(
        objective, model, torch.full((n, 1), 1.5, dtype=torch.float64), torch.full((n,), steps),
        index=torch.zeros(n, dtype=torch.long), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    out.loss.backward()
    low_noise = out.terms["low_noise"]
    assert float(low_noise.mean()) == pytest.approx(float(violation), abs=4 * float(low_noise.std()) / math.sqrt(n))
    # The ambient loss has gradient above t_n only.
    torch.testing.assert_close(model.c.grad[: steps + 1], exact, rtol=0, atol=1e-3)
    assert float(exact.abs().max()) > 0.03


def flat(schedule, t):
    return 1 / float(schedule.alpha(t))


def test_the_flat_prior_has_no_discretised_violation(schedule):
    """`h = x_t / alpha_t`: with the noise of the step taken away, h(x_s) is h(x_t), for any t and s."""
    x = torch.tensor([[2.0]], dtype=torch.float64)
    for t in (999, 500, 100, 1):
        for s in {t - 1, t // 2, 0}:
            x_s = tweedie.ancestral_step(x, x * flat(schedule, t), t, s, schedule, torch.zeros_like(x))
            assert float(x_s) * flat(schedule, s) == pytest.approx(float(x) * flat(schedule, t), rel=1e-12)


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_the_flat_prior_attracts_the_literal_form_alone(schedule, stop_gradient):
    """Descent on the factor of h = factor x_t / alpha_t from 0.8. The literal form ends at the flat prior, 1; the corrected
    form, with the exact denoiser at t as its teacher, at the exact denoiser at s."""
    t, s, n, variance = 500, 100, 1024, 0.25
    exact = gaussian(schedule, variance)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x_t = normal(0, n, 1, dtype=torch.float64)

    def denoiser(x, time):
        return scale * x / schedule.alpha(time)[:, None]

    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        loss = consistency_loss(
            denoiser, x_t, torch.full((n,), t), torch.full((n,), s), schedule, prediction_type="sample",
            teacher=lambda x, time: exact(x, time, None), stop_gradient=stop_gradient,
            sampling_gradient=not stop_gradient, generator=generator,
        ).mean()  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, scale)
        scale.data -= 0.1 * gradient
    alpha_s = float(schedule.alpha(s))
    truth = alpha_s**2 * variance / (alpha_s**2 * variance + 1 - alpha_s**2)
    assert truth < 0.7
    if stop_gradient:
        assert float(scale) == pytest.approx(truth, abs=0.02)
    else:
        assert float(scale) == pytest.approx(1, abs=0.02)


def test_the_corrected_form_reaches_every_level_below_t_n(schedule):
    """With gradient: uniformly in log-SNR from t_n to 0. Rows with no level below have no term."""
    model, t_n = Counting(gaussian(schedule, 1.0)), torch.tensor([-1, 0, 1, 300, 300, 300, 300, 300])
    objective, generator = AmbientObjective(schedule, config_of("consistency")), torch.Generator()
    for step in range(100):
        run(objective, model, torch.zeros(8, 2), t_n, step=step, max_steps=100, generator=generator)
    below = [(t[8:], rows[8:]) for t, rows, gradient in model.seen if gradient]
    t, rows = (torch.cat(part) for part in zip(*below, strict=True))
    assert bool((t < t_n[rows]).all()) and set(rows.tolist()) == set(range(2, 8))
    top, bottom = float(schedule.log_snr(300)), float(schedule.log_snr(0))
    passed = (schedule.log_snr(t[rows > 2]) - top) / (bottom - top)
    counts = torch.histogram(passed.float(), 6, range=(0, 1 + 1e-6)).hist / len(passed)
    assert float(counts.min()) > 0.1 and float(counts.max()) < 0.28
    assert float((passed < 1 / 24).double().mean()) > 0.02  # half of the first of twelve steps: 1/24 of the levels
    assert len(rows) / (100 * 6) == pytest.approx(5 / 10.5, abs=0.04)  # the share by which the loss is divided


def test_the_papers_settings_take_the_papers_steps(schedule):
    """From t_n = 500, one step of at most 100 timesteps: s between 400 and 499; everywhere: below the ambient timestep."""
    t_n = torch.full((2000,), 500)
    for start, steps in (("boundary", 1), ("boundary", 2), ("everywhere", 2)):
        model = Counting(gaussian(schedule, 1.0))
        settings = {"consistency_start": start, "consistency_steps": steps, "consistency_max_step": 100}
        run(AmbientObjective(schedule, config_of("consistency", **settings)), model, torch.zeros(2000, 1), t_n,
            generator=torch.Generator().manual_seed(0))  # fmt: skip
        t, rows, _ = next(seen for seen in model.seen if seen[2])
        assert rows.tolist() == [*range(2000)] * 2
        fall = (t_n if start == "boundary" else t[:2000]) - t[2000:]
        assert int(fall.min()) >= steps and int(fall.max()) <= 100 * steps
        if steps == 1:
            assert set(fall.tolist()) == set(range(1, 101))


# --- Posterior draws


def test_the_ladder_is_even_in_log_snr(schedule):
    t_n = torch.tensor([900, 100, 3, 0])
    ladder = log_snr_ladder(t_n, torch.linspace(0, 1, 12, dtype=torch.float64), schedule)
    assert ladder[:, 0].tolist() == t_n.tolist() and ladder[:, -1].tolist() == [0] * 4
    assert bool((ladder.diff(dim=1) <= 0).all())
    steps = schedule.log_snr(ladder[0]).diff()
    assert float(steps[:6].std() / steps[:6].mean()) < 0.02


@pytest.mark.parametrize("widened", [True, False])
def test_posterior_draws_of_a_gaussian(schedule, widened):
    """Mean and variance of p(x_0 | x_tn), known; six usual steps are too narrow, six widened ones are not."""
    n, d, variance, t_n = 4000, 8, 0.25, 300
    x_tn = torch.full((n, d), 0.6, dtype=torch.float64)
    draws = Draws([0] * n, 0, 0, torch.Generator().manual_seed(0))
    evaluated = Counting(gaussian(schedule, variance))
    x_0 = draw_posterior(
        evaluated, x_tn, torch.full((n,), t_n), torch.arange(n), schedule, draws, steps=6, widened=widened
    )
    alpha, sigma = float(schedule.alpha(t_n)), float(schedule.sigma(t_n))
    exact = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    assert float(x_0.mean()) == pytest.approx(0.6 * alpha * variance / (alpha**2 * variance + sigma**2), abs=0.01)
    ratio = float(x_0.var()) / exact
    assert (ratio == pytest.approx(1, abs=0.06)) if widened else (ratio < 0.5)
    assert len(evaluated.calls) == 6


def test_rows_below_t_n_train_on_their_draws(schedule):
    """A teacher whose denoiser is constant makes that constant the draw: the plain denoising loss on it, by the draw's own state."""
    n, constant, seen = 500, 0.75, {}
    objective = AmbientObjective(schedule, config_of("sfbd", sfbd_refresh_every=1, loss_weighting="noise"))

    def denoiser(x, t, rows):
        seen.update(x=x, t=t)
        return torch.sin(x)

    def teacher(x, t, rows):
        alpha, sigma = schedule.alpha(t)[:, None].to(x), schedule.sigma(t)[:, None].to(x)
        return (x - alpha * constant) / sigma

    t_n = torch.tensor([-1, 300]).repeat(n // 2)
    out = run(objective, denoiser, normal(0, n, 2), t_n, teacher=teacher)
    t, low = seen["t"], out.acted["low_noise"]
    assert torch.equal(low, t <= t_n) and torch.equal(out.acted["ambient"], ~low)
    assert float(low[t_n == 300].double().mean()) == pytest.approx(0.301, abs=0.08)
    x_t = seen["x"].double()
    noise = (x_t - schedule.alpha(t)[:, None] * constant) / schedule.sigma(t)[:, None]
    clean = torch.full_like(t, -1)
    expected = ambient_noise_error(torch.sin(x_t), noise, t, clean, schedule) * loss_weight(t, clean, schedule)
    torch.testing.assert_close(out.terms["low_noise"][low].double(), expected[low], rtol=1e-3, atol=1e-4)
    assert float(out.terms["low_noise"][~low].abs().sum()) == 0


def test_rows_without_a_draw_stay_ambient(schedule):
    """No budget yet: the timestep is uniform above t_n, as without a low-noise objective."""
    n, t_n = 20_000, torch.full((20_000,), 800)
    objective, model = AmbientObjective(schedule, config_of("sfbd", sfbd_steps=10**6)), Counting(torch.sin)
    model.model = lambda x, t, rows: x
    out = run(objective, model, torch.zeros(n, 1), t_n, generator=torch.Generator().manual_seed(0))
    t = model.seen[-1][0]
    assert not bool(out.acted["low_noise"].any()) and int(t.min()) == 801 and int(t.max()) == 999
    assert float(t.double().mean()) == pytest.approx(900, abs=2)
    assert float(t.double().std()) == pytest.approx(199 / math.sqrt(12), rel=0.02)


def test_draws_are_renewed_when_they_are_too_old(schedule):
    objective = AmbientObjective(schedule, config_of("sfbd", sfbd_refresh_every=10))
    t_n, x_tn, made = torch.full((16,), 900), normal(0, 16, 2), []
    for step in range(40):
        run(objective, lambda x, t, rows: x, x_tn, t_n, step=step, max_steps=40)
        state = objective.state_dict()
        made.append(dict(zip(state["draw_ids"].tolist(), state["draw_steps"].tolist(), strict=True)))
        if step:
            for sample, before in made[-2].items():
                assert made[-1][sample] == before or made[-1][sample] - before >= 10
    assert len(made[-1]) == 16 and min(made[-1].values()) > 40 - 10 - 5


def test_the_budget_goes_to_samples_without_a_draw_first(schedule):
    objective = AmbientObjective(schedule, config_of("sfbd"))
    t_n, x_tn = torch.full((8,), 997), normal(0, 8, 2)
    for step in range(12):  # 8 evaluations a step, 12 a draw: one draw each after 12 steps
        run(objective, lambda x, t, rows: x, x_tn, t_n, step=step, max_steps=12)
    assert sorted(objective.state_dict()["draw_ids"].tolist()) == list(range(8))


# --- Settings


@pytest.mark.parametrize("settings, message", [
    ({"low_noise_objective": "sfdb"}, r"low_noise_objective must be one of none, consistency, sfbd, got 'sfdb'"),
    ({"loss_weighting": "snr"}, "loss_weighting must be one of None, noise, x_0, velocity, min_snr, got 'snr'"),
    ({"consistency_start": "top"}, "consistency_start must be one of"), ({"sfbd_steps": 0}, "sfbd_steps must be at le"),
    ({"low_noise_delay": 1.5}, r"low_noise_delay must be a share of the steps in \[0, 1\], got 1.5"),
    ({"snr_gamma": 5.0, "loss_weighting": "x_0"}, "loss_weighting must be min_snr or None beside snr_gamma, got 'x_0'"),
    ({"consistency_sampling_gradient": True}, "consistency_stop_gradient must be False with consistency_sampling"),
    ({"sfbd_refresh_every": 0}, "sfbd_refresh_every must be at least 1 or None, got 0"),
])  # fmt: skip
def test_settings_that_no_run_could_use(settings, message):
    with pytest.raises(ValueError, match=message):
        AmbientObjectiveConfig(**settings)


def test_an_unknown_prediction_type_is_an_error(schedule):
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        AmbientObjective(schedule, AmbientObjectiveConfig(), "flow")
