"""The loop: what a step costs, that it resumes bit for bit, and that what it saves is what stock diffusers reads."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ambient_diffusers import tweedie
from ambient_diffusers.models.lora import WEIGHTS_NAME, read_provenance
from ambient_diffusers.training import AmbientTrainer


def trained(config) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(AmbientTrainer(config).train())


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("objective", ["none", "consistency", "sfbd"])
def test_ten_steps_are_five_resumed_by_five_bit_for_bit(make_config, tmp_path, objective):
    settings = dict(
        max_train_steps=10, checkpointing_steps=5, lr_scheduler="cosine", gradient_accumulation_steps=2, use_ema=True,
        low_noise_objective=objective, low_noise_delay=0.2,
    )  # fmt: skip
    whole = trained(make_config(**settings))
    resumed = tmp_path / "resumed"
    first = AmbientTrainer(make_config(**settings, output_dir=str(resumed)))
    save = first.save_checkpoint

    def killed_after_saving():
        save()
        raise KeyboardInterrupt

    first.save_checkpoint = killed_after_saving
    with pytest.raises(KeyboardInterrupt):
        first.train()
    (resumed / ".checkpoint-6.tmp").mkdir()  # as a kill in the middle of a save leaves it
    again = trained(make_config(**settings, output_dir=str(resumed), resume_from_checkpoint="latest"))
    assert_equal(whole, again)
    steps = [json.loads(line)["step"] for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11))


def test_a_step_is_one_unet_forward_and_no_text_encoder_or_vae(make_config, monkeypatch, latent_cache_dir):
    calls = Counter()

    def count(cls, name):
        original = getattr(cls, name)

        def counted(self, *args, **kwargs):
            calls[f"{cls.__name__}.{name}"] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, counted)

    for cls, name in (
        (UNet2DConditionModel, "forward"), (CLIPTextModel, "forward"), (CLIPTextModelWithProjection, "forward"),
        (AutoencoderKL, "encode"), (AutoencoderKL, "decode"), (AutoencoderKL, "from_pretrained"),
    ):  # fmt: skip
        if name != "from_pretrained":
            count(cls, name)
    trainer = AmbientTrainer(make_config())
    trainer.prepare_data()
    trainer.build_model()
    for _ in range(3):
        trainer.optimizer_step()
    assert calls == {"UNet2DConditionModel.forward": 3}


def test_clean_data_give_the_unet_the_input_and_loss_of_diffusers_script(make_config, tmp_path):
    """t_n = -1 is plain fine-tuning: add_noise of diffusers' scheduler in, its mean squared error out."""
    trainer = AmbientTrainer(make_config(ambient_timestep=-1, latent_cache_dir=str(tmp_path / "clean")))
    trainer.prepare_data()
    trainer.build_model()
    unet, seen = trainer.models["unet"], {}
    forward = unet.forward

    def recorded(x_t, t, *args, **kwargs):
        seen["x_t"], seen["t"], seen["output"] = x_t.detach(), t, forward(x_t, t, *args, **kwargs)[0]
        return (seen["output"],)

    unet.forward = recorded
    out = trainer.training_step(0)
    latents = trainer.cache.batch(trainer.sampler[0])["latents"]
    scheduler = trainer.base.training_scheduler
    alpha, sigma = (
        part(seen["t"]).float()[:, None, None, None] for part in (trainer.schedule.alpha, trainer.schedule.sigma)
    )
    noise = (seen["x_t"] - alpha * latents) / sigma
    assert torch.allclose(noise.std(), torch.tensor(1.0), atol=0.1)
    assert torch.allclose(scheduler.add_noise(latents, noise, seen["t"]), seen["x_t"], atol=1e-5)
    loss = torch.nn.functional.mse_loss(seen["output"].float(), noise, reduction="mean")
    assert torch.allclose(out["loss"], loss.detach(), rtol=1e-3)


def test_the_unet_sees_no_state_below_the_noise_of_the_data(make_config):
    trainer = AmbientTrainer(make_config())
    trainer.prepare_data()
    trainer.build_model()
    unet, timesteps = trainer.models["unet"], []
    forward = unet.forward
    unet.forward = lambda x_t, t, *args, **kwargs: timesteps.append(t) or forward(x_t, t, *args, **kwargs)
    for _ in range(10):
        trainer.optimizer_step()
    assert torch.cat(timesteps).min() > 300


def test_the_noise_of_an_image_is_the_same_in_every_epoch_and_run(make_config):
    first, second = (AmbientTrainer(make_config()) for _ in range(2))
    for trainer in (first, second):
        trainer.prepare_data()
    rows = list(range(len(first.cache)))
    assert torch.equal(first.cache.batch(rows)["latents"], second.cache.batch(rows)["latents"])


def test_bf16_gradient_checkpointing_and_every_tracker_file_run(make_config):
    config = make_config(
        mixed_precision="bf16", gradient_checkpointing=True, report_to="tensorboard", validation_prompt="picture 1 | x",
        validation_steps=1, max_train_steps=2,
    )  # fmt: skip
    state = trained(config)
    assert all(value.isfinite().all() for value in state.values())
    output = Path(config.output_dir)
    for file in ("samples.png", "loss.png", "config.yaml", "metrics.jsonl", "validation/step-000001.png"):
        assert (output / file).stat().st_size > 0
    assert list((output / "logs").rglob("events.out.tfevents*"))


