"""Pictures in every form that a data set may hold, each to the RGB that it stands for."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlkl.data.images import BadImage, encode_image, open_image, read_image

RED = (220, 40, 40)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pixels(value: Any, folder: Path) -> list[tuple[int, ...]]:
    """The picture's pixels, row by row, after reading."""
    picture = open_image(read_image(value, folder))
    assert picture.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()]


@pytest.fixture
def red_png() -> bytes:
    return encoded(Image.new("RGB", (5, 3), RED))


def test_all_forms_of_one_picture_are_one_picture(tmp_path: Path, red_png: bytes):
    (tmp_path / "red.png").write_bytes(red_png)
    text = base64.b64encode(red_png).decode()
    forms = {
        "bytes": red_png,
        "view": memoryview(red_png),
        "path": "red.png",
        "absolute": str(tmp_path / "red.png"),
        "pathlib": Path("red.png"),
        "bytes in a dict": {"bytes": red_png, "path": "elsewhere.png"},
        "path in a dict": {"bytes": None, "path": "red.png"},
        "base64": text,
        "data url": f"data:image/png;base64,{text}",
        "PIL": Image.new("RGB", (5, 3), RED),
    }
    for name, form in forms.items():
        image = read_image(form, tmp_path)
        assert (image.width, image.height) == (5, 3), name
        assert pixels(form, tmp_path) == [RED] * 15, name
    assert len({read_image(form, tmp_path).key for name, form in forms.items() if name != "PIL"}) == 1
    assert read_image(red_png, tmp_path).data == red_png, "an RGB file stays as it is"


def test_a_palette_is_looked_up(tmp_path: Path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 10, 200, 30])
    picture.putdata([0, 1])
    assert pixels(encoded(picture), tmp_path) == [RED, (10, 200, 30)]


def test_one_bit_is_black_and_white(tmp_path: Path):
    picture = Image.new("1", (2, 1))
    picture.putdata([0, 1])
    assert pixels(encoded(picture), tmp_path) == [(0, 0, 0), (255, 255, 255)]


def test_cmyk_is_ink_not_transparency(tmp_path: Path):
    file = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert pixels(file, tmp_path) == [(255, 0, 0)] * 64


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path):
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values)), tmp_path) == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


def test_a_dark_picture_of_sixteen_bits_stays_dark(tmp_path: Path):
    values = np.array([[0, 128, 255]], dtype=np.uint16)
    assert pixels(encoded(Image.fromarray(values)), tmp_path) == [(0, 0, 0), (0, 0, 0), (1, 1, 1)]


def test_float_pictures_go_from_0_to_1_or_to_255(tmp_path: Path):
    for values in ([[0.0, 0.5, 1.0]], [[0.0, 127.5, 255.0]]):
        picture = Image.fromarray(np.array(values, dtype=np.float32))
        assert pixels(picture, tmp_path) == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    with pytest.raises(BadImage, match="has pixels that are no numbers"):
        read_image(Image.fromarray(np.array([[np.nan]], dtype=np.float32)), tmp_path)


def test_base64_may_be_wrapped_into_lines(tmp_path: Path, red_png: bytes):
    assert pixels(base64.encodebytes(red_png).decode(), tmp_path) == [RED] * 15


def test_transparent_pixels_lie_on_white(tmp_path: Path):
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(*RED, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
    assert pixels(encoded(picture), tmp_path) == [RED, (255, 255, 255), (127, 127, 127)]


def test_a_transparent_palette_entry_lies_on_white(tmp_path: Path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, 10, 200, 30])
    picture.putdata([0, 1])
    assert pixels(encoded(picture, transparency=1), tmp_path) == [RED, (255, 255, 255)]


def test_a_camera_held_upright_is_obeyed(tmp_path: Path):
    picture = Image.new("RGB", (2, 1))
    picture.putdata([RED, (0, 0, 255)])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image = read_image(encoded(picture, "PNG", exif=exif), tmp_path)
    assert (image.width, image.height) == (1, 2)
    assert pixels(image.data, tmp_path) == [RED, (0, 0, 255)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"no picture", "does not decode"),
        (b"", "does not decode"),
        ("missing.png", r"the file 'missing\.png' cannot be read"),
        ("A" * 100 + "!", "is neither a file nor base64 text"),
        ("é" * 100, "is neither a file nor base64 text"),
        ("data:image/png;base64,é", "is neither a file nor base64 text"),
        ({"bytes": None, "path": None}, "has neither 'bytes' nor 'path'"),
        ({}, "has neither"),
        (7, "is int; expected bytes, a path"),
    ],
)
def test_what_is_no_picture_says_why(tmp_path: Path, value: Any, message: str):
    with pytest.raises(BadImage, match=message):
        read_image(value, tmp_path)


def test_half_a_file_is_no_picture(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(BadImage, match="does not decode"):
        read_image(whole[: len(whole) // 2], tmp_path)


def test_encoding_loses_nothing_and_the_key_is_of_the_content():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    image = encode_image(noise)
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(noise))
    assert image.key == encode_image(noise.copy()).key
    noise.putpixel((0, 0), (1, 2, 3))
    assert encode_image(noise).key != image.key
