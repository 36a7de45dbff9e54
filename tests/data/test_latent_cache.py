"""What training reads: batches, embeddings, and how much of it lies on the disk."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from preparing import run, write_folder

from ambient_diffusers.data import BatchSampler, LatentCache, Source, Transform
from ambient_diffusers.data.latent_encoder import LatentEncoder
from ambient_diffusers.data.records import AHEAD, bounded_map
from ambient_diffusers.models.sdxl import SDXLBase


@pytest.fixture(scope="module")
def cache(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return run(write_folder(folder / "images", 7), folder / "cache", base)[1]


def test_batch(cache, base):
    batch = cache.batch([4, 1, 5])
    side = 64 // base.vae_scale_factor
    assert {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in batch.items()} == {
        "latents": ((4, side, side), torch.float32),
        "t_n": ((), torch.int64),
        "time_ids": ((6,), torch.float32),
        "prompt_embeds": ((77, base.unet_config["cross_attention_dim"]), torch.float32),
        "pooled_prompt_embeds": ((batch["pooled_prompt_embeds"].shape[1],), torch.float32),
        "loss_weight": ((), torch.float32),
        "index": ((), torch.int64),
    }
    assert batch["index"].tolist() == [4, 1, 5] and batch["t_n"].tolist() == [500] * 3
    for i, row in enumerate([4, 1, 5]):
        assert torch.equal(batch["latents"][i], cache.latents(row))
        assert torch.equal(batch["time_ids"][i], cache.time_ids[row])
        embeds, pooled = base.prompt_encoder()([f"picture {row // 2}"])
        torch.testing.assert_close(batch["prompt_embeds"][i], embeds[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch["pooled_prompt_embeds"][i], pooled[0], atol=1e-4, rtol=1e-4)


def test_a_batch_can_be_changed_in_place_without_changing_the_cache(cache):
    before = cache.latents(0).clone()
    for tensor in (*cache.batch([0]).values(), cache.latents(0), *cache.prompt("picture 0")):
        tensor.zero_()
    assert torch.equal(cache.latents(0), before) and cache.t_n[0] == 500 and cache.time_ids[0, 0] == 72
    assert cache.prompt("picture 0")[0].any()


def test_prompts(cache):
    assert cache.has_prompt("picture 1") and cache.has_prompt("") and not cache.has_prompt("picture 9")
    with pytest.raises(ValueError, match="prompt 'picture 9' is not in the cache"):
        cache.prompt("picture 9")


@pytest.mark.parametrize("zeros", [True, False])
def test_empty_prompt(base, cache, tmp_path, monkeypatch, zeros):
    """What the stock pipeline takes for its unconditional embedding."""
    monkeypatch.setattr(SDXLBase, "force_zeros_for_empty_prompt", zeros)
    _, cache = run(write_folder(tmp_path / "images", 1), tmp_path / "cache", base)
    pipeline = base.prompt_encoder().pipeline
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        _, embeds, _, pooled = pipeline.encode_prompt("x", device="cpu", do_classifier_free_guidance=True)
    assert zeros == (not embeds.any())
    torch.testing.assert_close(cache.empty_prompt(), (embeds[0], pooled[0]), atol=1e-4, rtol=1e-4)


def test_metadata(cache, base):
    assert cache.metadata["vae_fingerprint"] == base.vae_fingerprint
    assert cache.metadata["text_fingerprint"] == base.text_fingerprint
    assert cache.metadata["seed"] == 0 and cache.metadata["transform"]["resolution"] == 64
    cache.check(base)


def test_missing_cache(tmp_path):
    with pytest.raises(ValueError, match="cache_dir .*nowhere.* holds no complete cache"):
        LatentCache(tmp_path / "nowhere")


def test_reads_neither_images_nor_models(cache, base, no_models, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    again = LatentCache(cache.cache_dir)
    again.check(base)
    again.batch(BatchSampler(again, 2, 0)[0])


@pytest.fixture
def instant_encoder(monkeypatch):
    """Noise of the size that SDXL's VAE would give, instead of an encoding."""
    monkeypatch.setattr(SDXLBase, "vae_scale_factor", 8)
    monkeypatch.setattr(LatentEncoder, "__init__", lambda self, *args: None)
    monkeypatch.setattr(
        LatentEncoder,
        "__call__",
        lambda self, crops, *args: torch.randn(len(crops), 4, crops[0].shape[0] // 8, crops[0].shape[1] // 8),
    )


@pytest.mark.parametrize(("side", "count"), [(1024, 12), (128, 300)])
def test_at_most_1_05_times_the_fp16_bytes(base, tmp_path, instant_encoder, side, count):
    """Shards with their lists of rows, and the index, against raw 4x128x128 and 4x16x16 latents."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (side + number, side), (number % 256, number // 256, 0)).save(folder / f"img_{number:05d}.png")
    source = Source(str(folder), default_caption="a picture", ambient_timestep=500)
    report, cache = run([source], tmp_path / "cache", base, transform=Transform(side), dtype="fp16")
    raw = count * 4 * (side // 8) ** 2 * 2
    assert report.latent_bytes_fp16 == raw
    on_disk = sum(f.stat().st_size for f in cache.cache_dir.iterdir() if f.name.startswith(("latents", "index")))
    assert on_disk == report.latent_bytes <= 1.05 * raw
    shards = sum(f.stat().st_size for f in cache.cache_dir.glob("latents-*.safetensors"))
    assert shards <= 1.002 * raw
    if side == 1024:
        everything = sum(f.stat().st_size for f in cache.cache_dir.iterdir() if not f.name.startswith("text"))
        assert everything <= 1.01 * raw


def test_reading_does_not_run_away_from_encoding():
    taken = []
    with ThreadPoolExecutor(2) as pool:
        results = bounded_map(pool, lambda item: item, (taken.append(i) or i for i in range(10 * AHEAD)))
        assert [next(results) for _ in range(5)] == list(range(5))
        assert len(taken) <= AHEAD + 5
        assert list(results) == list(range(5, 10 * AHEAD))


def test_memory_does_not_grow_with_the_data(base, tmp_path, instant_encoder):
    """600 crops of 49 kB are 29 MB; what is held is a shard of them at most."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:05d}.ppm").write_bytes(
            b"P6 8 8 255\n" + np.random.default_rng(number).integers(0, 256, 192, dtype=np.uint8).tobytes()
        )
    source = Source(str(folder), default_caption="x", ambient_timestep=500)
    tracemalloc.start()
    report, _ = run([source], tmp_path / "cache", base, transform=Transform(128), dtype="fp16", num_workers=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.encoded == 600
    assert peak < 15e6
