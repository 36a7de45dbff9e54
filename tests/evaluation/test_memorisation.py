import json

import pytest
import torch
from PIL import Image

from ambient_diffusers.evaluation.memorisation import NEIGHBOURS, memorisation

pytestmark = pytest.mark.usefixtures("pixels")


def test_planted_copies_are_named_and_convicted(pictures, tmp_path):
    train, held_out = pictures("train", range(30)), pictures("held-out", range(100, 130))
    generated = pictures("generated", [3, 4, 5, 6, 7, 8, 9, *range(200, 213)], noise=10)
    content = memorisation(generated, train, tmp_path / "out", held_out=held_out, features="pixels", permutations=499)
    shares = {entry["threshold"]: entry for entry in content["shares"]}
    assert shares[0.9]["train"] == 7 / 20 and shares[0.9]["held_out"] == 0 and shares[0.9]["p"] < 0.02
    assert content["similarity"]["train"]["maximum"] > 0.95 > content["similarity"]["held_out"]["maximum"]
    assert content["train"]["images"] == 30 and content["features"]["centred"]
    images = json.loads((tmp_path / "out" / "memorisation_images.json").read_text())
    assert len(images) == 20
    similarities = [entry["train"]["similarity"] for entry in images]
    assert similarities == sorted(similarities, reverse=True)
    for entry in images[:7]:
        assert entry["train"]["caption"] == entry["caption"]  # "picture 3" is nearest to "picture 3"
    assert json.loads((tmp_path / "out" / "memorisation.json").read_text()) == content
    for name in ("memorisation.png", "memorisation_top.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 100


def test_new_pictures_are_acquitted(pictures, tmp_path):
    sets = pictures("train", range(60)), pictures("held-out", range(100, 140))
    generated = pictures("generated", range(200, 230))
    content = memorisation(
        generated,
        sets[0],
        tmp_path / "out",
        held_out=sets[1],
        features="pixels",
        thresholds=(0.3, 0.9),
        permutations=499,
    )
    assert content["shares"][0]["train"] > 0.5  # alike by chance, as are the held-out ones
    assert all(entry["p"] > 0.05 for entry in content["shares"])


def test_the_neighbours_are_those_of_brute_force(pictures, tmp_path, pixels):
    """Through files and blocks, with more training images than the test keeps neighbours."""
    train = pictures("train", range(NEIGHBOURS + 100), captions=False)
    generated = pictures("generated", range(500, 506), captions=False)
    memorisation(generated, train, tmp_path / "out", features="pixels")
    from ambient_diffusers.evaluation.features import load_features

    def rows(folder):
        return load_features("pixels")([Image.open(file) for file in sorted(folder.glob("*.png"))]).double()

    a, b = rows(generated), rows(train)
    a, b = a - b.mean(0), b - b.mean(0)
    best = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1).max(1)
    expected = {
        f"{i:03d}.png": (f"{j:03d}.png", s) for i, (j, s) in enumerate(zip(best.indices, best.values, strict=True))
    }
    for entry in json.loads((tmp_path / "out" / "memorisation_images.json").read_text()):
        name, similarity = expected[entry["file"]]
        assert entry["train"]["file"] == name and entry["train"]["similarity"] == pytest.approx(
            similarity.item(), abs=1e-5
        )
        assert "held_out" not in entry


def test_without_held_out_images_there_is_no_p_value(pictures, tmp_path):
    train = pictures("train", range(10))
    content = memorisation(train, train, tmp_path / "out", features="pixels")
    assert content["shares"][2] == {"threshold": 0.99, "train": 1.0, "held_out": None, "expected": None, "p": None}


def test_reconstructions_are_shown_and_must_be_there(pictures, tmp_path):
    train, generated = pictures("train", range(5)), pictures("generated", range(3))
    memorisation(generated, train, tmp_path / "a", features="pixels", top=3)
    memorisation(generated, train, tmp_path / "b", features="pixels", top=3, mmse=pictures("mmse", range(3)))
    heights = [Image.open(tmp_path / name / "memorisation_top.png").height for name in "ab"]
    assert heights[1] > 1.3 * heights[0]
    with pytest.raises(ValueError, match="mmse must hold a file"):
        memorisation(generated, train, tmp_path / "c", features="pixels", mmse=pictures("few", range(1)))


def test_errors_name_the_argument(pictures, tmp_path):
    some = pictures("some", range(3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="held_out must be a folder of images"):
        memorisation(some, some, tmp_path / "out", held_out=tmp_path / "empty", features="pixels")
    with pytest.raises(ValueError, match="thresholds must lie in"):
        memorisation(some, some, tmp_path / "out", features="pixels", thresholds=(90,))
