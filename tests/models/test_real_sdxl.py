"""Real SDXL by shape: its UNet on the meta device gets the adapter that diffusers' own SDXL LoRA script would give it."""

import torch
from diffusers import UNet2DConditionModel

from ambient_diffusers.models.lora import Adapter, add_lora, lora_parameters, lora_state_dict

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""unet/config.json of stabilityai/stable-diffusion-xl-base-1.0."""


def test_the_adapter_of_real_sdxl_has_the_usual_keys_and_size():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL).requires_grad_(False)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 2_567_463_684
    with torch.device("meta"):
        add_lora(unet, Adapter(rank=4))
    # 70 transformer layers, self- and cross-attention, four projections, two matrices each.
    state = lora_state_dict(unet)
    assert len(state) == 70 * 2 * 4 * 2
    for end in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0"):
        key = f"down_blocks.2.attentions.1.transformer_blocks.9.{end}.lora_A.weight"
        assert state[key].shape == (4, 1280)
    assert state["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"].shape == (4, 2048)
    assert 5.7e6 < sum(parameter.numel() for parameter in lora_parameters(unet).values()) < 5.9e6
