"""What a run can be asked for beside the plain LoRA: each leaves a file that stock diffusers reads as it was trained."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline

from ambient_diffusers.models.lora import WEIGHTS_NAME
from ambient_diffusers.training import AmbientTrainer, parse_config


def image(pipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipeline("picture 1", num_inference_steps=2, generator=generator, output_type="pt").images


@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True}, {"train_text_encoder": True}], ids=str)
def test_stock_diffusers_reads_what_was_trained(make_config, tiny_base_path, options):
    config = make_config(max_train_steps=6, learning_rate=2e-2, lora_alpha=8, **options)
    trainer = AmbientTrainer(config)
    trainer.train()
    stock = StableDiffusionXLPipeline.from_pretrained(tiny_base_path)
    untrained = image(stock)
    stock.load_lora_weights(config.output_dir)
    own = StableDiffusionXLPipeline.from_pretrained(
        tiny_base_path, **{name: model.eval() for name, model in trainer.unwrapped_models().items()}
    )
    assert (image(stock) - image(own)).abs().max() < 1e-4
    assert (image(stock) - untrained).abs().max() > 1e-2


def test_the_text_encoders_are_trained_and_resume_bit_for_bit(make_config, tmp_path):
    settings = dict(train_text_encoder=True, max_train_steps=4, checkpointing_steps=2)
    whole = safetensors.torch.load_file(AmbientTrainer(make_config(**settings)).train())
    parts = {key.split(".")[0] for key in whole}
    assert parts == {"unet", "text_encoder", "text_encoder_2"}
    moved = [key for key, value in whole.items() if key.startswith("text_encoder") and value.any()]
    assert any("lora_B" in key or ".up." in key for key in moved)  # these are zero before training
    resumed = str(tmp_path / "resumed")
    trainer = AmbientTrainer(make_config(**settings, output_dir=resumed))
    save = trainer.save_checkpoint
    trainer.save_checkpoint = lambda: (save(), (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    again = AmbientTrainer(make_config(**settings, output_dir=resumed, resume_from_checkpoint="latest")).train()
    again = safetensors.torch.load_file(again)
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


@pytest.mark.parametrize(
    "optimizer, package", [("prodigy", "prodigyopt"), ("schedulefree", "schedulefree"), ("adamw8bit", "bitsandbytes")]
)
def test_other_optimisers_move_the_adapter_and_resume_bit_for_bit(make_config, tmp_path, optimizer, package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    settings = dict(
        optimizer=optimizer,
        max_train_steps=4,
        checkpointing_steps=2,
        learning_rate=1.0 if optimizer == "prodigy" else 1e-2,
    )
    whole = safetensors.torch.load_file(AmbientTrainer(make_config(**settings)).train())
    assert any(value.any() for key, value in whole.items() if "lora_B" in key or "lora.up" in key)
    trainer = AmbientTrainer(make_config(**settings, output_dir=str(tmp_path / "resumed")))
    save = trainer.save_checkpoint
    trainer.save_checkpoint = lambda: (save(), (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    settings |= {"output_dir": str(tmp_path / "resumed"), "resume_from_checkpoint": "latest"}
    again = safetensors.torch.load_file(AmbientTrainer(make_config(**settings)).train())
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def test_a_dry_run_tells_shapes_parameters_and_memory_and_writes_nothing(make_config, tmp_path):
    text = AmbientTrainer(make_config(dry_run=True, latent_cache_dir=None)).dry_run()
    assert "latents: (2, 4, 32, 32)" in text and "peak memory" in text
    assert "unet: " in text and " of them trained" in text
    assert not (tmp_path / "run").exists()


def test_held_out_samples_are_never_trained_on_and_their_loss_is_logged(make_config):
    config = make_config(num_validation_samples=3, validation_steps=2)
    trainer = AmbientTrainer(config)
    trainer.train()
    seen = {row for m in range(3 * trainer.sampler.batches_per_epoch) for row in trainer.sampler[m]}
    assert len(trainer.held_out) == 3 and seen == set(range(10)) - set(trainer.held_out)
    rows = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4]


def test_prior_preservation_completes_the_class_with_clean_samples_of_the_base(make_config, tmp_path):
    config = make_config(
        class_data_dir=str(tmp_path / "class"), class_prompt="a picture", num_class_images=3, prior_loss_weight=0.5,
        latent_cache_dir=None, max_train_steps=1,
    )  # fmt: skip
    trainer = AmbientTrainer(config)
    trainer.prepare_data()
    assert trainer.cache.t_n.tolist() == [300] * 10 + [-1] * 3
    assert trainer.cache.loss_weight.tolist() == [1.0] * 10 + [0.5] * 3
    assert set(trainer.cache.captions[10:]) == {"a picture"}


def test_what_needs_cuda_is_refused_without_it(make_config):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for option in ({"base_weights": "nf4"}, {"enable_xformers_memory_efficient_attention": True}):
        with pytest.raises(ValueError, match="CUDA|pip install"):
            AmbientTrainer(make_config(**option))


def test_the_file_name_is_the_one_that_diffusers_looks_for(make_config):
    assert AmbientTrainer(make_config(max_train_steps=1)).train().name == WEIGHTS_NAME


DIFFUSERS_README = """
  --pretrained_model_name_or_path={base} --pretrained_vae_model_name_or_path={base} --dataset_name={data}
  --caption_column=text --resolution=64 --random_flip --train_batch_size=1 --num_train_epochs=2 --checkpointing_steps=500
  --learning_rate=1e-04 --lr_scheduler=constant --lr_warmup_steps=0 --mixed_precision=no --seed=42
  --output_dir={out} --report_to=tensorboard --push_to_hub
"""
"""The command of diffusers' README_sdxl.md for its LoRA script, with local names and what a CPU can do."""


def test_the_command_of_diffusers_script_trains_plain_lora_and_pushes(
    make_config, image_folder, tiny_base_path, tmp_path, monkeypatch
):
    pushed = []
    monkeypatch.setattr(
        "ambient_diffusers.training.trainer.push", lambda config, token: pushed.append(config.output_dir)
    )
    line = DIFFUSERS_README.format(base=tiny_base_path, data=image_folder, out=tmp_path / "plain")
    config = parse_config(
        [
            *line.split(),
            "--validation_prompt=cute dragon creature",
            "--num_inference_steps=1",
            "--num_validation_images=1",
        ]
    )
    trainer = AmbientTrainer(config)
    file = trainer.train()
    assert set(trainer.cache.t_n.tolist()) == {-1} and trainer.step == 20  # 10 images, batch 1, 2 epochs
    assert any(
        value.any() for key, value in safetensors.torch.load_file(file).items() if ".up." in key or "lora_B" in key
    )
    assert pushed == [str(tmp_path / "plain")]
