import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from ambient_diffusers.evaluation.generate import generate
from ambient_diffusers.evaluation.image_set import ImageSet
from ambient_diffusers.finetuned import FineTunedOptions
from ambient_diffusers.models.sdxl import SDXLBase
from ambient_diffusers.randomness import stream

FAST = {"num_inference_steps": 2, "height": 32, "width": 32, "batch_size": 2}


def contents(result):
    return {name: np.asarray(ImageSet(result["images"])[i]) for i, name in enumerate(ImageSet(result["images"]).names)}


def test_captions_of_a_data_set_become_prompts_and_captions(tiny_base_path, tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"a circle of colour {number}")
    result = generate(tiny_base_path, tmp_path / "out", captions_of=tmp_path, **FAST)
    assert result["num_images"] == 3 and result["settings"]["made_with"]["sampler"] == "full"
    assert ImageSet(result["images"]).captions == [f"a circle of colour {number}" for number in range(3)]
    pipeline = SDXLBase(tiny_base_path).pipeline(add_watermarker=False)
    expected = pipeline(
        "a circle of colour 1",
        height=32,
        width=32,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=stream(0, "sample", 1),
    ).images[0]
    difference = contents(result)["000001.png"].astype(int) - np.asarray(expected, int)
    assert abs(difference).max() <= 1


def test_a_lora_brings_its_sampler_and_its_own_images(tiny_base_path, lora_dir, tmp_path):
    truncated, full, base = (
        generate(FineTunedOptions(**options), tmp_path / name, prompt="a red circle", num_images=2, **FAST)
        for name, options in (
            ("truncated", {"lora": str(lora_dir)}),
            ("full", {"lora": str(lora_dir), "sampler": "full"}),
            ("base", {"pretrained_model_name_or_path": str(tiny_base_path)}),
        )
    )
    assert truncated["settings"]["made_with"]["ambient_timestep"] == 500
    sets = [contents(result) for result in (truncated, full, base)]
    for i, one in enumerate(sets):
        for other in sets[i + 1 :]:
            assert any((one[name] != other[name]).any() for name in one)


def test_a_pipeline_that_is_not_sdxl(tiny_base_path, tmp_path):
    """Any text-to-image pipeline: here Stable Diffusion 1's layout out of the tiny base's parts."""
    parts = SDXLBase(tiny_base_path).pipeline(add_watermarker=False)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=parts.text_encoder.config.hidden_size,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, tokenizer=parts.tokenizer, unet=unet,
        scheduler=parts.scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    result = generate(tmp_path / "sd", tmp_path / "out", prompt="a red circle", num_images=2, **FAST)
    assert result["settings"]["made_with"]["class"] == "StableDiffusionPipeline"
    assert len(contents(result)) == 2


def test_files_on_disk_are_kept_and_other_settings_are_refused(tiny_base_path, tmp_path):
    first = generate(tiny_base_path, tmp_path, prompt="a red circle", num_images=2, **FAST)
    Image.new("RGB", (32, 32), "lime").save(tmp_path / "images" / "000000.png")
    again = generate(tiny_base_path, tmp_path, prompt="a red circle", num_images=3, **FAST)
    assert (contents(again)["000000.png"] == (0, 255, 0)).all() and len(contents(again)) == 3
    assert first["images"] == again["images"]
    with pytest.raises(ValueError, match="other settings.*seed"):
        generate(tiny_base_path, tmp_path, prompt="a red circle", seed=1, **FAST)


def test_errors_come_before_a_model_loads(tiny_base_path, tmp_path, monkeypatch):
    monkeypatch.setattr(SDXLBase, "pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match="exactly one of prompt, prompts, captions_of"):
        generate(tiny_base_path, tmp_path / "out")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="captions_of must have captions"):
        generate(tiny_base_path, tmp_path / "out", captions_of=tmp_path)
    with pytest.raises(ValueError, match="model must be the folder of a diffusers pipeline"):
        generate(tmp_path, tmp_path / "out", prompt="x")
    with pytest.raises(ValueError, match="mixed_precision must be one of"):
        generate(tiny_base_path, tmp_path / "out", prompt="x", mixed_precision="fp8")
    assert not (tmp_path / "out").exists()
