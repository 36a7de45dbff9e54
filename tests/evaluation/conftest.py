"""Features that need no network, and folders of pictures to look at with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_diffusers.evaluation import features
from ambient_diffusers.evaluation.features import Features


class Pixels(Features):
    """An image, shrunk to 4 x 4 pixels in [-1, 1]."""

    name, label, dimension, needs = "pixels", "pixels", 48, "nothing"

    def _load(self, device):
        return "no network"

    def _apply(self, images):
        return features.resized(images, 4).flatten(1) / 127.5 - 1


@pytest.fixture
def pixels(monkeypatch):
    """Registers the features `pixels`."""
    monkeypatch.setitem(features.FEATURES, "pixels", Pixels)


def write_pictures(folder, seeds, noise=0.0, side=16, captions=True):
    """One picture of 4 x 4 random fields for each seed, with Gaussian noise on it; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        generator = np.random.default_rng(seed)
        fields = generator.uniform(0, 255, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
        fields = (fields + noise * generator.standard_normal(fields.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(fields).save(folder / f"{number:03d}.png")
        if captions:
            (folder / f"{number:03d}.txt").write_text(f"picture {seed}")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """`pictures(name, seeds, noise=0)`: writes a folder below tmp_path."""
    return lambda name, seeds, **options: write_pictures(tmp_path / name, seeds, **options)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
