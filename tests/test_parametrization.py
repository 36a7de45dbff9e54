"""Parametrisations against diffusers' own conversions and against each other."""

import pytest
import torch
from diffusers import DDPMScheduler

from ambient_diffusers import NoiseSchedule
from ambient_diffusers.parametrization import (
    PREDICTION_TYPES,
    model_output_from_x_0,
    predict_epsilon,
    predict_x_0,
)

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
T = torch.tensor([0, 1, 100, 500, 999])


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule.from_scheduler(DDPMScheduler(**SDXL))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x_0_is_diffusers_pred_original_sample(schedule, prediction_type):
    scheduler = DDPMScheduler(**SDXL, prediction_type=prediction_type, clip_sample=False)
    output, x_t = normal(len(T), 4, 2), normal(len(T), 4, 2, seed=1)
    expected = [scheduler.step(o, int(t), x).pred_original_sample for o, t, x in zip(output, T, x_t, strict=True)]
    # diffusers' tables are float32
    actual = predict_x_0(output, x_t, T, schedule, prediction_type)
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_the_velocity_is_diffusers(schedule):
    x_0, epsilon = normal(len(T), 4), normal(len(T), 4, seed=1)
    x_t = schedule.alpha(T)[:, None] * x_0 + schedule.sigma(T)[:, None] * epsilon
    velocity = model_output_from_x_0(x_0, x_t, T, schedule, "v_prediction")
    expected = DDPMScheduler(**SDXL).get_velocity(x_0, epsilon, T)
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (4, 2, 2)])
def test_every_parametrisation_names_the_same_denoiser(schedule, prediction_type, shape):
    h, x_t = normal(len(T), *shape), normal(len(T), *shape, seed=1)
    output = model_output_from_x_0(h, x_t, T, schedule, prediction_type)
    torch.testing.assert_close(predict_x_0(output, x_t, T, schedule, prediction_type), h, rtol=1e-9, atol=1e-12)
    alpha, sigma = (c.reshape(-1, *(1,) * len(shape)) for c in (schedule.alpha(T), schedule.sigma(T)))
    epsilon = predict_epsilon(output, x_t, T, schedule, prediction_type)
    torch.testing.assert_close(epsilon, (x_t - alpha * h) / sigma, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(alpha * h + sigma * epsilon, x_t, rtol=1e-9, atol=1e-12)


def test_an_int_timestep_serves_the_batch(schedule):
    output, x_t = normal(2, 3), normal(2, 3, seed=1)
    for function in (predict_x_0, predict_epsilon, model_output_from_x_0):
        expected = function(output, x_t, torch.tensor([7, 7]), schedule, "v_prediction")
        assert torch.equal(function(output, x_t, 7, schedule, "v_prediction"), expected)


@pytest.mark.parametrize("function", [predict_x_0, predict_epsilon, model_output_from_x_0])
def test_an_unknown_prediction_type_is_an_error(schedule, function):
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon, v_prediction, sample, got 'flow'"):
        function(x, x, 0, schedule, "flow")
