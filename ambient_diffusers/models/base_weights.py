"""The frozen base in fewer bits, through bitsandbytes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

BASE_WEIGHTS = (None, "nf4", "int8")


def check_base_weights(base_weights: str | None) -> None:
    """Raises a ValueError where quantised weights cannot be used: they need bitsandbytes and a CUDA GPU."""
    if base_weights not in BASE_WEIGHTS:
        raise ValueError(f"base_weights must be one of {BASE_WEIGHTS}, got {base_weights!r}")
    if base_weights is None:
        return
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"base_weights {base_weights!r} needs bitsandbytes: pip install 'ambient-diffusers[gpu]'")
    if not torch.cuda.is_available():
        raise ValueError(f"base_weights {base_weights!r} needs a CUDA GPU, and there is none; leave it out")


def quantization(base_weights: str | None, compute_dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` that load the weights so.

    References:
        Dettmers et al., "QLoRA", NeurIPS 2023 (nf4); "LLM.int8()", NeurIPS 2022 (int8).
    """
    if base_weights is None:
        return {}
    from diffusers import BitsAndBytesConfig

    if base_weights == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype, bnb_4bit_use_double_quant=True
    )  # fmt: skip
    return {"quantization_config": config}
