"""Random draws that depend on what they are for, never on how many were made before.

Every draw comes from a stream named by `(seed, purpose, *keys)`, the keys being a training step and a sample id, say. A
run that is resumed, or spread over other processes, so makes the same draws, and a checkpoint holds no generator.

References:
    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (EDM2), CVPR 2024: the idea is in
    its code.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def digest(seed: int, purpose: str, *keys: int | str) -> bytes:
    """32 bytes that name the stream; an integer of any kind (Python, NumPy, a tensor of one) counts by its value."""
    keys = [str(key) if isinstance(key, str) else int(operator.index(key)) for key in keys]
    return hashlib.sha256(repr((int(seed), purpose, *keys)).encode()).digest()


def stream(seed: int, purpose: str, *keys: int | str) -> torch.Generator:
    """A CPU generator of PyTorch that belongs to `(seed, purpose, *keys)`.

    PyTorch seeds it from 32 bits, so one pair of streams in 2^32 coincides: good for shuffles and timesteps, but noise
    on data that must not leak comes from `randn`.
    """
    return torch.Generator().manual_seed(int.from_bytes(digest(seed, purpose, *keys)[:4], "little"))


def philox(seed: int, purpose: str, *keys: int | str) -> np.random.Generator:
    """A generator that belongs to `(seed, purpose, *keys)` alone, keyed by 128 bits.

    With 32 bits two of 100,000 images would likely share their noise, and the difference of the two is a clean picture.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(seed, purpose, *keys)[:16], "little")))


def sample_keys(ids: Tensor | Sequence[int | str]) -> list[int | str]:
    """Sample ids as a list: a tensor, an array and a list of the same ids name the same streams."""
    return ids.tolist() if isinstance(ids, Tensor) else list(ids)


def randn(ids: Tensor | Sequence[int | str], shape: Sequence[int], seed: int, purpose: str, *keys: int | str) -> Tensor:
    """Standard normal float32 `(len(ids), *shape)` on the CPU; row i depends on `(seed, purpose, *keys, ids[i])`."""
    rows = [philox(seed, purpose, *keys, i).standard_normal(shape, dtype=np.float32) for i in sample_keys(ids)]
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), *shape))


def rand(ids: Tensor | Sequence[int | str], seed: int, purpose: str, *keys: int | str) -> Tensor:
    """Uniform float64 in `[0, 1)`, `(len(ids),)`, on the CPU; entry i depends on `(seed, purpose, *keys, ids[i])`."""
    draws = [philox(seed, purpose, *keys, i).random() for i in sample_keys(ids)]
    return torch.tensor(draws, dtype=torch.float64)
