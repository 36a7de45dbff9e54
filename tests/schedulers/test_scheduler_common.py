"""What diffusers' own suite checks of every scheduler, for the full (-1) and the truncated (500) run."""

import inspect
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
)

from ambient_diffusers import NoiseSchedule

CHANGES = [
    {"num_train_timesteps": 900},
    {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"steps_offset": 0},
]


@pytest.fixture
def make(pair, sdxl_config, ambient_timestep):
    def make(**changes):
        return pair[0](**sdxl_config | changes, ambient_timestep=ambient_timestep)

    return make


def states(scheduler, trajectory, num_inference_steps=10):
    scheduler.set_timesteps(num_inference_steps)
    return trajectory(scheduler).states


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "-".join(map(str, changes.values())))
def test_configs_survive_saving(pair, make, trajectory, tmp_path, changes):
    scheduler = make(**changes)
    scheduler.save_pretrained(tmp_path)
    loaded = pair[0].from_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["ambient_timestep"] == scheduler.config.ambient_timestep == loaded.config.ambient_timestep
    assert written["_class_name"] == pair[0].__name__
    ours, again = states(scheduler, trajectory), states(loaded, trajectory)
    assert all(map(torch.equal, ours, again)) and ours[-1].isfinite().all()


@pytest.mark.parametrize("num_inference_steps", [2, 5, 50, 100, 250])
def test_step_counts_survive_saving(pair, make, trajectory, tmp_path, num_inference_steps):
    scheduler = make()
    scheduler.save_pretrained(tmp_path)
    loaded = pair[0].from_pretrained(tmp_path)
    ours, again = (states(s, trajectory, num_inference_steps) for s in (scheduler, loaded))
    assert len(ours) == num_inference_steps + 1 and all(map(torch.equal, ours, again))


def test_an_option_at_loading_wins(pair, make, tmp_path):
    make().save_pretrained(tmp_path)
    loaded = pair[0].from_pretrained(tmp_path, ambient_timestep=300, prediction_type="sample")
    assert loaded.config.ambient_timestep == 300 and loaded.config.prediction_type == "sample"
    assert pair[0].from_config(make().config, ambient_timestep=77).config.ambient_timestep == 77


def test_trained_betas(pair, make, trajectory, tmp_path):
    scheduler = make(trained_betas=np.linspace(0.001, 0.01, 1000))
    scheduler.save_pretrained(tmp_path)
    loaded = pair[0].from_pretrained(tmp_path)
    assert torch.equal(scheduler.betas, loaded.betas)
    assert all(map(torch.equal, states(scheduler, trajectory), states(loaded, trajectory)))


