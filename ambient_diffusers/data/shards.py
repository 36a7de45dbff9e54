"""Rows of tensors under string keys, in safetensors shards that are each written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

Row = tuple[str, list[int], dict[str, Tensor]]
"""Key, small integers that go with it, and the tensors by name."""


@dataclass(frozen=True)
class Shard:
    """One file of tensors and, beside it, the JSON file that says which rows it holds.

    Rows whose tensors have the same shapes form a group and are stacked, `name.group (rows, ...)`, so that the header
    does not grow with the rows. The JSON file is written last: a shard without it was cut off.
    """

    path: Path
    made_for: str
    keys: list[str]
    info: list[list[int]]
    groups: list[int]
    """Number of rows in each group; the keys are in the order of the groups."""

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Raises an OSError or a ValueError where the shard is not whole."""
        shard = cls(path, **json.loads(path.with_suffix(".json").read_text()))
        try:
            counts = {name: shard.file.get_slice(name).get_shape()[0] for name in shard.file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if any(count != shard.groups[int(name.rpartition(".")[2])] for name, count in counts.items()):
            raise ValueError(f"{path} does not hold the rows that {path.stem}.json names")
        return shard

    @classmethod
    def write(cls, path: Path, made_for: str, rows: list[Row]) -> Shard:
        """Writes the tensors, then the JSON file, each aside and renamed."""
        by_shape: dict[tuple, list[Row]] = {}
        for row in rows:
            by_shape.setdefault(tuple(tensor.shape for tensor in row[2].values()), []).append(row)
        groups = list(by_shape.values())
        tensors = {}
        for number, group in enumerate(groups):
            for name in group[0][2]:
                tensors[f"{name}.{number}"] = torch.stack([row[2][name] for row in group])
        content = {
            "made_for": made_for,
            "keys": [row[0] for group in groups for row in group],
            "info": [row[1] for group in groups for row in group],
            "groups": [len(group) for group in groups],
        }
        path.with_suffix(".json").unlink(missing_ok=True)
        aside = path.with_suffix(".tmp")
        aside.write_bytes(save(tensors))  # save_file would make a file that only its owner can read
        os.replace(aside, path)
        write_json(path.with_suffix(".json"), content)
        return cls(path, **content)

    @cached_property
    def file(self):
        """The memory-mapped file: what is not asked for is not read."""
        return safe_open(self.path, framework="pt")

    def locations(self) -> Iterator[tuple[int, int]]:
        """Group and position in it, for each key."""
        for group, count in enumerate(self.groups):
            for position in range(count):
                yield group, position

    def shape(self, name: str, group: int) -> tuple[int, ...]:
        return tuple(self.file.get_slice(f"{name}.{group}").get_shape()[1:])

    def read(self, name: str, group: int, position: int) -> Tensor:
        """One row as float32, in memory of its own: the mapped file must not be written to."""
        return self.file.get_slice(f"{name}.{group}")[position].to(torch.float32, copy=True)

    def without(self, keep: Callable[[str, list[int]], bool]) -> Shard | None:
        """Rewrites the shard with only the rows to keep; None where none is left and the files are gone."""
        if all(map(keep, self.keys, self.info)):
            return self
        tensors = load_file(self.path)
        names = sorted({name.rpartition(".")[0] for name in tensors})
        rows = [
            (key, info, {name: tensors[f"{name}.{group}"][position] for name in names})
            for key, info, (group, position) in zip(self.keys, self.info, self.locations(), strict=True)
            if keep(key, info)
        ]
        if rows:
            return Shard.write(self.path, self.made_for, rows)
        remove(self.path)
        return None


class ShardStore:
    """The shards `prefix-NNNNN.safetensors` of a folder, for one writer.

    Opening it deletes what cannot be believed: files cut off in the middle, damaged shards, and those made for
    something else. `dropped` counts their rows where known.
    """

    ROWS = 128
    """Rows of a shard, and so the most work that an interruption loses."""

    def __init__(self, folder: Path, prefix: str, made_for: str):
        self.folder, self.prefix, self.made_for = folder, prefix, made_for
        self.shards: list[Shard] = []
        self.dropped = 0
        for aside in folder.glob(f"{prefix}-*.tmp"):
            aside.unlink()
        for path in shard_paths(folder, prefix):
            try:
                shard = Shard.open(path)
            except (OSError, ValueError, TypeError, KeyError, IndexError):
                remove(path)
                continue
            if shard.made_for == made_for:
                self.shards.append(shard)
            else:
                self.dropped += len(shard.keys)
                remove(path)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    @cached_property
    def _keys(self) -> set[str]:
        return {key for shard in self.shards for key in shard.keys}

    def prune(self, keep: Callable[[str, list[int]], bool]) -> int:
        """Deletes all rows but those to keep from the disk; returns how many there were."""
        before = sum(len(shard.keys) for shard in self.shards)
        self.shards = [shard for old in self.shards if (shard := old.without(keep)) is not None]
        self.__dict__.pop("_keys", None)
        return before - sum(len(shard.keys) for shard in self.shards)

    def append(self, rows: list[Row]) -> None:
        """Writes a new shard."""
        last = max((_number(shard.path) for shard in self.shards), default=-1)
        path = self.folder / f"{self.prefix}-{last + 1:05d}.safetensors"
        self.shards.append(Shard.write(path, self.made_for, rows))
        self._keys.update(row[0] for row in rows)


def shard_paths(folder: Path, prefix: str) -> list[Path]:
    """The shards of a folder in the order of their numbers."""
    stems = {p.stem for p in folder.glob(f"{prefix}-*") if re.fullmatch(rf"{prefix}-\d+\.(safetensors|json)", p.name)}
    return sorted((folder / f"{stem}.safetensors" for stem in stems), key=_number)


def remove(path: Path) -> None:
    """Deletes a shard, the JSON file first: without it the rest is not believed."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    """Writes aside and renames, so that the file is either the old or the new one."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False), encoding="utf-8")
    os.replace(aside, path)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
