"""What is stored is the image, encoded and noised once, with a draw that belongs to it."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from preparing import image_hash, picture, run, write_folder

from ambient_diffusers import tweedie
from ambient_diffusers.data import LatentCache, Source, Transform, sdxl_buckets
from ambient_diffusers.data.latent_encoder import draw_key
from ambient_diffusers.data.records import draw_id
from ambient_diffusers.models.sdxl import SDXLBase
from ambient_diffusers.randomness import randn, stream


def x_0(base, path, transform, seed):
    """The clean latent, by diffusers' own VAE and the documented streams."""
    image = image_hash(path)
    crop, time_ids = transform(Image.open(path).convert("RGB"), stream(seed, "transform", image))
    pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255 * 2 - 1
    with torch.no_grad():
        posterior = base.vae().encode(pixels).latent_dist
    noise = randn([draw_id(path.read_bytes())], posterior.mean.shape[1:], seed, "vae posterior")
    return (posterior.mean + posterior.std * noise) * base.vae_config["scaling_factor"], time_ids


def test_stored_latent_is_the_noised_encoding_of_the_crop(base, tmp_path):
    folder = write_folder(tmp_path / "images", 5)
    transform, seed, t_n = Transform(64, random_flip=True), 7, 300
    _, cache = run(folder, tmp_path / "cache", base, transform=transform, seed=seed, ambient_timestep=t_n)
    assert len(cache) == 5 and cache.t_n.tolist() == [t_n] * 5
    for row, path in enumerate(sorted(folder.glob("*.png"))):
        clean, time_ids = x_0(base, path, transform, seed)
        key = f"{draw_id(path.read_bytes())} {t_n}"
        z = randn([key], clean.shape[1:], seed, "ambient noise", draw_key(base, transform))
        expected = tweedie.add_noise(clean, z, t_n, base.schedule)[0]
        torch.testing.assert_close(cache.latents(row), expected, atol=1e-4, rtol=0)
        assert cache.time_ids[row].tolist() == list(time_ids)


def test_clean_only_where_asked(base, tmp_path):
    folder = write_folder(tmp_path / "images", 2)
    _, cache = run(folder, tmp_path / "cache", base, ambient_timestep=-1)
    clean, _ = x_0(base, folder / "000.png", Transform(64), 0)
    torch.testing.assert_close(cache.latents(0), clean[0], atol=1e-4, rtol=0)


def test_the_cache_does_not_hold_what_its_noise_is_drawn_under(base, tmp_path):
    """With it, whoever has the cache and the model could draw z again and subtract it."""
    folder = write_folder(tmp_path / "images", 3)
    run(folder, tmp_path / "cache", base, ambient_timestep=300)
    written = b"".join(file.read_bytes() for file in sorted((tmp_path / "cache").iterdir()) if file.is_file())
    for path in folder.glob("*.png"):
        assert image_hash(path).encode() in written  # what a cache entry goes by
        assert draw_id(path.read_bytes()).encode() not in written
        assert draw_id(path.read_bytes())[:16].encode() not in written


def test_noise_is_standard_normal_and_independent_between_images(base, tmp_path):
    """At the last timestep almost nothing but z is left."""
    folder, t_n = write_folder(tmp_path / "images", 40), base.schedule.num_train_timesteps - 2
    _, cache = run(folder, tmp_path / "cache", base, ambient_timestep=t_n)
    _, clean = run(folder, tmp_path / "clean", base, ambient_timestep=-1)
    alpha, sigma = float(base.schedule.alpha(t_n)), float(base.schedule.sigma(t_n))
    z = torch.stack([(cache.latents(row) - alpha * clean.latents(row)) / sigma for row in range(40)]).flatten(1)
    assert abs(float(z.mean())) < 4 / z.numel() ** 0.5
    assert float(z.var()) == pytest.approx(1, abs=4 * (2 / z.numel()) ** 0.5)
    correlation = z @ z.T / z.shape[1]
    assert float((correlation - torch.diag(correlation.diag())).abs().max()) < 5.5 / z.shape[1] ** 0.5


