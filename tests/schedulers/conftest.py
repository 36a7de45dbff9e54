"""A fixed nonlinear model and the loop of a pipeline, shared by the scheduler tests."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from ambient_diffusers.schedulers import AmbientDDIMScheduler, AmbientDDPMScheduler, AmbientEulerDiscreteScheduler

PAIRS = [
    (AmbientDDPMScheduler, DDPMScheduler),
    (AmbientDDIMScheduler, DDIMScheduler),
    (AmbientEulerDiscreteScheduler, EulerDiscreteScheduler),
]
SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def model(x, t):
    """Any smooth function of the state and the timestep stands in for a UNet."""
    return torch.sin(x + float(t) / 300) * 0.8


def run(scheduler, denoiser=model, x=None, seed=0, **options):
    """The loop of every diffusers pipeline: inputs, timesteps and outputs of every step."""
    generator = torch.Generator().manual_seed(seed)
    if x is None:
        x = torch.randn(2, 3, 4, 4, generator=generator) * scheduler.init_noise_sigma
    states, predictions = [x], []
    for t in scheduler.timesteps:
        output = scheduler.step(denoiser(scheduler.scale_model_input(x, t), t), t, x, generator=generator, **options)
        x = output.prev_sample
        states.append(x)
        predictions.append(output.pred_original_sample)
    return SimpleNamespace(timesteps=scheduler.timesteps, states=states, predictions=predictions)


@pytest.fixture
def trajectory():
    return run


@pytest.fixture
def fake_model():
    return model


@pytest.fixture
def sdxl_config():
    return dict(SDXL)


@pytest.fixture(params=PAIRS, ids=["ddpm", "ddim", "euler"])
def pair(request):
    """(ambient scheduler class, its stock parent)."""
    return request.param


@pytest.fixture(params=[-1, 500])
def ambient_timestep(request):
    return request.param
