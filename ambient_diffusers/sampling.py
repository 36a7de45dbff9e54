"""Sets of samples on disk: the same images whatever the batch, the number of processes, or how often it was stopped."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from tqdm.auto import tqdm

from . import randomness
from .finetuned import FineTuned, FineTunedOptions
from .grid import image_grid
from .parsing import option
from .processes import processes

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def sample_images(
    load_pipeline: Callable[[], StableDiffusionXLPipeline],
    prompts: Sequence[str],
    output_dir: str | Path,
    *,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = 4,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    made_with: dict[str, Any] | None = None,
) -> list[Path]:
    """Draws image i of prompt `i % len(prompts)` from the noise of `(seed, "sample", i)`, one file each.

    The one implementation of generation: evaluation draws its sets with it too. Under `accelerate launch` each process
    draws every n-th batch; batches are cut from the whole set, so the files do not depend on the number of processes.
    What a stopped run of the same settings left is kept, and more images may be asked for later.

    Args:
        load_pipeline: Called once, and only where an image is missing; the pipeline goes to the process's device.
        prompts: One for each image, repeated in turn if there are fewer.
        output_dir: Gets `images/000000.png`, ..., `grid.png` and `settings.json`.
        num_images: Defaults to the number of prompts.
        height: In pixels, as width; defaults to the base's own.
        made_with: What else decides the images, in plain JSON values: the model, its sampler, its precision.

    Returns:
        The image files in order of their index.

    Raises:
        ValueError: where output_dir holds samples of other settings; names what differs.
    """
    state = processes()
    prompts, output_dir = list(prompts), Path(output_dir)
    num_images = num_images or len(prompts)
    settings = {
        "seed": seed, "height": height, "width": width, "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale, "made_with": made_with or {}, "prompts": prompts,
    }  # fmt: skip
    _check_settings(output_dir / "settings.json", settings)
    files = [output_dir / "images" / f"{i:06d}.png" for i in range(num_images)]
    batches = [range(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        _write_aside(output_dir / "settings.json", lambda path: path.write_text(json.dumps(settings, indent=1)))
    state.wait_for_everyone()
    own = batches[state.process_index :: state.num_processes]
    share = sum(map(len, own))
    own = [batch for batch in own if not all(files[i].is_file() for i in batch)]
    if own:
        pipeline = load_pipeline().to(state.device)
        pipeline.set_progress_bar_config(disable=True)
    bar = tqdm(
        total=share, initial=share - sum(map(len, own)), desc=f"sample {output_dir.name}", unit="image",
        disable=not state.is_main_process,
    )  # fmt: skip
    for batch in own:
        images = pipeline(
            [prompts[i % len(prompts)] for i in batch], height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            generator=[randomness.stream(seed, "sample", i) for i in batch],
        ).images  # fmt: skip
        for i, image in zip(batch, images, strict=True):
            if not files[i].is_file():
                _write_aside(files[i], image.save)
        bar.update(len(batch))
    bar.close()
    state.wait_for_everyone()
    if state.is_main_process:
        overview(files, prompts).save(output_dir / "grid.png")
    return files


def overview(files: Sequence[Path], prompts: Sequence[str], side: int = 8) -> Image.Image:
    """At most `side` by `side` of the images: a row for each prompt if these are few, else in order."""
    rows = {}
    if 1 < len(set(prompts)) == len(prompts) <= side:
        chosen = {prompt: files[number :: len(prompts)][:side] for number, prompt in enumerate(prompts)}
    else:
        starts = range(0, min(len(files), side * side), side)
        common = f"{prompts[0]}\n" if len(set(prompts)) == 1 else ""
        chosen = {f"{common}{files[i].stem} ...": files[i : i + side] for i in starts}
    for name, row in chosen.items():
        if row:
            rows[name] = [Image.open(file) for file in row]
    return image_grid(rows)


def read_prompts(path: str | Path) -> list[str]:
    """Prompts of a `.txt` file, one a line (blank lines do not count), or of the key `text` of a `.jsonl` file.

    Raises:
        ValueError: where the file is missing, of another kind, malformed or empty.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl") or not path.is_file():
        raise ValueError(f"prompts must be an existing .txt or .jsonl file, got {str(path)!r}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".jsonl":
        try:
            lines = [json.loads(line)["text"] for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"each line of prompts {str(path)!r} must be an object with a key 'text'") from error
    if not lines:
        raise ValueError(f"prompts must hold at least one prompt, got none in {str(path)!r}")
    return lines


@dataclass(frozen=True)
class SampleConfig(FineTunedOptions):
    """The options of `ambient-diffusers sample`; see their `help`.

    Raises:
        ValueError: for a value that no run could use.
    """

    prompt: list[str] | None = option("One or several prompts.")
    prompts: str | None = option("File of prompts: .txt, one a line, or .jsonl with the key text.")
    num_images: int | None = option("Images in all; image i has prompt i, round and round. Default: one a prompt.")
    output_dir: str | None = option("Gets images/, grid.png, settings.json and config.yaml.")
    num_inference_steps: int = option("Sampler steps.", 25)
    guidance_scale: float = option("Classifier-free guidance; 1 is none.", 5.0)
    height: int | None = option("In pixels. Default: the base's own.")
    width: int | None = option("In pixels. Default: the base's own.")
    seed: int = option("Image i starts from the noise of (seed, i).", 0)
    batch_size: int = option("Images at once, per process.", 4)
    mixed_precision: str = option("no, fp16 or bf16: precision of the models.", "no")

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("output_dir must be given")
        if (self.prompt is None) == (self.prompts is None):
            raise ValueError("prompt or prompts must be given, and not both")
        for name in ("num_images", "num_inference_steps", "batch_size", "height", "width"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision must be one of {tuple(PRECISIONS)}, got {self.mixed_precision!r}")


def sample(config: SampleConfig) -> Path:
    """Draws what the options say.

    Returns:
        The output folder.

    Raises:
        ValueError: for options that do not fit the base or the LoRA, before a model is loaded.
    """
    prompts = config.prompt or read_prompts(config.prompts)
    model = FineTuned(config)
    model.scheduler().set_timesteps(config.num_inference_steps)
    size = {name: getattr(config, name) or model.base.default_resolution for name in ("height", "width")}
    multiple = math.lcm(8, model.base.vae_scale_factor)  # 8, because the stock pipeline insists
    for name, value in size.items():
        if value % multiple:
            raise ValueError(f"{name} must be a multiple of {multiple}, got {value}")
    files = sample_images(
        lambda: model.pipeline(PRECISIONS[config.mixed_precision], add_watermarker=False),
        prompts, config.output_dir, num_images=config.num_images, seed=config.seed, batch_size=config.batch_size,
        num_inference_steps=config.num_inference_steps, guidance_scale=config.guidance_scale,
        made_with=model.describe() | {"mixed_precision": config.mixed_precision}, **size,
    )  # fmt: skip
    folder = files[0].parent.parent
    if processes().is_main_process:
        resolved = asdict(config) | size | {"num_images": len(files)} | {
            "pretrained_model_name_or_path": model.base.name, "sampler": model.sampler,
            "ambient_timestep": model.ambient_timestep,
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    return folder


def _check_settings(file: Path, settings: dict[str, Any]) -> None:
    if not file.is_file():
        return
    earlier = json.loads(file.read_text())
    earlier, settings = (entry | entry["made_with"] for entry in (earlier, json.loads(json.dumps(settings))))
    differing = sorted(key for key in earlier | settings if earlier.get(key) != settings.get(key))
    differing = [key for key in differing if key != "made_with"]
    if differing:
        shown = ", ".join(f"{key} {str(earlier.get(key))[:60]!r}" for key in differing)
        raise ValueError(
            f"output_dir {str(file.parent)!r} holds samples of other settings ({shown}); name another folder or delete it"
        )


def _write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    aside = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write(aside)
    os.replace(aside, path)
