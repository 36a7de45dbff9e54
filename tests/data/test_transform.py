"""Crops by hand, and buckets against the list of the SDXL paper."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ambient_diffusers.data import Transform, sdxl_buckets
from ambient_diffusers.randomness import stream


def coordinates(height: int, width: int) -> Image.Image:
    """A picture whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1))


def test_center_crop_by_hand():
    crop, time_ids = Transform(64, center_crop=True)(coordinates(64, 101), stream(0, "a"))
    # 37 columns too many; the half of them, to even
    assert time_ids == (64, 101, 0, 18, 64, 64)
    assert crop.size == (64, 64) and crop.getpixel((0, 0)) == (18, 0, 0)


def test_size_conditioning_has_the_original_size_and_the_crop_in_the_resized_image():
    crop, time_ids = Transform(64, center_crop=True)(coordinates(200, 128), stream(0, "a"))
    assert time_ids == (200, 128, 18, 0, 64, 64)  # resized to 100 x 64
    assert crop.size == (64, 64)


def test_target_is_covered_for_every_size():
    for height, width in ((1, 500), (500, 1), (63, 64), (64, 63), (65, 1000), (37, 91), (64, 64)):
        for buckets in (None, ((48, 80), (80, 48))):
            transform = Transform(64, buckets=buckets)
            image, (h, w, top, left, th, tw) = transform(Image.new("RGB", (width, height), "red"), stream(0, "b"))
            assert (h, w) == (height, width) and image.size == (tw, th) and (th, tw) in transform.targets
            assert min(top, left) == 0  # one side fits exactly
            assert np.asarray(image).reshape(-1, 3).min(0).tolist() == [255, 0, 0]  # no black border


def test_random_crop_is_the_place_that_it_says_and_covers_all_places():
    transform, image = Transform(64), coordinates(64, 70)
    seen = set()
    for i in range(100):
        crop, (_, _, top, left, _, _) = transform(image, stream(0, "crop", i))
        assert crop.getpixel((0, 0)) == (left, top, 0)
        seen.add(left)
    assert seen == set(range(7))


def test_flip_describes_the_crop_in_the_flipped_image():
    image = coordinates(64, 100)
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flips = 0
    for i in range(60):
        plain, plain_ids = Transform(64)(image, stream(0, "flip", i))
        crop, ids = Transform(64, random_flip=True)(image, stream(0, "flip", i))
        if crop == plain:
            assert ids == plain_ids
            continue
        flips += 1
        assert crop == plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # the flip leaves the crop where it was
        assert crop == flipped.crop((ids[3], ids[2], ids[3] + 64, ids[2] + 64))
    assert 15 < flips < 45


def test_same_stream_same_crop():
    transform, image = Transform(64, random_flip=True), coordinates(99, 120)
    assert transform(image, stream(3, "x", "abc")) == transform(image, stream(3, "x", "abc"))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_interpolation_is_that_of_pillow(interpolation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    crop, _ = Transform(32, interpolation=interpolation)(image, stream(0, "i"))
    assert crop == image.resize((32, 32), Image.Resampling[interpolation.upper()])


def test_buckets_of_sdxl():
    buckets = sdxl_buckets(1024)
    assert len(buckets) == len(set(buckets)) == 41
    assert {(1024, 1024), (512, 2048), (2048, 512), (832, 1216), (1152, 896), (768, 1344), (640, 1536)} <= set(buckets)
    for height, width in buckets:
        assert height % 64 == 0 and width % 64 == 0 and (width, height) in buckets
        assert 0.85 <= height * width / 1024**2 <= 1.07
    assert sdxl_buckets(512) == tuple((h // 2, w // 2) for h, w in buckets)
    assert all(h % 8 == 0 and w % 8 == 0 for h, w in sdxl_buckets(64, multiple=8))


def test_each_image_gets_the_nearest_aspect_ratio():
    transform = Transform(1024, buckets=sdxl_buckets(1024))
    generator = torch.Generator().manual_seed(0)
    for height, width in torch.randint(100, 3000, (200, 2), generator=generator).tolist():
        chosen = transform.target(height, width)
        off = [abs(math.log(h / w) - math.log(height / width)) for h, w in transform.buckets]
        assert abs(math.log(chosen[0] / chosen[1]) - math.log(height / width)) == pytest.approx(min(off))
    assert transform.target(1024, 1024) == (1024, 1024)
    assert transform.target(720, 1280) == (768, 1344)
    # twice the same ratio: the largest that needs no upscaling, else the smallest
    two = Transform(64, buckets=((64, 64), (128, 128), (32, 32)))
    assert [two.target(s, s) for s in (200, 100, 64, 16)] == [(128, 128), (64, 64), (64, 64), (32, 32)]


def test_bad_values_are_named():
    for arguments, message in (
        ({"resolution": 0}, "resolution"),
        ({"resolution": 64, "buckets": ()}, "buckets"),
        ({"resolution": 64, "interpolation": "sharp"}, "interpolation must be one of nearest"),
        ({"resolution": 64, "background": "nocolour"}, "background"),
    ):
        with pytest.raises(ValueError, match=message):
            Transform(**arguments)
    with pytest.raises(ValueError, match="resolution must be divisible by 8, got 60x60"):
        Transform(60).check(8)
    with pytest.raises(ValueError, match="buckets must be divisible by 8, got 64x60"):
        Transform(64, buckets=((64, 64), (64, 60))).check(8)
