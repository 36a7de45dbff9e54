"""Work in blocks, shared by the processes of a run."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm.auto import tqdm

from ..processes import processes


def share(blocks: Iterable, description: str) -> Iterable:
    """Those of the blocks that are this process's, every n-th, with a progress bar."""
    state = processes()
    mine = list(blocks)[state.process_index :: state.num_processes]
    return tqdm(mine, desc=description, unit="block", disable=not state.is_local_main_process)
