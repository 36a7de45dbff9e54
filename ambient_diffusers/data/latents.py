"""The missing latents of a cache, made from the image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..randomness import stream
from .image import UnreadableImageError, read_image
from .latent_encoder import LatentEncoder
from .records import Record, Records, bounded_map, draw_id, hash_bytes
from .shards import Row, ShardStore
from .transform import Transform


class Crop(NamedTuple):
    """A row of which the latent is missing, ready to be encoded."""

    row: Record
    pixels: np.ndarray
    """`(H, W, 3)`."""
    time_ids: tuple[int, ...]
    draw_id: str


def encode_images(
    records: Records,
    store: ShardStore,
    transform: Transform,
    seed: int,
    make_encoder: Callable[[], LatentEncoder],
    dtype: torch.dtype,
    batch_size: int,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> dict[str, str]:
    """Encodes what the store lacks, a shard at a time; the encoder is made at the first image that can be read.

    Which images share a batch depends on the list of missing ones in whole shards only, so that a run that was
    interrupted and resumed computes the very same bits.

    Returns:
        `{hash: reason}` of the images that cannot be read.
    """
    missing = {row.image: row for row in reversed(records.rows) if row.image not in store}
    unreadable: dict[str, str] = {}
    crops = _crops(records, list(reversed(missing.values())), transform, seed, unreadable, pool, bar)
    encoder, finished = None, []
    for batch in _batches(crops, batch_size, ShardStore.ROWS):
        if batch is None:
            store.append(finished)
            finished = []
            continue
        encoder = encoder or make_encoder()
        finished += _encode(batch, records, encoder, dtype)
        bar.update(len(batch))
    return unreadable


def _crops(records, rows, transform, seed, unreadable, pool, bar) -> Iterator[Crop]:
    """Reads and transforms in the pool, in order; what cannot be read goes to `unreadable`."""

    def crop(row: Record) -> Crop | str:
        try:
            data = records.read(row)
            if hash_bytes(data) != row.image:
                return "it changed while it was read; run prepare again"
            image, time_ids = transform(read_image(data, transform.background), stream(seed, "transform", row.image))
        except (OSError, UnreadableImageError) as error:
            return str(error)
        return Crop(row, np.asarray(image), time_ids, draw_id(data))

    for row, result in zip(rows, bounded_map(pool, crop, rows), strict=True):
        if isinstance(result, str):
            unreadable[row.image] = result
            bar.update()
        else:
            yield result


def _batches(crops: Iterator[Crop], batch_size: int, shard_size: int) -> Iterator[list[Crop] | None]:
    """Batches of one shape; None after those that fill a shard."""
    waiting: dict[tuple, list[Crop]] = {}
    count = 0
    for crop in crops:
        batch = waiting.setdefault(crop.pixels.shape, [])
        batch.append(crop)
        if len(batch) == batch_size:
            yield waiting.pop(crop.pixels.shape)
        count += 1
        if count % shard_size == 0:
            yield from waiting.values()
            waiting = {}
            yield None
    if count % shard_size:
        yield from waiting.values()
        yield None


def _encode(batch: list[Crop], records: Records, encoder: LatentEncoder, dtype: torch.dtype) -> list[Row]:
    latents = encoder(
        [crop.pixels for crop in batch],
        [crop.draw_id for crop in batch],
        [crop.row.entry.ambient_timestep for crop in batch],
        [records.path(crop.row) for crop in batch],
    ).to(dtype)
    # The target is not kept: it is the shape of the latent.
    return [
        (crop.row.image, [crop.row.entry.ambient_timestep, *crop.time_ids[:4]], {"latents": latent})
        for crop, latent in zip(batch, latents, strict=True)
    ]
