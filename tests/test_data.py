"""From files to batches: which images there are, sets that train together, unreadable files, sampling weights."""

import json
import logging
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.transforms import Compose, EnsureChannelFirstd
from PIL import Image

from breast_ultrasound.data import (
    ImageLoader,
    common_folder,
    image_name,
    image_root,
    list_images,
    load_datalist,
    prepare_batch,
    read_class_names,
    read_datalist,
    sampling_weights,
)
from breast_ultrasound.transforms import LoadGreyd
from conftest import ROOT


def make(path, size=(30, 20), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, value)
    image.putpixel((0, 0), 255 - value)
    image.save(path)


def test_images_are_listed_by_name_in_any_case_and_what_is_ignored_is_counted(tmp_path, caplog):
    names = ("a.jpeg", "b.PNG", "c.tif", "d.bmp", "e.TIFF", "f.Jpg")
    for name in names:
        make(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._a.png").write_text("of macOS")
    make(tmp_path / "folder.png" / "inner.png")
    make(tmp_path / "masks" / "a_seg.png")
    with caplog.at_level(logging.INFO):
        items = list_images(str(tmp_path), str(tmp_path / "masks"))
    assert [item["image"] for item in items] == [str(tmp_path / name) for name in names]
    expected = "6 images; ignored: 1 folder, 1 hidden file, 1 other file; --recursive True searches folders"
    assert expected in caplog.text


def test_folders_are_searched_on_request_and_never_the_one_of_the_masks(tmp_path, monkeypatch):
    for name in ("z.png", "a/x.png", "a/b/x.png", "masks/old_seg.png", ".hidden/x.png"):
        make(tmp_path / "set" / name)
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    items = list_images("~/set", "~/set/masks", recursive=True)
    names = [image_name(item["image"], image_root("~/set")) for item in items]
    assert names == ["a/b/x.png", "a/x.png", "z.png"]


def test_masks_beside_their_images_are_left_out_and_counted(tmp_path, caplog):
    names = ("benign (1).png", "b.jpg", "lone_mask.png", "mask.png", "c/b_seg.png")
    for name in (*names, "benign (1)_mask.png", "benign (1)_mask_1.png", "B_SEG.PNG", "b_mask.bmp"):
        make(tmp_path / name)
    with caplog.at_level(logging.INFO):
        items = list_images(str(tmp_path), recursive=True)
    assert {image_name(item["image"], tmp_path) for item in items} == set(names)
    assert "5 images; ignored: 4 masks" in caplog.text


def test_one_file_is_a_folder_of_one(tmp_path):
    make(tmp_path / "a.png")
    make(tmp_path / "b.png")
    assert list_images(str(tmp_path / "a.png"), str(tmp_path / "masks")) == [{"image": str(tmp_path / "a.png")}]
    assert image_root(str(tmp_path / "a.png")) == str(tmp_path)
    with pytest.raises(FileNotFoundError, match="notes.txt: not an image"):
        (tmp_path / "notes.txt").touch()
        list_images(str(tmp_path / "notes.txt"))


def test_a_folder_without_images_is_an_error_that_tells_of_its_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/none: no such folder; pass --dataset_dir"):
        list_images(f"{tmp_path}/none")
    make(tmp_path / "sub" / "a.png")
    with pytest.raises(FileNotFoundError, match="no image .*; ignored: 1 folder; --recursive True searches folders"):
        list_images(str(tmp_path))


def test_masks_do_not_go_among_the_images(tmp_path):
    make(tmp_path / "a.png")
    for given in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(ValueError, match="holds the images and would get the masks; pass another --output_dir"):
            list_images(str(given), f"{tmp_path}/../{tmp_path.name}")


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_fail_are_named_and_the_others_come_in_batches_of_one_shape(workers, tmp_path):
    shapes = {"a.png": (30, 20), "c.png": (30, 20), "d.png": (20, 30), "f.png": (30, 20)}
    for name, size in shapes.items():
        make(tmp_path / name, size)
    for name in ("b.png", "e.png"):
        (tmp_path / name).write_text("no image")
    Image.new("L", (30, 20), 90).save(tmp_path / "flat.png")
    make(tmp_path / os.fsdecode(b"latin\xe9.png"))
    items = list_images(str(tmp_path))
    dataset = Dataset(items, Compose([LoadGreyd("image"), EnsureChannelFirstd("image", channel_dim="no_channel")]))
    (tmp_path / "f.png").unlink()  # while it runs
    failed = {}
    loader = ImageLoader(dataset, failed.__setitem__, progress=False, batch_size=2, num_workers=workers)
    read = [Path(name).name for batch in loader for name in batch["image"].meta["filename_or_obj"]]
    assert sorted(read) == ["a.png", "c.png", "d.png"]
    unread = ["b.png", "e.png", "f.png", "flat.png", os.fsdecode(b"latin\xe9.png")]
    assert sorted(Path(file).name for file in failed) == unread
    assert "one grey alone" in failed[str(tmp_path / "flat.png")]
    assert "not UTF-8; rename" in failed[str(tmp_path / os.fsdecode(b"latin\xe9.png"))]


def test_the_common_folder_of_images_tells_files_of_one_name_apart(tmp_path):
    items = [{"image": str(tmp_path / name)} for name in ("images/a/x.png", "images/b/x.png")]
    assert common_folder(items) == str(tmp_path / "images")
    assert common_folder(items[:1]) == str(tmp_path / "images" / "a") and common_folder([]) == ""


def test_every_class_is_drawn_equally_often():
    weights = sampling_weights([{"class": 1}] * 6 + [{"class": 0}] * 2 + [{}])
    assert weights.tolist() == pytest.approx([1 / 6] * 6 + [1 / 2] * 2 + [1])


def test_a_batch_without_classes_gets_unknown_ones():
    batch = {"image": torch.rand(2, 1, 4, 5), "label": torch.ones(2, 1, 4, 5)}
    image, targets = prepare_batch(batch, "cpu")
    assert image.shape == (2, 1, 4, 5) and torch.equal(targets["label"], batch["label"])
    assert targets["class"].tolist() == [-1, -1]
    assert prepare_batch({**batch, "class": torch.tensor([2, 0])}, "cpu")[1]["class"].tolist() == [2, 0]


NAMES = ["normal", "benign", "malignant"]


def write_set(folder, classes, class_names=None):
    """A datalist of images that need not be there; returns its path."""
    folder.mkdir()
    items = [{"image": f"images/{k}.png", "label": f"labels/{k}.png", "class_name": c} for k, c in enumerate(classes)]
    lists = {"training": items, "validation": items[:1], "testing": []}
    (folder / "datalist.json").write_text(json.dumps(lists | ({"class_names": class_names} if class_names else {})))
    return str(folder / "datalist.json")


def test_the_files_of_several_sets_lie_beside_their_datalists(tmp_path):
    one, two = write_set(tmp_path / "one", ["normal", "benign"]), write_set(tmp_path / "two", ["malignant"])
    items = load_datalist({one: 1, two: 3}, "training", "elsewhere", NAMES)
    assert [item["image"] for item in items] == [
        str(tmp_path / "one" / "images" / "0.png"),
        str(tmp_path / "one" / "images" / "1.png"),
        str(tmp_path / "two" / "images" / "0.png"),
    ]
    assert [(item["class"], item["set_weight"]) for item in items] == [(0, 1), (1, 1), (2, 3)]
    (alone,) = load_datalist(two, "training", str(tmp_path / "moved"), NAMES)
    assert alone["label"] == str(tmp_path / "moved" / "labels" / "0.png")
    assert len(load_datalist({one: 1, two: 3}, "training+validation", "", NAMES)) == 5


def test_paths_with_backslashes_are_read_as_folders_and_nothing_else_changes(tmp_path):
    written = {"name": "a\\b", "training": [{"image": "images\\0.png", "label": "labels\\0.png", "group": "a\\b"}]}
    (tmp_path / "list.json").write_text(json.dumps(written))
    (item,) = read_datalist(tmp_path / "list.json")["training"]
    assert item == {"image": "images/0.png", "label": "labels/0.png", "group": "a\\b"}
    assert read_datalist(tmp_path / "list.json")["name"] == "a\\b"
    (joined,) = load_datalist(str(tmp_path / "list.json"), "training", str(tmp_path), NAMES)
    assert joined["label"] == str(tmp_path / "labels" / "0.png")


def test_classes_are_drawn_equally_often_and_within_a_class_sets_by_their_weights(tmp_path):
    one = write_set(tmp_path / "one", ["normal"] * 2 + ["benign"] * 6 + ["malignant"] * 4)
    two = write_set(tmp_path / "two", ["benign"] * 30 + ["malignant"] * 10)
    items = load_datalist({one: 1, two: 3}, "training", "", NAMES)
    generator = torch.Generator().manual_seed(0)
    sampler = torch.utils.data.WeightedRandomSampler(sampling_weights(items), 24000, generator=generator)
    drawn = Counter((items[k]["set"], items[k]["class_name"]) for k in sampler)
    expected = {(one, "normal"): 8000, **{(one, name): 2000 for name in NAMES[1:]}}
    expected |= {(two, name): 6000 for name in NAMES[1:]}  # it has no normal images
    assert drawn.keys() == expected.keys()
    for key, number in expected.items():
        assert drawn[key] == pytest.approx(number, rel=0.08)


def test_class_names_are_those_of_the_sets(tmp_path):
    own = ["cyst", "carcinoma"]
    one, two = write_set(tmp_path / "one", own, own), write_set(tmp_path / "two", own[:1], own)
    silent = write_set(tmp_path / "three", ["normal"])
    assert read_class_names(one, NAMES) == read_class_names({one: 1, two: 2, silent: 1}, NAMES) == own
    assert read_class_names(silent, NAMES) == read_class_names(str(tmp_path / "nowhere.json"), NAMES) == NAMES
    other = write_set(tmp_path / "four", own, own[::-1])
    with pytest.raises(ValueError, match="sets of different classes .*cyst, carcinoma; .*--class_names"):
        read_class_names({one: 1, other: 1}, NAMES)
    # With names given, each item's own name decides, so that the order of its set does not matter.
    found = load_datalist({one: 1, other: 1}, "training", "", own)
    assert [item["class"] for item in found] == [0, 1, 0, 1]


def test_a_batch_has_one_shape_and_keeps_the_centre_of_each_lesion():
    torch.manual_seed(0)
    config = ConfigParser(ConfigParser.load_config_file(ROOT / "bundle/configs/train.json"))
    config["image_size"] = 128
    collate = config.get_parsed_content("train#collate")
    shapes = set()
    for number in range(40):
        items = []
        for size in ((60, 200), (128, 128), (180, 90)):
            label = torch.zeros(1, *size)
            label[:, size[0] // 2 : size[0] // 2 + 9, 3:14] = 1  # at an edge
            items.append({"image": label + 1, "label": label, "class": 1})
        batch = collate(items)
        shapes.add(tuple(batch["image"].shape[2:]))
        assert batch["image"].shape == batch["label"].shape and batch["class"].tolist() == [1, 1, 1]
        assert all(side % 32 == 0 for side in batch["image"].shape[2:])
        for image, label in zip(batch["image"][:, 0], batch["label"][:, 0]):
            found = label.nonzero().float()
            assert len(found) and (image[label > 0] > 1).float().mean() > 0.7
            inside = found.mean(0) / torch.tensor(label.shape)
            assert ((inside > 0.03) & (inside < 0.97)).all()
    assert len(shapes) > 2
    again = []
    for _ in range(2):
        torch.manual_seed(7)
        again.append(collate(items)["image"])
    assert torch.equal(*again)  # all randomness is torch's
