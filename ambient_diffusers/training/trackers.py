"""Accelerate's experiment trackers, checked by name before anything starts."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from accelerate.utils import LoggerType

PACKAGES = {"comet_ml": "comet_ml", "dvclive": "dvclive"}


def check_trackers(report_to: str) -> None:
    """Raises a ValueError for a tracker that Accelerate does not know or whose package is not installed."""
    known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
    for name in report_to.split(","):
        if name in ("all", "none"):
            continue
        if name not in known:
            raise ValueError(f"report_to must be all, none or some of {', '.join(known)}, got {name!r}")
        package = PACKAGES.get(name, name)
        if find_spec(package) is None and not (name == "tensorboard" and find_spec("tensorboardX")):
            raise ValueError(f"report_to {name!r} needs the package {package}: pip install {package}")


def start_trackers(accelerator: Accelerator, config) -> None:
    """Opens them with the config's plain values; trackers take no lists."""
    if accelerator.log_with:
        plain = {
            key: value if isinstance(value, int | float | str | bool) else str(value)
            for key, value in config.shareable().items()
        }
        accelerator.init_trackers("ambient_sdxl", config=plain)


def log_images(accelerator: Accelerator, name: str, images: list, step: int) -> None:
    """Shows PIL images in the trackers that can."""
    for tracker in accelerator.trackers:
        if isinstance(tracker, TensorBoardTracker):
            tracker.log_images({name: np.stack([np.asarray(image) for image in images])}, step, dataformats="NHWC")
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: images}, step)
