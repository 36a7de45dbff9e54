import json

import pytest
import torch
from PIL import Image

from ambient_diffusers.evaluation import membership as module
from ambient_diffusers.evaluation.denoiser import Denoiser
from ambient_diffusers.evaluation.membership import combined, denoising_losses, membership
from ambient_diffusers.finetuned import FineTunedOptions
from ambient_diffusers.losses import ambient_dsm_loss
from ambient_diffusers.randomness import randn


@pytest.fixture(scope="module")
def base(tiny_base_path):
    return Denoiser(tiny_base_path)


@pytest.fixture(scope="module")
def tuned(lora_dir):
    return Denoiser(FineTunedOptions(lora=str(lora_dir)))


def some_images(pictures, n=2):
    return [Image.open(file) for file in sorted(pictures("some", range(n), side=32).glob("*.png"))]


def test_losses_are_the_training_loss_of_clean_images(base, pictures):
    images, prompts = some_images(pictures), ["a red circle", "a blue square"]
    records = denoising_losses(base, images, prompts, [5, 8], (100, 700), draws=2, seed=3)
    x_0, h = base.encode(images), base.conditioned(prompts)
    for column, t in enumerate((100, 700)):
        losses = [
            ambient_dsm_loss(
                lambda x, t: h.epsilon(x, t), x_0, torch.tensor([-1, -1]), base.schedule, t=torch.tensor([t, t]),
                noise=randn([5, 8], x_0.shape[1:], 3, "membership noise", t, draw),
            )
            for draw in range(2)
        ]  # fmt: skip
        expected = torch.stack(losses).mean(0)
        assert [r["loss"][column] for r in records] == pytest.approx(expected.tolist(), rel=1e-4)
    assert "relative" not in records[0]


def test_relative_losses_are_against_the_base_under_the_same_noise(base, tuned, pictures):
    images, prompts = some_images(pictures), ["a red circle", "a blue square"]
    of_base, of_lora = (denoising_losses(m, images, prompts, [0, 1], (300,), 1, 0) for m in (base, tuned))
    for one, other in zip(of_base, of_lora, strict=True):
        assert other["relative"][0] == pytest.approx(other["loss"][0] - one["loss"][0], abs=1e-5)
        assert abs(other["relative"][0]) > 1e-3


def test_the_conditioning_is_the_pipelines(base):
    """One step of the stock pipeline without guidance gives the epsilon that the denoiser gives."""
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    seen = {}
    unet = base.pipeline.unet
    handle = unet.register_forward_hook(
        lambda module, args, kwargs, out: seen.update(args=args, kwargs=kwargs, out=out), with_kwargs=True
    )
    base.pipeline(
        "a red circle", height=32, width=32, num_inference_steps=1, guidance_scale=1.0, latents=x, output_type="latent"
    )
    handle.remove()
    x_in, t_in = seen["args"][:2]
    ours = base.conditioned(["a red circle"]).epsilon(x_in, t_in.reshape(1).long())
    assert torch.allclose(ours, seen["out"][0], atol=1e-5)


def test_encoding_and_decoding_are_inverse_up_to_the_vae(base, pictures):
    images = some_images(pictures)
    x_0 = base.encode(images)
    assert x_0.shape == (2, 4, 16, 16)
    assert torch.allclose(base.encode(base.decode(x_0)), x_0, atol=1.5) and base.decode(x_0)[0].size == (32, 32)
    raw = base.pipeline.vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mean * base.pipeline.vae.config.scaling_factor
    grey = base.encode([Image.new("RGB", (32, 32), (128, 128, 128))])
    assert torch.allclose(grey, raw, atol=0.1)


def test_members_that_the_model_knows_are_convicted_and_the_result_is_written(base, pictures, tmp_path, monkeypatch):
    """The losses are planted; the rest is real."""

    def planted(model, pictures, prompts, numbers, timesteps, draws, seed):
        known = prompts[0].startswith("picture 1")  # the members are pictures 10..19
        return [{"loss": [0.1 * known + 0.01 * n, 0.5 - 0.4 * known + 0.01 * n]} for n in numbers]

    monkeypatch.setattr(module, "denoising_losses", planted)
    sets = pictures("members", range(10, 20)), pictures("others", range(30, 40))
    content = membership(base, *sets, tmp_path / "out", timesteps=(100, 500), resamples=50, batch_size=4)
    levels = content["scores"]["loss"]["timesteps"]
    assert levels["500"]["auc"]["value"] == 1 and levels["500"]["true_positive_rate_at_1_percent"]["value"] == 1
    assert levels["100"]["auc"]["value"] < 0.1
    assert content["members"] == {"path": str(sets[0]), "images": 10}
    assert json.loads((tmp_path / "out" / "membership.json").read_text()) == content
    assert Image.open(tmp_path / "out" / "membership.png").width > 500
    monkeypatch.setattr(module, "denoising_losses", lambda *_: pytest.fail("computed again"))
    assert membership(base, *sets, tmp_path / "out", timesteps=(100, 500), resamples=50, batch_size=4) == content


def test_other_images_noise_levels_or_models_are_computed_anew(base, tuned, pictures, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        module, "denoising_losses", lambda m, p, c, n, *_: calls.append(len(p)) or [{"loss": [float(i)]} for i in n]
    )
    sets = pictures("members", range(3)), pictures("others", range(3, 6))
    options = {"timesteps": (100,), "resamples": 0}
    membership(base, *sets, tmp_path, **options)
    membership(base, *sets, tmp_path, **options)
    assert calls == [3, 3]
    membership(tuned, *sets, tmp_path, **options)
    membership(base, *sets, tmp_path, **options | {"timesteps": (200,)})
    assert len(calls) == 6
    (sets[0] / "000.txt").write_text("another caption")
    membership(base, *sets, tmp_path, **options)
    assert len(calls) == 7


def test_combining_levels_weighs_them_alike():
    members, others = torch.tensor([[1.0, 2000.0], [2.0, 1000.0]]), torch.tensor([[3.0, 3000.0], [4.0, 4000.0]])
    a, b = combined(members, others)
    assert torch.cat([a, b]).mean().abs() < 1e-6 and a[0] == pytest.approx(a[1].item())
    constant = combined(torch.zeros(2, 1), torch.zeros(2, 1))
    assert all(scores.isfinite().all() for scores in constant)


def test_errors(base, pictures, tmp_path):
    some = pictures("some", range(2))
    with pytest.raises(ValueError, match="timesteps must lie in 0..999"):
        membership(base, some, some, tmp_path, timesteps=(1000,))
    with pytest.raises(ValueError, match="draws must be at least 1"):
        membership(base, some, some, tmp_path, draws=0)
    with pytest.raises(ValueError, match="mixed_precision must be one of"):
        Denoiser(some, mixed_precision="half")
    with pytest.raises(ValueError, match="SDXL"):
        Denoiser(some)
