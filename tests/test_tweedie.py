"""The closed forms against conditioning in a joint Gaussian, which is written here anew and in long double."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ambient_diffusers import NoiseSchedule, tweedie

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS_CUMPROD = np.append(SCHEDULER.alphas_cumprod.numpy().astype(np.longdouble), np.longdouble(1))  # [-1] is clean
TIMESTEPS = (-1, 0, 1, 2, 50, 100, 101, 300, 500, 501, 800, 998, 999)
PAIRS = [(t, s) for t in TIMESTEPS if t >= 0 for s in TIMESTEPS if s <= t]
T, S = (torch.tensor(side) for side in zip(*PAIRS, strict=True))
EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.from_scheduler(SCHEDULER)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def condition(m, tau, x_t, t, s):
    """Mean and variance of x_s and of x_0 given x_t, for x_0 ~ N(m, tau^2) and x_t a noisier version of x_s."""
    x_t, a_t, a_s = x_t.numpy().astype(np.longdouble), ALPHAS_CUMPROD[t.numpy()], ALPHAS_CUMPROD[s.numpy()]
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    a_t, a_s = a_t.reshape(shape), a_s.reshape(shape)
    var_t, var_s = a_t * tau**2 + 1 - a_t, a_s * tau**2 + 1 - a_s
    cov_st, cov_0t = np.sqrt(a_t / a_s) * var_s, np.sqrt(a_t) * tau**2
    innovation = (x_t - np.sqrt(a_t) * m) / var_t
    moments = (np.sqrt(a_s) * m + cov_st * innovation, var_s - cov_st**2 / var_t)
    moments += (m + cov_0t * innovation, tau**2 - cov_0t**2 / var_t)
    return [torch.from_numpy(np.broadcast_to(x, x_t.shape).astype(np.float64)) for x in moments]


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 4.0])
def test_ambient_posterior_mean_of_a_gaussian(schedule, tau):
    x_t = normal(len(T), 3)
    mean, _, x_0_hat, _ = condition(0.7, tau, x_t, T, S)
    actual = tweedie.ambient_posterior_mean(x_0_hat, x_t, T, S, schedule)
    torch.testing.assert_close(actual, mean, **EXACT)


def test_ambient_posterior_mean_is_the_papers_formula(schedule):
    """Double Tweedie as the paper has it, `(x_t + v (alpha_t h - x_t) / sigma_t^2) / r`, for any h."""
    x_t, h = normal(len(T), 3), normal(len(T), 3).flip(0)
    alpha_t, alpha_n = schedule.alpha(T)[:, None], schedule.alpha(S)[:, None]
    r = alpha_t / alpha_n
    v = schedule.sigma(T)[:, None] ** 2 - r**2 * schedule.sigma(S)[:, None] ** 2
    expected = (x_t + v * (alpha_t * h - x_t) / schedule.sigma(T)[:, None] ** 2) / r
    torch.testing.assert_close(tweedie.ambient_posterior_mean(h, x_t, T, S, schedule), expected, **EXACT)


def test_ambient_posterior_mean_at_its_ends(schedule):
    """At t = t_n the data are what is seen, x_t itself; for a clean sample they are x_0."""
    x_t, h, t = normal(1000, 2), normal(1000, 2).flip(0), torch.arange(1000)
    assert torch.equal(tweedie.ambient_posterior_mean(h, x_t, t, t, schedule), x_t)
    assert torch.equal(tweedie.ambient_posterior_mean(h, x_t, t, -1, schedule), h)
    assert torch.equal(tweedie.ambient_posterior_mean(h, x_t, -1, -1, schedule), x_t)


@pytest.mark.parametrize("x_0", [0.0, 0.7, -3.0])
def test_ancestral_step_for_a_known_x_0(schedule, x_0):
    """p(x_s | x_t, x_0): the Gaussian prior of no width."""
    x_t = normal(len(T), 3)
    mean, variance, *_ = condition(x_0, 0.0, x_t, T, S)
    step = [tweedie.ancestral_step(x_t, torch.full_like(x_t, x_0), T, S, schedule, x_t * 0 + n) for n in (0, 1, -1)]
    torch.testing.assert_close(step[0], mean, **EXACT)
    torch.testing.assert_close(((step[1] - step[2]) / 2) ** 2, variance, **EXACT)


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("per_element", [False, True])
def test_ancestral_step_with_the_variance_of_x_0_is_exact(schedule, tau, per_element):
    """With Cov[x_0 | x_t] the step is p(x_s | x_t) of the Gaussian prior, whatever its length."""
    x_t = normal(len(T), 3)
    mean, variance, x_0_hat, x_0_variance = condition(0.7, tau, x_t, T, S)
    x_0_variance = x_0_variance if per_element else x_0_variance[:, 0]
    step = [tweedie.ancestral_step(x_t, x_0_hat, T, S, schedule, x_t * 0 + noise, x_0_variance) for noise in (0, 1, -1)]
    torch.testing.assert_close(step[0], mean, **EXACT)
    torch.testing.assert_close(((step[1] - step[2]) / 2) ** 2, variance, **EXACT)


def test_ancestral_step_at_its_ends(schedule):
    """s = t is no step, s = -1 returns x_0_hat; both without noise."""
    x_t, h, noise, t = normal(1000, 2), normal(1000, 2).flip(0), normal(1000, 2) + 1, torch.arange(1000)
    assert torch.equal(tweedie.ancestral_step(x_t, h, t, t, schedule, noise), x_t)
    assert torch.equal(tweedie.ancestral_step(x_t, h, t, -1, schedule, noise), h)
    assert torch.equal(tweedie.ancestral_step(x_t, h, -1, -1, schedule, noise), x_t)


def test_ancestral_step_is_ddpms(schedule):
    """diffusers' DDPMScheduler over all of its timesteps, with no clipping."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    for t in (1, 2, 500, 999):
        x_t, epsilon, draw = normal(1, 4), normal(1, 4).flip(1), torch.Generator().manual_seed(1)
        out = scheduler.step(epsilon, t, x_t, generator=draw)
        noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        actual = tweedie.ancestral_step(x_t, out.pred_original_sample, t, t - 1, schedule, noise)
        torch.testing.assert_close(actual, out.prev_sample, rtol=1e-4, atol=1e-6)  # its tables are float32


