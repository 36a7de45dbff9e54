"""The encoder in closed form: principal components of 2 x 2 pixel blocks, written into diffusers' AutoencoderKL.

Trained from scratch, so small an encoder spends its minutes fighting its own group norms and stays below the linear
optimum; set up like this it starts (and stays) there, and only the decoder is left to train.
"""

import torch
from diffusers import AutoencoderKL

PIVOT = 100.0  # constant channels of +-PIVOT that fix the group norms' statistics, whatever the picture
SHIFT = 10.0  # SiLU(SHIFT + x) = SHIFT + x to 1e-3 for |x| < 5
LOG_VARIANCE = -9.0  # of the posterior: standard deviation 0.01 where the latents have 1


@torch.no_grad()
def principal_components(x: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, H, W) -> kernel (channels, 3, 2, 2) and bias whose latents have mean 0 and variance 1."""
    blocks = torch.nn.functional.unfold(x, 2, stride=2).transpose(1, 2).reshape(-1, 12).double()
    variance, basis = torch.linalg.eigh(torch.cov(blocks.T))
    variance, basis = variance.flip(0)[:channels], basis.flip(1)[:, :channels].T
    basis = basis * torch.where(basis.sum(1).abs() > 0.1, basis.sum(1), basis[:, 0]).sign()[:, None]  # a fixed sign
    kernel = basis / variance.sqrt()[:, None]
    return kernel.view(channels, 3, 2, 2).float(), (-kernel @ blocks.mean(0)).float()


def encode_blocks(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Latents (B, 4, H/2, W/2) of unit variance, i.e. times the scaling factor; what the written encoder computes."""
    return torch.nn.functional.conv2d(x, kernel, bias, stride=2)


def _pass_through_norm(norm: torch.nn.GroupNorm, signals: list[int], pivots: list[int]) -> None:
    """Make GroupNorm the identity plus SHIFT on `signals`, which come as +x and -x so that they have no mean."""
    per_group = norm.num_channels // norm.num_groups
    pivots_per_group = len(pivots) // norm.num_groups
    torch.nn.init.zeros_(norm.weight)
    norm.weight[signals] = PIVOT * (pivots_per_group / per_group) ** 0.5
    torch.nn.init.zeros_(norm.bias)
    norm.bias[signals] = SHIFT


@torch.no_grad()
def write_encoder(vae: AutoencoderKL, kernel: torch.Tensor, bias: torch.Tensor) -> None:
    """Set the encoder's weights to the block transform; its residual branches must end in zeros."""
    encoder, last, groups = vae.encoder, vae.config.block_out_channels[-1], vae.config.norm_num_groups
    channels, gain = len(kernel), 1 / vae.config.scaling_factor
    down, widen = encoder.down_blocks[0].downsamplers[0].conv, encoder.down_blocks[1].resnets[0].conv_shortcut
    for layer in (encoder.conv_in, down, widen, encoder.conv_out, vae.quant_conv):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
    down.weight[:channels, :3, :2, :2] = kernel  # diffusers pads right and below only, so taps 0 and 1 are the block
    down.bias[:channels] = bias
    width = last // groups
    plus = [k * width for k in range(channels)]
    for k, p in enumerate(plus):  # each latent in a group of its own, with its negative and the pivots
        widen.weight[p, k], widen.weight[p + 1, k] = 1, -1
        widen.bias[p + 2], widen.bias[p + 3] = PIVOT, -PIVOT
        encoder.conv_out.weight[k, p, 1, 1], encoder.conv_out.weight[k, p + 1, 1, 1] = 0.5, -0.5
        vae.quant_conv.weight[k, k] = gain
    vae.quant_conv.bias[channels:] = LOG_VARIANCE + 2 * torch.tensor(gain).log()
    signals = [q for p in plus for q in (p, p + 1)]
    _pass_through_norm(encoder.conv_norm_out, signals, [q + 2 for q in signals])


@torch.no_grad()
def linearise_decoder(vae: AutoencoderKL) -> None:
    """Start the decoder as a random linear map (same device as in the encoder), from which it trains quickly."""
    decoder, groups, first = vae.decoder, vae.config.norm_num_groups, vae.config.block_out_channels[0]
    narrow, width = decoder.up_blocks[-1].resnets[0].conv_shortcut, first // groups
    pairs = [(g * width + k, g * width + k + 1) for g in range(groups) for k in range(0, width - 2, 2)]
    pivots = [g * width + width - 2 + k for g in range(groups) for k in range(2)]
    for plus, minus in pairs:
        narrow.weight[minus], narrow.bias[minus] = -narrow.weight[plus], -narrow.bias[plus]
        decoder.conv_out.weight[:, minus] = -decoder.conv_out.weight[:, plus]
    for index, pivot in enumerate(pivots):
        narrow.weight[pivot], narrow.bias[pivot] = 0, PIVOT * (-1) ** index
        decoder.conv_out.weight[:, pivot] = 0
    torch.nn.init.zeros_(decoder.conv_out.bias)
    _pass_through_norm(decoder.conv_norm_out, [q for pair in pairs for q in pair], pivots)
    torch.nn.init.zeros_(vae.post_quant_conv.weight)
    vae.post_quant_conv.weight[:, :, 0, 0] = torch.eye(vae.config.latent_channels) * vae.config.scaling_factor
    torch.nn.init.zeros_(vae.post_quant_conv.bias)
