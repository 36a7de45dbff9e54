import json

import pytest
from conftest import Pixels
from PIL import Image

from ambient_diffusers.evaluation import features
from ambient_diffusers.evaluation.output import write_json
from ambient_diffusers.evaluation.quality import quality

pytestmark = [pytest.mark.usefixtures("pixels"), pytest.mark.filterwarnings("ignore:.*images are no more than")]


def test_a_like_set_is_nearer_than_another_kind_and_results_are_plain_files(pictures, tmp_path):
    reference = pictures("reference", range(60))
    kinds = pictures("like", range(100, 140)), pictures("dark", range(200, 240))
    for file in kinds[1].glob("*.png"):
        Image.open(file).point(lambda value: value // 3).save(file)
    like, other = (quality(kind, reference, tmp_path / "out" / kind.name, features="pixels") for kind in kinds)
    for key in ("frechet_distance", "kernel_distance"):
        assert like["measures"][key]["high"] < other["measures"][key]["low"]
    assert like["measures"]["precision"]["value"] > 0.3 and like["features"]["name"] == "pixels"
    assert like["generated"] == {"path": str(kinds[0]), "images": 40, "skipped": []} and like["size"] == [16, 16]
    assert json.loads((tmp_path / "out" / "like" / "quality.json").read_text()) == like
    assert Image.open(tmp_path / "out" / "like" / "quality.png").size[0] > 300
    assert quality(kinds[0], reference, tmp_path / "out" / "like", features="pixels") == like


def test_results_do_not_go_among_the_images(pictures):
    reference, generated = pictures("reference", range(10)), pictures("generated", range(10, 20))
    with pytest.raises(ValueError, match="output_dir.*generated"):
        quality(generated, reference, generated / "out", features="pixels")


def test_only_the_distance_of_inception_is_called_fid(pictures, tmp_path, monkeypatch):
    class Standard(Pixels):
        name, label = "inception", "Inception"

    monkeypatch.setitem(features.FEATURES, "inception", Standard)
    sets = pictures("a", range(6)), pictures("b", range(10, 16))
    standard, other = (
        quality(*sets, tmp_path / name, features=name, resamples=0)["measures"] for name in ("inception", "pixels")
    )
    assert standard["frechet_distance"]["name"] == "FID" and standard["kernel_distance"]["name"] == "KID"
    assert other["frechet_distance"]["name"] == "Frechet distance, pixels"
    assert "ID" not in json.dumps(other) and other["recall"]["low"] is None


def test_real_features_of_real_pictures(pictures, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    measures = quality(pictures("a", range(5)), pictures("b", range(5)), tmp_path / "out", resamples=0)["measures"]
    assert measures["frechet_distance"]["name"] == "Frechet distance, EfficientNet-Lite0"
    assert measures["frechet_distance"]["value"] < 1e-6 and measures["precision"]["value"] == 1


def test_the_reference_is_compared_at_the_size_of_the_generated_images(pictures, tmp_path, monkeypatch):
    """Features that see the size of an image."""

    class Sizes(Pixels):
        def _apply(self, images):
            return super()._apply(images) + images[0].width

    monkeypatch.setitem(features.FEATURES, "pixels", Sizes)
    small, large = pictures("small", range(8)), pictures("large", range(8), side=96)
    at_size = quality(small, large, tmp_path / "out", features="pixels", resamples=0)
    assert at_size["measures"]["frechet_distance"]["value"] == pytest.approx(0, abs=0.1) and at_size["size"] == [16, 16]
    Image.new("RGB", (9, 16)).save(small / "000.png")  # of two sizes: each as it is
    mixed = quality(small, large, tmp_path / "out", features="pixels", resamples=0)
    assert mixed["size"] is None and mixed["measures"]["frechet_distance"]["value"] > 48 * 70**2


def test_too_few_images_and_unknown_features_are_errors_before_anything_loads(pictures, tmp_path):
    few = pictures("few", range(3))
    with pytest.raises(ValueError, match="generated must have more than 3 images, got 3"):
        quality(few, few, tmp_path / "out")
    with pytest.raises(ValueError, match="features must be one of"):
        quality(few, few, tmp_path / "out", features="clip")
    assert not (tmp_path / "out").exists()


def test_fewer_images_than_dimensions_warn_and_give_no_nan(pictures, tmp_path):
    with pytest.warns(UserWarning, match="6 images are no more than the 48 dimensions"):
        content = quality(pictures("a", range(6)), pictures("b", range(9, 16)), tmp_path / "out", features="pixels")
    assert "NaN" not in json.dumps(content)


def test_a_result_cannot_hold_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not (tmp_path / "x.json").exists()
