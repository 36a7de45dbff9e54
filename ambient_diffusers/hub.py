"""A finished run to the Hugging Face Hub: the LoRA, its card, its picture and its config, and nothing else of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from .finetuned import FineTuned, FineTunedOptions, lora_file
from .model_card import model_card
from .models.lora import WEIGHTS_NAME
from .parsing import option

PUBLISHED = (WEIGHTS_NAME, "README.md", "samples.png", "config.yaml")
"""Never the cache, nor checkpoints, nor logs: latents of the training images stay where they are."""


@dataclass(frozen=True)
class PushConfig:
    """The options of `ambient-diffusers push`; see their `help`.

    Raises:
        ValueError: for a folder without a LoRA, and for a name that the hub would refuse.
    """

    output_dir: str | None = option("A training's output_dir.")
    hub_model_id: str | None = option("Repository, `name` or `owner/name`. Default: the folder's name.")
    hub_private: bool = option("Create the repository as a private one.", False)
    commit_message: str = option("Message of the commit.", "Upload LoRA trained with ambient_diffusers")

    def __post_init__(self):
        if self.output_dir is None:
            raise ValueError("output_dir must be given")
        lora_file(self.output_dir)
        validate_repo_id(self.repo_id)

    @property
    def repo_id(self) -> str:
        return self.hub_model_id or Path(self.output_dir).resolve().name


def push(config: PushConfig, token: str | None = None) -> str:
    """Uploads the files of `PUBLISHED`. A README.md that is there already, edited perhaps, is kept.

    Args:
        token: Default: that of `hf auth login` or of the environment variable HF_TOKEN.

    Returns:
        The repository's address.

    Raises:
        ValueError: where the base that the LoRA names cannot be opened, or the hub refuses.
    """
    folder, api = Path(config.output_dir), HfApi(token=token)
    kept = (folder / "README.md").is_file()
    model = None if kept else FineTuned(FineTunedOptions(lora=config.output_dir))  # may refuse: before the network
    try:
        repo = api.create_repo(config.repo_id, private=config.hub_private, exist_ok=True)
        if not kept:
            write_card(folder, model, repo.repo_id)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            allow_patterns=list(PUBLISHED),
            commit_message=config.commit_message,
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ValueError(f"the hub refuses {config.repo_id!r}; are you logged in (`hf auth login`)? {error}") from error
    return str(repo)


def write_card(folder: Path, model: FineTuned, repo_id: str) -> None:
    """Writes `README.md` for a training's output_dir, with the prompts of its config and its picture."""
    file = folder / "config.yaml"
    settings = yaml.safe_load(file.read_text()) if file.is_file() else {}
    prompts = [prompt.strip() for prompt in (settings.get("validation_prompt") or "").split("|") if prompt.strip()]
    picture = "samples.png" if (folder / "samples.png").is_file() else None
    model_card(model, repo_id, prompts=prompts, picture=picture).save(folder / "README.md")
