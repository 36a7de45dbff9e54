"""The paper's denoising curves: how far restored images are from the clean ones, against the noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from .. import tweedie
from ..losses import mean_flat
from ..randomness import philox, randn
from .denoiser import Denoiser
from .distance import Estimate
from .image_set import ImageSet
from .output import result, save_figure
from .records import image_records
from .reverse import posterior_sample

METRICS = {"latent_mse": "MSE of the latent", "mse": "MSE", "psnr": "PSNR [dB]", "ssim": "SSIM"}
METHODS = {"one_step": "one step, E[x_0|x_t]", "posterior": "posterior sample"}


def restoration(
    models: Denoiser | Sequence[Denoiser],
    images: str | Path,
    output_dir: str | Path,
    *,
    timesteps: tuple[int, ...] = (100, 500, 800, 900),
    steps: int = 25,
    captions: bool = True,
    logarithmic: bool = False,
    size: tuple[int, int] | None = None,
    max_images: int | None = 100,
    batch_size: int = 8,
    seed: int = 0,
    strict: bool = False,
) -> dict:
    """Noises clean images to each level and restores them, in one step and by a posterior sample.

    Writes `restoration.json` and `restoration.png` into output_dir; the figures of each image are kept in
    `output_dir/restoration`. All models see the same noise.

    Args:
        models: One or several, with different labels.
        images: Clean images, best ones that no model was trained on: a folder or a data set.
        timesteps: Noise levels, in `0..T-1`.
        steps: Evaluations of a posterior sample. A model with a truncated sampler stops at its t_n.
        captions: Condition on the image's caption; else on the empty prompt.
        logarithmic: Plot errors on a logarithmic axis.
        size: `(height, width)` of the images; default what the first base was trained on.

    Returns:
        The content of `restoration.json`. `models[label][method][metric]` holds an estimate for each timestep: MSE in
        latent space and of pixels in `[0, 1]`, PSNR and SSIM. `autoencoder` holds what encoding and decoding alone cost.

    Raises:
        ValueError: for timesteps outside the schedule, two models of one label, and as `image_records`.
    """
    models = [models] if isinstance(models, Denoiser) else list(models)
    labels = [model.label for model in models]
    if not models or len(set(labels)) < len(labels):
        raise ValueError(f"models must be one or several with different labels, got labels {labels}")
    for model in models:
        model.schedule.check_timestep(torch.tensor(timesteps), "timesteps", lowest=0)
    output_dir, size = Path(output_dir), size or models[0].size
    shown = ImageSet(images, "images", size, max_images)
    content = {"models": {}, "autoencoder": {}}
    for model in models:

        def compute(numbers: Sequence[int], pictures: list[Image.Image], model: Denoiser = model) -> list[dict]:
            prompts = [shown.captions[n] if captions else "" for n in numbers]
            return restore(model, pictures, prompts, numbers, timesteps, steps, seed)

        key = {
            "model": model.describe(), "timesteps": timesteps, "steps": steps, "captions": captions, "seed": seed,
            "part": "restoration",
        }  # fmt: skip
        records = image_records(
            shown, output_dir / "restoration", key, compute, batch_size, f"restoration, {model.label}", strict
        )
        content["models"][model.label] = {"model": model.describe()} | {
            method: {m: [_mean(r[method][m][i] for r in records) for i in range(len(timesteps))] for m in METRICS}
            for method in METHODS
        }
        content["autoencoder"][model.label] = {
            metric: _mean(record["autoencoder"][metric] for record in records) for metric in METRICS if metric != "latent_mse"
        }  # fmt: skip

    def finish() -> dict:
        save_figure(output_dir / "restoration.png", plot(content["models"], timesteps, logarithmic))
        settings = {"timesteps": timesteps, "steps": steps, "captions": captions, "seed": seed}
        return content | {"images": {"path": shown.path, "images": len(records)}, "size": size, "settings": settings}

    return result(output_dir / "restoration.json", finish)


def restore(
    model: Denoiser,
    pictures: list[Image.Image],
    prompts: list[str],
    numbers: Sequence[int],
    timesteps: Sequence[int],
    steps: int,
    seed: int,
) -> list[dict]:
    """Per picture `{method: {metric: [one a timestep]}}`, and `autoencoder: {metric: value}`."""
    x_0, h = model.encode(pictures), model.conditioned(prompts)
    records = [{method: {metric: [] for metric in METRICS} for method in METHODS} for _ in pictures]
    for record, picture, decoded in zip(records, pictures, model.decode(x_0), strict=True):
        record["autoencoder"] = compare(picture, decoded)
    for timestep in timesteps:
        t = torch.full((len(x_0),), timestep)
        noise = randn(list(numbers), x_0.shape[1:], seed, "restoration noise", timestep)
        x_t = tweedie.add_noise(x_0, noise, t, model.schedule)
        restored = {
            "one_step": h(x_t, t),
            "posterior": posterior_sample(
                h, x_t, timestep, model.schedule, list(numbers), seed, steps, model.lowest_timestep
            ),
        }
        for method, x_0_hat in restored.items():
            errors = mean_flat((x_0_hat - x_0).square()).tolist()
            for record, picture, decoded, error in zip(records, pictures, model.decode(x_0_hat), errors, strict=True):
                for metric, value in (compare(picture, decoded) | {"latent_mse": error}).items():
                    record[method][metric].append(value)
    return records


def compare(clean: Image.Image, restored: Image.Image) -> dict[str, float]:
    """MSE of pixels in `[0, 1]`, PSNR (of equal images that of 8-bit rounding, 58.9 dB) and SSIM."""
    a, b = (np.asarray(image.convert("RGB"), np.float64) / 255 for image in (clean, restored))
    mse = float(np.square(a - b).mean())
    window = min(7, (min(a.shape[:2]) - 1) // 2 * 2 + 1)
    return {
        "mse": mse,
        "psnr": float(-10 * np.log10(max(mse, 1 / 12 / 255**2))),
        "ssim": float(structural_similarity(a, b, channel_axis=2, data_range=1.0, win_size=window)),
    }


def _mean(values, resamples: int = 500) -> dict:
    """The mean over images and its 95 % bootstrap interval."""
    values = torch.tensor(list(values), dtype=torch.float64)
    index = torch.from_numpy(philox(0, "mean").integers(len(values), size=(resamples, len(values))))
    low, high = values[index].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return asdict(Estimate(values.mean().item(), low, high))


def plot(models: dict[str, dict], timesteps: Sequence[int], logarithmic: bool) -> Figure:
    """A panel for each metric, a colour for each model, solid for one step and dashed for posterior samples."""
    figure = Figure(figsize=(11, 7))
    order = Tensor(timesteps).argsort().tolist()
    for number, (metric, name) in enumerate(METRICS.items(), 1):
        axes = figure.add_subplot(2, 2, number)
        for colour, (label, curves) in enumerate(models.items()):
            for method, style in zip(METHODS, ("-o", "--s"), strict=True):
                curve = [curves[method][metric][i] for i in order]
                middle, low, high = ([point[k] for point in curve] for k in ("value", "low", "high"))
                t = [timesteps[i] for i in order]
                axes.plot(t, middle, style, color=f"C{colour}", label=f"{label}: {METHODS[method]}", markersize=4)
                axes.fill_between(t, low, high, color=f"C{colour}", alpha=0.15)
        if logarithmic and "mse" in metric:
            axes.set_yscale("log")
        axes.set(xlabel="timestep", ylabel=name)
    figure.axes[0].legend(fontsize=7)
    figure.tight_layout()
    return figure