def test_add_noise_is_diffusers(schedule):
    x_0, noise, t = normal(1000, 4, 2, 2).float(), normal(1000, 4, 2, 2).flip(0).float(), torch.arange(1000)
    actual = tweedie.add_noise(x_0, noise, t, schedule)
    torch.testing.assert_close(actual, SCHEDULER.add_noise(x_0, noise, t), rtol=0, atol=1e-6)
    assert torch.equal(tweedie.add_noise(x_0, noise, -1, schedule), x_0)


def test_add_extra_noise_completes_add_noise(schedule):
    """x_0 -> x_tn -> x_t scales x_0 by alpha_t and adds the variance sigma_t^2 in all."""
    zero, one = torch.zeros(len(T), dtype=torch.float64), torch.ones(len(T), dtype=torch.float64)

    def through_t_n(x_0, z, eta):
        return tweedie.add_extra_noise(tweedie.add_noise(x_0, z, S, schedule), eta, S, T, schedule)

    torch.testing.assert_close(through_t_n(one, zero, zero), schedule.alpha(T), rtol=1e-12, atol=0)
    variance = through_t_n(zero, one, zero) ** 2 + through_t_n(zero, zero, one) ** 2
    torch.testing.assert_close(variance, schedule.sigma(T) ** 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(), (3,), (4, 8, 8), (1, 2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_per_sample_timesteps_of_any_shape(schedule, shape, dtype):
    """A batch of mixed timesteps is its rows one by one, with ints too."""
    t, t_n = torch.tensor([999, 500, 500, 20, 0]), torch.tensor([100, -1, 500, 0, -1])
    x_t, h, noise = (torch.randn(5, *shape).to(dtype) for _ in range(3))
    for batch, row in (
        (
            tweedie.add_extra_noise(x_t, noise, t_n, t, schedule),
            lambda i: tweedie.add_extra_noise(x_t[[i]], noise[[i]], int(t_n[i]), int(t[i]), schedule),
        ),
        (
            tweedie.ambient_posterior_mean(h, x_t, t, t_n, schedule),
            lambda i: tweedie.ambient_posterior_mean(h[[i]], x_t[[i]], int(t[i]), int(t_n[i]), schedule),
        ),
        (
            tweedie.ancestral_step(x_t, h, t, t_n, schedule, noise),
            lambda i: tweedie.ancestral_step(x_t[[i]], h[[i]], int(t[i]), int(t_n[i]), schedule, noise[[i]]),
        ),
    ):
        assert batch.shape == x_t.shape and batch.dtype == dtype and bool(batch.isfinite().all())
        assert torch.equal(batch, torch.cat([row(i) for i in range(5)]))


def test_zero_terminal_snr():
    """Where alpha_t = 0 nothing of x_t is left in the posterior: E[x_tn | x_t] = alpha_n E[x_0]."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    schedule, x_t, h = NoiseSchedule.from_scheduler(scheduler), normal(2, 3), normal(2, 3).flip(0)
    torch.testing.assert_close(tweedie.ambient_posterior_mean(h, x_t, 999, 300, schedule), schedule.alpha(300) * h)
    expected = schedule.alpha(300) * h + schedule.sigma(300) * x_t
    torch.testing.assert_close(tweedie.ancestral_step(x_t, h, 999, 300, schedule, x_t), expected)


def test_errors_name_the_argument(schedule):
    x = torch.zeros(2, 3)
    t, high = torch.tensor([500, 100]), torch.tensor([100, 101])
    with pytest.raises(ValueError, match=r"t must be at least t_n, got \[500, 100\] below \[100, 101\]"):
        tweedie.add_extra_noise(x, x, high, t, schedule)
    with pytest.raises(ValueError, match="t must be at least t_n"):
        tweedie.ambient_posterior_mean(x, x, t, high, schedule)
    with pytest.raises(ValueError, match="t must be at least s"):
        tweedie.ancestral_step(x, x, t, high, schedule, x)
    with pytest.raises(ValueError, match=r"t must lie in -1\.\.999"):
        tweedie.add_noise(x, x, torch.tensor([0, 1000]), schedule)
    with pytest.raises(ValueError, match=r"t_n must lie in -1\.\.999"):
        tweedie.ambient_posterior_mean(x, x, t, torch.tensor([-2, 0]), schedule)
    with pytest.raises(ValueError, match="t_n must hold integers"):
        tweedie.add_extra_noise(x, x, torch.tensor([0.5, 1.0]), t, schedule)
    with pytest.raises(ValueError, match="s must hold integers"):
        tweedie.ancestral_step(x, x, t, 0.5, schedule, x)
