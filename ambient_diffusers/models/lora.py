"""LoRA on the UNet and the text encoders, under the keys and in the file that a stock `pipe.load_lora_weights` reads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
PROVENANCE_KEY = "ambient_diffusers"
TARGET_MODULES = {
    "unet": ("to_k", "to_q", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "text_encoder_2": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
"""Where diffusers' scripts put a LoRA, by the name of the pipeline's part."""


@dataclass(frozen=True)
class Adapter:
    """The settings of a LoRA, as PEFT has them; alpha defaults to the rank."""

    rank: int
    alpha: float | None = None
    dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    """Of the UNet."""

    def config(self, part: str) -> LoraConfig:
        targets = self.target_modules if part == "unet" and self.target_modules else TARGET_MODULES[part]
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )


def add_lora(model: nn.Module, adapter: Adapter, part: str = "unet", seed: int = 0) -> None:
    """Adds a trainable adapter in float32 to a frozen UNet or text encoder; its output does not change (B is zero).

    Args:
        part: The model's name in the pipeline: unet, text_encoder or text_encoder_2.

    Raises:
        ValueError: where no module of the model bears one of the names in target_modules.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(adapter.config(part))
    cast_training_params(model, torch.float32)


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights under PEFT's own keys."""
    return get_peft_model_state_dict(model, adapter_name="default")


def load_lora_state_dict(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Puts weights of `lora_state_dict` into an adapter that `add_lora` made.

    Raises:
        ValueError: where keys or shapes do not fit (another rank or other target modules).
    """
    own = lora_state_dict(model)
    for key in sorted(set(own) | set(state_dict)):
        shapes = [tuple(state[key].shape) if key in state else None for state in (own, state_dict)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the checkpoint's LoRA does not fit: {key} has shape {shapes[1]}, this run's adapter {shapes[0]}; "
                "rank, use_dora and target_modules must be those of the checkpoint"
            )
    set_peft_model_state_dict(model, state_dict)


def save_lora(folder: str | Path, models: dict[str, nn.Module], provenance: dict) -> Path:
    """Writes `pytorch_lora_weights.safetensors`, whole or not at all.

    The safetensors metadata hold PEFT's adapter configuration (rank, alpha), where diffusers looks for it, and under
    `ambient_diffusers` the provenance as JSON: t_n, objective, base, config hash.

    Args:
        models: The models that have an adapter, by their names in the pipeline: unet, text_encoder, text_encoder_2.

    Returns:
        The file.
    """
    adapters, layers = {}, {}
    for part, model in models.items():
        for key, value in model.peft_config["default"].to_dict().items():
            adapters[f"{part}.{key}"] = sorted(value) if isinstance(value, set) else value
        weights = convert_state_dict_to_diffusers(lora_state_dict(model))
        layers[f"{part}_lora_layers"] = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    metadata = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(adapters, sort_keys=True, default=str),
        PROVENANCE_KEY: json.dumps(provenance, sort_keys=True, default=str),
    }

    def save_function(weights: dict[str, Tensor], filename: str) -> None:
        aside = f"{filename}.tmp"
        safetensors.torch.save_file(weights, aside, metadata=metadata)
        os.replace(aside, filename)

    StableDiffusionXLPipeline.save_lora_weights(folder, **layers, save_function=save_function)
    return Path(folder) / WEIGHTS_NAME


def read_provenance(file: str | Path) -> dict:
    """What `save_lora` wrote about the training: t_n, objective, base, config hash; empty for another tool's file."""
    with safe_open(file, "pt") as reader:
        return json.loads((reader.metadata() or {}).get(PROVENANCE_KEY, "{}"))
