"""One process and two give the same files and figures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[4])
from ambient_diffusers.evaluation import features
from conftest import Pixels
features.FEATURES["pixels"] = Pixels
from ambient_diffusers.evaluation.attack_noise import attack_noise
from ambient_diffusers.evaluation.denoiser import Denoiser
from ambient_diffusers.evaluation.generate import generate
from ambient_diffusers.evaluation.membership import membership
from ambient_diffusers.evaluation.memorisation import memorisation
from ambient_diffusers.evaluation.quality import quality
from ambient_diffusers.processes import processes
print(f"process {processes().process_index} of {processes().num_processes}", flush=True)
base, data, out = map(Path, sys.argv[1:4])
generated = generate(base, out / "generated", captions_of=data / "train", num_inference_steps=2, height=32, width=32)
quality(out / "generated" / "images", data / "train", out / "quality", features="pixels", resamples=20)
memorisation(
    out / "generated" / "images", data / "train", out / "memorisation", held_out=data / "held-out", features="pixels",
    permutations=50,
)
options = {"size": (32, 32), "batch_size": 3}
model = Denoiser(base)
membership(model, data / "train", data / "held-out", out / "membership", timesteps=(500,), draws=1, **options)
attack_noise(
    model, data / "train", out / "attack", held_out=data / "held-out", features="pixels", attempts=2, steps=2,
    permutations=50, **options,
)
"""


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tiny_base_path, pictures, tmp_path):
    pictures("train", range(10), side=32)
    pictures("held-out", range(20, 28), side=32)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        arguments = [str(tiny_base_path), str(tmp_path), str(tmp_path / f"out-{processes}"), str(here)]
        run = subprocess.run(
            [*command, str(script), *arguments],
            check=True,
            cwd=here.parents[1],
            timeout=900,
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        )
        for number in range(processes):
            assert f"process {number} of {processes}" in run.stdout
    one, two = (tmp_path / f"out-{processes}" for processes in (1, 2))

    def files(folder):
        # Features are named by the stamps of their images.
        return sorted(f.relative_to(folder) for f in folder.rglob("*") if f.suffix in (".json", ".jsonl", ".png"))

    assert len([f for f in files(one) if f.suffix == ".json"]) > 8
    assert files(one) == files(two)
    for file in files(one):
        if file.suffix == ".json":
            # Folders are named in results, and they differ here.
            assert (one / file).read_text() == (two / file).read_text().replace("out-2", "out-1"), file
        if file.suffix == ".png":
            assert (np.asarray(Image.open(one / file)) == np.asarray(Image.open(two / file))).all(), file
