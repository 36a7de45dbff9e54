"""The list of everything that a cache is to hold, and the hash of each image's bytes."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

from .folder import ImageFolder
from .hub_dataset import HubDataset
from .image import UnreadableImageError, read_image
from .shards import write_json
from .source import Entry, Source

MEMO = "files.json"
AHEAD = 32
"""Images read before they are needed."""
T, R = TypeVar("T"), TypeVar("R")


@dataclass(slots=True)
class Record:
    """One row of the cache: an entry of a source, and the hash of the image's bytes once they have been read."""

    source: int
    entry: Entry
    image: str = ""


class Records:
    """The rows of all sources, in the order of the sources and of the paths in them.

    Args:
        max_train_samples: Keep only so many. Which ones depends on the seed and the names, so that one more file
            changes one at most.
        strict: What would be skipped is an error.

    Attributes:
        skipped: `(file, reason)` of what is left out.

    Raises:
        ValueError: as `ImageFolder` and `HubDataset` do, and naming the file, for what would be skipped where strict.
    """

    def __init__(self, sources: list[Source], seed: int, max_train_samples: int | None = None, strict: bool = False):
        self.sources, self.strict = sources, strict
        self.readers = [(ImageFolder if s.train_data_dir is not None else HubDataset)(s) for s in sources]
        self.rows = [Record(i, entry) for i, reader in enumerate(self.readers) for entry in reader.entries]
        self.skipped: list[tuple[str, str]] = []
        for reader in self.readers:
            self._skip(reader.skipped)
        if max_train_samples is not None and max_train_samples < len(self.rows):

            def rank(i: int) -> bytes:
                row = self.rows[i]
                return hashlib.sha256(repr((seed, "subset", row.source, row.entry)).encode()).digest()

            chosen = sorted(range(len(self.rows)), key=rank)[:max_train_samples]
            self.rows = [self.rows[i] for i in sorted(chosen)]

    def path(self, row: Record) -> str:
        return self.readers[row.source].path(row.entry.name)

    def read(self, row: Record) -> bytes:
        return self.readers[row.source].read(row.entry.name)

    def hash_images(self, cache_dir: Path, pool: ThreadPoolExecutor, background: str, bar: tqdm) -> None:
        """Fills in `image`; a file whose size and time of change are those of the last run is not read again.

        Where strict, every new image is decoded as well, so that a bad one is found before any model loads.
        """
        memo = _read_memo(cache_dir / MEMO)

        def hash_image(row: Record) -> tuple[str, str]:
            """The hash, or why there is none."""
            try:
                stamp = self.readers[row.source].stamp(row.entry.name)
                *known_stamp, known = memo.get(self.path(row), [""])
                if known_stamp == stamp:
                    return known, ""
                data = self.read(row)
                if self.strict:
                    read_image(data, background)
            except (OSError, UnreadableImageError) as error:
                return "", str(error)
            return hash_bytes(data), ""

        for row, (image, reason) in zip(self.rows, bounded_map(pool, hash_image, self.rows), strict=True):
            bar.update()
            row.image = image
            if not image:
                self._skip([(self.path(row), reason)])
        self.rows = [row for row in self.rows if row.image]

    def drop(self, unreadable: dict[str, str]) -> None:
        """Takes out the rows of images that turned out unreadable: `{hash: reason}`."""
        self._skip([(self.path(row), unreadable[row.image]) for row in self.rows if row.image in unreadable])
        self.rows = [row for row in self.rows if row.image not in unreadable]

    def _skip(self, skipped: list[tuple[str, str]]) -> None:
        if skipped and self.strict:
            raise ValueError(f"strict allows no image to be skipped, got {': '.join(skipped[0])}")
        self.skipped += skipped

    def write_memo(self, cache_dir: Path) -> None:
        """Remembers what was read, for the next run."""
        memo = {}
        for row in self.rows:
            try:
                memo[self.path(row)] = [*self.readers[row.source].stamp(row.entry.name), row.image]
            except OSError:  # gone in the meantime
                continue
        write_json(cache_dir / MEMO, memo)

    def noise_levels(self) -> dict[str, int]:
        """`{hash: t_n}`.

        Raises:
            ValueError: naming both files, where the same bytes have two noise levels: a second draw leaks the image.
        """
        first: dict[str, Record] = {}
        for row in self.rows:
            other = first.setdefault(row.image, row)
            if other.entry.ambient_timestep != row.entry.ambient_timestep:
                raise ValueError(
                    "ambient_timestep must be one for the same image, since two draws of its noise leak it: "
                    f"{self.path(other)} has {other.entry.ambient_timestep}, {self.path(row)} has "
                    f"{row.entry.ambient_timestep}, and their bytes are the same"
                )
        return {image: row.entry.ambient_timestep for image, row in first.items()}


def hash_bytes(data: bytes) -> str:
    """The name of an image: the first 128 bits of the SHA-256 of its file."""
    return hashlib.sha256(data).hexdigest()[:32]


def draw_id(data: bytes) -> str:
    """The name under which an image's noise is drawn: another hash than `hash_bytes`, and never written anywhere.

    Whoever has the cache has `hash_bytes`, the seed and the model. Were z drawn from those, they could subtract it.
    """
    return hashlib.sha256(b"ambient noise of " + data).hexdigest()


def bounded_map(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on a pool, in order, that runs only a little ahead of its consumer, so that memory stays bounded."""
    waiting = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _read_memo(path: Path) -> dict[str, list]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
