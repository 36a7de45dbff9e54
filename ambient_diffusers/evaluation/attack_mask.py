"""The paper's second attack: can the model restore the part of an image that it was not shown?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from diffusers import AutoPipelineForInpainting, DiffusionPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image

from ..processes import processes
from ..randomness import stream
from ..sampling import PRECISIONS
from .attack import Attempts, attack_sets, run_attack
from .boxes import Box, Boxes
from .denoiser import Denoiser
from .image_set import ImageSet


def attack_mask(
    model: Denoiser,
    train: str | Path,
    output_dir: str | Path,
    *,
    held_out: str | Path | None = None,
    inpainting: str | Path | None = None,
    boxes: str | Path | Box | None = None,
    detector: str | None = None,
    area: float = 0.25,
    attempts: int = 4,
    steps: int = 25,
    guidance_scale: float = 1.0,
    captions: bool = True,
    features: str = "efficientnet-lite0",
    weights: str | None = None,
    thresholds: tuple[float, ...] = (0.9, 0.95, 0.99),
    permutations: int = 2000,
    size: tuple[int, int] | None = None,
    max_images: int | None = None,
    batch_size: int = 4,
    top: int = 8,
    seed: int = 0,
    strict: bool = False,
) -> dict:
    """Paints a box of each image grey, and has the model fill it in.

    The rest of the image is the same in original and attempt, so similarities are high for any model: read them against
    those of the held-out images. `error` is that of the pixels within the box.

    Args:
        train, held_out: As for `attack_noise`.
        inpainting: The folder or hub name of an inpainting pipeline. Default: the model's own UNet, which at every step
            gets the rest of the image at the step's noise level.
        boxes: A JSON file `{"file name": [left, upper, right, lower]}`, or one box for all, in fractions of width and
            height; what lies outside of the image is cut off.
        detector: Name or folder of an object detection model for `transformers.pipeline`; its surest box is masked.
        area: Of the random box that is masked where neither boxes nor detector are given, or the detector finds nothing.
        attempts: Draws an image; the one that comes nearest counts.
        size: `(height, width)`; default what the base was trained on.

    Returns:
        The content of `attack_mask.json`; see `run_attack`.

    Raises:
        ValueError: for boxes and a detector at once, a box outside of the image, an area outside (0, 1), a file without
            a box, a detector or pipeline that cannot be loaded, and as `run_attack`.
    """
    if boxes is not None and detector is not None:
        raise ValueError("boxes and detector must not both be given")
    if not 0 < area < 1:
        raise ValueError(f"area must lie in (0, 1), got {area}")
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    size = size or model.size
    sets = attack_sets(train, held_out, size, max_images)
    chosen = Boxes(boxes, detector, area, seed)
    for images in sets.values():
        chosen.check(images.names)
    painter = cache(lambda: load_painter(model, inpainting))

    def produce(
        images: ImageSet, numbers: Sequence[int], pictures: list[Image.Image], prompts: list[str]
    ) -> list[Attempts]:
        masked = [chosen(images.names[n], picture) for n, picture in zip(numbers, pictures, strict=True)]
        return paint(painter(), numbers, pictures, prompts, masked, attempts, steps, guidance_scale, seed)

    settings = {
        "attack": "mask", "model": model.describe(), "inpainting": inpainting and str(inpainting), "boxes": chosen.key,
        "detector": detector, "area": area, "attempts": attempts, "steps": steps, "guidance_scale": guidance_scale,
        "captions": captions, "size": size, "seed": seed,
    }  # fmt: skip
    return run_attack(
        "attack_mask", produce, settings, sets, Path(output_dir),
        features=features, weights=weights, thresholds=thresholds, permutations=permutations, captions=captions,
        batch_size=batch_size, top=top, seed=seed, strict=strict, label=model.label,
    )  # fmt: skip


def load_painter(model: Denoiser, inpainting: str | Path | None) -> DiffusionPipeline:
    """An inpainting pipeline: a given one, or one around the model's own parts."""
    if inpainting is None:
        pipeline = StableDiffusionXLInpaintPipeline(
            **model.pipeline.components,
            force_zeros_for_empty_prompt=model.opened.base.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
    else:
        try:
            pipeline = AutoPipelineForInpainting.from_pretrained(
                inpainting, torch_dtype=PRECISIONS[model.mixed_precision]
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"inpainting must be an inpainting pipeline, got {str(inpainting)!r}: {error}") from error
        pipeline = pipeline.to(processes().device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(
    painter: DiffusionPipeline,
    numbers: Sequence[int],
    pictures: list[Image.Image],
    prompts: list[str],
    masks: list[np.ndarray],
    attempts: int,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> list[Attempts]:
    """Fills in what the masks `(H, W)`, true where hidden, hide; attempt k of image i has the noise of `(seed, i, k)`."""
    # Grey first: nothing of the hidden part may reach the VAE.
    seen = [
        Image.fromarray(np.where(mask[:, :, None], 127, np.asarray(picture)).astype(np.uint8))
        for mask, picture in zip(masks, pictures, strict=True)
    ]
    width, height = pictures[0].size
    restored = [
        painter(
            prompts, image=seen, mask_image=[Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
            height=height, width=width, strength=1.0, num_inference_steps=steps, guidance_scale=guidance_scale,
            generator=[stream(seed, "attack mask", number, k) for number in numbers],
        ).images
        for k in range(attempts)
    ]  # fmt: skip
    return [
        Attempts(seen[i], [r[i] for r in restored], [hidden_error(pictures[i], r[i], masks[i]) for r in restored])
        for i in range(len(pictures))
    ]


def hidden_error(original: Image.Image, restored: Image.Image, mask: np.ndarray) -> float:
    """The mean squared error of pixels in `[0, 1]` within the mask."""
    a, b = (np.asarray(image.convert("RGB"), np.float64)[mask] / 255 for image in (original, restored))
    return float(np.square(a - b).mean())
