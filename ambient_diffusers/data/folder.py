"""A folder of images, with captions from metadata files or from text files beside the images."""

from __future__ import annotations

import os
from pathlib import Path

from .image import IMAGE_SUFFIXES
from .metadata import METADATA_FILES, read_metadata
from .source import Entry, Source, parse_ambient_timestep


class ImageFolder:
    """Lists the images of `source.train_data_dir`, subfolders included, in the order of their paths.

    An image's caption is that of its row in `metadata.jsonl` or `metadata.csv`, else the first line of the `.txt` file
    of its name, else `source.default_caption`. An image that an existing metadata file does not list is used if one of
    the latter two gives it a caption, and reported as skipped otherwise; so is a listed file that is not there.

    Attributes:
        entries: One `Entry` for each image and caption.
        skipped: `(file, reason)` of those left out.

    Raises:
        ValueError: for a folder without images, and naming the file, for an image without a caption.
    """

    def __init__(self, source: Source):
        self.source, self.folder = source, Path(source.train_data_dir)
        self.entries: list[Entry] = []
        self.skipped: list[tuple[str, str]] = []
        self._files = set(self._walk())
        metadata = read_metadata(self.folder, [f for f in self._files if f.rpartition("/")[2] in METADATA_FILES])
        files = sorted(f for f in self._files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES)
        for name in files:
            rows = metadata.get(name, [{}])
            for row in rows:
                caption = self._caption(name, row)
                if caption is None and metadata and not row:
                    self.skipped.append((self.path(name), "not listed in the metadata, and no caption elsewhere"))
                elif caption is None:
                    columns = f"; its metadata has the columns {', '.join(row)}" if row else ""
                    raise ValueError(
                        f"no caption for {self.path(name)}: give a {' or '.join(METADATA_FILES)} with the column "
                        f"{source.caption_column!r}, a .txt file beside it, or default_caption{columns}"
                    )
                else:
                    t_n = parse_ambient_timestep(row.get("ambient_timestep"), source.ambient_timestep, self.path(name))
                    self.entries.append(Entry(name, caption, t_n))
        for name in sorted(metadata.keys() - set(files)):
            self.skipped.append((self.path(name), "listed in the metadata, but there is no such image"))
        if not files:
            raise ValueError(f"train_data_dir must hold images, found none in {source.train_data_dir!r}")

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def read(self, name: str) -> bytes:
        with open(self.path(name), "rb") as stream:
            return stream.read()

    def stamp(self, name: str) -> list[int]:
        """While this stays, the content is taken to be the same. Copying tools preserve the mtime, none the ctime."""
        stat = os.stat(self.path(name))
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    def _walk(self) -> list[str]:
        """All files, posix style, but hidden ones, which `datasets` leaves out as well."""
        names = []
        for folder, below, files in os.walk(self.folder, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            here = Path(folder).relative_to(self.folder).as_posix()
            names += [name if here == "." else f"{here}/{name}" for name in files if not name.startswith(".")]
        return names

    def _caption(self, name: str, row: dict) -> str | None:
        caption = row.get(self.source.caption_column)
        if isinstance(caption, str):
            return caption
        if caption is not None:
            raise ValueError(f"the caption of {self.path(name)} must be a string, got {caption!r}")
        sidecar = os.path.splitext(name)[0] + ".txt"
        if sidecar in self._files:
            text = (self.folder / sidecar).read_text(encoding="utf-8-sig", errors="replace")
            return text.strip().partition("\n")[0].strip()
        return self.source.default_caption
