"""A data set of the `datasets` library, its images left as the bytes they are."""

from __future__ import annotations

from pathlib import Path

import datasets

from .source import Entry, Source, parse_ambient_timestep


class HubDataset:
    """Lists the rows of the `train` split (or of the only one) of `source.dataset_name`.

    Attributes:
        entries: One `Entry` a row, named by the row's number.
        skipped: Rows without an image.

    Raises:
        ValueError: where the data set, its split or a column is not there, and for a row without a caption.
    """

    def __init__(self, source: Source):
        self.source = source
        data = _train_split(source)
        if source.image_column not in data.column_names:
            raise ValueError(f"image_column must be one of {data.column_names}, got {source.image_column!r}")
        if source.caption_column not in data.column_names and source.default_caption is None:
            raise ValueError(
                f"caption_column must be one of {data.column_names} where no default_caption is given, got "
                f"{source.caption_column!r}"
            )
        self.data = data.cast_column(source.image_column, datasets.Image(decode=False))
        self.entries: list[Entry] = []
        self.skipped: list[tuple[str, str]] = []
        columns = [c for c in (source.caption_column, "ambient_timestep") if c in data.column_names]
        rows = data.select_columns(columns) if columns else [{}] * len(data)
        for number, row in enumerate(rows):
            caption = row.get(source.caption_column)
            if isinstance(caption, list):  # several captions of one image: the first, as in diffusers' validation
                caption = caption[0] if caption else None
            caption = source.default_caption if caption is None else caption
            if not isinstance(caption, str):
                raise ValueError(f"no caption for {self.path(number)}: got {caption!r}; default_caption would fill in")
            t_n = parse_ambient_timestep(row.get("ambient_timestep"), source.ambient_timestep, self.path(number))
            self.entries.append(Entry(str(number), caption, t_n))
        if not self.entries:
            raise ValueError(f"dataset_name must have rows, got none in {source.dataset_name!r}")

    def path(self, name: str | int) -> str:
        return f"{self.source.dataset_name}/{name}"

    def read(self, name: str) -> bytes:
        image = self.data[int(name)][self.source.image_column]
        if image is None:
            return b""
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def stamp(self, name: str) -> list[str]:
        """The fingerprint that `datasets` gives a data set's content."""
        return [self.data._fingerprint]


def _train_split(source: Source) -> datasets.Dataset:
    path = Path(source.dataset_name)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(str(path))
        else:
            data = datasets.load_dataset(source.dataset_name, source.dataset_config_name)
    except Exception as error:  # unknown names, no network, damaged files: each raises its own
        raise ValueError(f"dataset_name {source.dataset_name!r} cannot be loaded: {error}") from error
    if isinstance(data, datasets.DatasetDict):
        if "train" not in data and len(data) > 1:
            raise ValueError(f"dataset_name {source.dataset_name!r} has no split 'train', only {', '.join(data)}")
        data = data["train"] if "train" in data else next(iter(data.values()))
    return data
