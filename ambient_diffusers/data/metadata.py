"""The captions file of an image folder, as the `imagefolder` of the `datasets` library understands it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

METADATA_FILES = ("metadata.jsonl", "metadata.csv")


def read_metadata(folder: Path, files: Iterable[str]) -> dict[str, list[dict]]:
    """Rows of metadata files.

    Args:
        files: Their paths relative to the folder; `file_name` is relative to the file that it stands in.

    Returns:
        `{path of the image relative to folder, posix style: [row, ...]}`. Several rows of one image are several
        captions; where files of several folders list an image, the file nearest to it counts.

    Raises:
        ValueError: naming the file and line, for a row that cannot be parsed, has no `file_name`, or leaves the folder.
    """
    rows_of: dict[str, list[dict]] = {}
    for name in sorted(files, key=lambda f: (f.count("/"), f)):
        file, below = folder / name, PurePosixPath(name).parent
        rows_here: dict[str, list[dict]] = {}
        for line, row in _rows(file):
            file_name = row.get("file_name")
            if not isinstance(file_name, str) or not file_name:
                raise ValueError(f"{file}, line {line}: a row needs a file_name, got columns {', '.join(row)}")
            path = PurePosixPath(file_name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{file}, line {line}: file_name must stay inside the folder, got {file_name!r}")
            rows_here.setdefault((below / path).as_posix(), []).append(row)
        rows_of.update(rows_here)
    return rows_of


def _rows(file: Path) -> Iterator[tuple[int, dict]]:
    with open(file, encoding="utf-8-sig", newline="") as stream:
        if file.suffix == ".csv":
            reader = csv.DictReader(stream)
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key is not None}
            return
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: a row must be a JSON object, got {line.strip()[:60]!r}")
            yield number, row
