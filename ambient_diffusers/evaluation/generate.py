"""Images of a model for the prompts of a file, the captions of a data set, or one prompt."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from ..finetuned import FineTuned, FineTunedOptions
from ..sampling import PRECISIONS, read_prompts, sample_images
from .image_set import ImageSet
from .output import read_json, result


def generate(
    model: FineTunedOptions | str | Path,
    output_dir: str | Path,
    *,
    prompt: str | list[str] | None = None,
    prompts: str | Path | None = None,
    captions_of: str | Path | None = None,
    num_images: int | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    batch_size: int = 4,
    mixed_precision: str = "no",
) -> dict:
    """Draws a set of images; image i depends on its prompt and `(seed, i)`, not on how many processes share the work.

    Writes what `sample_images` does, `images/metadata.jsonl` with the prompt of each image, so that the folder is a
    captioned data set, and `generate.json`. Images that an earlier run of the same settings left are kept.

    Args:
        model: A base and a LoRA with the sampler that suits it, or the folder of any text-to-image pipeline.
        prompt: One prompt or several.
        prompts: A file of prompts, `.txt` or `.jsonl`.
        captions_of: A folder of images or a data set, whose captions are the prompts.
        num_images: Image i has prompt i, round and round. Default: one for each prompt.
        height, width: In pixels; default the model's own.
        mixed_precision: `no`, `fp16` or `bf16`.

    Returns:
        The content of `generate.json`: the folder of the images, their number, and what they were made with.

    Raises:
        ValueError: unless exactly one source of prompts is given, for a data set without captions, and as `sample_images`.
    """
    given = {"prompt": prompt, "prompts": prompts, "captions_of": captions_of}
    if sum(value is not None for value in given.values()) != 1:
        raise ValueError(f"exactly one of {', '.join(given)} must be given, got {given}")
    if mixed_precision not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {', '.join(PRECISIONS)}, got {mixed_precision!r}")
    if prompt is not None:
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
    elif prompts is not None:
        texts = read_prompts(prompts)
    else:
        texts = ImageSet(captions_of, "captions_of").captions
        if not any(texts):
            raise ValueError(f"captions_of must have captions, got none in {str(captions_of)!r}")
    load_pipeline, made_with = open_pipeline(model, mixed_precision)
    files = sample_images(
        load_pipeline, texts, output_dir, num_images=num_images, seed=seed, batch_size=batch_size, height=height,
        width=width, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, made_with=made_with,
    )  # fmt: skip
    folder = files[0].parent

    def compute() -> dict:
        rows = [{"file_name": file.name, "text": texts[i % len(texts)]} for i, file in enumerate(files)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
        settings = read_json(Path(output_dir) / "settings.json")
        settings.pop("prompts")
        return {"images": str(folder), "num_images": len(files), "num_prompts": len(texts), "settings": settings}

    return result(Path(output_dir) / "generate.json", compute)


def open_pipeline(model: FineTunedOptions | str | Path, mixed_precision: str):
    """A function that loads the pipeline, and what decides its images in plain values; only configurations are read."""
    dtype = PRECISIONS[mixed_precision]
    if not isinstance(model, FineTunedOptions):
        index = Path(model) / "model_index.json"
        if not index.is_file():
            raise ValueError(f"model must be the folder of a diffusers pipeline, got {str(model)!r}")
        kind = read_json(index)["_class_name"]
        if "StableDiffusionXL" not in kind:
            made_with = {"pipeline": str(model), "class": kind, "mixed_precision": mixed_precision}
            return lambda: DiffusionPipeline.from_pretrained(model, torch_dtype=dtype), made_with
        model = FineTunedOptions(pretrained_model_name_or_path=str(model))
    opened = FineTuned(model)
    made_with = opened.describe() | {"mixed_precision": mixed_precision}
    return lambda: opened.pipeline(dtype, add_watermarker=False), made_with
