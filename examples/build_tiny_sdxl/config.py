"""Every number of the build, each once."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataConfig:
    image_size: int = 64  # pixels
    held_out_modulus: int = 25  # one emoji in this many is never trained on
    vae_photo_crops: int = 5000
    codec_pictures: int = 600  # of the photograph crops, for the principal components
    vae_shapes: int = 1200
    vae_textures: int = 1200
    shapes: int = 8000  # captioned pictures for the UNet
    emoji_variants: int = 4  # captioned pictures for the UNet per emoji
    crop_fraction: float = 0.1  # pictures drawn larger and cropped, so that SDXL's size conditioning means something
    crop_from: int = 88  # pixels
    vocab_size: int = 1280


@dataclass(frozen=True)
class VAEConfig:
    block_out_channels: tuple[int, ...] = (24, 48)  # two levels: 64 x 64 pixels -> 32 x 32 latents
    norm_num_groups: int = 4
    steps: int = 2400
    batch_size: int = 16  # crops of `crop_size`; whole pictures at the end, a quarter as many
    crop_size: int = 32
    whole_fraction: float = 0.15  # of the steps, the last ones
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    l1_weight: float = 0.05
    latent_noise: float = 0.02  # in standard deviations: the posterior's and some of the UNet's errors
    ema_decay: float = 0.995
    scaling_factor: float = 0.13025  # SDXL's own: the latents are rescaled so that it is 1 / std here too


@dataclass(frozen=True)
class DiffusionConfig:
    block_out_channels: tuple[int, ...] = (16, 32, 64, 112)
    attention_heads: tuple[int, ...] = (1, 2, 4, 7)  # none used at the two highest resolutions
    norm_num_groups: int = 8
    addition_time_embed_dim: int = 32
    text_widths: tuple[int, int] = (48, 64)
    text_layers: tuple[int, int] = (2, 3)
    text_heads: tuple[int, int] = (3, 4)
    steps: int = 10500
    half_size_steps: int = 2100  # the first of them at half the resolution, a quarter of the work
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    min_snr_gamma: float = 5.0
    caption_dropout: float = 0.1
    shape_fraction: float = 0.6
    ema_decay: float = 0.999


@dataclass(frozen=True)
class BuildConfig:
    seed: int = 0
    checkpoint_seconds: float = 180.0
    data: DataConfig = field(default_factory=DataConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
