"""Checkpoints as safetensors and JSON, written aside and renamed: a folder that has its name is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

PREFIX = "checkpoint-"


def save_checkpoint(output_dir: Path, step: int, state: dict[str, Any], total_limit: int | None = None) -> Path:
    """Writes `output_dir/checkpoint-<step>`, then deletes the oldest ones beyond total_limit.

    Args:
        state: A tree of dicts, lists, tensors and plain values for each name; `{"lora": {...}, "optimizer": {...}}`.
    """
    folder = output_dir / f"{PREFIX}{step}"
    aside = output_dir / f".{PREFIX}{step}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, tree in state.items():
        save_tree(aside / name, tree)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)
    for old in checkpoints(output_dir)[: -total_limit if total_limit else 0]:
        shutil.rmtree(old)
    return folder


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any]:
    """What `save_checkpoint` was given, tensors on the device."""
    return {file.stem: load_tree(file.with_suffix(""), device) for file in sorted(folder.glob("*.json"))}


def find_checkpoint(output_dir: Path, resume_from: str) -> Path | None:
    """The checkpoint to resume from; None where `latest` was asked for and there is none.

    Raises:
        ValueError: where a named checkpoint does not exist; says which do.
    """
    found = checkpoints(output_dir)
    if resume_from == "latest":
        return found[-1] if found else None
    for folder in (output_dir / resume_from, Path(resume_from)):
        if (folder / "progress.json").is_file():
            return folder
    raise ValueError(
        f"resume_from_checkpoint must be 'latest' or a checkpoint's folder, got {resume_from!r}; "
        f"in {str(output_dir)!r} there are {[folder.name for folder in found] or 'none'}"
    )


def checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    folders = [f for f in output_dir.glob(f"{PREFIX}*") if f.name.removeprefix(PREFIX).isdigit()]
    return sorted((f for f in folders if f.is_dir()), key=lambda folder: int(folder.name.removeprefix(PREFIX)))


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree of dicts (any plain keys), lists, tensors and plain values to `path.json` and `path.safetensors`."""
    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, tensors)
    if tensors:
        safetensors.torch.save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(json.dumps(structure))


def load_tree(path: Path, device: torch.device | str = "cpu") -> Any:
    """Reads what `save_tree` wrote."""
    file = path.with_suffix(".safetensors")
    tensors = safetensors.torch.load_file(file, str(device)) if file.exists() else {}
    return _decode(json.loads(path.with_suffix(".json").read_text()), tensors)


def _encode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):  # as pairs: JSON would turn the integer keys of an optimiser's state into strings
        return {"dict": [[key, _encode(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_encode(value, tensors) for value in tree]
    return tree


def _decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _decode(value, tensors) for key, value in tree["dict"]}
    return [_decode(value, tensors) for value in tree] if isinstance(tree, list) else tree
