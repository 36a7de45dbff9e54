"""`ambient-diffusers <verb>`."""

import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from ambient_diffusers import cli
from ambient_diffusers.data import LatentCache


def test_help_lists_the_verbs_without_importing_torch():
    check = (
        "import sys; from ambient_diffusers.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules); sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in ("prepare", "sample", "export", "push"))


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([verb, "--help"])
    assert exit.value.code == 0 and "--output_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["smaple"], "error: unknown verb 'smaple'; did you mean 'sample'?"),
        (["zzz"], "error: unknown verb 'zzz'; allowed: prepare, sample, export, push"),
        (["sample", "--num_image", "3"], "error: unknown argument '--num_image'; did you mean 'num_images'?"),
        (["export", "--lora", "nowhere", "--output_dir", "out"], "error: lora must be "),
        (["export", "--config", "none.yaml"], "error: config must be a YAML file"),
        (["push", "--output_dir", "nowhere"], "error: lora must be "),
        (["prepare", "--output_dir", "out"], "error: one of train_data_dir, dataset_name or sources must be given"),
    ],
)
def test_a_refusal_is_one_line_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr().err
    assert captured.startswith(message) and captured.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_sample_takes_a_yaml_and_flags_win(lora_dir, tmp_path, capsys):
    settings = {
        "lora": str(lora_dir),
        "prompt": ["a cat", "a dog"],
        "height": 32,
        "width": 32,
        "num_inference_steps": 9,
    }
    (tmp_path / "sample.yaml").write_text(yaml.safe_dump(settings))
    arguments = ["sample", "--config", str(tmp_path / "sample.yaml"), "--num_inference_steps", "1"]
    assert cli.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    resolved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert resolved["num_inference_steps"] == 1 and resolved["height"] == 32
    assert str(tmp_path / "out" / "grid.png") in capsys.readouterr().out


def test_export_takes_base_as_a_short_name(lora_dir, tiny_base_path, tmp_path, capsys):
    arguments = ["export", "--base", str(tiny_base_path), "--lora", str(lora_dir), "--fuse", "--sampler", "full"]
    assert cli.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_prepare_makes_the_cache_that_the_trainer_reads(tiny_base_path, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.fromarray(np.full((64, 64, 3), 60 * i, dtype=np.uint8)).save(images / f"{i}.png")
    arguments = [
        "prepare", "--pretrained_model_name_or_path", str(tiny_base_path), "--train_data_dir", str(images),
        "--default_caption", "grey", "--ambient_timestep", "500", "--output_dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    assert "3 images (3 at t_n = 500)" in capsys.readouterr().out
    cache = LatentCache(tmp_path / "run" / "cache")
    assert len(cache) == 3 and set(cache.t_n.tolist()) == {500}
    assert yaml.safe_load((tmp_path / "run" / "cache" / "config.yaml").read_text())["ambient_timestep"] == 500
