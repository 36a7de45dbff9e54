"""A small set of captioned images and a run on it that takes seconds."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from ambient_diffusers.training import AmbientTrainer, TrainingConfig


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    rows = []
    for number in range(10):
        coarse = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        coarse.resize((80, 70), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"picture {number % 3}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="session")
def latent_cache_dir(image_folder, tiny_base_path, tmp_path_factory):
    """A cache that runs with the settings of `make_config` share, so that they need not prepare."""
    folder = tmp_path_factory.mktemp("cache")
    config = _config(tiny_base_path, image_folder, folder, tmp_path_factory.mktemp("prepared"))
    trainer = AmbientTrainer(config)
    trainer.prepare_data()
    return folder


@pytest.fixture
def make_config(image_folder, tiny_base_path, latent_cache_dir, tmp_path):
    def make(**changes) -> TrainingConfig:
        return _config(tiny_base_path, image_folder, latent_cache_dir, **({"output_dir": tmp_path / "run"} | changes))

    return make


def _config(base, images, cache, output_dir, **changes) -> TrainingConfig:
    settings = {
        "pretrained_model_name_or_path": str(base),
        "train_data_dir": str(images),
        "latent_cache_dir": str(cache),
        "latent_cache_dtype": "fp32",
        "output_dir": str(output_dir),
        "ambient_timestep": 300,
        "resolution": 64,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "learning_rate": 1e-3,
        "proportion_empty_prompts": 0.2,
        "num_inference_steps": 2,
        "num_validation_images": 1,
        "report_to": "none",
        "seed": 3,
    }
    return TrainingConfig(**(settings | changes))
