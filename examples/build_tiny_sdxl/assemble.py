"""Put the trained parts together as a StableDiffusionXLPipeline folder."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline

from .tokenizer import write_vocabulary

MAX_BYTES = 10_000_000


def assemble(vae, text_encoders, tokenizers, merges, unet, scheduler, folder: Path) -> StableDiffusionXLPipeline:
    """Write the pipeline in half precision; returns it in single precision with the rounded weights."""
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoders[0],
        text_encoder_2=text_encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(aside, safe_serialization=True)
    for tokenizer, name in zip(tokenizers, ("tokenizer", "tokenizer_2"), strict=True):
        write_vocabulary(tokenizer, merges, aside / name)
    for name in ("text_encoder", "text_encoder_2"):
        # transformers 5 loads in the dtype that the config names, diffusers in float32: let a plain load agree
        path = aside / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    size = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"the pipeline takes {size} bytes; at most {MAX_BYTES} are allowed: shrink the UNet")
    folder.mkdir(parents=True, exist_ok=True)
    for part in aside.iterdir():  # keeps a README.md that is already there
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)
    aside.rmdir()
    return pipeline.to(torch.float32)
