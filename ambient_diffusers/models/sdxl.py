"""A base model of the SDXL layout, opened part by part so that training never holds what it does not use."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import SchedulerMixin
from huggingface_hub import snapshot_download
from torch import Tensor

from ..schedule import NoiseSchedule

TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")


class SDXLBase:
    """A folder (or hub name) that `StableDiffusionXLPipeline.from_pretrained` loads.

    Opening it reads configuration files only and checks them; each part is loaded when asked for.

    Args:
        name_or_path: A local folder, or a name on the Hugging Face Hub.
        vae_name_or_path: Another VAE, as diffusers' scripts take it (a folder or hub name that holds one, with or without
            a `vae` subfolder).
        variant: File variant of the weights, such as `fp16`.
        revision: Revision on the hub.

    Raises:
        ValueError: where the base is missing, is not SDXL, or its VAE does not give the channels that the UNet takes.
    """

    def __init__(
        self,
        name_or_path: str | Path,
        vae_name_or_path: str | Path | None = None,
        variant: str | None = None,
        revision: str | None = None,
    ):
        self.name = str(name_or_path)
        self.variant = variant
        self.path = _local_folder(self.name, variant, revision, "pretrained_model_name_or_path")
        self.vae_path = self.path / "vae"
        if vae_name_or_path is not None:
            folder = _local_folder(str(vae_name_or_path), None, None, "pretrained_vae_model_name_or_path")
            self.vae_path = folder if (folder / "config.json").is_file() else folder / "vae"
        self._check()

    def _check(self) -> None:
        index = _read_json(self.path / "model_index.json", self.name)
        unet = self.unet_config
        if "StableDiffusionXL" not in index.get("_class_name", "") or unet.get("addition_embed_type") != "text_time":
            raise ValueError(
                f"pretrained_model_name_or_path must be an SDXL pipeline (its UNet has addition_embed_type 'text_time'), "
                f"got {self.name!r} of class {index.get('_class_name')!r}, addition_embed_type "
                f"{unet.get('addition_embed_type')!r}"
            )
        if self.vae_config.get("latent_channels") != unet["in_channels"]:
            raise ValueError(
                f"the VAE's latent_channels must equal the UNet's in_channels {unet['in_channels']}, got "
                f"{self.vae_config.get('latent_channels')} in {self.vae_path.name!r}"
            )

    @cached_property
    def unet_config(self) -> dict:
        return _read_json(self.path / "unet" / "config.json", self.name)

    @cached_property
    def vae_config(self) -> dict:
        return _read_json(self.vae_path / "config.json", self.name)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels of the image along one axis of a latent pixel: 8 for SDXL."""
        return 2 ** (len(self.vae_config["block_out_channels"]) - 1)

    @property
    def default_resolution(self) -> int:
        """The side in pixels that the UNet was trained on."""
        return self.unet_config["sample_size"] * self.vae_scale_factor

    @property
    def prediction_type(self) -> str:
        return self.training_scheduler.config.prediction_type

    @property
    def force_zeros_for_empty_prompt(self) -> bool:
        """Whether the pipeline's unconditional embedding is zeros (SDXL) rather than that of the empty prompt."""
        index = _read_json(self.path / "model_index.json", self.name)
        return index.get("force_zeros_for_empty_prompt", True)

    @cached_property
    def training_scheduler(self) -> DDPMScheduler:
        """The base's scheduler configuration, as the DDPM that training scripts of diffusers use."""
        return DDPMScheduler.from_pretrained(self.path, subfolder="scheduler")

    @property
    def pipeline_scheduler(self) -> SchedulerMixin:
        """The scheduler that the base samples with."""
        index = _read_json(self.path / "model_index.json", self.name)
        return getattr(diffusers, index["scheduler"][1]).from_pretrained(self.path, subfolder="scheduler")

    @cached_property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_scheduler(self.training_scheduler)

    def vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """The VAE in evaluation mode, its parameters frozen."""
        vae = AutoencoderKL.from_pretrained(self.vae_path, dtype=dtype, variant=self._variant_in(self.vae_path))
        return vae.eval().requires_grad_(False)

    def unet(self, dtype: torch.dtype = torch.float32, **kwargs) -> UNet2DConditionModel:
        """The UNet, its parameters frozen. Keyword arguments (quantization_config, ...) go to `from_pretrained`."""
        variant = self._variant_in(self.path / "unet")
        unet = UNet2DConditionModel.from_pretrained(self.path, subfolder="unet", dtype=dtype, variant=variant, **kwargs)
        return unet.requires_grad_(False)

    def prompt_encoder(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> PromptEncoder:
        """Both tokenizers and text encoders, and nothing else."""
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            self.path, unet=None, vae=None, dtype=dtype, variant=self._variant_in(self.path / "text_encoder")
        )
        for part in (pipeline.text_encoder, pipeline.text_encoder_2):
            part.eval().requires_grad_(False).to(device)
        return PromptEncoder(pipeline, device)

    def pipeline(self, dtype: torch.dtype = torch.float32, **components) -> StableDiffusionXLPipeline:
        """The stock pipeline; keyword arguments replace or drop (None) components."""
        if self.vae_path != self.path / "vae" and "vae" not in components:
            components["vae"] = self.vae(dtype)
        return StableDiffusionXLPipeline.from_pretrained(
            self.path, dtype=dtype, variant=self._variant_in(self.path / "unet"), **components
        )

    @cached_property
    def vae_fingerprint(self) -> str:
        """SHA-256 over the VAE's configuration and weights: a latent cache belongs to it."""
        return _fingerprint([self.vae_path])

    @cached_property
    def text_fingerprint(self) -> str:
        """SHA-256 over tokenizers and text encoders: a cache of text embeddings belongs to it."""
        return _fingerprint([self.path / part for part in TEXT_PARTS])

    def _variant_in(self, folder: Path) -> str | None:
        """The variant where the folder has it: a separate VAE often comes without."""
        return self.variant if self.variant and any(folder.glob(f"*.{self.variant}.*")) else None


class PromptEncoder:
    """Prompts to SDXL's two conditionings, through the stock pipeline's own `encode_prompt`."""

    def __init__(self, pipeline: StableDiffusionXLPipeline, device: torch.device | str = "cpu"):
        self.pipeline, self.device = pipeline, device

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Returns `prompt_embeds (B, 77, D)` and `pooled_prompt_embeds (B, P)`."""
        prompt_embeds, _, pooled_prompt_embeds, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return prompt_embeds, pooled_prompt_embeds


def _local_folder(name: str, variant: str | None, revision: str | None, argument: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    try:
        if argument == "pretrained_vae_model_name_or_path":
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        return Path(DiffusionPipeline.download(name, variant=variant, revision=revision))
    except Exception as error:  # the hub's client raises many kinds: offline, unknown name, gated
        reason = str(error).strip().splitlines()[0].split(". ")[0][:120] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{argument} must be a folder or a name on the Hugging Face Hub, got {name!r} ({reason})"
        ) from error


def _read_json(path: Path, name: str) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{name!r} is no SDXL pipeline: {path.parent.name}/{path.name} cannot be read") from error


def _fingerprint(folders: list[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(f for f in folder.rglob("*") if f.suffix in {".json", ".txt", ".safetensors", ".bin"}):
            digest.update(file.name.encode())
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
