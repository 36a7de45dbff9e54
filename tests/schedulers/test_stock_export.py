"""A stock EulerDiscreteScheduler, by its config alone, is the truncated sampler."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, EulerDiscreteScheduler

from ambient_diffusers import NoiseSchedule
from ambient_diffusers.schedulers import AmbientEulerDiscreteScheduler, stock_truncated_config

TINY_SDXL = Path(__file__).parents[2] / "examples" / "tiny-sdxl"
LADDERS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]


@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_same_trajectory(sdxl_config, trajectory, ladder, prediction_type, spacing):
    if ladder.get("use_beta_sigmas"):
        pytest.importorskip("scipy")
    config = sdxl_config | ladder | {"prediction_type": prediction_type, "timestep_spacing": spacing}
    config["final_sigmas_type"] = "sigma_min"  # which a truncated run must not keep
    base = EulerDiscreteScheduler(**config)
    ambient = AmbientEulerDiscreteScheduler.from_config(base.config, ambient_timestep=500)
    stock = EulerDiscreteScheduler.from_config(stock_truncated_config(base.config, 500))
    assert type(stock) is EulerDiscreteScheduler
    for num_inference_steps in (5, 25):
        ambient.set_timesteps(num_inference_steps)
        stock.set_timesteps(num_inference_steps)
        # What the UNet is told differs by float32 rounding at most; ours ends at 500 exactly.
        torch.testing.assert_close(stock.timesteps, ambient.timesteps, rtol=0, atol=1e-3)
        assert ambient.timesteps[-1] == 500 and ambient.init_noise_sigma == stock.init_noise_sigma
        ours, theirs = trajectory(ambient), trajectory(stock)
        torch.testing.assert_close(ours.states[-1], theirs.states[-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(theirs.states[-1], theirs.predictions[-1], rtol=1e-5, atol=1e-5)


def test_starts_where_the_base_starts_and_is_even_in_log_sigma(sdxl_config):
    base = EulerDiscreteScheduler(**sdxl_config)
    stock = EulerDiscreteScheduler.from_config(stock_truncated_config(base.config, 500))
    base.set_timesteps(25), stock.set_timesteps(25)
    torch.testing.assert_close(stock.timesteps[0], base.timesteps[0], rtol=0, atol=1e-3)
    steps = stock.sigmas[:-1].log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(24), rtol=1e-4, atol=0)
    schedule = NoiseSchedule.from_scheduler(base)
    assert float(stock.sigmas[-2]) == pytest.approx(float(schedule.sigma(500) / schedule.alpha(500)), rel=1e-6)


def test_preserves_the_rest_and_survives_json(sdxl_config, tmp_path):
    base = DDPMScheduler(**sdxl_config, clip_sample=False, variance_type="fixed_large")
    config = stock_truncated_config(base.config, 100)
    assert {name: config[name] for name in sdxl_config} == sdxl_config
    assert config["clip_sample"] is False and config["variance_type"] == "fixed_large"  # for a later DDPMScheduler
    assert config["_class_name"] == "EulerDiscreteScheduler" and "ambient_timestep" not in config
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    stock = EulerDiscreteScheduler.from_pretrained(tmp_path)
    again = EulerDiscreteScheduler.from_config(config)
    stock.set_timesteps(7), again.set_timesteps(7)
    assert torch.equal(stock.sigmas, again.sigmas) and torch.equal(stock.timesteps, again.timesteps)


def test_of_an_ambient_or_truncated_config_is_the_same(sdxl_config):
    base = EulerDiscreteScheduler(**sdxl_config)
    config = stock_truncated_config(base.config, 500)
    assert stock_truncated_config(config, 500) == config
    ambient = AmbientEulerDiscreteScheduler.from_config(base.config, ambient_timestep=500)
    assert stock_truncated_config(ambient.config, 500) == config
    assert stock_truncated_config(ambient.config, 300)["sigma_min"] < config["sigma_min"]


@pytest.mark.parametrize("wrong", [-1, 1000])
def test_ambient_timestep_out_of_range(sdxl_config, wrong):
    with pytest.raises(ValueError, match=rf"ambient_timestep must lie in 0\.\.999, got {wrong}"):
        stock_truncated_config(EulerDiscreteScheduler(**sdxl_config).config, wrong)


def test_sigma_max_below_t_n(sdxl_config):
    with pytest.raises(ValueError, match="sigma_max must be at least 1.618.*got 1.0"):
        stock_truncated_config(EulerDiscreteScheduler(**sdxl_config, sigma_max=1.0).config, 500)


@pytest.fixture(scope="module")
def pipe():
    if not TINY_SDXL.is_dir():
        pytest.skip("examples/tiny-sdxl is not built")
    pipe = DiffusionPipeline.from_pretrained(TINY_SDXL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, scheduler):
    pipe.scheduler = scheduler
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    options = {"num_inference_steps": 25, "guidance_scale": 1.0, "height": side, "width": side, "output_type": "np"}
    return torch.from_numpy(pipe("a red square", generator=torch.Generator().manual_seed(7), **options).images)


def test_same_image_from_a_stock_pipeline(pipe):
    config = pipe.scheduler.config
    ambient = generate(pipe, AmbientEulerDiscreteScheduler.from_config(config, ambient_timestep=500))
    stock = generate(pipe, EulerDiscreteScheduler.from_config(stock_truncated_config(config, 500)))
    full = generate(pipe, EulerDiscreteScheduler.from_config(config))
    assert float((ambient - stock).abs().max()) <= 1e-3
    assert float((ambient - full).abs().max()) > 5e-3


def test_pipelines_see_the_options(pair):
    """Pipelines look at the signatures for `eta`, `generator`, `timesteps` and `sigmas`."""
    ambient, stock = pair
    for method in ("step", "set_timesteps"):
        ours, theirs = (list(inspect.signature(getattr(c, method)).parameters) for c in (ambient, stock))
        assert ours == theirs
