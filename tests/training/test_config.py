"""YAML and flags, and one clear error for what cannot run, before a model loads or a file is written."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from ambient_diffusers.training import AmbientTrainer, TrainingConfig, parse_config


def test_flags_win_over_yaml_and_numbers_may_be_written_as_1e_4(tmp_path):
    (tmp_path / "c.yaml").write_text("rank: 8\nlearning_rate: 1e-4\nrandom_flip: true\nseed: 5\n")
    config = parse_config(["--config", str(tmp_path / "c.yaml"), "--rank", "16", "--max_train_steps=7"])
    assert (config.rank, config.learning_rate, config.random_flip, config.seed) == (16, 1e-4, True, 5)
    assert config.max_train_steps == 7


def test_what_a_run_saves_is_what_config_reads(tmp_path, make_config):
    config = make_config(sources=[{"train_data_dir": "a", "ambient_timestep": 5, "repeats": 2}], use_ema=True)
    config.save(tmp_path)
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_an_unknown_key_or_flag_names_the_nearest(tmp_path):
    (tmp_path / "c.yaml").write_text("learning_rte: 1e-4\n")
    with pytest.raises(ValueError, match=r"'learning_rte'.*'learning_rate'"):
        parse_config(["--config", str(tmp_path / "c.yaml")])
    with pytest.raises(ValueError, match=r"--ambient_timestp.*'ambient_timestep'"):
        parse_config(["--ambient_timestp", "5"])


def test_every_field_is_a_key_with_help():
    assert all(field.metadata.get("help") for field in fields(TrainingConfig))


def test_sources_take_what_they_leave_out_from_the_config(make_config, tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    one.mkdir(), other.mkdir()
    config = make_config(
        train_data_dir=None, default_caption="face",
        sources=[f"{{train_data_dir: {one}, ambient_timestep: 100}}", {"train_data_dir": str(other), "repeats": 3}],
    )  # fmt: skip
    a, b = config.data_sources()
    assert (a.train_data_dir, a.ambient_timestep, a.default_caption, a.repeats) == (str(one), 100, "face", 1)
    assert (b.train_data_dir, b.ambient_timestep, b.repeats) == (str(other), 300, 3)


BAD = {
    "rank": (0, "rank"),
    "train_batch_size": (0, "train_batch_size"),
    "ambient_timestep": (-2, "ambient_timestep"),
    "mixed_precision": ("fp8", "mixed_precision"),
    "low_noise_objective": ("both", "low_noise_objective"),
    "optimizer": ("sgdx", "optimizer"),
    "report_to": ("tensorbord", "report_to"),
    "pretrained_model_name_or_path": ("no/such/base", "pretrained_model_name_or_path"),
    "resume_from_checkpoint": ("checkpoint-9", "resume_from_checkpoint"),
    "lr_scheduler": ("cosin", "lr_scheduler"),
    "resolution": (65, "resolution"),
    "train_data_dir": ("no/such/folder", "train_data_dir"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_that_names_the_argument_and_writes_nothing(make_config, tmp_path, name):
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        AmbientTrainer(make_config(**{name: value}))
    assert not (tmp_path / "run").exists()


def test_an_ambient_timestep_beyond_the_schedule_names_the_range(make_config):
    for t_n in (1000, 999):
        with pytest.raises(ValueError, match=rf"ambient_timestep.*-1..998.*{t_n}"):
            AmbientTrainer(make_config(ambient_timestep=t_n))


def test_nothing_to_train_on_is_an_error(make_config, tmp_path):
    with pytest.raises(ValueError, match="train_data_dir"):
        AmbientTrainer(make_config(train_data_dir=None, latent_cache_dir=str(tmp_path / "nothing")))


def test_the_shipped_examples_parse():
    root = Path(__file__).parents[2]
    for file in sorted((root / "examples").glob("*.yaml")):
        config = parse_config(["--config", str(file)])
        assert set(yaml.safe_load(file.read_text())) <= {f.name for f in fields(config)}


def test_the_readmes_command_for_real_sdxl_has_only_flags_that_exist():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.replace("\\\n", " ")  # a line that goes on
    command = re.search(r"train_ambient_sdxl.py\s+(--pretrained_model_name_or_path stabilityai.*)", text)
    config = parse_config(shlex.split(command.group(1)))
    assert config.ambient_timestep == 500 and config.gradient_checkpointing and config.resolution == 1024
