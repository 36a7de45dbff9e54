"""What a step needs, for a dry run."""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn


def peak_memory_gb(device: torch.device) -> float:
    """The most that this process has had allocated on the device so far (resident, on the CPU), in GB of 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # macOS counts bytes, Linux kilobytes


def describe_parameters(models: dict[str, nn.Module]) -> str:
    """One line for each model: parameters, of which trained, and the bytes of its weights."""
    lines = []
    for name, model in models.items():
        parameters = list(model.parameters())
        total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        size = sum(p.numel() * p.element_size() for p in parameters) / 1e9
        lines.append(f"{name}: {total:,} parameters, {trained:,} of them trained, {size:.3f} GB")
    return "\n".join(lines)
