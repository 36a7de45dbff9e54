"""One process, or several under `accelerate launch`, that share a file system."""

from __future__ import annotations

from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """The processes of this run; one waits for the others as long as they need.

    `PartialState` does not read the launcher's `--cpu` by itself, as `Accelerator` does; each process would then take
    itself for the only one.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(days=7))
