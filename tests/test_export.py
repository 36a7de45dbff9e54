"""What is exported draws the same image in an environment that has diffusers and not this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from ambient_diffusers.export import ExportConfig, export
from ambient_diffusers.finetuned import FineTuned, FineTunedOptions
from ambient_diffusers.model_card import loading_code
from ambient_diffusers.models.sdxl import SDXLBase

CALL = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 32, "width": 32, "output_type": "np"}

# As in an environment without this package, whatever is installed in that of the tests.
STRANGER = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ambient_diffusers":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np
import torch
from diffusers import DiffusionPipeline

def draw(pipe):
    return pipe("a red circle", generator=torch.Generator().manual_seed(5), **call).images[0]

call = json.loads(sys.argv[1])
images = {}
for name, lines in json.loads(sys.argv[2]).items():
    exec(lines)
    images[name] = draw(pipe)
assert not any(name.startswith("ambient_diffusers") for name in sys.modules)
np.savez("images.npz", **images)
"""


def without_last_line(code: str) -> str:
    """The loading code up to its own call of the pipeline."""
    return code.rsplit("\n", 1)[0]


@pytest.fixture(scope="module")
def exported(lora_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    options = {"lora": str(lora_dir), "dtype": "fp32"}
    export(ExportConfig(**options, output_dir=str(folder / "fused"), fuse=True))
    export(ExportConfig(**options, output_dir=str(folder / "beside")))
    export(ExportConfig(**(options | {"dtype": "fp16"}), output_dir=str(folder / "half"), fuse=True))
    return folder


@pytest.fixture(scope="module")
def strangers_images(exported, lora_dir, tiny_base_path):
    model = FineTuned(FineTunedOptions(lora=str(lora_dir)))
    code = {name: f"pipe = DiffusionPipeline.from_pretrained('{name}')" for name in ("fused", "half")}
    code["unadapted"] = "pipe = DiffusionPipeline.from_pretrained('beside')"
    code["beside"] = (exported / "beside" / "README.md").read_text().split("```python\n")[1].split("\n```")[0]
    code["card"] = loading_code(model, str(lora_dir), "lora").replace("'tiny-sdxl'", repr(str(tiny_base_path)))
    code |= {name: without_last_line(code[name]) for name in ("beside", "card")}
    # -I: neither the folder nor PYTHONPATH is searched for modules.
    command = [sys.executable, "-I", "-c", STRANGER, json.dumps(CALL), json.dumps(code)]
    subprocess.run(command, cwd=exported, check=True, timeout=300)
    return np.load(exported / "images.npz")


@pytest.fixture(scope="module")
def own_image(lora_dir):
    def draw(**options):
        pipeline = FineTuned(FineTunedOptions(lora=str(lora_dir), **options)).pipeline()
        return pipeline("a red circle", generator=torch.Generator().manual_seed(5), **CALL).images[0]

    return draw


@pytest.mark.parametrize("name, tolerance", [("fused", 1e-3), ("beside", 1e-3), ("card", 1e-3), ("half", 2e-2)])
def test_a_stranger_draws_our_image(strangers_images, own_image, name, tolerance):
    assert np.abs(strangers_images[name] - own_image()).max() < tolerance


def test_adapter_and_sampler_both_show(strangers_images, own_image):
    image = own_image()
    assert np.abs(strangers_images["unadapted"] - image).max() > 0.05
    assert np.abs(own_image(sampler="full") - image).max() > 0.05


def test_the_fused_pipeline_is_a_plain_one(exported, tiny_base_path):
    assert not list(exported.rglob("*.bin")) and not (exported / "fused" / "pytorch_lora_weights.safetensors").exists()
    file = "unet/diffusion_pytorch_model.safetensors"
    with safe_open(exported / "fused" / file, "pt") as fused, safe_open(tiny_base_path / file, "pt") as base:
        assert set(fused.keys()) == set(base.keys())
        changed = {key for key in base.keys() if not torch.equal(fused.get_tensor(key), base.get_tensor(key).float())}
        adapted = {
            key for key in base.keys() if key.split(".")[-2] in {"to_q", "to_k", "to_v"} or ".to_out.0.weight" in key
        }
        assert changed == {key for key in adapted if key.endswith("weight")}
    config = json.loads((exported / "fused" / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "EulerDiscreteScheduler" and "ambient_timestep" not in config


def test_full_sampler_is_the_bases_and_dtype_is_the_files(lora_dir, tiny_base_path, tmp_path):
    options = {"lora": str(lora_dir), "sampler": "full", "dtype": "bf16", "fuse": True}
    folder = export(ExportConfig(**options, output_dir=str(tmp_path / "full")))
    exported, base = (
        json.loads((path / "scheduler" / "scheduler_config.json").read_text()) for path in (folder, tiny_base_path)
    )
    assert {key: value for key, value in exported.items() if key in base} == base
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            dtypes = {weights.get_tensor(key).dtype for key in weights.keys()}
            assert torch.bfloat16 in dtypes and torch.float32 not in dtypes


def test_an_interrupted_export_leaves_no_folder_and_the_next_one_succeeds(lora_dir, tmp_path, monkeypatch):
    config = ExportConfig(lora=str(lora_dir), output_dir=str(tmp_path / "out"))
    whole = StableDiffusionXLPipeline.save_pretrained

    def killed(self, folder, **kwargs):
        whole(self, folder, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionXLPipeline, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        export(config)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert (export(config) / "model_index.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output_dir": None}, "output_dir must be given"),
        ({"output_dir": "occupied"}, "output_dir must be a new or an empty folder, got 'occupied'"),
        ({"lora": None}, "lora must be given"),
        ({"lora": "nowhere"}, "lora must be .*'nowhere'"),
        ({"lora": "broken.safetensors"}, "lora must be a safetensors file"),
        ({"dtype": "fp8"}, "dtype must be one of .*'fp8'"),
        ({"ambient_timestep": 1000}, "ambient_timestep.*1000"),
        ({"ambient_timestep": -1, "sampler": "truncated"}, "ambient_timestep.*-1"),
    ],
)
def test_bad_options_are_refused_before_a_model_loads(lora_dir, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SDXLBase, "pipeline", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").touch()
    (tmp_path / "broken.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=message):
        export(ExportConfig(**({"lora": str(lora_dir), "output_dir": "out"} | change)))
    assert not (tmp_path / "out").exists()
