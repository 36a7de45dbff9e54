"""What a training step costs, against loops that do what other scripts do, side by side in one run.

python benchmarks/train_step.py

Rounds are interleaved and times are medians, quoted as ratios. The loops written here share the UNet, adapter and
optimiser of the trainer, so that only what a step does differs:

- `diffusers`: both text encoders and one VAE encoding at every step, as `train_text_to_image_lora_sdxl.py`;
- `paper`: both text encoders at every step and, with consistency, four UNet forwards, three of them with gradient, as
  giannisdaras/ambient-tweedie does without gradient through the sampling.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ambient_diffusers.data.photographs import write_photographs
from ambient_diffusers.training import AmbientTrainer, TrainingConfig

CALLS = Counter()


def count_calls() -> None:
    """Counts forwards (of the VAE: encodings) by class and whether they carry gradient."""
    for cls in (UNet2DConditionModel, CLIPTextModel, CLIPTextModelWithProjection):
        cls.forward = counted(cls.__name__, cls.forward)
    AutoencoderKL.encode = counted("AutoencoderKL", AutoencoderKL.encode)


def counted(name: str, original):
    def call(self, *args, **kwargs):
        graded = " with gradient" if name.startswith("UNet") and torch.is_grad_enabled() else ""
        CALLS[name + graded] += 1
        return original(self, *args, **kwargs)

    return call


def make_trainer(base: str, images: Path, folder: Path, batch_size: int, **options) -> AmbientTrainer:
    config = TrainingConfig(
        pretrained_model_name_or_path=base, train_data_dir=str(images), output_dir=str(folder), resolution=64,
        train_batch_size=batch_size, max_train_steps=10_000, report_to="none", **options,
    )  # fmt: skip
    trainer = AmbientTrainer(config)
    trainer.prepare_data()
    trainer.build_model()
    return trainer


def other_loop(trainer: AmbientTrainer, vae, encoder, forwards_without: int, forwards_with: int):
    """A step that encodes prompts (and images, with a VAE) and sends the batch through the UNet so many times."""
    unet, device = trainer.models["unet"], trainer.accelerator.device
    pixels = torch.rand(trainer.config.train_batch_size, 3, 64, 64, device=device) * 2 - 1

    def step() -> None:
        batch = trainer.cache.batch(trainer.sampler[trainer.step])
        with torch.no_grad():
            embeds, pooled = encoder([trainer.cache.captions[row] for row in batch["index"].tolist()])
            latents = vae.encode(pixels[: len(batch["index"])]).latent_dist.sample() * 0.13 if vae else batch["latents"]
        conditioning, rows = (embeds, pooled, batch["time_ids"]), torch.arange(len(latents))
        t, noise = torch.randint(0, 1000, (len(latents),)), torch.randn_like(latents)
        with torch.no_grad():
            for _ in range(forwards_without):
                trainer.predict(unet, latents, t, conditioning, rows)
        loss = sum(
            (trainer.predict(unet, latents + noise, t, conditioning, rows) - noise).square().mean()
            for _ in range(forwards_with)
        )
        trainer.accelerator.backward(loss)
        trainer.accelerator.clip_grad_norm_(trainer.parameters.values(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer.step += 1

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="examples/tiny-sdxl")
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="of each loop in a round")
    arguments = parser.parse_args()
    count_calls()
    with tempfile.TemporaryDirectory() as temporary:
        images = write_photographs(Path(temporary) / "images", crops=2)

        def trainer(name: str, **options) -> AmbientTrainer:
            return make_trainer(arguments.base, images, Path(temporary) / name, arguments.train_batch_size, **options)

        plain, ambient = trainer("plain"), trainer("ambient", ambient_timestep=500)
        consistency = trainer("consistency", ambient_timestep=500, low_noise_objective="consistency", low_noise_delay=0)
        vae, encoder = plain.base.vae(), plain.base.prompt_encoder()
        loops = {
            "ours, plain DSM": plain.optimizer_step,
            "ours, ambient": ambient.optimizer_step,
            "ours, ambient + consistency": consistency.optimizer_step,
            "diffusers' script": other_loop(plain, vae, encoder, 0, 1),
            "paper, ambient + consistency": other_loop(ambient, None, encoder, 1, 3),
        }
        times, calls = {name: [] for name in loops}, {}
        for _ in range(arguments.rounds):
            for name, step in loops.items():
                step()  # warm again
                CALLS.clear()
                started = time.perf_counter()
                for _ in range(arguments.steps):
                    step()
                times[name].append((time.perf_counter() - started) / arguments.steps)
                calls[name] = {key: round(count / arguments.steps, 2) for key, count in sorted(CALLS.items())}
    print("| loop | ms a step | calls a step |\n|---|---|---|")
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, value in median.items():
        print(f"| {name} | {1000 * value:.0f} | {', '.join(f'{key} {count}' for key, count in calls[name].items())} |")
    for one, other in (("ours, ambient", "ours, plain DSM"), ("ours, ambient", "diffusers' script"),
                       ("ours, ambient + consistency", "paper, ambient + consistency")):  # fmt: skip
        print(f"{one} / {other}: {median[one] / median[other]:.2f}")


if __name__ == "__main__":
    main()
