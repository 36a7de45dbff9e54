"""The noise-once cache as training sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..models.sdxl import SDXLBase
from .index import open_shards, read_index
from .latent_encoder import schedule_fingerprint

EMPTY_PROMPT = ""


class LatentCache:
    """Reads a folder that `prepare` completed. Latents and embeddings stay on disk, memory-mapped, until asked for.

    Attributes:
        t_n: The noise level of each row, long, shape `(N,)`.
        shapes: The latent size `(h, w)` of each row.
        repeats: How often each row is to be seen in one epoch.
        loss_weight: Factor on the loss of each row, float32, shape `(N,)`.
        latent_ids: The latent of each row, long, shape `(N,)`; rows of the same image share one.
        captions, files: Of each row.
        time_ids: SDXL's size conditioning, float32, shape `(N, 6)`.
        metadata: What the cache was made with: fingerprints, seed, transform, dtype, scaling factor.

    Raises:
        ValueError: where the cache is missing, incomplete or damaged.
    """

    def __init__(self, cache_dir: str | Path):
        self.cache_dir = Path(cache_dir)
        index = read_index(self.cache_dir)
        self.metadata: dict = index["metadata"]
        self._latent_shards = open_shards(self.cache_dir, index["latent_shards"])
        self._text_shards = open_shards(self.cache_dir, index["text_shards"])
        self.repeats, self.captions, self.files, latents, loss_weights = [], [], [], [], []
        for source in index["sources"]:
            self.repeats += [source["repeats"]] * len(source["files"])
            self.captions += [index["captions"][i] for i in source["captions"]]
            self.files += [f"{source['name']}/{name}" for name in source["files"]]
            latents += source["latents"]
            loss_weights += [source["loss_weight"]] * len(source["files"])
        self.loss_weight = torch.tensor(loss_weights)
        # A row of the data set -> a latent -> its shard, group and position; several rows may share one latent.
        self.latent_ids = torch.tensor(latents)
        self._location = _locations(self._latent_shards)
        info = torch.tensor([info for shard in self._latent_shards for info in shard.info])[self.latent_ids]
        group_shapes = [
            [shard.shape("latents", group)[1:] for group in range(len(shard.groups))] for shard in self._latent_shards
        ]
        self.shapes: list[tuple[int, int]] = [
            group_shapes[shard][group] for shard, group, _ in self._location[self.latent_ids].tolist()
        ]
        self.t_n = info[:, 0].clone()
        target = torch.tensor(self.shapes) * self.metadata["vae_scale_factor"]
        self.time_ids = torch.cat([info[:, 1:], target], 1).float()
        prompts = [key for shard in self._text_shards for key in shard.keys]
        self._prompts = dict(zip(prompts, _locations(self._text_shards).tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.files)

    def latents(self, row: int) -> Tensor:
        """`x_tn` of one row, float32, shape `(C, h, w)`."""
        shard, group, position = self._location[self.latent_ids[row]].tolist()
        return self._latent_shards[shard].read("latents", group, position)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Rows of one shape, on the CPU.

        Returns:
            `latents (B, C, h, w)`, `time_ids (B, 6)`, `prompt_embeds (B, 77, D)`, `pooled_prompt_embeds (B, P)`, all
            float32, `loss_weight (B,)`, and long `t_n (B,)` and `index (B,)`, the row numbers.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        prompts = {caption: self.prompt(caption) for caption in {self.captions[row] for row in rows}}
        embeds, pooled = zip(*(prompts[self.captions[row]] for row in rows), strict=True)
        return {
            "latents": torch.stack([self.latents(row) for row in rows.tolist()]),
            "t_n": self.t_n[rows],
            "loss_weight": self.loss_weight[rows],
            "time_ids": self.time_ids[rows],
            "prompt_embeds": torch.stack(embeds),
            "pooled_prompt_embeds": torch.stack(pooled),
            "index": rows,
        }

    def has_prompt(self, prompt: str) -> bool:
        """Whether the embeddings of this prompt are in the cache."""
        return prompt in self._prompts

    def prompt(self, prompt: str) -> tuple[Tensor, Tensor]:
        """`prompt_embeds (77, D)` and `pooled_prompt_embeds (P,)`, float32.

        Raises:
            ValueError: for a prompt that is not in the cache.
        """
        if prompt not in self._prompts:
            raise ValueError(f"prompt {prompt!r} is not in the cache: give it to prepare as one of extra_prompts")
        shard, group, position = self._prompts[prompt]
        names = ("prompt_embeds", "pooled_prompt_embeds")
        embeds, pooled = (self._text_shards[shard].read(name, group, position) for name in names)
        return embeds, pooled

    def empty_prompt(self) -> tuple[Tensor, Tensor]:
        """What classifier-free guidance starts from: zeros where the pipeline uses zeros, else the empty prompt's."""
        embeds, pooled = self.prompt(EMPTY_PROMPT)
        if self.metadata["force_zeros_for_empty_prompt"]:
            return torch.zeros_like(embeds), torch.zeros_like(pooled)
        return embeds, pooled

    def check(self, base: SDXLBase) -> None:
        """Raises a ValueError unless the cache was made with this VAE, these text encoders and this noise schedule."""
        for key, what, actual in (
            ("vae_fingerprint", "another VAE", base.vae_fingerprint),
            ("text_fingerprint", "other text encoders", base.text_fingerprint),
            ("schedule_fingerprint", "another noise schedule", schedule_fingerprint(base.schedule)),
        ):
            if self.metadata[key] != actual:
                raise ValueError(
                    f"cache_dir {str(self.cache_dir)!r} was made with {what} than those of "
                    f"pretrained_model_name_or_path {base.name!r}: run prepare again, or choose another cache_dir"
                )


def _locations(shards) -> Tensor:
    """Shard, group and position of every row of the shards, long, shape `(rows, 3)`."""
    rows = [(number, *location) for number, shard in enumerate(shards) for location in shard.locations()]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, 3)
