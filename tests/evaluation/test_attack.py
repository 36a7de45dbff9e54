import json

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_diffusers import tweedie
from ambient_diffusers.evaluation import attack_noise as noise_module
from ambient_diffusers.evaluation.attack import Attempts
from ambient_diffusers.evaluation.attack_mask import attack_mask, hidden_error, load_painter, paint
from ambient_diffusers.evaluation.attack_noise import attack_noise, restore_from_noise
from ambient_diffusers.evaluation.boxes import Boxes, box_mask, random_box
from ambient_diffusers.evaluation.denoiser import Denoiser
from ambient_diffusers.randomness import philox, randn

OPTIONS = {"features": "pixels", "size": (32, 32), "steps": 2, "attempts": 2, "permutations": 199}


@pytest.fixture(scope="module")
def base(tiny_base_path):
    return Denoiser(tiny_base_path)


def test_attempts_depend_on_image_and_attempt_alone(base, pictures):
    images = [Image.open(f) for f in sorted(pictures("some", range(3), side=32).glob("*.png"))]
    prompts = ["a red circle"] * 3
    three = restore_from_noise(base, [0, 1, 2], images, prompts, 900, 2, 3, seed=0)
    one = restore_from_noise(base, [1], images[1:2], prompts[:1], 900, 2, 3, seed=0)[0]
    assert one.errors == pytest.approx(three[1].errors, rel=1e-3)
    assert one.errors[0] != pytest.approx(one.errors[1], rel=1e-6)
    x_0, t = base.encode(images[1:2]), torch.tensor([900])
    x_t = tweedie.add_noise(x_0, randn(["1 1"], x_0.shape[1:], 0, "attack noise"), t, base.schedule)
    expected = base.decode(base.conditioned(prompts[:1])(x_t, t))[0]
    assert abs(np.asarray(one.one_step[1], int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.usefixtures("pixels")
def test_a_model_that_brings_back_its_training_images_is_convicted(base, pictures, tmp_path, monkeypatch):
    """The model is planted: it restores pictures 0..19 and nothing else."""

    def planted(model, numbers, images, prompts, *_):
        result = []
        for image, prompt in zip(images, prompts, strict=True):
            known = int(prompt.split()[1]) < 20
            noise = philox(0, prompt).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            back = image if known else Image.fromarray(noise)
            result.append(Attempts(image, [Image.fromarray(noise), back], [1.0, 0.0 if known else 0.9], [back, back]))
        return result

    monkeypatch.setattr(noise_module, "restore_from_noise", planted)
    sets = pictures("train", range(20), side=32), pictures("held-out", range(50, 70), side=32)
    content = attack_noise(base, sets[0], tmp_path / "out", held_out=sets[1], **OPTIONS)
    assert content["shares"][2] == {"threshold": 0.99, "train": 1.0, "held_out": 0.0, "p": 1 / 200}
    for score in ("similarity", "error"):
        assert content["membership"][score]["auc"]["value"] == 1
    records = json.loads((tmp_path / "out" / "attack_noise_images.json").read_text())
    assert len(records["train"]) == 20 and records["train"][0]["similarity"][1] == pytest.approx(1)
    assert records["train"][0]["caption"].startswith("picture ")
    assert len(list((tmp_path / "out" / "train" / "restored").glob("*.png"))) == 40
    for name in ("attack_noise.png", "attack_noise_top.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 100
    monkeypatch.setattr(noise_module, "restore_from_noise", lambda *_: pytest.fail("computed again"))
    assert attack_noise(base, sets[0], tmp_path / "out", held_out=sets[1], **OPTIONS) == content
    with pytest.raises(ValueError, match="other settings.*timestep 900"):
        attack_noise(base, sets[0], tmp_path / "out", held_out=sets[1], timestep=800, **OPTIONS)


@pytest.mark.usefixtures("pixels")
def test_the_real_model_runs_without_held_out_images(base, pictures, tmp_path):
    content = attack_noise(base, pictures("train", range(2), side=32), tmp_path / "out", timestep=100, **OPTIONS)
    assert content["membership"] is None and content["shares"][0]["p"] is None
    assert 0 < content["error"]["train"]["minimum"] < 1  # little noise, so most of the image comes back


def test_what_is_hidden_does_not_reach_the_model_and_what_is_shown_stays(base, pictures):
    image = Image.open(pictures("one", [0], side=64) / "000.png")
    mask = box_mask((0.25, 0.25, 0.75, 0.75), 64, 64)
    inverted = Image.fromarray(np.where(mask[:, :, None], 255 - np.asarray(image), np.asarray(image)))
    painter = load_painter(base, None)
    one, other = (
        paint(painter, [3], [i], ["a red circle"], [mask], attempts=1, steps=3, guidance_scale=1.0, seed=0)[0]
        for i in (image, inverted)
    )
    assert (np.asarray(one.restored[0]) == np.asarray(other.restored[0])).all()
    assert (np.asarray(one.seen)[mask] == 127).all() and (np.asarray(one.seen)[~mask] == np.asarray(image)[~mask]).all()
    through_vae = base.decode(base.encode([one.seen]))[0]
    rim = ~box_mask((0.05, 0.05, 0.95, 0.95), 64, 64)
    error = np.abs(np.asarray(one.restored[0], int) - np.asarray(through_vae, int))
    assert error[rim].mean() < 0.5 * error[mask].mean()


@pytest.mark.usefixtures("pixels")
def test_masks_of_a_truncated_lora_and_given_boxes(lora_dir, pictures, tmp_path):
    from ambient_diffusers.finetuned import FineTunedOptions

    train = pictures("train", range(2), side=32)
    (tmp_path / "boxes.json").write_text('{"000.png": [-0.5, -0.5, 0.5, 0.5], "001.png": [0.5, 0, 1, 1]}')
    model = Denoiser(FineTunedOptions(lora=str(lora_dir)))
    content = attack_mask(model, train, tmp_path / "out", boxes=tmp_path / "boxes.json", **OPTIONS)
    assert content["settings"]["boxes"]["001.png"] == [0.5, 0, 1, 1]
    seen = np.asarray(Image.open(tmp_path / "out" / "train" / "seen" / "000000-0.png"))
    assert (seen[:16, :16] == 127).all() and (seen[16:] != 127).any()
    (tmp_path / "boxes.json").write_text('{"000.png": [0, 0, 0.5, 0.5]}')
    with pytest.raises(ValueError, match="got none for 001.png"):
        attack_mask(model, train, tmp_path / "other", boxes=tmp_path / "boxes.json", **OPTIONS)


def test_boxes_cut_off_at_every_edge_still_mask_something():
    for box in ((-0.5, -0.5, 0.25, 0.25), (0.75, 0.75, 2, 2), (-1, 0.5, 2, 0.75), (0.999, 0.999, 1, 1)):
        mask = box_mask(box, 40, 60)
        clipped = np.clip(box, 0, 1)
        expected = (clipped[2] - clipped[0]) * (clipped[3] - clipped[1])
        assert mask.any() and mask.mean() == pytest.approx(expected, abs=0.03)
    assert box_mask((-0.5, -0.5, 0.25, 0.25), 40, 60)[0, 0]


@pytest.mark.parametrize("area", [0.05, 0.25, 0.9])
def test_random_boxes_have_the_area_and_belong_to_the_image(area):
    boxes = [random_box(area, philox(0, "box", i)) for i in range(50)]
    for left, upper, right, lower in boxes:
        assert 0 <= left < right <= 1 and 0 <= upper < lower <= 1
        assert (right - left) * (lower - upper) == pytest.approx(area)
    assert len(set(boxes)) == 50
    chosen = Boxes(None, None, area, seed=1)
    image = Image.new("RGB", (64, 48))
    assert (chosen("a.png", image) == Boxes(None, None, area, seed=1)("a.png", image)).all()


def test_the_surest_box_of_a_detector_is_masked(monkeypatch):
    import transformers

    found = [
        {"score": 0.2, "box": {"xmin": 0, "ymin": 0, "xmax": 64, "ymax": 48}},
        {"score": 0.9, "box": {"xmin": 32, "ymin": 12, "xmax": 70, "ymax": 36}},
    ]
    monkeypatch.setattr(transformers, "pipeline", lambda task, model: lambda image: found)
    mask = Boxes(None, "some/detector", 0.25, 0)("a.png", Image.new("RGB", (64, 48)))
    assert mask[12:36, 32:].all() and mask.sum() == 24 * 32
    found.clear()
    assert Boxes(None, "some/detector", 0.25, 0)("a.png", Image.new("RGB", (64, 48))).mean() == pytest.approx(
        0.25, abs=0.02
    )


def test_error_counts_hidden_pixels_only():
    black, mask = Image.new("RGB", (8, 8)), box_mask((0, 0, 0.5, 1), 8, 8)
    half = Image.fromarray(np.where(mask[:, :, None], 0, 255).repeat(3, 2).astype(np.uint8))
    assert hidden_error(black, half, mask) == 0 and hidden_error(black, half, ~mask) == 1


def test_errors(base, pictures, tmp_path, monkeypatch):
    some = pictures("some", range(2))
    for options, message in (
        ({"boxes": (0, 0, 1, 1), "detector": "x"}, "must not both"),
        ({"area": 1.0}, "area must lie in"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"boxes": (1.5, 0, 2, 1)}, "overlap the image"),
        ({"boxes": (0, 0, 1)}, "left, upper, right, lower"),
        ({"boxes": tmp_path / "none.json"}, "boxes must be a JSON file"),
    ):
        with pytest.raises(ValueError, match=message):
            attack_mask(base, some, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="timestep must lie in 0..999"):
        attack_noise(base, some, tmp_path / "out", timestep=-1)
    with pytest.raises(ValueError, match="inpainting must be an inpainting pipeline"):
        load_painter(base, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="detector must be an object detection model"):
        Boxes(None, "nobody/nothing", 0.25, 0)("a.png", Image.new("RGB", (8, 8)))
    assert not (tmp_path / "out").exists()
