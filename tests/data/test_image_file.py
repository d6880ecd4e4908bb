"""Pictures of any kind: numbers of any range, any shape, and paths that are no files."""

import os
import socket

import cv2
import numpy as np
import pytest
from PIL import Image

from groupdetr_d2.data.image_file import (
    ImageReadError,
    as_bgr,
    eight_bits,
    find_image_files,
    passed_over,
    read_bgr,
)
from groupdetr_d2.data.resize import ResizeShortestSide
from tests.conftest import small_model

RAMP = np.arange(256, dtype=np.float64).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP.astype(np.uint8), RAMP),
        (RAMP.astype(np.uint16), RAMP),  # within a byte's range: as it is
        (RAMP.astype(np.float32), RAMP),
        (RAMP / 255, RAMP),  # floats from 0 to 1
        ((RAMP * 257).astype(np.uint16), RAMP),  # all of sixteen bits
        ((29_000 + RAMP * 8).astype(np.uint16), RAMP),  # a thermal camera's narrow range
        (RAMP - 1000, RAMP),  # an X-ray's negative numbers
        (RAMP > 100, (RAMP > 100) * 255),
        (np.full((2, 2), 4000, np.uint16), np.zeros((2, 2))),  # nothing to be seen
        (np.array([[np.nan, 0.0, 510.0, np.inf]]), [[0, 0, 255, 255]]),
    ],
)
def test_numbers_of_any_range_keep_their_content(values, expected):
    found = eight_bits(values)
    assert found.dtype == np.uint8 and found.tolist() == np.asarray(expected).tolist()


def test_a_float_picture_is_that_of_bytes(tmp_path):
    Image.fromarray((RAMP / 255).astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "bytes.png")
    assert np.array_equal(read_bgr(tmp_path / "float.tif"), read_bgr(tmp_path / "bytes.png"))


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (3, 4000), (4000, 3)])
def test_thin_pictures_are_detected_on(shape):
    image = np.zeros((*shape, 3), np.uint8)
    resized = ResizeShortestSide(48, 80).get_transform(image).apply_image(image)
    assert min(resized.shape[:2]) >= 1 and max(resized.shape[:2]) <= 80
    model = small_model().eval()
    import torch

    tensor = torch.from_numpy(resized.transpose(2, 0, 1).copy())
    found = model([{"image": tensor, "height": shape[0], "width": shape[1]}])[0]["instances"]
    assert found.image_size == shape


def test_what_is_no_file_is_named_without_waiting(tmp_path):
    """A pipe without a writer, a socket, a folder, a link to itself, nothing."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        words = {"pipe": "a pipe", "folder": "a folder", "loop": "symbolic links"}
        words |= {"socket": "a socket", "gone": "No such file"}
        for name, word in words.items():
            with pytest.raises(ImageReadError, match=f"{name}.png.*{word}"):
                read_bgr(tmp_path / f"{name}.png")


def test_pages_and_animations_say_which_one_is_used(tmp_path, package_log):
    pages = [Image.fromarray(np.full((8, 8), 60 * i, np.uint8)) for i in range(3)]
    for name in ("pages.tif", "moving.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        assert read_bgr(tmp_path / name).max() < 60
        assert f"{name} has 3 pages or frames: the first is used" in package_log.text


def test_a_bomb_says_how_it_is_allowed(tmp_path, monkeypatch):
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ImageReadError, match="GROUPDETR_MAX_PIXELS allows more pixels"):
        read_bgr(tmp_path / "large.png")


def test_a_folder_names_what_it_passes_over(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    for name in ("b.gif", "c.heic", "d.HEIC", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    assert [p.name for p in find_image_files(tmp_path, deep=False)] == ["a.png"]
    text = passed_over(tmp_path)
    assert "1 .gif, 2 .heic, 1 folders" in text and "/**/*.jpg' looks into them" in text
    assert passed_over(tmp_path / "more") == ""


ARRAYS = {
    "grey": RAMP.astype(np.uint8),
    "one channel": RAMP.astype(np.uint8)[..., None],
    "BGRA": np.dstack([RAMP.astype(np.uint8)] * 4),
    "16 bits": (RAMP * 257).astype(np.uint16),
    "floats": np.dstack([RAMP / 255] * 3),
    "not contiguous": np.dstack([RAMP.astype(np.uint8)] * 3)[:, :, ::-1],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_taken_like_files(name):
    assert as_bgr(ARRAYS[name]).tolist() == np.dstack([RAMP] * 3).tolist()


@pytest.mark.parametrize(
    "array", [np.zeros(5), np.zeros((2, 2, 2)), np.zeros((0, 4, 3)), np.array([["a"]]), 1j * RAMP]
)
def test_arrays_that_are_no_image_are_named(array):
    with pytest.raises(ImageReadError, match=r"an array of shape \(.*and type"):
        as_bgr(array)
