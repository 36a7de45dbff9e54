"""A set of samples depends on its settings and on nothing else."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ambient_diffusers import sampling
from ambient_diffusers.finetuned import FineTuned
from ambient_diffusers.models.sdxl import SDXLBase
from ambient_diffusers.processes import processes
from ambient_diffusers.randomness import stream
from ambient_diffusers.sampling import SampleConfig, overview, read_prompts, sample

PROMPTS = ["a red circle", "a blue square"]


@pytest.fixture
def make_config(lora_dir, tmp_path):
    def make(**changes) -> SampleConfig:
        settings = {
            "lora": str(lora_dir),
            "prompt": PROMPTS,
            "num_images": 5,
            "output_dir": str(tmp_path / "samples"),
            "num_inference_steps": 2,
            "height": 32,
            "width": 32,
            "batch_size": 2,
            "seed": 7,
        }
        return SampleConfig(**(settings | changes))

    return make


@pytest.fixture
def no_model(monkeypatch):
    def pipeline(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(SDXLBase, "pipeline", pipeline)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "images").iterdir())}


def test_image_i_is_the_pipelines_for_prompt_and_stream_i(make_config):
    config = make_config()
    folder = sample(config)
    assert len(contents(folder)) == 5
    pipeline = FineTuned(config).pipeline(add_watermarker=False)
    for i in (0, 3):
        expected = pipeline(
            PROMPTS[i % 2],
            height=32,
            width=32,
            num_inference_steps=2,
            guidance_scale=5.0,
            generator=stream(7, "sample", i),
        ).images[0]
        difference = np.abs(np.asarray(Image.open(folder / f"images/{i:06d}.png"), int) - np.asarray(expected, int))
        assert difference.max() <= 1


def test_two_processes_draw_the_same_files(make_config, tmp_path, monkeypatch):
    alone = contents(sample(make_config()))
    state = processes()
    shares = []
    monkeypatch.setitem(state.__dict__, "num_processes", 2)
    for process in (1, 0):
        monkeypatch.setitem(state.__dict__, "process_index", process)
        folder = sample_without_overview(make_config(output_dir=str(tmp_path / "shards")), monkeypatch)
        shares.append(len(contents(folder)))
    assert shares[0] == 2  # of the batches 01, 23, 4 the second
    assert contents(folder) == alone


def sample_without_overview(config, monkeypatch):
    """The processes run one after the other here, so the first finds no files of the second."""
    monkeypatch.setattr(sampling, "overview", lambda files, prompts: Image.new("RGB", (1, 1)))
    return sample(config)


@pytest.mark.slow
def test_two_launched_processes_draw_the_same_files(make_config, tmp_path):
    alone = contents(sample(make_config()))
    (tmp_path / "sample.yaml").write_text(yaml.safe_dump(asdict(make_config(output_dir=str(tmp_path / "two")))))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "ambient_diffusers.cli"]
    command += ["sample", "--config", str(tmp_path / "sample.yaml")]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        command, env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": root}, check=True, capture_output=True
    )
    assert done.stdout.decode().count("overview:") == 1
    assert contents(tmp_path / "two") == alone


def test_a_stopped_run_goes_on(make_config):
    folder = sample(make_config())
    before = contents(folder)
    (folder / "images" / "000002.png").unlink()
    kept = (folder / "images" / "000003.png").stat().st_mtime_ns
    sample(make_config())
    assert contents(folder) == before
    assert (folder / "images" / "000003.png").stat().st_mtime_ns == kept


def test_a_whole_set_loads_no_model_and_a_longer_one_keeps_its_start(make_config, monkeypatch):
    folder = sample(make_config(num_images=3))
    before = contents(folder)
    longer = contents(sample(make_config(num_images=4)))
    assert len(longer) == 4 and before.items() <= longer.items()
    monkeypatch.setattr(SDXLBase, "pipeline", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    sample(make_config(num_images=4))


def test_settings_guard_the_folder(make_config, no_model, tmp_path):
    folder = tmp_path / "samples"
    with pytest.raises(AssertionError, match="a model was loaded"):
        sample(make_config())  # stopped at once
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["seed"] == 7 and settings["made_with"]["ambient_timestep"] == 500
    for change in ({"seed": 8}, {"sampler": "full"}, {"prompt": ["a red circle"]}, {"guidance_scale": 1.0}):
        with pytest.raises(ValueError, match=f"other settings .*{next(iter(change))}"):
            sample(make_config(**change))
    assert json.loads((folder / "settings.json").read_text()) == settings


def test_the_resolved_config_makes_the_set_again(make_config, tmp_path):
    folder = sample(make_config(num_images=1, height=None))
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert (resolved["sampler"], resolved["ambient_timestep"], resolved["height"]) == ("truncated", 500, 64)
    again = sample(SampleConfig(**(resolved | {"output_dir": str(tmp_path / "again")})))
    assert contents(again) == contents(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_images": 0}, "num_images must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of .*'fp8'"),
        ({"prompt": None}, "prompt or prompts"),
        ({"prompts": "prompts.txt"}, "prompt or prompts"),
        ({"output_dir": None}, "output_dir"),
        ({"sampler": "half"}, "sampler must be one of .*'half'"),
        ({"height": 60}, "height must be a multiple of 8, got 60"),
        ({"ambient_timestep": 1000}, "ambient_timestep.*1000"),
        ({"lora": "nowhere"}, "lora must be .*'nowhere'"),
        ({"lora": None}, "pretrained_model_name_or_path must be given"),
        ({"pretrained_model_name_or_path": "nowhere"}, "pretrained_model_name_or_path must be .*'nowhere'"),
        ({"num_inference_steps": 600}, "num_inference_steps must be in 1..500"),
        ({"ambient_timestep": 900, "num_inference_steps": 2}, "num_inference_steps must be larger"),
    ],
)
def test_bad_options_are_refused_before_a_model_loads(make_config, no_model, tmp_path, monkeypatch, change, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        sample(make_config(**change))
    assert not (tmp_path / "samples").exists()


def test_the_base_alone_has_no_truncated_sampler(make_config, no_model, tiny_base_path):
    base = {"lora": None, "pretrained_model_name_or_path": str(tiny_base_path)}
    assert FineTuned(make_config(**base)).sampler == "full"
    with pytest.raises(ValueError, match="ambient_timestep must be given for the truncated sampler"):
        FineTuned(make_config(**base, sampler="truncated"))


def test_prompts_of_files(tmp_path):
    lines, table = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("a cat\n\n  a dog \n")
    table.write_text('{"text": "a cat", "file_name": "0.png"}\n{"text": ""}\n')
    assert read_prompts(lines) == ["a cat", "a dog"]
    assert read_prompts(table) == ["a cat", ""]
    table.write_text('{"caption": "a cat"}\n')
    lines.write_text("\n")
    for file, message in ((table, "key 'text'"), (lines, "at least one"), (tmp_path / "none.txt", "existing")):
        with pytest.raises(ValueError, match=message):
            read_prompts(file)


def test_overview_rows_are_prompts_or_runs_of_images(tmp_path, monkeypatch):
    files = []
    for i in range(20):
        files.append(tmp_path / f"{i:06d}.png")
        Image.new("L", (8, 8), i).save(files[-1])
    shown = {}
    monkeypatch.setattr(sampling, "image_grid", lambda rows: shown.update(rows))

    def rows(prompts):
        shown.clear()
        overview(files, prompts)
        return {name: [image.getpixel((0, 0)) for image in row] for name, row in shown.items()}

    assert rows(["a", "b", "c"]) == {
        "a": [0, 3, 6, 9, 12, 15, 18],
        "b": [1, 4, 7, 10, 13, 16, 19],
        "c": [2, 5, 8, 11, 14, 17],
    }
    assert list(rows(["a"])) == ["a\n000000 ...", "a\n000008 ...", "a\n000016 ..."]
    assert rows([str(i) for i in range(20)])["000008 ..."] == list(range(8, 16))
