"""Shards of rows: groups by shape, rewriting, and what a cut-off file is worth."""

import os

import pytest
import torch

from ambient_diffusers.data.shards import ShardStore


def rows(*shapes):
    return [(f"key {i}", [i], {"x": torch.full(shape, float(i))}) for i, shape in enumerate(shapes)]


def content(store) -> dict:
    return {
        key: shard.read("x", *location)
        for shard in store.shards
        for key, location in zip(shard.keys, shard.locations(), strict=True)
    }


def test_rows_of_several_shapes_come_back(tmp_path):
    written = rows((2, 3), (4, 1), (2, 3), (4, 1), (5,))
    ShardStore(tmp_path, "a", "x").append(written)
    store = ShardStore(tmp_path, "a", "x")
    assert content(store).keys() == {key for key, _, _ in written}
    assert all(torch.equal(content(store)[key], tensors["x"]) for key, _, tensors in written)
    assert [shard.info for shard in store.shards] == [[[0], [2], [1], [3], [4]]]


def test_prune_keeps_the_others_and_numbers_go_on(tmp_path):
    store = ShardStore(tmp_path, "a", "x")
    store.append(rows((2,), (3,), (2,)))
    store.append([("late", [7], {"x": torch.zeros(2)})])
    assert store.prune(lambda key, info: key in ("key 2", "late")) == 2
    assert "key 0" not in store and len(store) == 2
    assert torch.equal(content(ShardStore(tmp_path, "a", "x"))["key 2"], torch.full((2,), 2.0))
    assert store.prune(lambda key, info: info != [7]) == 1
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a-00000.json", "a-00000.safetensors"]


def test_dying_between_the_two_files_of_a_shard_gives_no_row_the_tensor_of_another(tmp_path, monkeypatch):
    """Two groups of equal size, of which one goes: the old list of rows would fit the new tensors."""
    store = ShardStore(tmp_path, "a", "x")
    store.append(rows((2,), (3,), (2,), (3,)))
    replace = os.replace

    def once(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        store.prune(lambda key, info: info[0] % 2 == 1)
    monkeypatch.undo()
    assert len(ShardStore(tmp_path, "a", "x")) == 0 and not list(tmp_path.iterdir())
