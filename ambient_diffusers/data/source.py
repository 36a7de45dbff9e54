"""Where images come from: one folder or one data set, with its own noise level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One image folder, or one data set of the `datasets` library.

    Args:
        train_data_dir: A folder of images, searched recursively; captions as `ImageFolder` reads them.
        dataset_name: A name on the Hugging Face Hub, or a local folder that `datasets.load_dataset` (or
            `load_from_disk`) takes.
        dataset_config_name: The configuration of that data set.
        image_column, caption_column: Columns of the data set; `caption_column` also of a folder's metadata.
        default_caption: For images without a caption of their own.
        ambient_timestep: The noise level t_n at which the images are noised, once; -1 keeps them clean. A column
            `ambient_timestep` in the metadata or data set wins for the images that have a value there.
        repeats: How often each image is seen in one epoch.
        loss_weight: Factor on the loss of each image, as for prior preservation.

    Raises:
        ValueError: unless exactly one of `train_data_dir` and `dataset_name` is given, the folder exists, and
            `repeats` is at least 1 and `loss_weight` not negative.
    """

    train_data_dir: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    image_column: str = "image"
    caption_column: str = "text"
    default_caption: str | None = None
    ambient_timestep: int = -1
    repeats: int = 1
    loss_weight: float = 1.0

    def __post_init__(self):
        if (self.train_data_dir is None) == (self.dataset_name is None):
            raise ValueError(
                "exactly one of train_data_dir and dataset_name must be given, got "
                f"train_data_dir={self.train_data_dir!r}, dataset_name={self.dataset_name!r}"
            )
        if self.train_data_dir is not None and not Path(self.train_data_dir).is_dir():
            raise ValueError(f"train_data_dir must be a folder of images, got {str(self.train_data_dir)!r}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")
        if self.loss_weight < 0:
            raise ValueError(f"loss_weight must be at least 0, got {self.loss_weight}")

    @property
    def name(self) -> str:
        """What messages and the cache's index call this source."""
        return str(self.train_data_dir if self.train_data_dir is not None else self.dataset_name)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source with one caption: `name` is what the source's `read` takes."""

    name: str
    caption: str
    ambient_timestep: int


def parse_ambient_timestep(value, default: int, where: str) -> int:
    """An entry of the optional column `ambient_timestep`; empty means the source's own.

    Raises:
        ValueError: naming the file, unless the value is an integer.
    """
    if value is None or value == "" or value != value:  # a NaN is how tables of floats spell an empty cell
        return default
    try:
        if float(value) == int(float(value)):
            return int(float(value))
    except (TypeError, ValueError):
        pass
    raise ValueError(f"ambient_timestep must be an integer, got {value!r} for {where}")
