"""The README.md of what is published: how to load it with diffusers alone, what made it, what it does not promise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .finetuned import FineTuned
from .schedule import CLEAN, NoiseSchedule

TAGS = ("diffusers", "stable-diffusion-xl", "lora", "text-to-image", "ambient-diffusion")


def model_card(
    model: FineTuned, name: str, *, contents: str = "lora", prompts: Sequence[str] = (), picture: str | None = None
) -> ModelCard:
    """Writes the card.

    Args:
        name: Repository or folder, as the loading snippet calls it.
        contents: `lora`: the LoRA's file alone; `fused`: a pipeline with the LoRA in its weights; `pipeline`: a pipeline
            beside the LoRA's file.
        prompts: Prompts it was trained for; the first is the instance prompt.
        picture: File name of a picture beside the card.
    """
    local, base = Path(model.base.name).is_dir(), _public_name(model.base.name)
    shown = {"output": {"url": picture}} if picture else {}
    data = ModelCardData(
        base_model=None if local else base,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[tag for tag in TAGS if tag != "lora" or contents != "fused"],
        instance_prompt=prompts[0] if prompts else None,
        widget=[{"text": prompt} | shown for prompt in prompts] or None,
    )
    title = name.rstrip("/").split("/")[-1]
    parts = [f"# {title}", _summary(base, contents)]
    if picture:
        parts.append(f"![samples]({picture})")
    parts += [
        "## Use",
        f"```python\n{loading_code(model, name, contents, prompts)}\n```",
        _sampler_note(model, contents),
    ]
    parts += ["## How it was made", _provenance(model)]
    if model.provenance:
        parts += ["## What training on noisy data promises", _promise(model)]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def loading_code(model: FineTuned, name: str, contents: str, prompts: Sequence[str] = ()) -> str:
    """Python that needs diffusers alone and draws an image with the sampler that suits the model."""
    imports = "DiffusionPipeline"
    lines = [
        'device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)',
        f"pipe = DiffusionPipeline.from_pretrained({_public_name(model.base.name) if contents == 'lora' else name!r}, torch_dtype=dtype)",
        "pipe.to(device)",
    ]
    if contents != "fused":
        lines.append(f"pipe.load_lora_weights({name!r})")
    if contents == "lora" and model.sampler == "truncated":
        imports += ", EulerDiscreteScheduler"
        changes = "".join(f", {key}={value!r}" for key, value in _scheduler_changes(model).items())
        lines += [
            f"# Stops at the noise level of the training data, t_n = {model.ambient_timestep}.",
            f"pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config{changes})",
        ]
    prompt = prompts[0] if prompts else ""
    lines.append(f"image = pipe({prompt!r}, num_inference_steps=25, guidance_scale=5.0).images[0]")
    return "\n".join(["import torch", f"from diffusers import {imports}", "", *lines])


def _public_name(base: str) -> str:
    """A folder's place on this machine is nobody else's business."""
    return Path(base).name if Path(base).is_dir() else base


def _scheduler_changes(model: FineTuned) -> dict:
    """What the truncated sampler's stock config has that the base's has not."""
    before, after = model.base.pipeline_scheduler.config, model.stock_scheduler().config
    return {
        key: value for key, value in after.items() if not key.startswith("_") and (before.get(key) != value)
    }  # fmt: skip


def _summary(base: str, contents: str) -> str:
    what = {
        "lora": f"A LoRA for `{base}`",
        "fused": f"`{base}` with a LoRA fused into its weights",
        "pipeline": f"`{base}` and, beside it, a LoRA for it",
    }[contents]
    return (
        f"{what}, fine-tuned with ambient denoising score matching "
        "([Consistent Diffusion Meets Tweedie](https://arxiv.org/abs/2404.10177)). It loads with diffusers alone."
    )


def _sampler_note(model: FineTuned, contents: str) -> str:
    if model.sampler == "full":
        return "The sampler is the base's own."
    where = "The code above sets" if contents == "lora" else "`scheduler/` holds"
    return (
        f"{where} a stock `EulerDiscreteScheduler` whose sigmas end at sigma_n / alpha_n of t_n = "
        f"{model.ambient_timestep}, where the last step returns the predicted clean image, E[x_0 | x_tn]. Below t_n this "
        "model had no data to learn from; it needs no step there."
    )


def _provenance(model: FineTuned) -> str:
    made = model.provenance
    if not made:
        return "The LoRA's file does not say."
    levels = ", ".join(_level(t, model.base.schedule) for t in made["ambient_timestep"])
    rows = {
        "base": _public_name(made["base"]),
        "noise level of the data": levels,
        "low-noise objective": made["low_noise_objective"],
        "rank, alpha": f"{made.get('rank')}, {made.get('alpha')}",
        "config hash": f"`{made['config_hash']}`",
        "ambient_diffusers": made.get("version"),
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _level(t: int, schedule: NoiseSchedule) -> str:
    if t == CLEAN:
        return "clean"
    return f"t_n = {t} (alpha {float(schedule.alpha(t)):.3f}, sigma {float(schedule.sigma(t)):.3f})"


def _promise(model: FineTuned) -> str:
    levels = model.provenance["ambient_timestep"]
    if max(levels) == CLEAN:
        return "Nothing: this LoRA was trained on clean images."
    some_clean = " **Some of the training images were clean; none of this holds for those.**" if CLEAN in levels else ""
    return (
        "Each training image was encoded and noised once, and training read only that noisy latent, the caption and the "
        "image's size. So the weights hold no more about an image than its noisy latent does." + some_clean + "\n\n"
        "That is all it promises:\n\n"
        "- It is not differential privacy, and there is no bound on how much of the noisy latent is remembered.\n"
        "- What the noise left visible can be learnt and shown again: at a low t_n nearly everything, at a high one still "
        "layout and colours.\n"
        "- Copies and near-duplicates of an image each bring their own noise, which training can average away.\n"
        "- Captions are seen in the clear.\n"
        "- The base may have seen the same images clean, before.\n\n"
        "How much is remembered has to be measured on the model itself, against the images that it must not show."
    )
