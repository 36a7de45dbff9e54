"""What goes to the hub, and what its card says."""

import shutil
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects

from ambient_diffusers.finetuned import FineTuned, FineTunedOptions
from ambient_diffusers.hub import PushConfig, push
from ambient_diffusers.model_card import model_card
from ambient_diffusers.models.lora import WEIGHTS_NAME


@pytest.fixture
def run_dir(lora_dir, tmp_path):
    """A finished training's folder, with what must stay private."""
    folder = tmp_path / "faces"
    shutil.copytree(lora_dir, folder)
    (folder / "config.yaml").write_text(yaml.safe_dump({"validation_prompt": "a face | a portrait"}))
    for file in ("samples.png", "metrics.jsonl", "cache/index.json", "cache/config.yaml", "checkpoint-5/README.md"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.fixture
def uploads(monkeypatch):
    """Stands in for the hub; a list of (repo_id, files)."""
    uploaded = []

    def create_repo(self, repo_id, private, exist_ok):
        assert exist_ok
        full = repo_id if "/" in repo_id else f"someone/{repo_id}"
        return SimpleNamespace(repo_id=full, private=private)

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        files = [str(file.relative_to(folder_path)) for file in folder_path.rglob("*") if file.is_file()]
        uploaded.append((repo_id, sorted(filter_repo_objects(files, allow_patterns=allow_patterns))))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return uploaded


def test_the_lora_its_card_picture_and_config_go_up_and_nothing_else(run_dir, uploads, tiny_base_path):
    push(PushConfig(output_dir=str(run_dir)))
    assert uploads == [("someone/faces", ["README.md", "config.yaml", WEIGHTS_NAME, "samples.png"])]
    card = ModelCard.load(run_dir / "README.md")
    assert {"diffusers", "stable-diffusion-xl", "lora", "text-to-image", "ambient-diffusion"} <= set(card.data.tags)
    assert card.data.library_name == "diffusers" and card.data.base_model is None  # a folder of this machine
    assert card.data.instance_prompt == "a face"
    assert [entry["text"] for entry in card.data.widget] == ["a face", "a portrait"]
    assert "pipe.load_lora_weights('someone/faces')" in card.text
    assert str(tiny_base_path.parent) not in card.text
    assert "from_config(pipe.scheduler.config, use_exponential_sigmas=True, sigma_min=1.618" in card.text
    assert "t_n = 500 (alpha 0.526, sigma 0.851)" in card.text and "0123456789abcdef" in card.text


def test_an_edited_card_is_kept(run_dir, uploads):
    (run_dir / "README.md").write_text("my own words")
    push(PushConfig(output_dir=str(run_dir), hub_model_id="museum/faces"))
    assert (run_dir / "README.md").read_text() == "my own words"
    assert uploads[0][0] == "museum/faces" and "README.md" in uploads[0][1]


def test_refusals_come_before_the_network_and_the_hubs_own_are_one_line(run_dir, uploads, monkeypatch, tmp_path):
    for change, message in (
        ({"output_dir": str(tmp_path)}, "lora must be"),
        ({"output_dir": None}, "output_dir must be given"),
        ({"hub_model_id": "a/b/c"}, "a/b/c"),
    ):
        with pytest.raises(ValueError, match=message):
            push(PushConfig(**({"output_dir": str(run_dir)} | change)))
    assert not uploads

    def refuse(*args, **kwargs):
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ValueError, match="hf auth login"):
        push(PushConfig(output_dir=str(run_dir)))


@pytest.mark.parametrize(
    "levels, says, says_not",
    [
        ([500], "hold no more about an image than its noisy latent", "clean; none of this holds"),
        ([-1, 500], "Some of the training images were clean; none of this holds for those.", "Nothing:"),
        ([-1], "Nothing: this LoRA was trained on clean images.", "hold no more"),
    ],
)
def test_the_notice_promises_what_the_data_allow(lora_dir, levels, says, says_not):
    model = FineTuned(FineTunedOptions(lora=str(lora_dir)))
    model.provenance["ambient_timestep"] = levels
    text = model_card(model, "faces").text
    assert says in text and says_not not in text


def test_a_base_on_the_hub_is_named_and_linked(lora_dir):
    model = FineTuned(FineTunedOptions(lora=str(lora_dir)))
    model.base.name = "stabilityai/stable-diffusion-xl-base-1.0"
    card = model_card(model, "someone/faces")
    assert card.data.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert "from_pretrained('stabilityai/stable-diffusion-xl-base-1.0'" in card.text
