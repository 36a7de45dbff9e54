"""Every colour model that a picture file may have comes out as a viewer would show it."""

import io

import numpy as np
import pytest
from PIL import Image

from ambient_diffusers.data.image import UnreadableImageError, read_image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def pixels(data: bytes, **options) -> list:
    image = read_image(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def test_rgb_is_unchanged():
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    assert pixels(encoded(Image.fromarray(values))) == values.tolist()


def test_alpha_is_composited_on_the_background():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(200, 100, 0, 255), (200, 100, 0, 0), (200, 100, 0, 51)])
    assert pixels(encoded(rgba)) == [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]]
    assert pixels(encoded(rgba), background="#0000ff") == [[[200, 100, 0], [0, 0, 255], [40, 20, 204]]]


def test_grey_with_alpha():
    image = Image.new("LA", (2, 1))
    image.putdata([(80, 255), (80, 0)])
    assert pixels(encoded(image)) == [[[80, 80, 80], [255, 255, 255]]]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 128, 255])
    image.putdata([0, 1])
    assert pixels(encoded(image)) == [[[255, 0, 0], [0, 128, 255]]]
    assert pixels(encoded(image, transparency=0)) == [[[255, 255, 255], [0, 128, 255]]]
    assert pixels(encoded(image, "GIF", transparency=1), background="black") == [[[255, 0, 0], [0, 0, 0]]]


def test_transparent_colour_of_rgb():
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    assert pixels(encoded(image, transparency=(1, 2, 3))) == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_full_range(format):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values), format)) == [[[v] * 3 for v in (0, 1, 128, 255)]]


def test_big_endian_sixteen_bit_grey():
    header = b"P5 2 1 65535\n"
    assert pixels(header + np.array([256, 65535], ">u2").tobytes()) == [[[1] * 3, [255] * 3]]


def test_float_grey_between_0_and_1():
    values = np.array([[0.0, 0.2, 1.0]], dtype=np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF")) == [[[0] * 3, [51] * 3, [255] * 3]]


@pytest.mark.parametrize("value", [-0.1, 80.0, float("nan")])
def test_float_grey_of_unknown_scale_is_refused(value):
    data = encoded(Image.fromarray(np.array([[0.5, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(UnreadableImageError, match=r"must lie in \[0, 1\]"):
        read_image(data)


def test_one_bit_and_grey():
    image = Image.new("1", (2, 1))
    image.putdata([0, 1])
    assert pixels(encoded(image)) == [[[0] * 3, [255] * 3]]
    assert pixels(encoded(Image.new("L", (1, 1), 7))) == [[[7] * 3]]


def test_cmyk():
    image = Image.new("CMYK", (3, 1))
    image.putdata([(0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255)])
    assert pixels(encoded(image, "TIFF")) == [[[255, 0, 0], [0, 255, 255], [0, 0, 0]]]
    red = np.array(pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")))
    assert np.abs(red - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    """The stored picture is the shown one, turned or mirrored by what the tag undoes."""
    shown = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }[orientation](shown)
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = image.getexif()
    exif[0x0112] = orientation
    assert pixels(encoded(image, exif=exif)) == shown.tolist()


def test_unreadable_files_say_why():
    whole = encoded(Image.new("RGB", (64, 64), "red"), "JPEG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for data, reason in (
        (b"", "empty file"),
        (b"this is text", "no image file"),
        (whole[:-40], "truncated"),
        (encoded(Image.fromarray(noise))[:3000], "truncated"),
    ):
        with pytest.raises(UnreadableImageError, match=reason):
            read_image(data)