def test_the_metadata_tell_what_made_the_lora(make_config):
    config = make_config(max_train_steps=1, rank=2, lora_alpha=8)
    AmbientTrainer(config).train()
    provenance = read_provenance(Path(config.output_dir) / WEIGHTS_NAME)
    assert provenance["ambient_timestep"] == [300] and provenance["rank"] == 2 and provenance["alpha"] == 8
    assert provenance["low_noise_objective"] == "none" and len(provenance["config_hash"]) == 16


STOCK = """
import sys
sys.modules["ambient_diffusers"] = None  # an import of the package would fail
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({base!r})
pipe.load_lora_weights({lora!r})
image = pipe("picture 1", num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(image, {out!r})
"""


def test_stock_diffusers_without_this_package_makes_the_same_image(make_config, tiny_base_path, tmp_path):
    config = make_config(max_train_steps=8, learning_rate=1e-2, lora_alpha=8)
    trainer = AmbientTrainer(config)
    trainer.train()
    arguments = {"num_inference_steps": 4, "output_type": "pt"}
    own = StableDiffusionXLPipeline.from_pretrained(tiny_base_path, unet=trainer.unwrapped_models()["unet"])
    expected = own("picture 1", generator=torch.Generator().manual_seed(0), **arguments).images
    base = StableDiffusionXLPipeline.from_pretrained(tiny_base_path)
    untrained = base("picture 1", generator=torch.Generator().manual_seed(0), **arguments).images
    script = STOCK.format(base=str(tiny_base_path), lora=config.output_dir, out=str(tmp_path / "image.pt"))
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
    stock = torch.load(tmp_path / "image.pt")
    assert (stock - expected).abs().max() < 1e-4
    assert (untrained - expected).abs().max() > 1e-2  # the adapter does something


def test_captions_are_dropped_at_the_share_asked_for_and_replaced_by_what_guidance_uses(make_config):
    trainer = AmbientTrainer(make_config(proportion_empty_prompts=0.5))
    trainer.prepare_data()
    trainer.build_model()
    batch = trainer.cache.batch(range(4))
    dropped = []
    for micro in range(100):
        embeds, pooled, _ = trainer.condition(batch, micro)
        empty = (embeds == trainer.cache.empty_prompt()[0]).flatten(1).all(1)
        assert torch.equal(empty, (pooled == trainer.cache.empty_prompt()[1]).all(1))
        dropped.append(empty)
    assert 0.4 < torch.cat(dropped).float().mean() < 0.6


def test_the_teacher_is_the_average_and_leaves_the_adapter_as_it_was(make_config):
    trainer = AmbientTrainer(make_config(low_noise_objective="consistency", low_noise_delay=0.0))
    trainer.prepare_data()
    trainer.build_model()
    before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
    with trainer.average.applied():
        name, parameter = next(iter(trainer.parameters.items()))
        assert parameter.data_ptr() == trainer.average.average[name].data_ptr()
    assert all(torch.equal(before[name], value) for name, value in trainer.parameters.items())


def test_training_lowers_the_loss_at_fixed_noise(make_config):
    """Ten images seen again and again: their loss, at noise that never changes, falls; without training it does not."""
    trainer = AmbientTrainer(make_config(max_train_steps=40, learning_rate=5e-3, rank=16, train_batch_size=5))
    trainer.prepare_data()
    trainer.build_model()
    trainer.held_out = list(range(10))
    before = trainer.validation_loss()
    assert trainer.validation_loss() == before
    for _ in range(40):
        trainer.optimizer_step()
    assert trainer.validation_loss() < 0.98 * before


def test_two_processes_train_as_one_with_twice_the_accumulation(make_config, tmp_path):
    """The same micro-batches with the same draws, wherever they run; sums differ in their order only."""
    # With a large epsilon Adam does not blow rounding up to full steps where gradients are tiny.
    one = trained(make_config(gradient_accumulation_steps=2, adam_epsilon=1e-2))
    config = make_config(output_dir=str(tmp_path / "two"), adam_epsilon=1e-2)
    Path(config.output_dir).mkdir()
    config.save(Path(config.output_dir))
    script = Path(__file__).parents[2] / "training_scripts" / "train_ambient_sdxl.py"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script),
         "--config", str(tmp_path / "two" / "config.yaml")],
        check=True, capture_output=True, env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    two = safetensors.torch.load_file(tmp_path / "two" / WEIGHTS_NAME)
    assert one.keys() == two.keys()
    start = trained(make_config(gradient_accumulation_steps=2, adam_epsilon=1e-2, max_train_steps=1))
    for key in one:
        moved = (one[key] - start[key]).abs().max()
        assert (one[key] - two[key]).abs().max() < 1e-2 * moved  # a wrong batch would be off by all of it


def test_the_double_tweedie_identity_holds_for_what_the_cache_holds(make_config):
    """What is stored for an image is its one noisy draw: noised further it has the variance of the schedule."""
    trainer = AmbientTrainer(make_config())
    trainer.prepare_data()
    x_tn = trainer.cache.batch(range(10))["latents"]
    t = torch.full((10,), 999)
    x_t = tweedie.add_extra_noise(x_tn, torch.randn_like(x_tn), trainer.cache.t_n[:10], t, trainer.schedule)
    assert abs(x_t.std() - 1) < 0.05