def test_step_keeps_shape_and_dtype(make, fake_model):
    scheduler = make()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        scheduler.set_timesteps(10)
        x = torch.randn(2, 3, 4, 4).to(dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(fake_model(scheduler.scale_model_input(x, t), t).to(dtype), t, x).prev_sample
            assert x.shape == (2, 3, 4, 4) and x.dtype == dtype and x.isfinite().all()


def test_tuple_is_the_output(make, fake_model):
    scheduler = make()
    x = torch.randn(2, 3, 4, 4)
    results = []
    for return_dict in (True, False):
        scheduler.set_timesteps(5)
        for t in (scheduler.timesteps[0], scheduler.timesteps[1]):
            output = fake_model(scheduler.scale_model_input(x, t), t)
            generator = torch.Generator().manual_seed(0)
            step = scheduler.step(output, t, x, generator=generator, return_dict=return_dict)
        results.append(step.to_tuple() if return_dict else step)
    assert len(results[0]) == len(results[1]) == 2
    assert all(map(torch.equal, *results))


def test_runs_again_after_set_timesteps(make, trajectory):
    scheduler = make()
    first = states(scheduler, trajectory)
    assert torch.equal(states(scheduler, trajectory)[-1], first[-1])
    states(scheduler, trajectory, 4)
    assert torch.equal(states(scheduler, trajectory)[-1], first[-1])


def test_configs_of_compatible_schedulers(pair, sdxl_config):
    scheduler = pair[0](**sdxl_config, ambient_timestep=500)
    assert pair[0] in scheduler.compatibles and pair[1] in scheduler.compatibles
    assert len(scheduler.compatibles) == len(set(scheduler.compatibles)) > 5
    fields = set(inspect.signature(pair[0].__init__).parameters) - {"self"}
    assert fields == set(inspect.signature(pair[1].__init__).parameters) - {"self"} | {"ambient_timestep"}
    assert fields <= set(scheduler.config)
    config = {name: scheduler.config[name] for name in fields}
    for compatible in scheduler.compatibles:
        if type(compatible).__name__ == "DummyObject":
            continue  # wants a library that is not installed
        other = compatible.from_config(scheduler.config)
        back = pair[0].from_config(other.config)
        assert {name: back.config[name] for name in fields} == config, compatible


def test_from_any_stock_config(pair, sdxl_config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    for stock in (DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler, pair[1]):
        scheduler = pair[0].from_config(stock(**sdxl_config).config, ambient_timestep=500)
        assert scheduler.config.ambient_timestep == 500
        assert all(scheduler.config[name] == value for name, value in sdxl_config.items())
        scheduler.set_timesteps(10)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_registered_defaults_are_the_parents(pair):
    ours, theirs = dict(pair[0]().config), dict(pair[1]().config)
    assert ours.pop("ambient_timestep") == -1
    ours.pop("_use_default_values"), theirs.pop("_use_default_values")
    assert ours == theirs
    assert pair[0](500).config.num_train_timesteps == 500  # by position, as the parent's


def test_add_noise_is_the_parents(pair, make, sdxl_config):
    ambient, stock = make(), pair[1](**sdxl_config)
    x_0, noise = torch.randn(2, 4, 3, 4, 4)
    timesteps = torch.tensor([0, 250, 500, 999])
    assert torch.equal(ambient.add_noise(x_0, noise, timesteps), stock.add_noise(x_0, noise, timesteps))
    ambient.set_timesteps(10)
    noised = ambient.add_noise(x_0, noise, ambient.timesteps[[0, 1, -2, -1]])
    assert noised.shape == x_0.shape and noised.isfinite().all()


def test_add_noise_at_t_n(pair, sdxl_config):
    """After set_timesteps of a truncated run, t_n is one of the timesteps and means sigma_n."""
    scheduler = pair[0](**sdxl_config, ambient_timestep=500)
    scheduler.set_timesteps(10)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    alpha, sigma = float(schedule.alpha(500)), float(schedule.sigma(500))
    scale = alpha if hasattr(scheduler, "sigmas") else 1.0
    x_0, noise = torch.randn(2, 1, 3, 4, 4)
    x_tn = scheduler.add_noise(x_0, noise, scheduler.timesteps[-1:]) * scale
    torch.testing.assert_close(x_tn, alpha * x_0 + sigma * noise, rtol=1e-5, atol=1e-5)


def test_timesteps_go_to_the_device(make):
    scheduler = make()
    device = "cpu" if hasattr(scheduler, "sigmas") else "meta"  # Euler brings its sigmas back from the device
    scheduler.set_timesteps(5, device=device)
    assert scheduler.timesteps.device.type == device and len(scheduler.timesteps) == 5


def test_length_and_pickle(make, trajectory):
    scheduler = make()
    assert len(scheduler) == 1000
    copy = pickle.loads(pickle.dumps(scheduler))
    assert torch.equal(states(copy, trajectory)[-1], states(scheduler, trajectory)[-1])


def test_pipelines_save_and_load_it(pair, make, tmp_path):
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=1,
    )
    DDPMPipeline(unet, make()).save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is pair[0]
    assert loaded.scheduler.config.ambient_timestep == make().config.ambient_timestep
    stock = pair[1].from_config(make().config)
    assert DiffusionPipeline.from_pretrained(tmp_path, scheduler=stock).scheduler is stock
