"""The model card, README.md of the pipeline folder."""

import datetime
from pathlib import Path

from .config import BuildConfig

TEMPLATE = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: mit
tags: [stable-diffusion-xl, tiny, test-fixture]
---

# tiny-sdxl

A Stable Diffusion XL pipeline of {megabytes:.1f} MB with trained weights: the architecture, file layout and
conditioning of SDXL (two CLIP text encoders, size conditioning, Euler sampler) at 64 x 64 pixels. It exists so that
examples and tests of fine-tuning run in minutes on one CPU core. It is not a general image model.

```python
from diffusers import StableDiffusionXLPipeline

pipeline = StableDiffusionXLPipeline.from_pretrained("examples/tiny-sdxl")
pipeline("a blue star on a yellow background", num_inference_steps=25, guidance_scale=5.0).images[0]
```

## Parts

| part | shape | parameters |
|---|---|---|
{parts}

The VAE's factor is 2 (SDXL's: 8). At 64 x 64 pixels a larger one with SDXL's 4 latent channels cannot keep
photographs: principal components of 4 x 4 blocks, the best linear code, give 19 dB on `astronaut`. The encoder is in
closed form (principal components of 2 x 2 blocks), the decoder is trained; latents have unit variance after SDXL's
`scaling_factor` 0.13025. The UNet has one level more than SDXL's three, because its latents are 32 x 32.

## Training

Captioned pictures: {shapes:,} drawings of a coloured shape on a coloured background and {variants} renderings of each
of the Fluent emoji (3D, Microsoft, MIT licence; captions are their names in emoji-datasource, MIT, often with the
dominant colour); one emoji in {modulus} was held out. For the VAE also crops of the sample photographs of scikit-learn
(china, flower) and Matplotlib (Grace Hopper), and random textures. No picture of scikit-image was used.

{steps:,} steps of batch {batch} on one CPU thread: AdamW, epsilon prediction, min-SNR 5, captions replaced by zeros
one time in ten, averaged weights; the first {half:,} steps at half the resolution, with SDXL's size
conditioning saying so. Seed {seed}. Built {date} with

```bash
python -m examples.build_tiny_sdxl --emoji_assets ASSETS --emoji_table EMOJI_JSON
```

(`examples/build_tiny_sdxl/README.md` says where to get the two inputs.)

## Measured

Reconstruction of pictures never trained on, 64 x 64, PSNR in dB:

| picture | whole | central 40 % |
|---|---|---|
{psnr}
| {emoji_count} held-out emoji | mean {emoji_mean}, worst {emoji_min} | |

96 prompts "a COLOUR SHAPE on a COLOUR background" (25 steps, guidance 5): the shape has the colour asked for (the
nearest of twelve) in {colour:.0%}, the background in {background:.0%}; the shape itself is recognised among eight, by
overlap with its outline, in {shape:.0%}. By chance: 8 %, 8 % and 12 %.

## Limits

It was trained for minutes: read the accuracies above before relying on it. Emoji come out without their detail,
prompts outside the training captions give arbitrary pictures, sizes other than 64 x 64 were hardly trained.
"""


def write_card(config: BuildConfig, results: dict, folder: Path) -> None:
    accuracy = results["caption_accuracy"]
    psnr = [f"| {n} | {results['psnr_full'][n]} | {results['psnr_centre'][n]} |" for n in results["psnr_full"]]
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name != "README.md")
    text = TEMPLATE.format(
        megabytes=size / 1e6,
        parts="\n".join(f"| {name} | {shape} | {count:,} |" for name, shape, count in results["parts"]),
        shapes=config.data.shapes,
        variants=config.data.emoji_variants,
        modulus=config.data.held_out_modulus,
        steps=results["steps"],
        batch=config.diffusion.batch_size,
        half=config.diffusion.half_size_steps,
        seed=config.seed,
        date=datetime.date.today().isoformat(),
        psnr="\n".join(psnr),
        emoji_count=results["psnr_emoji"]["count"],
        emoji_mean=results["psnr_emoji"]["mean"],
        emoji_min=results["psnr_emoji"]["min"],
        **accuracy,
    )
    (folder / "README.md").write_text(text)
