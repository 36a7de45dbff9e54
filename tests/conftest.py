"""The tiny base that every test of a model runs on, and a LoRA on it that nobody trained."""

from pathlib import Path

import pytest
import torch

from ambient_diffusers.models.lora import Adapter, add_lora, lora_parameters, save_lora
from ambient_diffusers.models.sdxl import SDXLBase

# Models this small gain nothing from threads, which on a busy machine spin waiting for each other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base_path() -> Path:
    return Path(__file__).parents[1] / "examples" / "tiny-sdxl"


@pytest.fixture(scope="session")
def lora_dir(tiny_base_path, tmp_path_factory) -> Path:
    """What a training at t_n = 500 leaves, with B drawn at random so that the LoRA changes every image."""
    folder = tmp_path_factory.mktemp("lora")
    pipeline = SDXLBase(tiny_base_path).pipeline()
    models = {part: getattr(pipeline, part).requires_grad_(False) for part in ("unet", "text_encoder_2")}
    generator = torch.Generator().manual_seed(0)
    for part, model in models.items():
        add_lora(model, Adapter(rank=4, alpha=8.0), part)
        with torch.no_grad():
            for name, parameter in lora_parameters(model).items():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    provenance = {
        "version": "0.1.0",
        "base": str(tiny_base_path),
        "ambient_timestep": [500],
        "low_noise_objective": "none",
        "rank": 4,
        "alpha": 8.0,
        "config_hash": "0123456789abcdef",
    }
    save_lora(folder, models, provenance)
    return folder
