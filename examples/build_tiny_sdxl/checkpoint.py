"""Training state in one safetensors file, written aside and renamed: a killed build loses minutes, not hours."""

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def save_checkpoint(path: Path, step: int, model: torch.nn.Module, ema: dict[str, torch.Tensor], optimizer) -> None:
    tensors = {f"model.{k}": v.detach().clone() for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v.clone() for k, v in ema.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    save_file(tensors, aside, metadata={"step": str(step)})
    os.replace(aside, path)


def load_checkpoint(path: Path, model: torch.nn.Module, ema: dict[str, torch.Tensor], optimizer=None) -> int:
    """Fill `model`, `ema` and `optimizer` in place; returns the number of finished steps (0 without a file)."""
    if not path.is_file():
        return 0
    groups: dict[str, dict] = {"model": {}, "ema": {}, "optimizer": {}}
    with safe_open(path, framework="pt") as file:
        step = int(file.metadata()["step"])
        for key in file.keys():
            group, name = key.split(".", 1)
            groups[group][name] = file.get_tensor(key)
    model.load_state_dict(groups["model"])
    ema.update(groups["ema"])
    if optimizer is not None:
        state: dict[int, dict] = {}
        for key, value in groups["optimizer"].items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def finished_steps(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])
