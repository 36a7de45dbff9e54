"""The images of a folder or data set, read one at a time and shown at one size."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from PIL import Image

from ..data.folder import ImageFolder
from ..data.hub_dataset import HubDataset
from ..data.image import read_image
from ..data.source import Source
from ..data.transform import Transform
from ..randomness import stream


class ImageSet:
    """Lists a folder of images, or a data set of the `datasets` library; reads nothing yet.

    Args:
        name_or_path: A folder (searched recursively, captions as for training), or the name of a data set.
        argument: What an error calls name_or_path.
        size: `(height, width)` that every image is covered with and centrally cropped to; None leaves it as it is.
        limit: Take only so many, the first ones.

    Attributes:
        names: Of the distinct images, in order.
        captions: The first of each image, empty where there is none.

    Raises:
        ValueError: for a folder that is missing or holds no images, and a data set that cannot be loaded.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        argument: str = "images",
        size: tuple[int, int] | None = None,
        limit: int | None = None,
    ):
        self.path, self.size = str(name_or_path), size
        folder = Path(name_or_path)
        try:
            if folder.is_dir() and not any((folder / f).is_file() for f in ("state.json", "dataset_dict.json")):
                self._reader = ImageFolder(Source(train_data_dir=self.path, default_caption=""))
            elif folder.is_absolute() and not folder.exists():
                raise ValueError("there is no such folder")
            else:
                self._reader = HubDataset(Source(dataset_name=self.path, default_caption=""))
        except ValueError as error:
            raise ValueError(
                f"{argument} must be a folder of images or the name of a data set, got {self.path!r}: {error}"
            ) from error
        captions: dict[str, str] = {}
        for entry in self._reader.entries:
            captions.setdefault(entry.name, entry.caption)
        self.names = list(captions)[:limit]
        self.captions = list(captions.values())[:limit]
        self._transform = None if size is None else Transform(size[0], center_crop=True, buckets=(size,))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        """Image number `index`, mode RGB.

        Raises:
            UnreadableImageError: with the reason.
        """
        image = read_image(self._reader.read(self.names[index]))
        return image if self._transform is None else self._transform(image, stream(0, "unused: the crop is central"))[0]

    def key(self, start: int, stop: int) -> str:
        """Names the content of images `start..stop - 1` as they are shown, by the stamps of their files."""
        stamps = [(name, self._reader.stamp(name)) for name in self.names[start:stop]]
        return sha256(json.dumps([str(Path(self.path).absolute()), self.size, stamps]).encode()).hexdigest()


def common_size(images: ImageSet, look_at: int = 16) -> tuple[int, int] | None:
    """`(height, width)` that the first readable images share, else None."""
    sizes = set()
    for index in range(min(look_at, len(images))):
        try:
            sizes.add(images[index].size[::-1])
        except ValueError:
            continue
    return sizes.pop() if len(sizes) == 1 else None
