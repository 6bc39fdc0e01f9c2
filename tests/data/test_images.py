"""Images in rows: every form in which one may come, and what is no image."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedelta.data.digests import stand_in
from fedelta.data.images import image_of, levels_of

GREY = np.arange(15, dtype=np.uint8).reshape(3, 5) * 17
COLOURED = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def saved(image: Image.Image, path: Path, **settings: Any) -> Path:
    image.save(path, **settings)
    return path


def as_bytes(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (GREY, GREY[None]),
        (GREY.tolist(), GREY[None]),
        (torch.from_numpy(GREY), GREY[None]),
        (GREY[..., None], GREY[None]),
        (COLOURED, COLOURED.transpose(2, 0, 1)),
        (COLOURED.transpose(2, 0, 1), COLOURED.transpose(2, 0, 1)),
        (np.dstack([COLOURED, GREY]), COLOURED.transpose(2, 0, 1)),
        (GREY.astype(np.float64) / 255, GREY[None]),
        (GREY > 100, (GREY > 100)[None] * 255),
        (GREY.astype(np.uint16) * 257, GREY[None]),
        (Image.fromarray(COLOURED), COLOURED.transpose(2, 0, 1)),
        (as_bytes(Image.fromarray(GREY)), GREY[None]),
        ({"bytes": as_bytes(Image.fromarray(GREY)), "path": None}, GREY[None]),
    ],
)
def test_every_form_of_an_image_gives_its_levels(value: Any, expected: np.ndarray):
    found = levels_of(value)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_a_path_may_be_a_text_or_stand_beside_bytes_that_are_not_there(tmp_path: Path):
    path = saved(Image.fromarray(GREY), tmp_path / "grey.png")
    for value in (path, str(path), {"bytes": None, "path": str(path)}):
        assert np.array_equal(levels_of(value), GREY[None])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "CMYK", "P", "1", "YCbCr"])
def test_every_mode_of_pillow_has_one_channel_or_three(mode: str):
    channels = {"LA": 1, "1": 1}.get(mode, 3)
    assert levels_of(Image.fromarray(COLOURED).convert(mode)).shape == (channels, 3, 5)


def test_what_is_transparent_keeps_the_colour_that_it_has():
    whole = Image.fromarray(np.dstack([COLOURED, np.zeros_like(GREY)]), "RGBA")
    assert np.array_equal(levels_of(whole), COLOURED.transpose(2, 0, 1))


def test_grey_of_16_bits_is_divided_and_not_cut_at_255(tmp_path: Path):
    deep = saved(Image.fromarray(GREY.astype(np.uint16) * 257), tmp_path / "deep.png")
    assert np.array_equal(levels_of(deep), GREY[None])
    assert levels_of(np.array([[0, 128, 129, 65535]], dtype=np.uint16)).tolist() == [[[0, 0, 1, 255]]]


def test_levels_beyond_16_bits_are_named(tmp_path: Path):
    wide = saved(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), tmp_path / "wide.tiff")
    with pytest.raises(ValueError, match=r"wide\.tiff': its levels go from 0 to 70000, which are not 16 bits"):
        levels_of(wide)


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    path = saved(Image.fromarray(COLOURED), tmp_path / "turned.png", exif=exif)
    assert levels_of(path).shape == (3, 5, 3)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "has nothing in its field 'image'"),
        (5, r"an array of shape \(\), but an image has the shape"),
        ({"a": 1}, "a dict, but an image is a path, an array or an image of Pillow"),
        (np.zeros((5, 5, 2), np.uint8), r"an array of shape \(5, 5, 2\).*1, 3 or 4 channels.*choose three"),
        (np.zeros((5, 6, 7), np.uint8), r"an array of shape \(5, 6, 7\).*choose three of its channels"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"an array of shape \(1, 3, 4, 4\)"),
        (np.zeros((0, 4), np.uint8), "without a pixel"),
        ([[1, 2], [3]], "a list that is no array of numbers"),
        (np.full((2, 2), 3.0), "an array of fractions from 3 to 3, where levels go from 0 to 1"),
        (np.full((2, 2), np.nan), "an array of fractions from nan"),
        (np.full((2, 2), -1), "an array of whole numbers from -1 to -1, where levels go from 0 to 255"),
        (np.full((2, 2), 300), "of the type uint16 up to 65535"),
        (b"no image", "8 bytes, which cannot be read as an image .*fetch the file again"),
        ("/nowhere/cat.png", r"the path '/nowhere/cat\.png', where there is no file"),
        ("/", "the path '/', which is a folder"),
    ],
)
def test_what_is_no_image_is_named_with_its_row(value: Any, reason: str):
    with pytest.raises(ValueError, match=rf"row 7.*{reason}"):
        image_of({"image": value}, 7, "image")


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tiff"])
def test_a_file_that_is_cut_off_is_named(ending: str, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"cut.{ending}")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"row 0: field 'image' holds the path '.*cut\.{ending}', which cannot be read"):
        image_of({"image": path}, 0, "image")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(Image.fromarray(GREY), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    with pytest.raises(ValueError, match=r"cannot be read as an image .*decompression bomb"):
        levels_of(path)


def test_arrays_are_read_without_pillow_and_files_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(Image.fromarray(GREY), tmp_path / "grey.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert np.array_equal(levels_of(GREY), GREY[None])
    with pytest.raises(ImportError, match=r"pip install 'fedelta\[images\]'"):
        levels_of(path)


def test_equal_contents_stand_for_the_same_wherever_they_lie(tmp_path: Path):
    one, other = (saved(Image.fromarray(GREY), tmp_path / name) for name in ("one.png", "other.png"))
    assert stand_in(one) == stand_in(other) != stand_in(saved(Image.fromarray(255 - GREY), tmp_path / "third.png"))
    assert stand_in(GREY) == stand_in(GREY.copy()) != stand_in(GREY.T)
    assert stand_in(Image.fromarray(GREY)) == stand_in(Image.fromarray(GREY)) != stand_in(Image.fromarray(GREY.T.copy()))
    assert stand_in(b"a") != stand_in(b"b")
    assert stand_in(tmp_path / "gone.png") == str(tmp_path / "gone.png")
