"""Killed at any moment: what is finished is reused, nothing half-written is believed, the result is the same bits."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from preparing import picture, run, write_folder

from ambient_diffusers.data import LatentCache
from ambient_diffusers.data.latent_encoder import LatentEncoder
from ambient_diffusers.data.shards import ShardStore

COUNT = 22


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(ShardStore, "ROWS", 8)


@pytest.fixture
def folder(tmp_path):
    folder = write_folder(tmp_path / "images", COUNT)
    (folder / "004.png").write_bytes(b"no image")
    return folder


def same(a: LatentCache, b: LatentCache, tolerance: float = 0) -> bool:
    return a.files == b.files and all(
        torch.allclose(a.latents(row), b.latents(row), atol=tolerance, rtol=0) for row in range(len(a))
    )


class Interrupted(BaseException):
    pass


def interrupt_at(monkeypatch, target, name, call):
    """The `call`-th call of a function dies."""
    original, calls = getattr(target, name), []

    def dying(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise Interrupted
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, dying)


@pytest.mark.parametrize("call", [1, 4, 7])
def test_interrupted_while_encoding(base, folder, tmp_path, monkeypatch, call):
    _, whole = run(folder, tmp_path / "whole", base, batch_size=3)
    with monkeypatch.context() as patch:
        interrupt_at(patch, LatentEncoder, "__call__", call)
        with pytest.raises(Interrupted):
            run(folder, tmp_path / "cache", base, batch_size=3)
    with pytest.raises(ValueError, match="no complete cache"):
        LatentCache(tmp_path / "cache")
    report, cache = run(folder, tmp_path / "cache", base, batch_size=3)
    assert report.reused == {1: 0, 4: 8, 7: 16}[call] and report.encoded == 21 - report.reused
    assert same(cache, whole)


def test_interrupted_at_any_file(base, folder, tmp_path, monkeypatch):
    """Every file appears by `os.replace`: die at each of them in turn, in a run that drops, changes and adds rows."""
    run(folder, tmp_path / "before", base)
    for name in ("000", "009"):
        (folder / f"{name}.png").unlink()
    for number in range(30, 40):
        picture(number).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text("picture 0")
    _, whole = run(folder, tmp_path / "whole", base)
    for call in itertools.count(1):
        cache_dir = shutil.copytree(tmp_path / "before", tmp_path / f"cache-{call}")
        with monkeypatch.context() as patch:
            interrupt_at(patch, os, "replace", call)
            try:
                run(folder, cache_dir, base)
                break
            except Interrupted:
                pass
        # Other neighbours in a batch of the VAE move the last bits; another draw of the noise would be of order 1.
        try:
            assert same(LatentCache(cache_dir), whole, 1e-4)
        except ValueError as error:
            assert "no complete cache" in str(error)
        assert same(run(folder, cache_dir, base)[1], whole, 1e-4)
        assert not list(cache_dir.glob("*.tmp"))
    assert call > 10


def test_damaged_shards_are_redone(base, folder, tmp_path):
    _, whole = run(folder, tmp_path / "whole", base)
    run(folder, tmp_path / "cache", base)
    shards = sorted((tmp_path / "cache").glob("latents-*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-7])
    shards[1].with_suffix(".json").write_text('{"keys": ["a"')
    with pytest.raises(ValueError, match="damaged at latents-00000"):
        LatentCache(tmp_path / "cache")
    report, cache = run(folder, tmp_path / "cache", base)
    assert report.encoded == 16 and same(cache, whole)


@pytest.mark.slow
def test_killed_process(base, folder, tmp_path):
    """SIGKILL in the middle, in a process of its own: the lock is free again and the shards are good."""
    code = f"""
import sys, time
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from pathlib import Path
from ambient_diffusers.data.shards import ShardStore
from ambient_diffusers.data.latent_encoder import LatentEncoder
from ambient_diffusers.models.sdxl import SDXLBase
from preparing import run
ShardStore.ROWS = 8
encode = LatentEncoder.__call__
def slow(*args):
    time.sleep(0.3)
    return encode(*args)
LatentEncoder.__call__ = slow
run(Path({str(folder)!r}), Path({str(tmp_path / "cache")!r}), SDXLBase({str(base.path)!r}), batch_size=4)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (tmp_path / "cache" / "latents-00000.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0].decode()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    report, cache = run(folder, tmp_path / "cache", base, batch_size=4)
    assert 8 <= report.reused < 21
    assert same(cache, run(folder, tmp_path / "whole", base, batch_size=4)[1])
