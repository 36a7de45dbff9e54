"""The training loop, from a config to a LoRA that stock diffusers loads."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import ProjectConfiguration, gather_object
from diffusers.optimization import get_scheduler
from diffusers.training_utils import free_memory
from torch import Tensor, nn
from tqdm.auto import tqdm

from .. import __version__, randomness
from ..data import BatchSampler, LatentCache, PrepareReport, prepare
from ..data.photographs import unpack
from ..hub import PushConfig, push
from ..models.base_weights import quantization
from ..models.lora import WEIGHTS_NAME, add_lora, load_lora_state_dict, lora_parameters, lora_state_dict, save_lora
from ..objectives import AmbientObjective
from ..processes import processes
from .checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from .checks import check_run
from .conditioning import CachedConditioning, Conditioning, TrainedConditioning
from .config import TrainingConfig
from .ema import ExponentialMovingAverage
from .held_out import held_out_loss, held_out_rows
from .interrupt import Interrupt
from .memory import describe_parameters, peak_memory_gb
from .metrics import Metrics
from .optimizer import build_optimizer
from .prior import class_source
from .trackers import start_trackers
from .validation import Validation

logger = get_logger(__name__)

WEIGHT_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class AmbientTrainer:
    """Fine-tunes an SDXL base with LoRA on latents that were noised once.

    Only noisy latents, text embeddings and the UNet are in memory while training: neither images, nor VAE, nor (unless
    they are trained) text encoders. Every random draw belongs to `(seed, purpose, micro-batch, sample)`, so a run that
    is stopped and resumed gives the same weights bit for bit.

    Args:
        config: What to do.

    Raises:
        ValueError: for settings that cannot run, before a model is loaded or a file written.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.base = config.open_base()
        self.schedule = self.base.schedule
        self.transform = config.transform(self.base)
        self.sources = config.data_sources()
        check_run(config, self.base, self.sources, self.transform)
        self.output_dir, self.cache_dir = Path(config.output_dir), config.cache_dir
        self.resume_from = None
        if config.resume_from_checkpoint:
            self.resume_from = find_checkpoint(self.output_dir, config.resume_from_checkpoint)
        self.objective = AmbientObjective(self.schedule, config, prediction_type=self.base.prediction_type)
        processes()  # first: Accelerator alone would have them wait ten minutes for one that prepares the data
        self.accelerator = Accelerator(
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to.split(","),
            project_config=ProjectConfiguration(config.output_dir, str(self.output_dir / config.logging_dir)),
        )
        if config.resume_from_checkpoint and self.resume_from is None:
            logger.warning("no checkpoint in %r yet: starting anew", config.output_dir)

    def train(self) -> Path:
        """Prepares what is missing, trains, and saves.

        Returns:
            The LoRA's file, `output_dir/pytorch_lora_weights.safetensors`.
        """
        accelerator, config = self.accelerator, self.config
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            config.save(self.output_dir)
        logger.info("%s", self.prepare_data() or f"{self.cache_dir}: {len(self.cache)} images")
        self.build_model()
        start_trackers(accelerator, config)
        metrics = Metrics(self.output_dir / "metrics.jsonl", self.step, writes=accelerator.is_main_process)
        validation = Validation(
            self.base, config, self.cache, accelerator.unwrap_model(self.models["unet"]), accelerator
        )
        interrupt = Interrupt()
        bar = tqdm(
            total=self.max_train_steps, initial=self.step, desc="train", unit="step",
            disable=not accelerator.is_local_main_process,
        )  # fmt: skip
        while self.step < self.max_train_steps:
            started = time.perf_counter()
            row = self.optimizer_step()
            row["lr"], row["seconds"] = self.scheduler.get_last_lr()[0], time.perf_counter() - started
            bar.update()
            bar.set_postfix(loss=f"{row['loss']:.4f}", lr=f"{row['lr']:.1e}")
            if self.validates_at(self.step):
                if self.held_out:
                    row["validation_loss"] = self.validation_loss()
                with self.inference_weights():
                    validation.run(self.step)
            accelerator.log(row, step=self.step)
            metrics.append({"step": self.step} | row)
            if self.step % config.checkpointing_steps == 0 or self.step == self.max_train_steps or interrupt.received:
                self.save_checkpoint()
            if interrupt.received:
                bar.close()
                accelerator.end_training()
                raise SystemExit(interrupt.exit_code)
        bar.close()
        with self.inference_weights():
            if accelerator.is_main_process:
                save_lora(self.output_dir, self.unwrapped_models(), self.provenance())
                metrics.plot(self.output_dir / "loss.png")
            validation.finish(self.step)
        if config.push_to_hub and accelerator.is_main_process:
            logger.info("pushed to %s", push(PushConfig(config.output_dir, config.hub_model_id), config.hub_token))
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return self.output_dir / WEIGHTS_NAME

    def optimizer_step(self) -> dict[str, float]:
        """One step: `gradient_accumulation_steps` batches, one update of the adapter."""
        accelerator, accumulation, losses = self.accelerator, self.config.gradient_accumulation_steps, []
        for accumulated in range(accumulation):
            micro = (self.step * accumulation + accumulated) * accelerator.num_processes + accelerator.process_index
            with accelerator.accumulate(*self.models.values()):
                losses.append(self.training_step(micro))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if not accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        self.step += 1
        self.average.update(self.step)
        means = {key: torch.stack([loss[key] for loss in losses]).nanmean() for key in losses[0]}
        means = {key: accelerator.gather(value).nanmean().item() for key, value in means.items()}
        # A term that acted on no row is NaN: it is left out of the log.
        return {key: value for key, value in means.items() if math.isfinite(value) or key == "loss"}

    def training_step(self, micro: int) -> dict[str, Tensor]:
        """The paper's algorithm on micro-batch number `micro`: noise the noisy data further, predict, descend."""
        # Nothing here draws from the global generator but a LoRA's dropout; this ties it to the batch as well.
        torch.manual_seed(randomness.stream(self.config.seed, "dropout", micro).initial_seed())
        batch = self.cache.batch(self.sampler[micro])
        conditioning = self.condition(batch, micro)

        def denoiser(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            return self.predict(self.models["unet"], x_t, t, conditioning, rows)

        def teacher(x_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
            with self.average.applied():
                return self.predict(self.accelerator.unwrap_model(self.models["unet"]), x_t, t, conditioning, rows)

        out = self.objective(
            denoiser, batch["latents"].to(self.accelerator.device), batch["t_n"], index=batch["index"], step=self.step,
            max_steps=self.max_train_steps, teacher=teacher, draw=micro, sample_weight=batch["loss_weight"],
        )  # fmt: skip
        self.accelerator.backward(out.loss)
        return {"loss": out.loss.detach()} | out.means()

    @staticmethod
    def predict(unet: nn.Module, x_t: Tensor, t: Tensor, conditioning: Conditioning, rows: Tensor) -> Tensor:
        """The UNet's output for states x_t `(M, C, h, w)` at t `(M,)` that belong to rows `(M,)` of the batch."""
        embeds, pooled, time_ids = (part[rows] for part in conditioning)
        added = {"text_embeds": pooled, "time_ids": time_ids}
        return unet(x_t, t, embeds, added_cond_kwargs=added, return_dict=False)[0]

    def prepare_data(self) -> PrepareReport | None:
        """Encodes and noises what the cache lacks; afterwards VAE and text encoders are gone.

        Returns:
            The report, in the main process and where there are sources.
        """
        config, report = self.config, None
        extra = [class_source(config, self.base)] if config.class_data_dir else []
        with self.accelerator.main_process_first():
            if self.sources and self.accelerator.is_main_process:
                sources = [unpack(source, self.cache_dir.parent) for source in self.sources] + extra
                report = prepare(
                    sources, self.cache_dir, self.base, self.transform, seed=config.seed,
                    dtype=config.latent_cache_dtype, device=self.accelerator.device, batch_size=config.prepare_batch_size,
                    max_train_samples=config.max_train_samples, strict=config.strict,
                    extra_prompts=config.validation_prompts, num_workers=config.dataloader_num_workers,
                )  # fmt: skip
                free_memory()
        self.cache = LatentCache(self.cache_dir)
        self.cache.check(self.base)
        held_out = config.num_validation_samples
        self.held_out = held_out_rows(self.cache, held_out, config.seed) if held_out else []
        self.sampler = BatchSampler(self.cache, config.train_batch_size, config.seed, exclude=self.held_out)
        return report

    def build_model(self) -> None:
        """Models with their adapters, optimiser, average, and what a checkpoint holds of them."""
        config, accelerator = self.config, self.accelerator
        torch.backends.cuda.matmul.allow_tf32 = config.allow_tf32
        dtype, device = WEIGHT_DTYPES[accelerator.mixed_precision], accelerator.device
        unet = self.base.unet(dtype, **quantization(config.base_weights, dtype))
        self.models = {"unet": unet if config.base_weights else unet.to(device)}
        conditioning = (self.cache, config.proportion_empty_prompts, config.seed, device, dtype)
        if config.train_text_encoder:
            self.condition = TrainedConditioning(*conditioning, encoder=self.base.prompt_encoder(dtype, device))
            self.models |= self.condition.models
        else:
            self.condition = CachedConditioning(*conditioning)
        for part, model in self.models.items():
            add_lora(model, config.adapter, part, config.seed)
            if config.gradient_checkpointing:
                enable = getattr(model, "enable_gradient_checkpointing", None) or model.gradient_checkpointing_enable
                enable()
        if config.enable_xformers_memory_efficient_attention:
            unet.enable_xformers_memory_efficient_attention()
        if config.torch_compile:
            unet.compile()
        self.parameters = {
            f"{part}.{name}": parameter
            for part, model in self.models.items()
            for name, parameter in lora_parameters(model).items()
        }
        per_step = config.gradient_accumulation_steps * accelerator.num_processes
        self.steps_per_epoch = -(-self.sampler.batches_per_epoch // per_step)
        self.max_train_steps = config.max_train_steps or config.num_train_epochs * self.steps_per_epoch
        scale = per_step * config.train_batch_size if config.scale_lr else 1
        optimizer = build_optimizer(config.optimizer_name, list(self.parameters.values()), config, scale)
        # Not prepared: Accelerate would step it once for each process.
        self.scheduler = get_scheduler(
            config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=self.max_train_steps
        )  # fmt: skip
        self.average = ExponentialMovingAverage(self.parameters, config.ema_decay)
        *models, self.optimizer = accelerator.prepare(*self.models.values(), optimizer)
        self.models = dict(zip(self.models, models, strict=True))
        if config.train_text_encoder:
            self.condition.use(self.models)
        for model in self.models.values():
            model.train()
        if config.optimizer_name == "schedulefree":
            self.optimizer.train()
        self.step = 0
        if self.resume_from:
            self.load_checkpoint(self.resume_from)

    def unwrapped_models(self) -> dict[str, nn.Module]:
        return {part: self.accelerator.unwrap_model(model) for part, model in self.models.items()}

    def save_checkpoint(self) -> None:
        """Everything that the next step depends on; the random draws depend on the step alone."""
        # Which samples a process sees is its own, and so is what the objective keeps of them.
        objectives = gather_object([self.objective.state_dict()])
        if self.accelerator.is_main_process:
            state = {
                "lora": {part: lora_state_dict(model) for part, model in self.unwrapped_models().items()},
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
                "objective": objectives,
                "progress": {"step": self.step, "settings": self.config.deciding()} | self.provenance(),
            }
            save_checkpoint(self.output_dir, self.step, state, self.config.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    def load_checkpoint(self, folder: Path) -> None:
        state = load_checkpoint(folder, self.accelerator.device)
        self.step = state["progress"]["step"]
        for part, model in self.unwrapped_models().items():
            load_lora_state_dict(model, state["lora"].get(part, {}))
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # With another number of processes a sample may now be seen by another one: each starts from what one had kept.
        kept = state["objective"]
        self.objective.load_state_dict(kept[self.accelerator.process_index % len(kept)])
        before, now = state["progress"]["settings"], json.loads(json.dumps(self.config.deciding()))
        changed = [f"{name} {before.get(name)!r} -> {now[name]!r}" for name in now if before.get(name) != now[name]]
        if changed:
            logger.warning("%s was made with other settings: %s", folder, ", ".join(changed))
        logger.info("resumed from %s at step %d", folder, self.step)

    def validates_at(self, step: int) -> bool:
        """Images and loss of held-out samples are due; at the end in any case."""
        every = self.config.validation_steps
        if every is None and self.config.validation_epochs:
            every = self.config.validation_epochs * self.steps_per_epoch
        return (every is not None and step % every == 0) or step == self.max_train_steps

    def validation_loss(self) -> float:
        """The loss of the samples held out, at noise that never changes; every process computes the same."""
        unet = self.accelerator.unwrap_model(self.models["unet"])

        def denoiser_of(batch: dict[str, Tensor]):
            conditioning = self.condition(batch, micro=None)
            rows = torch.arange(len(batch["index"]), device=self.accelerator.device)
            return lambda x_t, t: self.predict(unet, x_t, t, conditioning, rows)

        with self.inference_weights():
            unet.eval()
            loss = held_out_loss(
                denoiser_of, self.cache, self.held_out, self.schedule, self.base.prediction_type, self.config.seed,
                self.accelerator.device,
            )  # fmt: skip
            unet.train()
        return loss

    def dry_run(self) -> str:
        """Loads everything and takes one step on the first images, in a folder that is deleted afterwards.

        Returns:
            Shapes, parameter counts and the step's peak memory, a line each.
        """
        per_step = self.config.train_batch_size * self.config.gradient_accumulation_steps
        with tempfile.TemporaryDirectory() as folder:
            if self.sources:
                self.cache_dir, limit = Path(folder) / "cache", min(per_step, self.config.max_train_samples or per_step)
                self.config = replace(self.config, max_train_samples=limit, num_validation_samples=0)
            self.prepare_data()
            self.build_model()
            batch, seconds = self.cache.batch(self.sampler[0]), time.perf_counter()
            loss = self.optimizer_step()["loss"]
            seconds = time.perf_counter() - seconds
        shapes = "\n".join(f"{name}: {tuple(value.shape)}" for name, value in batch.items())
        return (
            f"{shapes}\n{describe_parameters(self.unwrapped_models())}\n"
            f"one step: loss {loss:.4f}, {seconds:.2f} s, peak memory {peak_memory_gb(self.accelerator.device):.2f} GB"
        )

    @contextmanager
    def inference_weights(self) -> Iterator[None]:
        """Within, the adapters hold the weights that are sampled from and exported."""
        if self.config.use_ema:
            with self.average.applied():
                yield
        elif self.config.optimizer_name == "schedulefree":  # trains at one point and evaluates at another
            self.optimizer.eval()
            yield
            self.optimizer.train()
        else:
            yield

    def provenance(self) -> dict:
        """What made these weights; goes into the LoRA's metadata."""
        return {
            "version": __version__,
            "base": self.base.name,
            "ambient_timestep": sorted(set(self.cache.t_n.tolist())),
            "low_noise_objective": self.config.low_noise_objective,
            "rank": self.config.rank,
            "alpha": self.config.lora_alpha or self.config.rank,
            "config_hash": self.config.fingerprint(),
        }
