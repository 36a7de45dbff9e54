"""The optimisers that the trainer knows, each through its own library."""

from __future__ import annotations

from importlib.util import find_spec

import torch

OPTIMIZERS = {"adamw": None, "adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "schedulefree": "schedulefree"}
"""Name, and the package that it needs."""


def check_optimizer(name: str) -> None:
    """Raises a ValueError for an unknown optimiser, and for one whose package is not installed."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    package = OPTIMIZERS[name]
    if package is not None and find_spec(package) is None:
        raise ValueError(f"optimizer {name!r} needs the package {package}: pip install {package}")


def build_optimizer(name: str, parameters: list[torch.nn.Parameter], config, scale: float = 1) -> torch.optim.Optimizer:
    """The optimiser over the adapter's parameters; `config` gives the adam_* fields and learning_rate, times `scale`."""
    betas = (config.adam_beta1, config.adam_beta2)
    common = {"lr": config.learning_rate * scale, "betas": betas, "weight_decay": config.adam_weight_decay}
    if name == "adamw8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, eps=config.adam_epsilon, **common)
    if name == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(parameters, eps=config.adam_epsilon, safeguard_warmup=True, use_bias_correction=True, **common)
    if name == "schedulefree":
        from schedulefree import AdamWScheduleFree

        return AdamWScheduleFree(parameters, eps=config.adam_epsilon, warmup_steps=config.lr_warmup_steps, **common)
    return torch.optim.AdamW(parameters, eps=config.adam_epsilon, **common)