def test_fp16_is_the_rounded_fp32(base, tmp_path):
    folder = write_folder(tmp_path / "images", 3)
    _, half = run(folder, tmp_path / "half", base, dtype="fp16")
    _, full = run(folder, tmp_path / "full", base, dtype="fp32")
    assert all(torch.equal(half.latents(row), full.latents(row).half().float()) for row in range(3))


def test_same_bytes_share_one_latent(base, tmp_path):
    one, two = write_folder(tmp_path / "one", 3), write_folder(tmp_path / "two", 2)
    shutil.copy(one / "000.png", one / "copy.png")
    (one / "copy.txt").write_text("again")
    sources = [Source(str(one), ambient_timestep=500, repeats=2), Source(str(two), ambient_timestep=500)]
    report, cache = run(sources, tmp_path / "cache", base)
    assert (report.images, report.latents, report.encoded) == (6, 3, 3)
    assert sum(len(shard.keys) for shard in cache._latent_shards) == 3
    assert torch.equal(cache.latents(0), cache.latents(3)) and torch.equal(cache.latents(0), cache.latents(4))
    assert cache.repeats == [2, 2, 2, 2, 1, 1] and cache.captions[3] == "again"


def test_same_bytes_at_two_noise_levels_are_refused(base, tmp_path, no_models):
    one, two = write_folder(tmp_path / "one", 2), write_folder(tmp_path / "two", 1)
    sources = [Source(str(one), ambient_timestep=500), Source(str(two), ambient_timestep=100)]
    with pytest.raises(ValueError, match="one/000.png has 500.*two/000.png has 100"):
        run(sources, tmp_path / "cache", base)
    assert not (tmp_path / "cache").exists()


def test_several_sources_with_their_own_noise_level_and_caption(base, tmp_path):
    one, two = write_folder(tmp_path / "one", 2), write_folder(tmp_path / "two", 5)
    for name in ("000", "001"):
        (two / f"{name}.png").unlink()
    (two / "004.txt").unlink()
    sources = [
        Source(str(one), ambient_timestep=-1),
        Source(str(two), default_caption="any", ambient_timestep=800, loss_weight=0.5),
    ]
    report, cache = run(sources, tmp_path / "cache", base)
    assert cache.t_n.tolist() == [-1, -1, 800, 800, 800] and report.t_n == {-1: 2, 800: 3}
    assert cache.captions[-1] == "any" and cache.files[2] == str(two / "002.png")
    assert cache.batch([0, 4])["loss_weight"].tolist() == [1, 0.5]


