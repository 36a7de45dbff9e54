"""Results as files: written aside and renamed, by the main process alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..processes import processes


def write_json(file: str | Path, content: Any) -> None:
    """Writes JSON that any reader takes: NaN and infinity are errors, they have no place in a result."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    aside = Path(file).with_suffix(".tmp")
    aside.write_text(text + "\n", encoding="utf-8")
    os.replace(aside, file)


def read_json(file: str | Path) -> Any:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def save_figure(file: str | Path, figure: Figure) -> None:
    """Writes a PNG without the versions and times that would make equal figures differ."""
    aside = Path(file).with_suffix(".tmp")
    figure.savefig(aside, format="png", dpi=144, bbox_inches="tight", metadata={"Software": None})
    os.replace(aside, file)


def claim(folder: Path, settings: dict) -> None:
    """Marks a folder as holding what these settings make, in `settings.json`.

    Raises:
        ValueError: where it holds what other settings made; names what differs.
    """
    file, state = folder / "settings.json", processes()
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        earlier = read_json(file)
        differing = sorted(key for key in earlier | settings if earlier.get(key) != settings.get(key))
        if differing:
            shown = ", ".join(f"{key} {str(earlier.get(key))[:80]}" for key in differing)
            raise ValueError(
                f"output_dir {str(folder)!r} holds results of other settings ({shown}); name another folder"
            )
    state.wait_for_everyone()  # nobody writes before all have looked
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    state.wait_for_everyone()


def result(file: Path, compute: Callable[[], dict]) -> dict:
    """What compute returns on the main process, written to a JSON file and read from it by every process."""
    state = processes()
    if state.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, compute())
    state.wait_for_everyone()
    return read_json(file)
