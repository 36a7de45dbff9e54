"""The tiny base, and a guard against loading its models."""

import pytest

from ambient_diffusers.models.sdxl import SDXLBase


@pytest.fixture(scope="session")
def base(tiny_base_path) -> SDXLBase:
    return SDXLBase(tiny_base_path)


@pytest.fixture
def no_models(base, monkeypatch):
    """Makes the loading of a VAE or of text encoders a failure."""

    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(SDXLBase, "vae", refuse)
    monkeypatch.setattr(SDXLBase, "prompt_encoder", refuse)
