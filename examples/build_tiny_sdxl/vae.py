"""The autoencoder: 64 x 64 x 3 pixels <-> 32 x 32 x 4 latents."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from .codec import encode_blocks, linearise_decoder, write_encoder
from .config import BuildConfig, DataConfig, VAEConfig
from .emoji import Emoji, on_background, open_rgba
from .loop import train
from .shapes import draw_shape
from .textures import photo_crop, photographs, texture


def make_vae(config: VAEConfig, image_size: int) -> AutoencoderKL:
    levels = len(config.block_out_channels)
    vae = AutoencoderKL(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=config.norm_num_groups,
        sample_size=image_size,
        scaling_factor=config.scaling_factor,
        force_upcast=False,
    )
    for name, parameter in vae.named_parameters():
        if ".conv2." in name or ".to_out." in name:
            torch.nn.init.zeros_(parameter)  # residual blocks start as the identity: far fewer steps to a given PSNR
    return vae


def to_tensor(pictures) -> torch.Tensor:
    """Pictures (B, H, W, 3) in 0 .. 255 -> (B, 3, H, W) in -1 .. 1."""
    return torch.as_tensor(np.asarray(pictures), dtype=torch.float32).permute(0, 3, 1, 2) / 127.5 - 1


def training_pictures(config: DataConfig, emoji: list[Emoji], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Photograph crops and drawn pictures, each uint8 (N, H, W, 3)."""
    rng, size = np.random.default_rng([seed, 1]), config.image_size
    photos = photographs()
    crops = [photo_crop(photos[k % len(photos)], rng, size) for k in range(config.vae_photo_crops)]
    crops += [texture(rng, size) for _ in range(config.vae_textures)]
    drawn = [draw_shape(rng, size)[0] for _ in range(config.vae_shapes)]
    for item in (e for e in emoji if not e.held_out):
        picture = open_rgba(item)
        drawn.append(on_background(picture, size, (255, 255, 255), rng.uniform(0.86, 0.98)))
        drawn.append(on_background(picture, size, tuple(rng.integers(0, 256, 3).tolist()), rng.uniform(0.9, 1.6)))
    return np.stack([np.asarray(p) for p in crops]), np.stack([np.asarray(p) for p in drawn])


def train_decoder(config: BuildConfig, emoji: list[Emoji], kernel, bias, folder: Path) -> AutoencoderKL:
    """The closed-form encoder and a decoder trained against it."""
    photos, drawn = training_pictures(config.data, emoji, config.seed)
    settings = config.vae
    torch.manual_seed(config.seed)
    vae = make_vae(settings, config.data.image_size)
    write_encoder(vae, kernel, bias)
    linearise_decoder(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)

    def loss_of_step(step: int) -> torch.Tensor:
        rng = np.random.default_rng([config.seed, 2, step])
        whole = step >= (1 - settings.whole_fraction) * settings.steps
        side = config.data.image_size if whole else settings.crop_size
        count = settings.batch_size // 4 if whole else settings.batch_size
        batch = []
        for k in range(count):
            pool = photos if 3 * k < 2 * count else drawn  # photographs are the harder part
            top, left = rng.integers(0, config.data.image_size - side + 1, 2)
            batch.append(pool[rng.integers(len(pool)), top : top + side, left : left + side])
        x = to_tensor(batch)
        z = encode_blocks(x, kernel, bias)
        z = z + settings.latent_noise * torch.as_tensor(rng.standard_normal(z.shape, dtype=np.float32))
        error = vae.decode(z / vae.config.scaling_factor).sample - x
        return error.square().mean() + settings.l1_weight * error.abs().mean()

    train(
        vae,
        loss_of_step,
        folder / "vae.safetensors",
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        ema_decay=settings.ema_decay,
        checkpoint_seconds=config.checkpoint_seconds,
    )
    return vae.eval()
