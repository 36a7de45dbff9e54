"""With ambient_timestep=t_n a run ends at t_n and returns E[x_0 | x_tn]."""

import math

import pytest
import torch

from ambient_diffusers import NoiseSchedule
from ambient_diffusers.parametrization import predict_x_0
from ambient_diffusers.schedulers import AmbientDDIMScheduler, AmbientDDPMScheduler, AmbientEulerDiscreteScheduler
from ambient_diffusers.tweedie import ancestral_step

DISCRETE = [AmbientDDPMScheduler, AmbientDDIMScheduler]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("t_n", [0, 100, 500, 800])
def test_timesteps_fall_to_t_n(pair, sdxl_config, spacing, t_n):
    scheduler = pair[0](**sdxl_config | {"timestep_spacing": spacing}, ambient_timestep=t_n)
    for num_inference_steps in (1, 7, 20, 150):
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps.tolist()
        assert timesteps[-1] == t_n and len(timesteps) == num_inference_steps
        assert all(a > b for a, b in zip(timesteps, timesteps[1:], strict=False)) and timesteps[0] < 1000
        if num_inference_steps > 1 and spacing != "leading":
            assert timesteps[0] == 999
    # Even: in timesteps for DDPM and DDIM (in log sigma for Euler, see test_stock_export.py).
    if pair[0] in DISCRETE:
        scheduler.set_timesteps(20)
        gaps = -scheduler.timesteps.diff()
        assert gaps.max() - gaps.min() <= (0 if spacing == "leading" else 1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 20])