def test_unreadable_images_are_skipped_counted_and_named(base, tmp_path):
    folder = write_folder(tmp_path / "images", 3)
    whole = (folder / "000.png").read_bytes()
    for name, data in (("empty", b""), ("text", b"no image"), ("cut", whole[: len(whole) // 2])):
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text(name)
    report, cache = run(folder, tmp_path / "cache", base)
    assert len(cache) == 3 and report.images == 3
    assert sorted((file.rpartition("/")[2], reason) for file, reason in report.skipped)[1:] == [
        ("empty.png", "empty file"),
        ("text.png", "no image file"),
    ]
    assert "cut.png" in str(report) and "truncated" in str(report)
    assert json.loads((tmp_path / "cache" / "report.json").read_text())["images"] == 3
    again, _ = run(folder, tmp_path / "cache", base)
    assert again.skipped and again.encoded == 0 and again.reused == 3


def test_strict_names_the_bad_image_before_any_model_loads(base, tmp_path, no_models):
    folder = write_folder(tmp_path / "images", 2)
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "bad.txt").write_text("bad")
    with pytest.raises(ValueError, match="strict.*bad.png: no image file"):
        run(folder, tmp_path / "cache", base, strict=True)
    assert not (tmp_path / "cache").exists()


def test_nothing_readable_is_an_error(base, tmp_path, no_models):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image can be read: .*bad.png"):
        run([Source(str(folder), default_caption="")], tmp_path / "cache", base)


def test_buckets_lose_no_image_and_name_the_upscaled(base, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = [(64, 64), (100, 100), (40, 120), (300, 90), (33, 33), (128, 32), (32, 128), (90, 91)]
    for number, (height, width) in enumerate(sizes):
        picture(number, height, width).save(folder / f"{number}.png")
    factor = base.vae_scale_factor
    transform = Transform(64, buckets=sdxl_buckets(64, factor))
    report, cache = run([Source(str(folder), default_caption="x")], tmp_path / "cache", base, transform=transform)
    assert len(cache) == len(sizes)
    for row, size in enumerate(sizes):
        target = transform.target(*size)
        assert cache.time_ids[row, :2].tolist() == list(size) and cache.time_ids[row, 4:].tolist() == list(target)
        assert cache.shapes[row] == (target[0] // factor, target[1] // factor)
        assert tuple(cache.latents(row).shape) == (4, *cache.shapes[row])
    targets = [transform.target(*size) for size in sizes]
    small = {f"{n}.png" for n in range(len(sizes)) if sizes[n][0] < targets[n][0] or sizes[n][1] < targets[n][1]}
    assert {file.rpartition("/")[2] for file in report.upscaled} == small and "4.png" in small
    assert sum(report.shapes.values()) == len(sizes)


def test_non_finite_latents_name_the_file_and_the_remedy(base, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "images", 1)
    load = SDXLBase.vae

    def broken(self, *args):
        vae = load(self, *args)
        next(vae.encoder.parameters()).data.fill_(float("nan"))
        return vae

    monkeypatch.setattr(SDXLBase, "vae", broken)
    with pytest.raises(ValueError, match="000.png.*float32.*sdxl-vae-fp16-fix"):
        run(folder, tmp_path / "cache", base)
    with pytest.raises(ValueError, match="no complete cache"):
        LatentCache(tmp_path / "cache")


def test_max_train_samples_is_stable(base, tmp_path):
    folder = write_folder(tmp_path / "images", 12)
    _, cache = run(folder, tmp_path / "cache", base, max_train_samples=5)
    chosen = set(cache.files)
    assert len(chosen) == 5
    picture(99).save(folder / "extra.png")
    (folder / "extra.txt").write_text("extra")
    report, cache = run(folder, tmp_path / "cache", base, max_train_samples=5)
    assert len(chosen & set(cache.files)) >= 4 and report.reused >= 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform": Transform(63)}, "resolution must be divisible by"),
        ({"ambient_timestep": 1000}, "ambient_timestep must lie in -1..999, got 1000"),
        ({"ambient_timestep": -2}, "ambient_timestep must lie in -1..999, got -2"),
        ({"dtype": "bf16"}, "dtype must be one of fp16, fp32"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(base, tmp_path, no_models, changes, message):
    folder = write_folder(tmp_path / "images", 1)
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "cache", base, **changes)
    assert not (tmp_path / "cache").exists()


def test_a_noise_level_of_one_image_is_checked_by_name(base, tmp_path, no_models):
    folder = write_folder(tmp_path / "images", 2)
    (folder / "metadata.csv").write_text("file_name,text,ambient_timestep\n000.png,a,5\n001.png,b,1200\n")
    with pytest.raises(ValueError, match="ambient_timestep of .*001.png must lie in -1..999, got 1200"):
        run(folder, tmp_path / "cache", base)


def test_a_second_prepare_waits_for_the_first(base, tmp_path):
    folder, cache_dir = write_folder(tmp_path / "images", 2), tmp_path / "cache"
    cache_dir.mkdir()
    held, released = threading.Event(), []

    def hold():
        with FileLock(cache_dir / ".lock"):
            held.set()
            time.sleep(0.5)
            released.append(not (cache_dir / "index.json").exists())

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with pytest.warns(UserWarning, match="another process prepares"):
        report, _ = run(folder, cache_dir, base)
    other.join()
    assert report.images == 2 and released == [True]


def test_extra_prompts_are_embedded_without_rows(base, tmp_path):
    folder = write_folder(tmp_path / "images", 2)
    _, cache = run(folder, tmp_path / "cache", base, extra_prompts=["a validation prompt"])
    embeds, pooled = base.prompt_encoder()(["a validation prompt"])
    torch.testing.assert_close(cache.prompt("a validation prompt"), (embeds[0], pooled[0]), atol=1e-4, rtol=1e-4)
    assert cache.captions == ["picture 0", "picture 0"]
