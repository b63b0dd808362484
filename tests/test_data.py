"""From files to batches: grey values of every mode, unreadable files, sampling weights."""

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resized
from PIL import Image

from scripts.data import list_pictures, prepare_batch, sampling_weights
from scripts.transforms import AntiAliasd, to_grey, to_mask

RED = (200, 0, 0)
LUMA = round(0.299 * 200)  # ITU-R BT.601


@pytest.mark.parametrize(
    "picture, value",
    [
        (Image.new("1", (3, 2), 1), 255),
        (Image.new("L", (3, 2), 77), 77),
        (Image.new("LA", (3, 2), (77, 0)), 77),  # alpha is ignored
        (Image.new("RGB", (3, 2), RED), LUMA),
        (Image.new("RGBA", (3, 2), (*RED, 0)), LUMA),
        (Image.new("RGB", (3, 2), RED).convert("P"), LUMA),
        (Image.new("RGB", (3, 2), RED).convert("P").convert("PA"), LUMA),
        (Image.new("CMYK", (3, 2), (0, 0, 0, 255)), 0),
        (Image.fromarray(np.full((2, 3), 60000, np.uint16)), 255),
        (Image.fromarray(np.full((2, 3), 77, np.uint16)), 77),  # 8-bit values in a 16-bit file
        (Image.fromarray(np.full((2, 3), 77, np.int32)), 77),
        (Image.fromarray(np.full((2, 3), -5.0, np.float32)), 0),
    ],
    ids=["1", "L", "LA", "RGB", "RGBA", "P", "PA", "CMYK", "I;16", "I;16 dark", "I", "F"],
)
def test_every_mode_becomes_8_bit_grey(picture, value):
    grey = to_grey(picture)
    assert (grey.mode, grey.size) == ("L", (3, 2))
    assert np.abs(np.asarray(grey).astype(int) - value).max() <= 1


def test_16_bit_values_keep_their_proportions():
    grey = to_grey(Image.fromarray(np.array([[0, 1000, 4000]], np.uint16)))
    assert np.asarray(grey).tolist() == [[0, 64, 255]]


def test_a_float_value_that_is_no_number_does_not_spoil_the_others():
    grey = to_grey(Image.fromarray(np.array([[0, 1000, 4000, np.nan, np.inf]], np.float32)))
    assert np.asarray(grey).tolist()[0][:3] == [0, 64, 255]


def test_a_mask_is_0_or_255_with_the_threshold_in_the_middle():
    assert np.asarray(to_mask(Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)))).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_a_mask_of_any_mode_is_the_same_mask(mode):
    mask = Image.fromarray(np.array([[0, 255, 255], [0, 0, 255]], np.uint8))
    assert np.array_equal(np.asarray(to_mask(mask.convert(mode))), np.asarray(mask))


def test_pictures_are_listed_by_name_in_any_case_and_the_unreadable_are_named(tmp_path, caplog):
    for name in ("b.PNG", "a.jpeg", "c.tif", "d.bmp", "e.TIFF", "f.Jpg"):
        Image.new("L", (30, 20)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    whole = (tmp_path / "f.Jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    whole = (tmp_path / "b.PNG").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-20])
    (tmp_path / "changed.png").write_bytes(whole.replace(b"IDAT", b"IDAT\xff"))
    with caplog.at_level(logging.ERROR):
        items = list_pictures(str(tmp_path))
    assert [item["image"] for item in items] == [
        str(tmp_path / name) for name in ("a.jpeg", "b.PNG", "c.tif", "d.bmp", "e.TIFF", "f.Jpg")
    ]
    for name in ("empty.png", "cut.jpg", "cut.png", "changed.png"):
        assert f"{tmp_path / name}: left out, not a readable picture" in caplog.text
    assert "4 of 10 pictures left out" in caplog.text


@pytest.mark.parametrize("make, message", [(False, "no such folder"), (True, "no readable picture")])
def test_a_folder_without_pictures_is_an_error(make, message, tmp_path):
    folder = tmp_path / "pictures"
    if make:
        folder.mkdir()
    with pytest.raises(FileNotFoundError, match=f"{folder}: {message}"):
        list_pictures(str(folder))


def test_masks_do_not_go_among_the_pictures(tmp_path):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds the pictures and would get the masks; pass another --output_dir"):
        list_pictures(str(tmp_path), f"{tmp_path}/../{tmp_path.name}")


def test_every_class_is_drawn_equally_often():
    weights = sampling_weights([{"class": 1}] * 6 + [{"class": 0}] * 2 + [{}])
    assert weights.tolist() == pytest.approx([1 / 6] * 6 + [1 / 2] * 2 + [1])


def test_a_batch_without_classes_gets_unknown_ones():
    batch = {"image": torch.rand(2, 1, 4, 5), "label": torch.ones(2, 1, 4, 5)}
    image, targets = prepare_batch(batch, "cpu")
    assert image.shape == (2, 1, 4, 5) and torch.equal(targets["label"], batch["label"])
    assert targets["class"].tolist() == [-1, -1]
    assert prepare_batch({**batch, "class": torch.tensor([2, 0])}, "cpu")[1]["class"].tolist() == [2, 0]


@pytest.mark.parametrize("size", [(400, 90), (90, 400), (300, 500), (64, 64), (40, 50)])
@pytest.mark.parametrize("kind", [torch.Tensor, MetaTensor])
def test_anti_aliasing_is_that_of_monai(size, kind):
    picture = kind(torch.rand(2, *size) * 255)
    item = {"image": picture.clone(), "name": "kept"}
    expected = Resized("image", (64, 64), mode="bilinear", anti_aliasing=True)(dict(item))["image"]
    smooth = AntiAliasd("image", (64, 64))(item)
    found = Resized("image", (64, 64), mode="bilinear")(smooth)["image"]
    assert torch.allclose(found.as_tensor(), expected.as_tensor(), atol=1e-2)
    assert torch.equal(item["image"], picture) and smooth["name"] == "kept" and type(smooth["image"]) is kind
    assert torch.equal(smooth["image"], picture) == (max(size) <= 64)
