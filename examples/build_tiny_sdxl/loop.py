"""The training loop that the VAE and the UNet share: learning-rate schedule, EMA, checkpoints, progress with ETA."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import load_checkpoint, save_checkpoint


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay_fraction: float = 0.3) -> float:
    """Linear warm-up, a plateau, then half a cosine down to 1 % over the last `decay_fraction` of the steps.

    A plateau rather than one long cosine, because the UNet still has its second resolution to learn half-way.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = max(0.0, 1 - (steps - step) / (decay_fraction * steps))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: torch.nn.Module,
    loss_of_step: Callable[[int], torch.Tensor],
    path: Path,
    *,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    ema_decay: float,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    checkpoint_seconds: float = 180.0,
) -> None:
    """Minimise `loss_of_step(step)` over `model` and leave the averaged weights in it.

    `loss_of_step` derives its randomness from `step`, so that a resumed run makes the same draws.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
    )
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = load_checkpoint(path, model, ema, optimizer)
    saved, average = time.monotonic(), None
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=path.stem, mininterval=10)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps, warmup_steps)
        loss = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        decay = min(ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    ema[name].lerp_(value, 1 - decay)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        bar.set_postfix(loss=f"{average:.5f}", refresh=False)
        if time.monotonic() - saved > checkpoint_seconds or step == steps - 1:
            save_checkpoint(path, step + 1, model, ema, optimizer)
            saved = time.monotonic()
    model.load_state_dict(ema)


def averaged(model: torch.nn.Module, path: Path) -> int:
    """Load the averaged weights of a checkpoint into `model`; returns its step."""
    ema: dict[str, torch.Tensor] = {}
    step = load_checkpoint(path, model, ema)
    if step:
        model.load_state_dict(ema)
    return step
