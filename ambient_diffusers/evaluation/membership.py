r"""Membership inference: does the model denoise its training images better than images it has never seen?

The score of an image is minus its loss `|| eps_hat(x_t, t) - eps ||^2`, averaged over noise draws; over several noise
levels, the mean of the losses after each level's were standardised over all images of both sets (no label is used).
Images differ in how hard they are to denoise, which the loss of the base, before it was fine-tuned, knows as well: the
score `relative` is that of the difference to the base's loss under the same noise.

References:
    Carlini et al., "Extracting Training Data from Diffusion Models", USENIX Security 2023, section 5;
    Watson et al., "On the Importance of Difficulty Calibration in Membership Inference Attacks", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import tweedie
from ..losses import mean_flat
from ..randomness import randn
from .denoiser import Denoiser
from .image_set import ImageSet
from .output import result, save_figure
from .records import image_records
from .roc import bootstrap, roc_auc, roc_curve, true_positive_rate


def membership(
    model: Denoiser,
    members: str | Path,
    held_out: str | Path,
    output_dir: str | Path,
    *,
    timesteps: tuple[int, ...] = (100, 300, 500, 700, 900),
    draws: int = 4,
    captions: bool = True,
    size: tuple[int, int] | None = None,
    max_images: int | None = None,
    batch_size: int = 16,
    resamples: int = 500,
    seed: int = 0,
    strict: bool = False,
) -> dict:
    """Attacks a model with images that it was trained on and images of the same origin that it was not.

    Writes `membership.json` and `membership.png` into output_dir; the losses of each image are kept in
    `output_dir/membership`.

    Args:
        members: The training images, a folder or a data set.
        held_out: Images of the same origin.
        timesteps: Noise levels, in `0..T-1`.
        draws: Noise draws at each level.
        captions: Condition on the image's caption, as training did; else on the empty prompt.
        size: `(height, width)` of the images; default what the base was trained on.
        max_images: Use only so many of each set.

    Returns:
        The content of `membership.json`: under `scores` for `loss`, and with a LoRA `relative`, AUC and true positive
        rate at 1 % false positives, over all levels and at each.

    Raises:
        ValueError: for timesteps outside the schedule, and as `image_records`.
    """
    model.schedule.check_timestep(torch.tensor(timesteps), "timesteps", lowest=0)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    output_dir, size = Path(output_dir), size or model.size
    sets = {
        "members": ImageSet(members, "members", size, max_images),
        "held_out": ImageSet(held_out, "held_out", size, max_images),
    }
    key = {
        "model": model.describe(), "timesteps": timesteps, "draws": draws, "captions": captions, "seed": seed,
        "part": "membership",
    }  # fmt: skip
    records = {}
    for name, images in sets.items():

        def compute(numbers: Sequence[int], pictures: list[Image.Image], images: ImageSet = images) -> list[dict]:
            prompts = [images.captions[n] if captions else "" for n in numbers]
            return denoising_losses(model, pictures, prompts, numbers, timesteps, draws, seed)

        records[name] = image_records(
            images, output_dir / "membership", key, compute, batch_size, f"denoising losses, {name}", strict
        )

    def evaluate() -> dict:
        scores = {
            kind: [
                torch.tensor([record[kind] for record in rows], dtype=torch.float64).neg() for rows in records.values()
            ]
            for kind in ("loss", "relative")
            if kind in records["members"][0]
        }
        save_figure(output_dir / "membership.png", plot(scores, timesteps, model.label))
        return {
            "model": model.describe() | {"label": model.label},
            **{n: {"path": sets[n].path, "images": len(records[n])} for n in sets},
            "size": size,
            "scores": {kind: _judge(*pair, timesteps, resamples, seed) for kind, pair in scores.items()},
            "settings": {"timesteps": timesteps, "draws": draws, "captions": captions, "seed": seed},
        }

    return result(output_dir / "membership.json", evaluate)


def denoising_losses(
    model: Denoiser,
    pictures: list[Image.Image],
    prompts: list[str],
    numbers: Sequence[int],
    timesteps: Sequence[int],
    draws: int,
    seed: int,
) -> list[dict]:
    """`{"loss": [one a timestep]}` for each picture, and `relative`, the loss minus the base's, where there is a LoRA.

    The noise depends on the image's number, the timestep and the draw, so that all models are asked the same.
    """
    x_0 = model.encode(pictures)

    def losses() -> Tensor:
        h, columns = model.conditioned(prompts), []
        for timestep in timesteps:
            t = torch.full((len(x_0),), timestep)
            total = torch.zeros(len(x_0))
            for draw in range(draws):
                noise = randn(list(numbers), x_0.shape[1:], seed, "membership noise", timestep, draw)
                x_t = tweedie.add_noise(x_0, noise, t, model.schedule)
                total += mean_flat((h.epsilon(x_t, t) - noise).square())
            columns.append(total / draws)
        return torch.stack(columns, 1)

    loss = losses()
    records = [{"loss": row} for row in loss.tolist()]
    if model.has_lora:
        with model.without_lora():
            relative = loss - losses()
        for record, row in zip(records, relative.tolist(), strict=True):
            record["relative"] = row
    return records


def combined(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of all levels `(n, L)`, `(m, L)` to one an image: the mean of standardised columns."""
    pooled = torch.cat([members, others])
    spread = pooled.std(0).clamp(min=torch.finfo(pooled.dtype).tiny)
    return tuple(((scores - pooled.mean(0)) / spread).mean(1) for scores in (members, others))


def _judge(members: Tensor, others: Tensor, timesteps: Sequence[int], resamples: int, seed: int) -> dict:
    def entry(a: Tensor, b: Tensor) -> dict:
        return {
            "auc": asdict(bootstrap(roc_auc, a, b, resamples, seed)),
            "true_positive_rate_at_1_percent": asdict(bootstrap(true_positive_rate, a, b, resamples, seed)),
        }

    levels = {str(t): entry(members[:, i], others[:, i]) for i, t in enumerate(timesteps)}
    return entry(*combined(members, others)) | {"timesteps": levels}


def plot(scores: dict[str, list[Tensor]], timesteps: Sequence[int], label: str) -> Figure:
    """Left the ROC curves over all levels, right the AUC of each level."""
    figure = Figure(figsize=(9, 4))
    curve, levels = figure.subplots(1, 2)
    for kind, (members, others) in scores.items():
        pair = combined(members, others)
        curve.plot(*roc_curve(*pair), label=f"{kind}: AUC {roc_auc(*pair):.3f}")
        levels.plot(timesteps, [roc_auc(a, b) for a, b in zip(members.T, others.T, strict=True)], "o-", label=kind)
    curve.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    curve.set(xlabel="false positive rate", ylabel="true positive rate", title=label)
    levels.axhline(0.5, color="gray", linewidth=0.8)
    levels.set(xlabel="timestep", ylabel="AUC", ylim=(0, 1.02))
    curve.legend()
    levels.legend()
    figure.tight_layout()
    return figure
