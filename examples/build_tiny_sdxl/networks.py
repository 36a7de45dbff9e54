"""The two text encoders, the UNet and the scheduler, shaped as SDXL's."""

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .config import DiffusionConfig
from .tokenizer import BOS, EOS, MAX_LENGTH


def make_text_encoders(
    config: DiffusionConfig, vocab: dict[str, int]
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    encoders = []
    for index, kind in enumerate((CLIPTextModel, CLIPTextModelWithProjection)):
        width = config.text_widths[index]
        text_config = CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=config.text_widths[1],
            num_hidden_layers=config.text_layers[index],
            num_attention_heads=config.text_heads[index],
            max_position_embeddings=MAX_LENGTH,
            hidden_act=("quick_gelu", "gelu")[index],
            bos_token_id=vocab[BOS],
            eos_token_id=vocab[EOS],  # the pooled state is taken at this token
            pad_token_id=(vocab[EOS], vocab["!"])[index],
            initializer_factor=1.0,
        )
        encoders.append(kind(text_config))
        for name, parameter in encoders[-1].named_parameters():
            if "token_embedding" in name or "position_embedding" in name:
                # CLIP's 0.02 is meant for widths of 768 and more; here it would let positions and words start alike
                torch.nn.init.normal_(parameter, std=0.3 if "token" in name else 0.1)
    return encoders[0], encoders[1]


def make_unet(config: DiffusionConfig, sample_size: int) -> UNet2DConditionModel:
    """SDXL's layout: no attention at high resolution, size conditioning added to the time embedding.

    One level more than SDXL's three, because the latents are half the picture's width and not an eighth.
    """
    return UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=config.attention_heads,  # diffusers' name for the number of heads
        transformer_layers_per_block=(1, 1, 1, 1),
        use_linear_projection=True,
        cross_attention_dim=sum(config.text_widths),
        addition_embed_type="text_time",
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=6 * config.addition_time_embed_dim + config.text_widths[1],
        norm_num_groups=config.norm_num_groups,
    )


def make_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own settings."""
    scheduler = EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
        use_karras_sigmas=False,
    )
    # SDXL's config carries these for DDPM and DDIM, whose own defaults would clip latents.
    scheduler.register_to_config(clip_sample=False, sample_max_value=1.0, set_alpha_to_one=False, skip_prk_steps=True)
    return scheduler
