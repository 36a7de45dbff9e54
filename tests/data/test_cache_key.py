"""Change one part of a latent's key, and what depends on it is redone, and nothing else."""

import json
import os
import shutil

import pytest
import torch
from preparing import picture, run, write_folder
from safetensors.torch import load_file, save_file

from ambient_diffusers.data import Source, Transform
from ambient_diffusers.models.sdxl import SDXLBase

COUNT = 6


@pytest.fixture
def prepared(base, tmp_path):
    """A folder and its cache, and what its latents were."""
    folder = write_folder(tmp_path / "images", COUNT)
    _, cache = run(folder, tmp_path / "cache", base)
    return folder, tmp_path / "cache", latents(cache)


def latents(cache) -> dict[str, torch.Tensor]:
    return {file.rpartition("/")[2]: cache.latents(row).clone() for row, file in enumerate(cache.files)}


def changed(before, after) -> set[str]:
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


def test_nothing_changes_and_nothing_is_redone(prepared, base, no_models):
    folder, cache_dir, before = prepared
    report, cache = run(folder, cache_dir, base)
    assert (report.encoded, report.reused, report.dropped, report.captions_encoded) == (0, COUNT, 0, 0)
    assert not changed(before, latents(cache))


def test_touching_a_file_redoes_nothing(prepared, base, no_models):
    folder, cache_dir, before = prepared
    os.utime(folder / "002.png", (1, 1))
    report, cache = run(folder, cache_dir, base)
    assert report.encoded == 0 and not changed(before, latents(cache))


def test_reading_is_saved_while_size_and_time_stay(prepared, base, monkeypatch):
    folder, cache_dir, _ = prepared
    reads = []
    monkeypatch.setattr("ambient_diffusers.data.folder.ImageFolder.read", lambda self, name: reads.append(name))
    run(folder, cache_dir, base)
    assert not reads


def test_renaming_and_moving_redo_nothing(prepared, base, no_models):
    folder, cache_dir, before = prepared
    for suffix in ("png", "txt"):
        (folder / f"003.{suffix}").rename(folder / f"zzz.{suffix}")
    moved = folder.rename(folder.with_name("moved"))
    report, cache = run(moved, cache_dir, base)
    assert report.encoded == 0 and torch.equal(latents(cache)["zzz.png"], before["003.png"])


def test_one_image_changes(prepared, base):
    folder, cache_dir, before = prepared
    picture(77).save(folder / "002.png")
    report, cache = run(folder, cache_dir, base)
    assert (report.encoded, report.reused, report.dropped, report.captions_encoded) == (1, COUNT - 1, 1, 0)
    assert changed(before, latents(cache)) == {"002.png"}


def test_one_image_comes_and_one_goes(prepared, base):
    folder, cache_dir, before = prepared
    picture(77).save(folder / "new.png")
    (folder / "new.txt").write_text("picture 0")
    report, cache = run(folder, cache_dir, base)
    assert (report.encoded, report.reused, report.dropped) == (1, COUNT, 0)
    assert changed(before, latents(cache)) == {"new.png"}
    (folder / "004.png").unlink()
    report, cache = run(folder, cache_dir, base)
    assert (report.encoded, report.reused, report.dropped) == (0, COUNT, 1)
    assert "004.png" not in latents(cache) and changed(before, latents(cache)) == {"new.png"}


def test_only_a_caption_changes(prepared, base, monkeypatch):
    folder, cache_dir, before = prepared
    (folder / "001.txt").write_text("another caption")
    monkeypatch.setattr(SDXLBase, "vae", None)
    report, cache = run(folder, cache_dir, base)
    assert (report.encoded, report.dropped, report.captions_encoded) == (0, 0, 1)
    assert cache.captions[1] == "another caption" and not changed(before, latents(cache))


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"ambient_timestep": 400},
        {"transform": Transform(64, center_crop=True)},
        {"transform": Transform(72)},
        {"dtype": "fp16"},
    ],
    ids=str,
)
def test_all_latents_are_redone_and_no_old_one_is_kept(prepared, base, monkeypatch, changes):
    folder, cache_dir, before = prepared
    old = {latent.numpy().tobytes() for latent in before.values()}
    if "dtype" not in changes:
        monkeypatch.setattr(SDXLBase, "prompt_encoder", None)
    report, cache = run(folder, cache_dir, base, **changes)
    assert (report.encoded, report.reused, report.dropped) == (COUNT, 0, COUNT)
    assert report.captions_encoded == (4 if "dtype" in changes else 0)
    assert len(changed(before, latents(cache))) == COUNT
    disk = b"".join(file.read_bytes() for file in cache_dir.iterdir())
    assert not any(latent in disk for latent in old)


def test_noise_level_of_one_image_changes(prepared, base):
    folder, cache_dir, before = prepared
    rows = [{"file_name": f"{i:03d}.png", "text": f"picture {i // 2}"} for i in range(COUNT)]
    rows[3]["ambient_timestep"] = 20
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report, cache = run(folder, cache_dir, base)
    assert (report.encoded, report.dropped) == (1, 1) and changed(before, latents(cache)) == {"003.png"}


def altered_base(base, tmp_path, part, file) -> SDXLBase:
    shutil.copytree(base.path, tmp_path / "other")
    path = tmp_path / "other" / part / file
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("weight"))
    save_file(tensors | {name: tensors[name] * 1.5}, path, metadata={"format": "pt"})
    return SDXLBase(tmp_path / "other")


def test_another_vae(prepared, base, tmp_path, monkeypatch):
    folder, cache_dir, before = prepared
    other = altered_base(base, tmp_path, "vae", "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(SDXLBase, "prompt_encoder", None)
    report, cache = run(folder, cache_dir, other)
    assert (report.encoded, report.dropped, report.captions_encoded) == (COUNT, COUNT, 0)
    assert len(changed(before, latents(cache))) == COUNT
    cache.check(other)
    with pytest.raises(ValueError, match="made with another VAE"):
        cache.check(base)


def test_other_text_encoders(prepared, base, tmp_path, monkeypatch):
    folder, cache_dir, before = prepared
    other = altered_base(base, tmp_path, "text_encoder", "model.safetensors")
    monkeypatch.setattr(SDXLBase, "vae", None)
    report, cache = run(folder, cache_dir, other)
    assert (report.encoded, report.reused, report.captions_encoded) == (0, COUNT, 4)
    with pytest.raises(ValueError, match="made with other text encoders"):
        cache.check(base)


def test_another_unet_changes_nothing(prepared, base, tmp_path, no_models):
    folder, cache_dir, _ = prepared
    other = altered_base(base, tmp_path, "unet", "diffusion_pytorch_model.safetensors")
    report, cache = run(folder, cache_dir, other)
    assert report.encoded == 0
    cache.check(other)


def test_another_noise_schedule(prepared, base, tmp_path):
    folder, cache_dir, _ = prepared
    shutil.copytree(base.path, tmp_path / "other")
    path = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.02}))
    other = SDXLBase(tmp_path / "other")
    report, cache = run(folder, cache_dir, other)
    assert report.encoded == COUNT
    with pytest.raises(ValueError, match="made with another noise schedule"):
        cache.check(base)


def test_repeats_and_default_caption_redo_no_latent(prepared, base, monkeypatch):
    folder, cache_dir, before = prepared
    monkeypatch.setattr(SDXLBase, "vae", None)
    _, cache = run([Source(str(folder), ambient_timestep=500, repeats=3)], cache_dir, base)
    assert cache.repeats == [3] * COUNT and not changed(before, latents(cache))
