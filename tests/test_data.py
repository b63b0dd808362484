"""From files to batches: which images there are, unreadable files, sampling weights."""

import logging

import pytest
import torch
from PIL import Image

from scripts.data import list_pictures, prepare_batch, sampling_weights


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
