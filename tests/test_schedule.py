"""NoiseSchedule against diffusers' own tables."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from ambient_diffusers import NoiseSchedule

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULERS = (
    DDPMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DPMSolverMultistepScheduler,
)


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.from_scheduler(DDPMScheduler(**SDXL))


@pytest.mark.parametrize("scheduler_class", SCHEDULERS)
def test_tables_are_the_schedulers_own(scheduler_class):
    scheduler = scheduler_class(**SDXL)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    alphas_cumprod, t = scheduler.alphas_cumprod.double(), torch.arange(1000)
    assert schedule.num_train_timesteps == 1000
    torch.testing.assert_close(schedule.alpha(t), alphas_cumprod.sqrt(), rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.sigma(t), (1 - alphas_cumprod).sqrt(), rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.snr(t), alphas_cumprod / (1 - alphas_cumprod), rtol=1e-15, atol=0)
    torch.testing.assert_close(schedule.log_snr(t), schedule.snr(t).log(), rtol=1e-15, atol=0)


def test_sdxl_sigmas(schedule):
    """The figures every SDXL user knows: sigma_0 = 0.029, and Euler's sigma/alpha of 14.6 at t = 999."""
    assert float(schedule.sigma(0)) == pytest.approx(0.0292, abs=1e-4)
    assert float(schedule.sigma(999) / schedule.alpha(999)) == pytest.approx(14.6146, abs=1e-3)


def test_the_schedule_survives_set_timesteps():
    """Sampling schedulers overwrite sigmas and timesteps, not the schedule."""
    scheduler = EulerDiscreteScheduler(**SDXL)
    scheduler.set_timesteps(7)
    assert NoiseSchedule.from_scheduler(scheduler).num_train_timesteps == 1000


def test_clean_is_not_timestep_zero(schedule):
    assert float(schedule.alpha(-1)) == 1 and float(schedule.sigma(-1)) == 0
    assert float(schedule.snr(-1)) == math.inf and float(schedule.log_snr(-1)) == math.inf
    assert float(schedule.alpha(0)) < 1


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_timestep_for_sigma_inverts_sigma(zero_terminal_snr):
    scheduler = DDPMScheduler(**SDXL, rescale_betas_zero_snr=zero_terminal_snr)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    t = torch.arange(-1, 1000)
    assert torch.equal(schedule.timestep_for_sigma(schedule.sigma(t)), t)
    assert torch.equal(schedule.timestep_for_sigma(schedule.sigma(t).float()), t)
    assert [schedule.timestep_for_sigma(float(schedule.sigma(t))) for t in (-1, 0, 500, 999)] == [-1, 0, 500, 999]


def test_timestep_for_sigma_takes_the_nearest(schedule):
    between = 0.6 * float(schedule.sigma(400)) + 0.4 * float(schedule.sigma(401))
    assert schedule.timestep_for_sigma(between) == 400
    assert schedule.timestep_for_sigma(0.01) == -1 and schedule.timestep_for_sigma(1) == 999
    assert schedule.timestep_for_sigma(schedule.sigma(torch.tensor([[3, 9]]))).tolist() == [[3, 9]]


def test_transition(schedule):
    """r and v compose: 0 -> 300 -> 700 is 0 -> 700; from clean they are alpha_t and sigma_t^2; t = s is no step."""
    (r1, v1), (r2, v2), (r, v) = (schedule.transition(*pair) for pair in ((300, 0), (700, 300), (700, 0)))
    torch.testing.assert_close(r1 * r2, r, rtol=1e-12, atol=0)
    torch.testing.assert_close(r2**2 * v1 + v2, v, rtol=1e-12, atol=0)
    t = torch.arange(1000)
    r, v = schedule.transition(t, -1)
    assert torch.equal(r, schedule.alpha(t)) and torch.equal(v, 1 - schedule.alphas_cumprod(t))
    r, v = schedule.transition(t, t)
    assert bool((r == 1).all()) and bool((v == 0).all())


def test_look_ups_keep_shape_device_and_float64(schedule):
    for t in (torch.tensor([[1, 2, 3], [-1, 0, 999]]), torch.tensor(5), torch.tensor([4], dtype=torch.int32)):
        assert schedule.alpha(t).shape == t.shape and schedule.alpha(t).dtype == torch.float64
    assert schedule.sigma(5).shape == () and float(schedule.sigma(5)) == float(schedule.sigma(torch.tensor([5]))[0])
    assert schedule.alpha(torch.zeros(3, dtype=torch.long, device="meta")).device.type == "meta"
    assert schedule.alpha(torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_zero_terminal_snr_has_no_nan():
    schedule = NoiseSchedule.from_scheduler(DDPMScheduler(**SDXL, rescale_betas_zero_snr=True))
    assert float(schedule.alpha(999)) == 0
    assert [float(x) for x in schedule.transition(999, 500)] == [0, 1]
    assert [float(x) for x in schedule.transition(999, 999)] == [1, 0]


@pytest.mark.parametrize("t", [-2, 1000, torch.tensor([3, 1000]), torch.tensor([-2, 3])])
def test_a_timestep_out_of_range_is_an_error(schedule, t):
    with pytest.raises(ValueError, match=r"t must lie in -1\.\.999, got"):
        schedule.alpha(t)


@pytest.mark.parametrize("t", [0.5, torch.tensor([1.0]), torch.tensor([1 + 0j])])
def test_a_fractional_timestep_is_an_error(schedule, t):
    with pytest.raises(ValueError, match="t must hold integers"):
        schedule.sigma(t)


def test_check_timestep_names_the_argument(schedule):
    schedule.check_timestep(-1, "ambient_timestep")
    with pytest.raises(ValueError, match=r"ambient_timestep must lie in -1\.\.999, got 1200"):
        schedule.check_timestep(1200, "ambient_timestep")
    with pytest.raises(ValueError, match=r"t must lie in 0\.\.999, got -1"):
        schedule.check_timestep(-1, lowest=0)


@pytest.mark.parametrize("sigma", [-0.1, 1.01, math.nan, torch.tensor([0.5, 14.6])])
def test_a_sigma_out_of_range_is_an_error(schedule, sigma):
    with pytest.raises(ValueError, match=r"sigma must lie in \[0, 1\]"):
        schedule.timestep_for_sigma(sigma)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        None,
    ],
)
def test_a_scheduler_that_is_not_variance_preserving_is_an_error(scheduler):
    with pytest.raises(ValueError, match=f"scheduler must .* got {type(scheduler).__name__}"):
        NoiseSchedule.from_scheduler(scheduler)


@pytest.mark.parametrize(
    "alphas_cumprod", [[], [[0.9, 0.5]], [0.5, 0.9], [1.0, 0.5], [0.5, -0.1], [0.9, math.nan]], ids=str
)
def test_what_is_no_schedule_is_an_error(alphas_cumprod):
    with pytest.raises(ValueError, match="alphas_cumprod must"):
        NoiseSchedule(torch.tensor(alphas_cumprod))
