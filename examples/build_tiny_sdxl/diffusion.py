"""Joint training of the UNet and the two text encoders on encoded pictures."""

from pathlib import Path

import numpy as np
import torch

from .config import BuildConfig
from .loop import train
from .networks import make_scheduler, make_text_encoders, make_unet


class DiffusionModel(torch.nn.Module):
    """UNet and text encoders under one roof, conditioned as StableDiffusionXLPipeline conditions them."""

    def __init__(self, config: BuildConfig, vocab: dict[str, int], sample_size: int):
        super().__init__()
        torch.manual_seed(config.seed)
        self.text_encoder, self.text_encoder_2 = make_text_encoders(config.diffusion, vocab)
        self.unet = make_unet(config.diffusion, sample_size)

    def encode_prompt(self, ids_1: torch.Tensor, ids_2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, 77) twice -> penultimate states of both encoders (B, 77, C) and pooled projection (B, C2)."""
        first = self.text_encoder(ids_1, output_hidden_states=True)
        second = self.text_encoder_2(ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def forward(self, x_t, t, ids, time_ids, keep: torch.Tensor) -> torch.Tensor:
        """Predicted noise (B, 4, h, w); `keep` (B,) is 0 where the caption is dropped, i.e. replaced by zeros."""
        states, pooled = self.encode_prompt(*ids)
        conditioning = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
        return self.unet(x_t, t, states * keep[:, None, None], added_cond_kwargs=conditioning).sample


def min_snr_weight(alphas_cumprod: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight of the epsilon loss per timestep: min(SNR, gamma) / SNR.

    References:
        Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, https://arxiv.org/abs/2303.09556
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def train_diffusion(config: BuildConfig, tensors, captions: list[str], tokenizers, folder: Path) -> DiffusionModel:
    settings = config.diffusion
    latents = tensors["latents"].float()
    model = DiffusionModel(config, tokenizers[0].get_vocab(), latents.shape[-1])
    token_ids = [
        torch.tensor(t(captions, padding="max_length", truncation=True).input_ids, dtype=torch.int16)
        for t in tokenizers
    ]
    weights = tensors["weights"].numpy().astype(np.float64)
    shapes = np.flatnonzero(weights == 0)
    emoji, emoji_weights = np.flatnonzero(weights), weights[weights > 0] / weights.sum()
    alphas_cumprod = make_scheduler().alphas_cumprod
    loss_weight = min_snr_weight(alphas_cumprod, settings.min_snr_gamma)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([config.seed, 4, step])
        count = settings.batch_size
        drawn = round(count * settings.shape_fraction)
        index = np.concatenate([rng.choice(shapes, drawn), rng.choice(emoji, count - drawn, p=emoji_weights)])
        x_0, time_ids = latents[index], tensors["time_ids"][index]
        if step < settings.half_size_steps:  # as SDXL was: small pictures first, and told so
            x_0, time_ids = torch.nn.functional.avg_pool2d(x_0, 2), time_ids / 2
        noise = torch.as_tensor(rng.standard_normal(x_0.shape, dtype=np.float32))
        # one timestep in each of `count` equal strata: the loss is less noisy than with independent timesteps
        t = torch.as_tensor((rng.permutation(count) + rng.random(count)) / count * len(alphas_cumprod)).long()
        keep = torch.as_tensor(rng.random(count) >= settings.caption_dropout).float()
        a = alphas_cumprod[t].view(-1, 1, 1, 1)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        prediction = model(x_t, t, [ids[index].long() for ids in token_ids], time_ids, keep)
        return (loss_weight[t] * (prediction - noise).square().mean((1, 2, 3))).mean()

    train(
        model,
        loss_of_step,
        folder / "diffusion.safetensors",
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        ema_decay=settings.ema_decay,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        checkpoint_seconds=config.checkpoint_seconds,
    )
    return model.eval()
