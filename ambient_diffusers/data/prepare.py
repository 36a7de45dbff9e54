"""Images to the noise-once cache: each is encoded and noised a single time, and training reads nothing else."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ..models.sdxl import SDXLBase
from .cache import EMPTY_PROMPT, LatentCache
from .index import FORMAT, INDEX, write_index
from .latent_encoder import DTYPES, LatentEncoder, digest, draw_key, schedule_fingerprint
from .latents import encode_images
from .prompts import encode_prompts
from .records import Records
from .report import PrepareReport
from .shards import ShardStore, write_json
from .source import Source
from .transform import Transform

REPORT = "report.json"


def prepare(
    sources: Sequence[Source],
    cache_dir: str | Path,
    base: SDXLBase,
    transform: Transform,
    *,
    seed: int,
    dtype: str = "fp16",
    device: torch.device | str = "cpu",
    vae_dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    max_train_samples: int | None = None,
    strict: bool = False,
    extra_prompts: Sequence[str] = (),
    progress: bool = True,
    num_workers: int | None = None,
) -> PrepareReport:
    """Makes or completes a cache; what exists and still fits is not redone, what no longer fits is deleted.

    A latent belongs to the image's bytes, the VAE's weights, the noise schedule, the transform, t_n, the seed and the
    dtype; a text embedding to the prompt, the tokenizers and text encoders, and the dtype. The VAE is loaded only if a
    latent is missing, the text encoders only if an embedding is. Interrupted at any moment, the next run goes on from
    the last whole shard. Clean latents stay in memory unless t_n is -1.

    Args:
        sources: Folders and data sets; the same image may not occur at two noise levels.
        cache_dir: A folder that holds this one data set, and nothing but it.
        dtype: `fp16` or `fp32`, of what is stored.
        device, vae_dtype: Where and in which dtype VAE and text encoders run.
        batch_size: Images that go through the VAE at once.
        max_train_samples: Use only so many images.
        strict: An image that cannot be read is an error rather than skipped.
        extra_prompts: More prompts to embed, for validation. The empty prompt always is.
        num_workers: Threads that read and decode images.

    Returns:
        The report, which is also written to `cache_dir/report.json`.

    Raises:
        ValueError: naming argument, value and what is allowed, before any model is loaded; and naming the file, for
            unreadable images where strict and for latents that are not finite.
    """
    start, cache_dir, sources = time.perf_counter(), Path(cache_dir), list(sources)
    _check(sources, base, transform, dtype, batch_size, max_train_samples)
    records = Records(sources, seed, max_train_samples, strict)
    for t, row in {row.entry.ambient_timestep: row for row in records.rows}.items():
        base.schedule.check_timestep(t, f"ambient_timestep of {records.path(row)}")

    def bar(title: str, total: int) -> tqdm:
        return tqdm(desc=title, total=total, unit="image" if title != "Prompts" else "prompt", disable=not progress)

    with ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1)) as pool:
        with bar("Reading", len(records.rows)) as reading:
            records.hash_images(cache_dir, pool, transform.background, reading)
        t_n = records.noise_levels()
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir):
            (cache_dir / INDEX).unlink(missing_ok=True)  # until everything is there again
            made_for = digest(f"latents {FORMAT}", draw_key(base, transform), str(seed), dtype)
            latents = ShardStore(cache_dir, "latents", made_for)
            dropped = latents.dropped + latents.prune(lambda image, info: t_n.get(image) == info[0])
            texts = ShardStore(cache_dir, "text", digest(f"text {FORMAT}", base.text_fingerprint, dtype))
            reused = len(latents)
            with bar("Encoding", len(t_n) - reused) as encoding:
                unreadable = encode_images(
                    records,
                    latents,
                    transform,
                    seed,
                    lambda: LatentEncoder(base, transform, seed, device, vae_dtype),
                    DTYPES[dtype],
                    batch_size,
                    pool,
                    encoding,
                )
            records.drop(unreadable)
            if not records.rows:
                reasons = ", ".join(f"{file} ({reason})" for file, reason in records.skipped[:5])
                raise ValueError(f"no image can be read: {reasons}")
            prompts = {row.entry.caption: None for row in records.rows}
            wanted = [EMPTY_PROMPT, *extra_prompts, *prompts]
            with bar("Prompts", len({p for p in wanted if p not in texts})) as embedding:
                captions_encoded = encode_prompts(wanted, texts, base, device, DTYPES[dtype], batch_size, embedding)
            metadata = {
                "vae_fingerprint": base.vae_fingerprint,
                "text_fingerprint": base.text_fingerprint,
                "schedule_fingerprint": schedule_fingerprint(base.schedule),
                "vae_scale_factor": base.vae_scale_factor,
                "scaling_factor": base.vae_config["scaling_factor"],
                "force_zeros_for_empty_prompt": base.force_zeros_for_empty_prompt,
                "seed": seed,
                "dtype": dtype,
                "transform": asdict(transform),
            }
            write_index(cache_dir, records, latents, texts, metadata)
            records.write_memo(cache_dir)
            report = _report(
                cache_dir, records, dropped, reused, len(latents) - reused, len(prompts), captions_encoded, start
            )
            write_json(cache_dir / REPORT, asdict(report))
    return report


def _check(sources, base, transform, dtype, batch_size, max_train_samples) -> None:
    if not sources:
        raise ValueError("sources must name at least one folder or data set, got none")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if max_train_samples is not None and max_train_samples < 1:
        raise ValueError(f"max_train_samples must be at least 1, got {max_train_samples}")
    transform.check(base.vae_scale_factor)
    for source in sources:
        base.schedule.check_timestep(source.ambient_timestep, "ambient_timestep")


@contextmanager
def _locked(cache_dir: Path) -> Iterator[None]:
    """One writer at a time. The operating system frees the lock when its process dies: there are no stale ones."""
    lock = FileLock(cache_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        warnings.warn(f"another process prepares {str(cache_dir)!r}: waiting for it", stacklevel=4)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _report(cache_dir, records, dropped, reused, encoded, captions, captions_encoded, start) -> PrepareReport:
    cache = LatentCache(cache_dir)
    seconds = time.perf_counter() - start
    target, original = cache.time_ids[:, 4:], cache.time_ids[:, :2]
    upscaled = (target > original).any(1).tolist()
    values = {row.image: shape[0] * shape[1] for row, shape in zip(records.rows, cache.shapes, strict=True)}
    sizes = Counter("{:.0f}x{:.0f}".format(*size) for size in target.tolist())
    return PrepareReport(
        images=len(cache),
        latents=reused + encoded,
        encoded=encoded,
        reused=reused,
        dropped=dropped,
        captions=captions,
        captions_encoded=captions_encoded,
        skipped=records.skipped,
        upscaled=[records.path(row) for row, up in zip(records.rows, upscaled, strict=True) if up],
        t_n=dict(Counter(cache.t_n.tolist())),
        shapes=dict(sizes),
        latent_bytes=_bytes(cache_dir, "latents-*") + _bytes(cache_dir, INDEX),
        latent_bytes_fp16=2 * cache.latents(0).shape[0] * sum(values.values()),
        text_bytes=_bytes(cache_dir, "text-*"),
        seconds=seconds,
        images_per_second=encoded / seconds,
    )


def _bytes(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))
