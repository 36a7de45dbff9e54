"""Fine-tune SDXL with LoRA on noisy data only (arXiv 2404.10177), and export what stock diffusers loads."""

from importlib import import_module

__version__ = "0.1.0"

__all__ = ["NoiseSchedule", "tweedie"]


def __getattr__(name: str):
    # On first use: `ambient-diffusers --help` has no need of torch.
    if name == "NoiseSchedule":
        return import_module(".schedule", __name__).NoiseSchedule
    if name == "tweedie":
        return import_module(".tweedie", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
