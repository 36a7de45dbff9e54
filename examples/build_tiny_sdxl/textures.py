"""Uncaptioned pictures for the VAE only: crops of bundled photographs, gradients and random textures."""

import numpy as np
from PIL import Image


def photographs() -> list[Image.Image]:
    """Two photographs bundled with scikit-learn, one with matplotlib; none of scikit-image's, which are held out."""
    from matplotlib import cbook
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(a) for a in load_sample_images().images]
    return [*pictures, Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")]


def photo_crop(photo: Image.Image, rng: np.random.Generator, image_size: int) -> Image.Image:
    """A square crop of random size (log-uniform), shrunk to `image_size`, with flips, rotations and colour changes."""
    side = int(np.exp(rng.uniform(np.log(image_size), np.log(min(photo.size)))))
    left, top = (int(rng.integers(0, n - side + 1)) for n in photo.size)
    crop = photo.crop((left, top, left + side, top + side)).resize((image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.rot90(np.asarray(crop, dtype=np.float64) / 255, int(rng.integers(4)))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.5:  # another palette: mix the channels, keep the grey axis
        mix = np.eye(3) + rng.normal(0, 0.35, (3, 3))
        pixels = pixels @ (mix / mix.sum(0, keepdims=True).clip(0.3))
    if rng.random() < 0.1:
        pixels = pixels.mean(-1, keepdims=True).repeat(3, -1)
    pixels = (pixels - 0.5) * rng.uniform(0.7, 1.35) + 0.5 + rng.normal(0, 0.07)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def texture(rng: np.random.Generator, image_size: int) -> Image.Image:
    """Coloured noise with a power spectrum f^-a, a in 1 .. 4 (natural pictures: about 2), over a linear gradient."""
    fy, fx = np.meshgrid(np.fft.fftfreq(image_size), np.fft.fftfreq(image_size), indexing="ij")
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1.0
    noise = np.fft.fft2(rng.normal(size=(3, image_size, image_size))) * radius ** (-rng.uniform(1, 4) / 2)
    noise[:, 0, 0] = 0
    noise = np.fft.ifft2(noise).real
    noise = np.einsum("ij,jhw->hwi", np.eye(3) * 0.4 + rng.normal(0, 0.5, (3, 3)), noise / noise.std())
    ramp = np.linspace(-1, 1, image_size)
    gradient = rng.normal(0, 0.25, (2, 3))
    pixels = rng.uniform(0.2, 0.8, 3) + ramp[:, None, None] * gradient[0] + ramp[None, :, None] * gradient[1]
    pixels = pixels + noise * rng.uniform(0, 0.2)
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
