"""Everything that a training run can be told, each default once.

Fields that diffusers' `train_text_to_image_lora_sdxl.py` has keep its names; those of the objective are inherited from
`AmbientObjectiveConfig`. Every field is a YAML key and a flag.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from ..data import Source, Transform
from ..models.lora import Adapter
from ..models.sdxl import SDXLBase
from ..objectives import AmbientObjectiveConfig
from ..parsing import option, parse_dataclass


@dataclass(frozen=True)
class TrainingConfig(AmbientObjectiveConfig):
    """See the `help` of each field, or `train_ambient_sdxl.py --help`.

    Raises:
        ValueError: for a value that no run could use; nothing is loaded or written before.
    """

    # The base
    pretrained_model_name_or_path: str | None = option("Folder or hub name of the SDXL base.")
    pretrained_vae_model_name_or_path: str | None = option("Another VAE for the base, such as an fp16-safe one.")
    variant: str | None = option("File variant of the base's weights, such as fp16.")
    revision: str | None = option("Revision of the base on the hub.")

    # The data
    train_data_dir: str | None = option("Folder of images; captions in metadata.jsonl, metadata.csv or sidecar .txt.")
    dataset_name: str | None = option("Name (or local path) of a data set that `datasets` loads, instead of a folder.")
    dataset_config_name: str | None = option("Configuration of that data set.")
    image_column: str = option("Column of the images.", "image")
    caption_column: str = option("Column of the captions.", "text")
    default_caption: str | None = option("Caption of images that have none.")
    sources: list[str] | None = option(
        "Several folders or data sets, each `{train_data_dir: ..., ambient_timestep: ..., default_caption: ..., "
        "repeats: ...}`; a list of mappings in YAML. What one leaves out is taken from the fields above."
    )
    max_train_samples: int | None = option("Use only that many images.")
    ambient_timestep: int = option("t_n, the noise level of the data: -1 clean (plain fine-tuning), else 0..T-2.", -1)
    resolution: int | None = option("Side in pixels, or of the mean square with buckets. Default: the base's own.")
    center_crop: bool = option("Crop in the middle instead of at random (once per image).", False)
    random_flip: bool = option("Flip half of the images (once per image).", False)
    aspect_ratio_buckets: bool = option("Keep aspect ratios: a batch holds one of several shapes.", False)
    buckets: list[str] | None = option("The shapes, `WIDTHxHEIGHT` each. Default: SDXL's usual list at the resolution.")
    image_interpolation_mode: str = option("Filter to resize with: lanczos, bicubic, bilinear, box.", "lanczos")
    image_background: str = option("Colour under transparent images.", "white")
    strict: bool = option("Make an unreadable image an error; else it is skipped, counted and named.", False)
    latent_cache_dir: str | None = option(
        "Where `prepare` puts noisy latents and text embeddings. Default: output_dir/cache."
    )
    latent_cache_dtype: str = option("fp16 or fp32.", "fp16")
    prepare_batch_size: int = option("Images that the VAE encodes at once.", 4)
    proportion_empty_prompts: float = option("Share of captions dropped, for classifier-free guidance.", 0.0)
    dataloader_num_workers: int = option("Threads that read images in `prepare`.", 2)

    # Prior preservation
    class_data_dir: str | None = option("Folder of images of the class, kept clean; completed with the base's samples.")
    class_prompt: str | None = option("Prompt of those images.")
    num_class_images: int = option("Images of the class that there should be.", 100)
    prior_loss_weight: float = option("Factor on the loss of images of the class.", 1.0)

    # The optimisation
    output_dir: str = option("Where everything goes.", "ambient-sdxl-lora")
    train_batch_size: int = option("Batch size per process.", 16)
    gradient_accumulation_steps: int = option("Batches per optimiser step.", 1)
    num_train_epochs: int = option("Epochs, unless max_train_steps is given.", 100)
    max_train_steps: int | None = option("Optimiser steps.")
    learning_rate: float = option("Initial learning rate, after warm-up.", 1e-4)
    scale_lr: bool = option("Multiply the learning rate by processes, accumulation and batch size.", False)
    lr_scheduler: str = option(
        "constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial.", "constant"
    )
    lr_warmup_steps: int = option("Steps of warm-up.", 0)
    optimizer: str = option("adamw, adamw8bit, prodigy or schedulefree.", "adamw")
    use_8bit_adam: bool = option("The same as `--optimizer adamw8bit`.", False)
    adam_beta1: float = option("First beta.", 0.9)
    adam_beta2: float = option("Second beta.", 0.999)
    adam_weight_decay: float = option("Decoupled weight decay.", 1e-2)
    adam_epsilon: float = option("Epsilon of Adam.", 1e-8)
    max_grad_norm: float = option("Norm to clip gradients at.", 1.0)
    mixed_precision: str | None = option("no, fp16 or bf16. Default: what `accelerate config` says.")
    gradient_checkpointing: bool = option("Recompute activations in the backward pass to save memory.", False)
    allow_tf32: bool = option("Allow TF32 on Ampere GPUs.", False)
    enable_xformers_memory_efficient_attention: bool = option("Attention by xformers (CUDA).", False)
    torch_compile: bool = option("Compile the UNet with torch.compile.", False)
    base_weights: str | None = option("Keep the UNet's frozen weights in nf4 or int8, by bitsandbytes (CUDA).")
    use_ema: bool = option("Keep an exponential moving average of the LoRA, and export it.", False)
    ema_decay: float = option("Its decay, after a warm-up of (1 + step) / (10 + step).", 0.999)

    # The adapter
    rank: int = option("Rank of the LoRA.", 4)
    lora_alpha: float | None = option("Alpha of the LoRA. Default: the rank.")
    lora_dropout: float = option("Dropout on the LoRA's input.", 0.0)
    use_dora: bool = option("Weight-decomposed LoRA (DoRA).", False)
    use_rslora: bool = option("Rank-stabilised scale: alpha / sqrt(rank) instead of alpha / rank.", False)
    target_modules: list[str] | None = option("Modules of the UNet that get a LoRA. Default: to_q to_k to_v to_out.0.")
    train_text_encoder: bool = option("Also on both text encoders; prompts are then encoded at every step.", False)

    # What is kept and shown
    checkpointing_steps: int = option("Steps between checkpoints.", 500)
    checkpoints_total_limit: int | None = option("Checkpoints to keep; the oldest go after a new one is whole.")
    resume_from_checkpoint: str | None = option("`latest`, or a checkpoint's folder.")
    report_to: str = option(
        "Accelerate tracker(s), comma-separated: tensorboard, wandb, comet_ml, ..., all or none.", "tensorboard"
    )
    logging_dir: str = option("Folder of the tracker's logs, below output_dir.", "logs")
    validation_prompt: str | None = option("Prompt(s) of the validation images, separated by |.")
    num_validation_images: int = option("Images per prompt and sampler.", 4)
    validation_steps: int | None = option("Steps between validations. Default: only at the end.")
    validation_epochs: int | None = option("Epochs between validations, as in diffusers' script.")
    num_validation_samples: int = option("Images held out for a validation loss at fixed noise.", 0)
    num_inference_steps: int = option("Sampler steps of validation images.", 25)
    guidance_scale: float = option("Classifier-free guidance of validation images.", 5.0)
    dry_run: bool = option("Load everything, take one step, print shapes, parameters and memory; write nothing.", False)
    push_to_hub: bool = option("Upload the result to the Hugging Face Hub at the end.", False)
    hub_model_id: str | None = option("Name of the repository there. Default: the name of output_dir.")
    hub_token: str | None = option("Token for it. Default: that of `hf auth login`.")

    def __post_init__(self):
        super().__post_init__()
        self._check()

    @property
    def cache_dir(self) -> Path:
        return Path(self.latent_cache_dir) if self.latent_cache_dir else Path(self.output_dir) / "cache"

    @property
    def validation_prompts(self) -> list[str]:
        return [prompt.strip() for prompt in (self.validation_prompt or "").split("|") if prompt.strip()]

    @property
    def optimizer_name(self) -> str:
        return "adamw8bit" if self.use_8bit_adam else self.optimizer

    @property
    def adapter(self) -> Adapter:
        targets = tuple(self.target_modules) if self.target_modules else None
        return Adapter(self.rank, self.lora_alpha, self.lora_dropout, self.use_dora, self.use_rslora, targets)

    def open_base(self) -> SDXLBase:
        return SDXLBase(
            self.pretrained_model_name_or_path, self.pretrained_vae_model_name_or_path, self.variant, self.revision
        )

    def data_sources(self) -> list[Source]:
        """The folders and data sets to prepare; none where only a finished cache is named."""
        names = [f.name for f in fields(Source)]
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        if self.sources is None:
            sources = [Source(**own)] if self.train_data_dir or self.dataset_name else []
        elif self.train_data_dir or self.dataset_name:
            raise ValueError("sources must name every folder itself: leave out train_data_dir and dataset_name")
        else:
            sources = []
            for entry in self.sources:
                entry = yaml.safe_load(entry) if isinstance(entry, str) else dict(entry)
                for key in entry:
                    if key not in names:
                        raise ValueError(f"sources has an unknown key {key!r}; allowed: {', '.join(names)}")
                sources.append(Source(**(own | entry)))
        return sources

    def transform(self, base: SDXLBase) -> Transform:
        resolution = self.resolution or base.default_resolution
        buckets = None
        if self.buckets:
            # `WIDTHxHEIGHT` here, `(height, width)` there.
            buckets = tuple(tuple(int(side) for side in shape.lower().split("x"))[::-1] for shape in self.buckets)
        elif self.aspect_ratio_buckets:
            from ..data import sdxl_buckets

            buckets = sdxl_buckets(resolution, base.vae_scale_factor)
        return Transform(
            resolution=resolution,
            center_crop=self.center_crop,
            random_flip=self.random_flip,
            buckets=buckets,
            interpolation=self.image_interpolation_mode,
            background=self.image_background,
        )

    def shareable(self) -> dict[str, Any]:
        """Every setting but the token."""
        return {key: value for key, value in asdict(self).items() if key != "hub_token"}

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the weights: not where they go, nor what is shown or resumed."""
        elsewhere = {"output_dir", "latent_cache_dir", "resume_from_checkpoint", "report_to", "logging_dir", "dry_run"}
        return {
            key: value
            for key, value in self.shareable().items()
            if key not in elsewhere and not key.startswith(("hub_", "push_", "validation_", "checkpoint"))
        }

    def fingerprint(self) -> str:
        """A hash of `deciding`."""
        return sha256(json.dumps(self.deciding(), sort_keys=True, default=str).encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes `config.yaml`, which `--config` takes; a token is left out."""
        (folder / "config.yaml").write_text(yaml.safe_dump(self.shareable(), sort_keys=False))

    def _check(self) -> None:
        allowed = {
            "latent_cache_dtype": ("fp16", "fp32"),
            "mixed_precision": (None, "no", "fp16", "bf16"),
            "image_interpolation_mode": ("lanczos", "bicubic", "bilinear", "box"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        at_least = dict.fromkeys(
            ("train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "rank", "checkpointing_steps",
             "num_validation_images", "num_inference_steps", "prepare_batch_size", "dataloader_num_workers",
             "max_train_steps", "max_train_samples", "resolution", "checkpoints_total_limit", "validation_steps",
             "validation_epochs", "num_class_images"), 1,
        ) | {"ambient_timestep": -1, "num_validation_samples": 0, "prior_loss_weight": 0.0, "lr_warmup_steps": 0, "learning_rate": 0.0, "max_grad_norm": 0.0}  # fmt: skip
        for name, lowest in at_least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if (self.class_data_dir is None) != (self.class_prompt is None):
            raise ValueError(
                f"class_data_dir and class_prompt must be given together, got {self.class_data_dir!r} and "
                f"{self.class_prompt!r}"
            )
        if not 0 <= self.proportion_empty_prompts <= 1:
            raise ValueError(f"proportion_empty_prompts must lie in 0..1, got {self.proportion_empty_prompts}")


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """The config of a command line: `--config FILE.yaml`, then flags, which win."""
    return parse_dataclass(TrainingConfig, arguments)
