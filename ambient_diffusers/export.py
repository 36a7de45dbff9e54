"""A whole pipeline that stock diffusers loads, truncated sampler included."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from .finetuned import DTYPES, FineTuned, FineTunedOptions
from .model_card import model_card
from .models.lora import WEIGHTS_NAME
from .parsing import option


@dataclass(frozen=True)
class ExportConfig(FineTunedOptions):
    """The options of `ambient-diffusers export`; see their `help`.

    Raises:
        ValueError: for a value that no export could use.
    """

    output_dir: str | None = option("Gets the pipeline; must not exist yet, or be empty.")
    fuse: bool = option("Merge the LoRA into the weights, rather than put its file beside the pipeline.", False)
    dtype: str = option("fp16, bf16 or fp32, of the weights.", "fp16")

    def __post_init__(self):
        for name in ("output_dir", "lora"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} must be given")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {tuple(DTYPES)}, got {self.dtype!r}")
        folder = Path(self.output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"output_dir must be a new or an empty folder, got {self.output_dir!r}")


def export(config: ExportConfig) -> Path:
    """Writes the pipeline aside and renames it: a folder of that name is whole. All weights are safetensors.

    The scheduler is diffusers' own class, so that `DiffusionPipeline.from_pretrained(output_dir)` needs nothing of this
    package. Without `fuse`, `pipe.load_lora_weights(output_dir)` adds the LoRA.

    Returns:
        The folder.

    Raises:
        ValueError: where LoRA, base and sampler do not fit each other, before a model is loaded.
    """
    model = FineTuned(config)
    folder = Path(config.output_dir)
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    stock = {"scheduler": model.stock_scheduler()}
    if config.fuse:
        pipeline = model.pipeline(DTYPES[config.dtype], **stock)
        pipeline.fuse_lora(["unet", "text_encoder", "text_encoder_2"])
        pipeline.unload_lora_weights()
    else:
        pipeline = model.base.pipeline(DTYPES[config.dtype], **stock)
    pipeline.save_pretrained(aside, safe_serialization=True)
    for part in ("text_encoder", "text_encoder_2"):
        _load_as_float32(aside / part / "config.json")
    if not config.fuse:
        shutil.copyfile(model.lora, aside / WEIGHTS_NAME)
    resolved = asdict(config) | {
        "pretrained_model_name_or_path": model.base.name, "sampler": model.sampler,
        "ambient_timestep": model.ambient_timestep,
    }  # fmt: skip
    (aside / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    model_card(model, folder.name, contents="fused" if config.fuse else "pipeline").save(aside / "README.md")
    if folder.is_dir():
        folder.rmdir()
    os.replace(aside, folder)
    return folder


def _load_as_float32(file: Path) -> None:
    """Without `torch_dtype`, diffusers loads a UNet in float32, but transformers a text encoder in its config's dtype.

    The two do not go together; so a plain `from_pretrained` of half-precision files fails, unless the config says float32.
    """
    config = {key: value for key, value in json.loads(file.read_text()).items() if key != "torch_dtype"}
    file.write_text(json.dumps(config | {"dtype": "float32"}, indent=2, sort_keys=True))
