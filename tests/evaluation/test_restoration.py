import json

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from ambient_diffusers import NoiseSchedule, tweedie
from ambient_diffusers.evaluation import restoration as module
from ambient_diffusers.evaluation.denoiser import Denoiser
from ambient_diffusers.evaluation.restoration import compare, restoration, restore
from ambient_diffusers.evaluation.reverse import posterior_sample, reverse_levels
from ambient_diffusers.finetuned import FineTunedOptions


@pytest.fixture(scope="module")
def base(tiny_base_path):
    return Denoiser(tiny_base_path)


@pytest.fixture(scope="module")
def schedule(tiny_base_path):
    return Denoiser(tiny_base_path).schedule


def test_levels_fall_from_t_to_the_lowest_in_equal_steps_of_log_snr(schedule):
    levels = reverse_levels(900, 200, 8, schedule)
    assert levels[0] == 900 and levels[-1] == 200 and len(levels) == 8
    steps = schedule.log_snr(torch.tensor(levels)).diff()
    assert (steps > 0).all() and steps.std() < 0.05 * steps.mean()
    assert reverse_levels(100, 500, 8, schedule) == [100] and reverse_levels(900, 0, 1, schedule) == [900]
    assert len(reverse_levels(3, 0, 50, schedule)) == 4


def gaussian_denoiser(schedule, mean, std):
    """The exact E[x_0 | x_t] of x_0 ~ N(mean, std^2)."""

    def h(x, t, rows=None):
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return h


@pytest.mark.parametrize("lowest", [0, 400])
def test_posterior_samples_of_a_gaussian_have_the_exact_moments(schedule: NoiseSchedule, lowest):
    mean, std, t = 0.7, 0.5, 800
    x_t = torch.full((20, 1000), 0.3, dtype=torch.float64)
    h = gaussian_denoiser(schedule, mean, std)
    draws = posterior_sample(h, x_t, t, schedule, range(20), seed=0, steps=30, lowest=lowest)
    posterior_mean = h(x_t[:1, :1], torch.tensor([t]))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    if lowest:  # the last step returns E[x_0 | x_lowest], whose variance is smaller by what that leaves open
        alpha, sigma = schedule.alpha(lowest), schedule.sigma(lowest)
        variance = variance - std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    assert draws.mean().item() == pytest.approx(posterior_mean.item(), abs=4 * (variance.item() / 20000) ** 0.5 + 0.005)
    assert draws.var().item() == pytest.approx(variance.item(), rel=0.06)


def test_posterior_sample_of_one_step_is_the_posterior_mean_and_draws_belong_to_ids(schedule):
    h, x_t = gaussian_denoiser(schedule, 0.0, 1.0), torch.ones(2, 1, dtype=torch.float64)
    t = torch.tensor([800, 800])
    assert torch.equal(posterior_sample(h, x_t, 800, schedule, [0, 1], 0, steps=1), h(x_t, t))
    assert torch.equal(posterior_sample(h, x_t, 800, schedule, [0, 1], 0, lowest=900), h(x_t, t))
    both = posterior_sample(h, x_t, 800, schedule, [4, 5], 0, steps=5)
    assert torch.equal(posterior_sample(h, x_t[:1], 800, schedule, [5], 0, steps=5), both[1:])
    assert both[0] != both[1]


def test_metrics_equal_scikit_image_and_are_finite_for_equal_images():
    generator = np.random.default_rng(0)
    a, b = (Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(2))
    assert compare(a, b)["psnr"] == pytest.approx(peak_signal_noise_ratio(np.asarray(a), np.asarray(b)))
    assert compare(a, a) == {"mse": 0.0, "psnr": pytest.approx(58.9, abs=0.05), "ssim": pytest.approx(1.0)}
    assert np.isfinite(list(compare(a.resize((4, 4)), b.resize((4, 4))).values())).all()


def test_one_step_error_is_the_denoisers(base, pictures):
    image = Image.open(pictures("one", [0], side=32) / "000.png")
    record = restore(base, [image], ["a red circle"], [7], (100, 900), steps=2, seed=1)[0]
    x_0, t = base.encode([image]), torch.tensor([900])
    noise = module.randn([7], x_0.shape[1:], 1, "restoration noise", 900)
    x_0_hat = base.conditioned(["a red circle"])(tweedie.add_noise(x_0, noise, t, base.schedule), t)
    expected = (x_0_hat - x_0).square().mean().item()
    assert record["one_step"]["latent_mse"][1] == pytest.approx(expected, rel=1e-4)
    decoded = base.decode(x_0_hat)[0]
    assert record["one_step"]["mse"][1] == pytest.approx(compare(image, decoded)["mse"], rel=1e-3)
    assert record["one_step"]["latent_mse"][0] < record["one_step"]["latent_mse"][1]


def test_several_models_in_one_result_that_is_resumed(base, lora_dir, pictures, tmp_path, monkeypatch):
    tuned = Denoiser(FineTunedOptions(lora=str(lora_dir)), label="tuned")
    folder = pictures("clean", range(3), side=32)
    options = {"timesteps": (100, 800), "steps": 2, "size": (32, 32), "logarithmic": True}
    content = restoration([base, tuned], folder, tmp_path / "out", **options)
    assert list(content["models"]) == ["tiny-sdxl", "tuned"]
    for curves in content["models"].values():
        for method in ("one_step", "posterior"):
            for metric in ("latent_mse", "mse", "psnr", "ssim"):
                assert all(p["low"] <= p["value"] <= p["high"] for p in curves[method][metric])
    # Below its t_n of 500 a model with a truncated sampler has nothing but the one step.
    curves = content["models"]["tuned"]
    assert curves["posterior"]["mse"][0] == curves["one_step"]["mse"][0]
    assert curves["posterior"]["mse"][1] != curves["one_step"]["mse"][1]
    assert json.loads((tmp_path / "out" / "restoration.json").read_text()) == content
    assert Image.open(tmp_path / "out" / "restoration.png").width > 800
    monkeypatch.setattr(module, "restore", lambda *_: pytest.fail("computed again"))
    assert restoration([base, tuned], folder, tmp_path / "out", **options) == content


def test_errors(base, pictures, tmp_path):
    with pytest.raises(ValueError, match="different labels"):
        restoration([base, base], pictures("some", range(2)), tmp_path)
    with pytest.raises(ValueError, match="timesteps must lie in 0..999"):
        restoration(base, pictures("some", range(2)), tmp_path, timesteps=(-1,))
