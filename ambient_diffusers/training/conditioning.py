"""What the UNet is told beside x_t and t: SDXL's text embeddings and size conditioning of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import randomness
from ..data import LatentCache
from ..models.sdxl import PromptEncoder

Conditioning = tuple[Tensor, Tensor, Tensor]
"""`prompt_embeds (B, 77, D)`, `pooled_prompt_embeds (B, P)`, `time_ids (B, 6)`."""


class CachedConditioning:
    """Embeddings from the cache; a share of the captions is dropped for classifier-free guidance.

    Args:
        dropout: That share. A dropped caption becomes what guidance starts from at inference.
    """

    def __init__(self, cache: LatentCache, dropout: float, seed: int, device: torch.device, dtype: torch.dtype):
        self.cache, self.dropout, self.seed, self.device, self.dtype = cache, dropout, seed, device, dtype

    def __call__(self, batch: dict[str, Tensor], micro: int | None) -> Conditioning:
        """The conditioning of a batch of the cache in micro-batch number `micro` of the run; None drops no caption."""
        embeds, pooled = (part.to(self.device, self.dtype) for part in self.embed(batch))
        if micro is None:
            return embeds, pooled, batch["time_ids"].to(self.device)
        dropped = randomness.rand(batch["index"], self.seed, "caption dropout", micro) < self.dropout
        empty_embeds, empty_pooled = (part.to(self.device, self.dtype) for part in self.cache.empty_prompt())
        embeds = torch.where(dropped.to(self.device)[:, None, None], empty_embeds, embeds)
        pooled = torch.where(dropped.to(self.device)[:, None], empty_pooled, pooled)
        return embeds, pooled, batch["time_ids"].to(self.device)

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return batch["prompt_embeds"], batch["pooled_prompt_embeds"]


class TrainedConditioning(CachedConditioning):
    """Embeddings from text encoders that are trained themselves: prompts are encoded at every step."""

    def __init__(self, *args, encoder: PromptEncoder, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder = encoder

    @property
    def models(self) -> dict[str, nn.Module]:
        return {name: getattr(self.encoder.pipeline, name) for name in ("text_encoder", "text_encoder_2")}

    def use(self, models: dict[str, nn.Module]) -> None:
        """Takes the text encoders as Accelerate wrapped them."""
        for name in self.models:
            setattr(self.encoder.pipeline, name, models[name])

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.encoder([self.cache.captions[row] for row in batch["index"].tolist()])
