"""The stages of the build, in order; each resumes or skips what `work_dir` already holds."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import codec, dataset, diffusion, vae
from .assemble import assemble
from .card import write_card
from .checkpoint import finished_steps
from .config import BuildConfig
from .emoji import Emoji, read_emoji
from .evaluate import evaluate
from .loop import averaged
from .networks import make_scheduler
from .picture import draw_figure
from .tokenizer import EOS, make_tokenizer, train_merges


def fit_codec(config: BuildConfig, emoji: list[Emoji], folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "codec.safetensors"
    if not path.is_file():
        photos, drawn = vae.training_pictures(config.data, emoji, config.seed)
        sample = np.concatenate([photos[: config.data.codec_pictures], drawn[:: max(1, len(drawn) // 500)]])
        kernel, bias = codec.principal_components(vae.to_tensor(sample), channels=4)
        save_file({"kernel": kernel, "bias": bias}, path)
    return load_file(path)


def build(config: BuildConfig, emoji: list[Emoji], folder: Path, output_dir: Path, train: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    started = time.time()
    transform = fit_codec(config, emoji, folder)
    if not (folder / "latents.safetensors").is_file():
        dataset.encode_dataset(config, emoji, lambda x: codec.encode_blocks(x, **transform), folder)
    tensors, captions = dataset.load_dataset(folder)
    merges = train_merges(captions, config.data.vocab_size)
    tokenizers = [make_tokenizer(merges, pad_token) for pad_token in (EOS, "!")]
    if train:
        autoencoder = vae.train_decoder(config, emoji, **transform, folder=folder)
        model = diffusion.train_diffusion(config, tensors, captions, tokenizers, folder)
    else:
        autoencoder = vae.make_vae(config.vae, config.data.image_size).eval()
        model = diffusion.DiffusionModel(config, tokenizers[0].get_vocab(), tensors["latents"].shape[-1]).eval()
        averaged(autoencoder, folder / "vae.safetensors")
        averaged(model, folder / "diffusion.safetensors")
    encoders = (model.text_encoder, model.text_encoder_2)
    pipeline = assemble(autoencoder, encoders, tokenizers, merges, model.unet, make_scheduler(), output_dir)
    results = evaluate(pipeline, emoji) | {"steps": finished_steps(folder / "diffusion.safetensors")}
    results["wall_clock_seconds"] = round(time.time() - started)
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))
    write_card(config, results, output_dir)
    draw_figure(pipeline, emoji, Path("docs/images/tiny_sdxl.png"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.build_tiny_sdxl", description=__doc__)
    parser.add_argument(
        "--emoji_assets", type=Path, required=True, help="`assets` of @lobehub/fluent-emoji-3d, unpacked"
    )
    parser.add_argument("--emoji_table", type=Path, required=True, help="emoji.json of emoji-datasource-google")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("outputs/tiny-sdxl"), help="checkpoints, latents, results"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("examples/tiny-sdxl"))
    parser.add_argument("--seed", type=int, default=BuildConfig.seed)
    parser.add_argument(
        "--assemble_only", action="store_true", help="take the checkpoints as they are, train no further"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network gains nothing from more, and loses much on a shared machine
    config = BuildConfig(seed=arguments.seed)
    emoji = read_emoji(arguments.emoji_assets, arguments.emoji_table, config.data.held_out_modulus)
    if not emoji:
        raise ValueError(
            f"no emoji in --emoji_assets {arguments.emoji_assets} match --emoji_table {arguments.emoji_table}"
        )
    build(config, emoji, arguments.work_dir, arguments.output_dir, train=not arguments.assemble_only)
