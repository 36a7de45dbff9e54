"""A dataclass read from a YAML file and flags: every field is a key and a flag, flags win, unknown names are errors."""

from __future__ import annotations

import difflib
import sys
from dataclasses import field, fields
from pathlib import Path
from typing import TypeVar

import yaml
from transformers import HfArgumentParser

T = TypeVar("T")


def option(help: str, default=None, **metadata):
    """A dataclass field that is a flag; metadata go to `ArgumentParser.add_argument`."""
    return field(default=default, metadata={"help": help} | metadata)


def parse_dataclass(cls: type[T], arguments: list[str] | None = None, description: str | None = None) -> T:
    """Builds the dataclass from `--config FILE.yaml` and flags.

    Args:
        cls: A dataclass whose fields carry `metadata={"help": ...}`.
        arguments: The command line; None takes that of the process.

    Raises:
        ValueError: for a missing file, an unknown key or flag (names the nearest), or a value of the wrong type.
    """
    parser = HfArgumentParser(cls, description=description, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", help="YAML file whose keys are these flags; flags win.")
    names = [f.name for f in fields(cls)]
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        file, _ = parser.parse_known_args(arguments)
        if file.config:
            # Strings pass through the flag's own conversion, so that `1e-4`, which YAML reads as a string, is a number.
            parser.set_defaults(**_read_yaml(Path(file.config), names))
        namespace, rest = parser.parse_known_args(arguments)
    except Exception as error:
        if type(error).__name__ != "ArgumentError":
            raise
        raise ValueError(str(error)) from error
    if rest:
        unknown = next((word for word in rest if word.startswith("--")), rest[0])
        raise ValueError(f"unknown argument {unknown!r}{_nearest(unknown.lstrip('-').split('=')[0], names)}")
    return cls(**{name: getattr(namespace, name) for name in names})


def _read_yaml(path: Path, names: list[str]) -> dict:
    if not path.is_file():
        raise ValueError(f"config must be a YAML file, got {str(path)!r}, which does not exist")
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ValueError(f"config must hold `key: value` lines, got a {type(values).__name__} in {str(path)!r}")
    for key in values:
        if key not in names:
            raise ValueError(f"unknown key {key!r} in {str(path)!r}{_nearest(str(key), names)}")
    return values


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), names, n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else "; --help lists what there is"
