"""A LoRA that was overfitted on 8 images is convicted; the base, which never saw any of them, is acquitted."""

import json
import shutil

import pytest
import torch

from ambient_diffusers.data.photographs import write_photographs
from ambient_diffusers.evaluation.attack_noise import attack_noise
from ambient_diffusers.evaluation.denoiser import Denoiser
from ambient_diffusers.evaluation.generate import generate
from ambient_diffusers.evaluation.membership import membership
from ambient_diffusers.evaluation.memorisation import memorisation
from ambient_diffusers.finetuned import FineTunedOptions
from ambient_diffusers.randomness import stream
from ambient_diffusers.training import AmbientTrainer, TrainingConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """`split(**sizes)`: photographs dealt at random to folders, which are so exchangeable."""
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root / "all", size=64)
    rows = [json.loads(line) for line in (root / "all" / "metadata.jsonl").read_text().splitlines()]

    def make(seed, **sizes):
        order, folders = iter(torch.randperm(len(rows), generator=stream(seed, "split")).tolist()), []
        for name, count in sizes.items():
            folders.append(root / f"{seed}-{name}")
            folders[-1].mkdir()
            dealt = [rows[next(order)] for _ in range(count)]
            for row in dealt:
                shutil.copy(root / "all" / row["file_name"], folders[-1])
            (folders[-1] / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dealt))
        return folders

    return make


def test_an_overfitted_lora_is_convicted(split, tiny_base_path, tmp_path):
    """By membership inference. (The noise attack does not yet tell so little a model's training images apart.)"""
    train, held_out = split(0, train=8, held_out=40)
    attention, convolutions = ["to_k", "to_q", "to_v", "to_out.0"], ["conv1", "conv2", "conv_shortcut"]
    AmbientTrainer(
        TrainingConfig(
            pretrained_model_name_or_path=str(tiny_base_path), train_data_dir=str(train), ambient_timestep=-1,
            output_dir=str(tmp_path / "lora"), resolution=32, center_crop=True, rank=64, learning_rate=2e-3,
            lr_scheduler="cosine", lr_warmup_steps=20, max_train_steps=1500, train_batch_size=8, report_to="none",
            target_modules=[*attention, *convolutions, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
            checkpointing_steps=10000,
        )
    ).train()  # fmt: skip
    model = Denoiser(FineTunedOptions(lora=str(tmp_path / "lora"), pretrained_model_name_or_path=str(tiny_base_path)))
    scores = membership(model, train, held_out, tmp_path / "membership", draws=2, size=(32, 32))["scores"]
    assert scores["relative"]["auc"]["value"] > 0.95 and scores["relative"]["auc"]["low"] > 0.85
    assert scores["loss"]["timesteps"]["100"]["auc"]["value"] > 0.9


def test_the_base_is_acquitted(split, tiny_base_path, tmp_path):
    train, held_out = split(1, train=100, held_out=100)
    model = Denoiser(tiny_base_path)
    auc = membership(model, train, held_out, tmp_path / "membership", draws=2)["scores"]["loss"]["auc"]["value"]
    assert abs(auc - 0.5) < 0.08
    generated = generate(tiny_base_path, tmp_path / "generated", captions_of=train, num_inference_steps=12)
    near = memorisation(generated["images"], train, tmp_path / "memorisation", held_out=held_out)
    attack = attack_noise(model, train, tmp_path / "attack", held_out=held_out, attempts=1, steps=8)
    for share in near["shares"] + attack["shares"]:
        assert share["p"] > 0.05
    for score in attack["membership"].values():
        assert abs(score["auc"]["value"] - 0.5) < 0.12