def test_last_step_returns_the_posterior_mean(
    pair, sdxl_config, trajectory, fake_model, prediction_type, num_inference_steps
):
    config = sdxl_config | {"prediction_type": prediction_type}
    config |= {"timestep_spacing": "trailing"} | ({} if pair[0] not in DISCRETE else {"clip_sample": False})
    scheduler = pair[0](**config, ambient_timestep=500)
    scheduler.set_timesteps(num_inference_steps)
    result = trajectory(scheduler)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    # Euler's state is x_t / alpha_t.
    scale = schedule.alpha(500) if pair[0] is AmbientEulerDiscreteScheduler else 1.0
    x_tn = (result.states[-2].double() * scale).float()
    expected = predict_x_0(fake_model(x_tn, 500), x_tn, 500, schedule, prediction_type)
    torch.testing.assert_close(result.states[-1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm_adds_no_noise_at_t_n(sdxl_config, variance_type):
    config = sdxl_config | {"variance_type": variance_type, "clip_sample": False}
    scheduler = AmbientDDPMScheduler(**config, ambient_timestep=500)
    scheduler.set_timesteps(10)
    x, output = torch.randn(2, 1, 3, 4, 4)
    for timestep in (500, scheduler.timesteps[-1]):
        prev_sample, x_0 = scheduler.step(output, timestep, x, return_dict=False)
        assert torch.equal(prev_sample, x_0)
    assert not torch.equal(*scheduler.step(output, scheduler.timesteps[-2], x, return_dict=False))


@pytest.mark.parametrize("scheduler_class", DISCRETE)
@pytest.mark.parametrize("config", [{"clip_sample": True, "clip_sample_range": 0.5}, {"thresholding": True}])
def test_clipping_holds_at_t_n(sdxl_config, trajectory, scheduler_class, config):
    scheduler = scheduler_class(**sdxl_config, **config, ambient_timestep=500)
    scheduler.set_timesteps(10)
    bound = config.get("clip_sample_range", 1.0)
    assert trajectory(scheduler).states[-1].abs().max() <= bound < 4


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddim_steps_to_the_next_timestep(sdxl_config, fake_model, eta, prediction_type):
    """Gaps of 71 and 72: eta = 0 keeps the noise it predicts, eta = 1 is the ancestral step of the paper."""
    config = sdxl_config | {"timestep_spacing": "linspace", "prediction_type": prediction_type, "clip_sample": False}
    scheduler = AmbientDDIMScheduler(**config, ambient_timestep=500)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(8)
    x_t, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t, s in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        output = fake_model(x_t, t)
        x_0 = predict_x_0(output, x_t, t, schedule, prediction_type)
        if eta:
            expected = ancestral_step(x_t, x_0, t, s, schedule, noise)
        else:
            expected = schedule.alpha(s) * x_0 + schedule.sigma(s) * (x_t - schedule.alpha(t) * x_0) / schedule.sigma(t)
        step = scheduler.step(output, t, x_t, eta=eta, variance_noise=noise if eta else None)
        torch.testing.assert_close(step.prev_sample, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_clipped_model_output", [False, True])
def test_ddim_derives_the_noise_from_the_clipped_x_0(sdxl_config, use_clipped_model_output):
    scheduler = AmbientDDIMScheduler(**sdxl_config, clip_sample=True, ambient_timestep=500)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(8)
    x_t, epsilon = torch.randn(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    t, s = scheduler.timesteps[:2]
    x_0 = predict_x_0(epsilon, x_t, t, schedule).clamp(-1, 1)
    kept = (x_t - schedule.alpha(t) * x_0) / schedule.sigma(t) if use_clipped_model_output else epsilon
    step = scheduler.step(epsilon, t, x_t, use_clipped_model_output=use_clipped_model_output)
    expected = schedule.alpha(s) * x_0 + schedule.sigma(s) * kept
    torch.testing.assert_close(step.prev_sample, expected, rtol=1e-5, atol=1e-5)


def test_ddpm_steps_to_the_next_timestep(sdxl_config, fake_model):
    config = sdxl_config | {"timestep_spacing": "linspace", "clip_sample": False}
    scheduler = AmbientDDPMScheduler(**config, ambient_timestep=500)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(8)
    x_t = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t, s in zip(scheduler.timesteps[:-1], scheduler.timesteps[1:], strict=True):
        x_0 = predict_x_0(fake_model(x_t, t), x_t, t, schedule)
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1))
        step = scheduler.step(fake_model(x_t, t), t, x_t, generator=torch.Generator().manual_seed(1))
        expected = ancestral_step(x_t, x_0, t, s, schedule, noise)
        torch.testing.assert_close(step.prev_sample, expected, rtol=1e-4, atol=1e-4)


def gaussian_epsilon(data_variance, schedule):
    """The exact model for x_0 ~ N(0, data_variance): eps_hat = sigma_t x_t / (alpha_t^2 data_variance + sigma_t^2)."""

    def epsilon(x, t):
        t = int(t)
        return x * float(schedule.sigma(t) / (schedule.alpha(t) ** 2 * data_variance + schedule.sigma(t) ** 2))

    return epsilon


def test_ddpm_reaches_the_marginal_at_t_n(sdxl_config, trajectory):
    r"""Gaussian data, exact denoiser, every timestep from 999 to 500.

    The marginal at t_n has variance `alpha_n^2 s^2 + sigma_n^2`. A chain of steps of the usual variance narrows it a little; the
    closed recursion of that chain, `var <- a^2 var + b`, says by how much (under 1 % here), and the samples must meet both, to
    the 5 standard errors `5 sqrt(2 / N)` of 100,000 draws.
    """
    s2, t_n, count = 0.25, 500, 100_000
    scheduler = AmbientDDPMScheduler(**sdxl_config, clip_sample=False, ambient_timestep=t_n)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(500)
    x = torch.randn(count // 1000, 1, 1, 1000, generator=torch.Generator().manual_seed(3))
    result = trajectory(scheduler, gaussian_epsilon(s2, schedule), x, seed=4)

    chain = 1.0
    for t, s in zip(range(999, t_n, -1), range(998, t_n - 1, -1), strict=True):
        r, v = schedule.transition(t, s)
        sigma_t2, sigma_s2 = schedule.sigma(t) ** 2, schedule.sigma(s) ** 2
        h = schedule.alpha(t) * s2 / (schedule.alpha(t) ** 2 * s2 + sigma_t2)
        a = (r * sigma_s2 + schedule.alpha(s) * v * h) / sigma_t2
        chain = float(a**2 * chain + v * sigma_s2 / sigma_t2)
    marginal = float(schedule.alpha(t_n) ** 2 * s2 + schedule.sigma(t_n) ** 2)
    assert chain == pytest.approx(marginal, rel=0.01)
    tolerance = 5 * math.sqrt(2 / count)
    assert float(result.states[-2].double().var()) == pytest.approx(chain, rel=tolerance)
    # E[x_0 | x_tn] of the marginal has variance (alpha_n s^2)^2 / marginal: narrower than the data.
    assert float(result.states[-1].double().var()) == pytest.approx(
        float(schedule.alpha(t_n) ** 2) * s2**2 / marginal, rel=tolerance + 0.01
    )


@pytest.mark.parametrize("scheduler_class, count", [(AmbientDDIMScheduler, 500), (AmbientEulerDiscreteScheduler, 400)])
def test_ode_reaches_the_marginal_at_t_n(sdxl_config, trajectory, scheduler_class, count):
    """The probability flow of Gaussian data scales x by the ratio of the standard deviations of the marginals."""
    s2, t_n = 0.25, 500
    config = sdxl_config | {"timestep_spacing": "linspace"}
    config |= {"clip_sample": False} if scheduler_class is AmbientDDIMScheduler else {}
    scheduler = scheduler_class(**config, ambient_timestep=t_n)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    scheduler.set_timesteps(count)
    std = [math.sqrt(float(schedule.alpha(t) ** 2 * s2 + schedule.sigma(t) ** 2)) for t in (999, t_n)]
    x = torch.ones(1, 1, 2, 2)
    if scheduler_class is AmbientEulerDiscreteScheduler:  # its state is x_t / alpha_t
        std = [s / float(schedule.alpha(t)) for s, t in zip(std, (999, t_n), strict=True)]
        sigmas = iter(scheduler.sigmas.tolist())

        def denoiser(x, t):
            sigma = next(sigmas)
            return x * sigma * math.sqrt(sigma**2 + 1) / (s2 + sigma**2)
    else:
        denoiser = gaussian_epsilon(s2, schedule)
    result = trajectory(scheduler, denoiser, x)
    assert float(result.states[-2].mean()) == pytest.approx(std[1] / std[0], rel=5e-3)


def test_ambient_timestep_out_of_range(pair):
    for wrong in (-2, 1000, 500.0, "500"):
        with pytest.raises(ValueError, match=r"ambient_timestep must be an integer in -1\.\.999, got"):
            pair[0](ambient_timestep=wrong)
    pair[0](ambient_timestep=999)


def test_more_steps_than_timesteps(pair, sdxl_config):
    scheduler = pair[0](**sdxl_config, ambient_timestep=800)
    for wrong in (0, 201):
        with pytest.raises(ValueError, match=rf"num_inference_steps must be in 1\.\.200, .*got {wrong}"):
            scheduler.set_timesteps(wrong)


@pytest.mark.parametrize("num_inference_steps", [2, 4, 5])
def test_euler_says_when_leading_starts_below_t_n(sdxl_config, num_inference_steps):
    scheduler = AmbientEulerDiscreteScheduler(**sdxl_config | {"steps_offset": 0}, ambient_timestep=800)
    with pytest.raises(ValueError, match="num_inference_steps must be larger for timestep_spacing='leading'"):
        scheduler.set_timesteps(num_inference_steps)


def test_steps_below_t_n_are_refused(sdxl_config):
    for scheduler_class in DISCRETE:
        scheduler = scheduler_class(**sdxl_config, ambient_timestep=500)
        scheduler.set_timesteps(10)
        with pytest.raises(ValueError, match="timestep must be at least ambient_timestep=500.*got 499"):
            scheduler.step(torch.zeros(1, 1, 2, 2), 499, torch.zeros(1, 1, 2, 2))


def test_custom_timesteps_end_at_t_n(sdxl_config, trajectory, fake_model):
    for scheduler_class in (AmbientDDPMScheduler, AmbientEulerDiscreteScheduler):
        scheduler = scheduler_class(**sdxl_config, ambient_timestep=500)
        scheduler.set_timesteps(timesteps=[999, 700, 500])
        assert scheduler.timesteps.tolist() == [999, 700, 500]
        result = trajectory(scheduler)
        torch.testing.assert_close(result.states[-1], result.predictions[-1], rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="timesteps must end at ambient_timestep=500.*(480|499)"):
            scheduler.set_timesteps(timesteps=[999, 700, 480])


def test_custom_sigmas_end_at_t_n(sdxl_config):
    scheduler = AmbientEulerDiscreteScheduler(**sdxl_config, ambient_timestep=500)
    scheduler.set_timesteps(sigmas=[14.6, 4.0, 1.62, 0.0])
    assert scheduler.timesteps[-1] == 500 and scheduler.num_inference_steps == 3
    for wrong in ([14.6, 4.0, 1.3, 0.0], [14.6, 4.0, 1.62, 0.1], [14.6, 4.0, 1.62]):
        with pytest.raises(ValueError, match=r"sigmas at 1\.618.*, 0, got"):
            scheduler.set_timesteps(sigmas=wrong)


def test_euler_ends_at_zero_whatever_the_final_sigma(sdxl_config, trajectory):
    config = sdxl_config | {"final_sigmas_type": "sigma_min"}
    scheduler = AmbientEulerDiscreteScheduler(**config, ambient_timestep=500)
    for timesteps in ({"num_inference_steps": 10}, {"timesteps": [999, 700, 500]}):
        scheduler.set_timesteps(**timesteps)
        assert scheduler.sigmas[-1] == 0


def test_continuous_timesteps_of_euler(sdxl_config):
    config = sdxl_config | {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    scheduler = AmbientEulerDiscreteScheduler(**config, ambient_timestep=500)
    scheduler.set_timesteps(10)
    assert float(scheduler.timesteps[-1]) == pytest.approx(0.25 * math.log(1.6182797))


def test_start_in_the_middle(pair, sdxl_config, fake_model):
    """Image-to-image: the pipeline sets begin_index and noises to the first timestep that is left."""
    scheduler = pair[0](**sdxl_config, ambient_timestep=500)
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps[8:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(8)
    x_0, noise = torch.randn(2, 1, 3, 4, 4)
    x = scheduler.add_noise(x_0, noise, timesteps[:1])
    for t in timesteps:
        output = scheduler.step(fake_model(scheduler.scale_model_input(x, t), t), t, x)
        x = output.prev_sample
    torch.testing.assert_close(x, output.pred_original_sample, rtol=1e-5, atol=1e-5)


def test_a_generator_for_every_sample(pair, sdxl_config, fake_model):
    """A sample's noise is its own generator's: the same alone and in a batch."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {AmbientDDIMScheduler: {"eta": 1.0}, AmbientEulerDiscreteScheduler: {"s_churn": 2.0}}.get(pair[0], {})

    def sample(x, seeds):
        scheduler = pair[0](**sdxl_config, ambient_timestep=500)
        scheduler.set_timesteps(6)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = fake_model(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(output, t, x, generator=generators, **options).prev_sample
        return x

    both, second = sample(x, [1, 2]), sample(x[1:], [2])
    torch.testing.assert_close(both[1:], second)
    assert not torch.allclose(both[1:], sample(x[1:], [3]))


def test_ddim_takes_noise_from_one_source(sdxl_config):
    scheduler = AmbientDDIMScheduler(**sdxl_config, ambient_timestep=500)
    scheduler.set_timesteps(6)
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="generator and variance_noise"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.0, generator=torch.Generator(), variance_noise=x)
