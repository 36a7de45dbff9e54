"""The missing text embeddings of a cache, one for each distinct prompt."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tqdm.auto import tqdm

from ..models.sdxl import SDXLBase
from .shards import ShardStore


@torch.no_grad()
def encode_prompts(
    prompts: Iterable[str],
    store: ShardStore,
    base: SDXLBase,
    device: torch.device | str,
    dtype: torch.dtype,
    batch_size: int,
    bar: tqdm,
) -> int:
    """Embeds what the store lacks; the text encoders are loaded only if there is something. Returns how many."""
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in store]
    if not missing:
        return 0
    encoder = base.prompt_encoder(torch.float32, device)
    for start in range(0, len(missing), ShardStore.ROWS):
        rows = []
        shard = missing[start : start + ShardStore.ROWS]
        for first in range(0, len(shard), batch_size):
            batch = shard[first : first + batch_size]
            for prompt, embeds, pooled in zip(batch, *encoder(batch), strict=True):
                tensors = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
                rows.append((prompt, [], {name: tensor.to("cpu", dtype) for name, tensor in tensors.items()}))
            bar.update(len(batch))
        store.append(rows)
    return len(missing)
