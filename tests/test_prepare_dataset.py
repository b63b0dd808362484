"""scripts/prepare_dataset.py: class folders of any names, tables, published layouts, and what it refuses."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from conftest import ROOT
from PIL import Image
from prepare_dataset import prepare_dataset

SHARED = ROOT.parent / "shared" / "data"
SIZE = (56, 40)
FOLDERS = [f"BI-RADS {number}" for number in (1, 2, 3, 4, 10)]


def prepare(source, output, *options):
    run(prepare_dataset, ["--source", str(source), "--output_dir", str(output), *map(str, options)])
    return read_json(output / "datalist.json")


def refusal(*options):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stopped:
        run(prepare_dataset, list(map(str, options)))
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def items(datalist):
    return [item for split in ("training", "validation", "testing") for item in datalist[split]]


def save(path, seed, size=SIZE):
    """A grey image unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.RandomState(seed).randint(0, 256, (8, 8)).astype(np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)


def save_mask(path, left=10, size=SIZE, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size[::-1], np.uint8)
    mask[5:15, left : left + 8] = value
    Image.fromarray(mask).save(path)


@pytest.fixture
def folders(tmp_path):
    """Five class folders with six images each, and a mask for each."""
    for number, name in enumerate(FOLDERS):
        for k in range(6):
            save(tmp_path / "own" / name / f"image {k}.png", 10 * number + k)
            save_mask(tmp_path / "own" / name / f"image {k}_mask.png")
    return tmp_path / "own"


@pytest.fixture
def listed(tmp_path):
    """Twelve images of six patients in one folder, their masks in another, and a table in a spreadsheet's dialect."""
    lines = ["file;class;mask;patient;device"]
    for k in range(12):
        save(tmp_path / "own" / "images" / f"{k}.jpg", k)
        save_mask(tmp_path / "own" / "drawn" / f"m{k}.png")
        lines.append(f"images\\{k}.jpg;{'benign' if k < 6 else 'Malignant'};drawn\\m{k}.png;P{k // 2};A{k % 2}")
    (tmp_path / "own" / "list.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    return tmp_path / "own"


def test_class_folders_of_any_names_keep_their_names_in_natural_order(folders, tmp_path):
    datalist = prepare(folders, tmp_path / "out")
    assert datalist["class_names"] == FOLDERS
    for item in items(datalist):
        assert item["class_name"] == FOLDERS[item["class"]] == Path(item["sources"][0]).parent.name
        assert item["source"] == "own"
    assert Counter(item["class_name"] for item in items(datalist)) == dict.fromkeys(FOLDERS, 6)


def test_images_of_own_classes_may_have_no_lesion(folders, tmp_path):
    empty, none = folders / FOLDERS[0] / "image 0_mask.png", folders / FOLDERS[0] / "image 1_mask.png"
    Image.new("L", SIZE).save(empty)
    none.unlink()
    found = {item["sources"][0]: item for item in items(prepare(folders, tmp_path / "out"))}
    for name in ("image 0.png", "image 1.png"):
        item = found[f"{FOLDERS[0]}/{name}"]
        assert not np.asarray(Image.open(tmp_path / "out" / item["label"])).any()
    repaired = read_json(tmp_path / "out" / "summary.json")["repaired"]
    assert list(repaired) == [f"{FOLDERS[0]}/image 1.png"] and "without a mask" in repaired[f"{FOLDERS[0]}/image 1.png"]


def test_the_order_of_class_names_may_be_given(folders, tmp_path):
    names = FOLDERS[::-1]
    assert prepare(folders, tmp_path / "out", "--class_names", names)["class_names"] == names


def test_images_of_a_class_that_is_not_among_those_given_are_named(folders, tmp_path):
    datalist = prepare(folders, tmp_path / "out", "--class_names", FOLDERS[:4])
    refused = read_json(tmp_path / "out" / "summary.json")["refused"]
    assert len(items(datalist)) == 24 and len(refused) == 6
    assert all("class 'BI-RADS 10' is not among BI-RADS 1, " in line for line in refused)


def test_copies_stay_in_one_split_where_no_patient_is_known(folders, tmp_path):
    for k in range(3):
        shutil.copy(folders / FOLDERS[0] / "image 0.png", folders / FOLDERS[0] / f"copy {k}.png")
    found = [item for item in items(prepare(folders, tmp_path / "out")) if item["class_name"] == FOLDERS[0]]
    assert sorted(Counter(item["group"] for item in found).values()) == [1, 1, 1, 1, 1, 4]


def test_a_table_names_class_mask_patient_and_more(listed, tmp_path):
    datalist = prepare(listed, tmp_path / "out", "--table", "list.csv")
    assert datalist["class_names"] == ["normal", "benign", "malignant"] and len(items(datalist)) == 12
    for item in items(datalist):
        number = int(Path(item["image"]).stem)
        assert item["class_name"] == ("benign" if number < 6 else "malignant")
        assert (item["group"], item["device"]) == (f"P{number // 2}", f"A{number % 2}")
        assert np.asarray(Image.open(tmp_path / "out" / item["label"])).sum() == 80 * 255
    splits = [{item["group"] for item in datalist[name]} for name in ("training", "validation", "testing")]
    assert sum(map(len, splits)) == 6


def test_masks_of_one_image_are_joined(listed, tmp_path):
    save_mask(listed / "drawn" / "more.png", left=30, value=1)
    table = listed / "list.csv"
    text = table.read_text(encoding="utf-8-sig").replace(";", ",")
    table.write_text(text.replace("drawn\\m3.png", "drawn/m3.png; drawn/more.png"), encoding="utf-8")
    found = {Path(item["image"]).stem: item for item in items(prepare(listed, tmp_path / "out", "--table", "list.csv"))}
    assert np.asarray(Image.open(tmp_path / "out" / found["3"]["label"])).sum() == 160 * 255
    assert found["3"]["sources"] == ["images/3.jpg", "drawn/m3.png", "drawn/more.png"]


def test_what_cannot_be_used_is_named_and_counted(listed, tmp_path):
    text = (listed / "list.csv").read_text(encoding="utf-8")
    text += "\nnowhere.jpg;benign;;P9;\n1.jpg;benign;;P9;\n"
    (listed / "list.csv").write_text(text.replace("malignant", "").replace("2.jpg;benign", "2.jpg;"), encoding="utf-8")
    save(listed / "images" / "unlisted.png", 99)
    save_mask(listed / "drawn" / "m4.png", size=(30, 30))
    (listed / "images" / "5.jpg").write_bytes(b"no image")
    (listed / "notes.txt").write_text("mine")
    datalist = prepare(listed, tmp_path / "out", "--table", "list.csv")
    summary = read_json(tmp_path / "out" / "summary.json")
    for expected in (
        "images/2.jpg: no class",
        "images/4.jpg: its mask drawn/m4.png is 30x30, its image 56x40",
        "images/5.jpg: ",
        "images/unlisted.png: not in list.csv",
        "list.csv, line 14, nowhere.jpg: no such image",
        "list.csv, line 15, 1.jpg: its image has an earlier row",
    ):
        assert any(line.startswith(expected) for line in summary["refused"]), expected
    assert len(summary["refused"]) == 6 and summary["ignored"] == ["notes.txt"] and len(items(datalist)) == 9
    with pytest.raises(SystemExit, match="6 files refused, nothing was written"):
        prepare(listed, tmp_path / "strict", "--table", "list.csv", "--strict", "True")
    assert not (tmp_path / "strict").exists()


@pytest.fixture
def hospital(tmp_path):
    """Ten images in folders of five patients, masks in a tree of their own, a table with letters for the classes."""
    for k in range(10):
        save(tmp_path / "own" / f"p{k // 2}" / f"scan {k % 2}.png", k)
        save_mask(tmp_path / "own" / "annotations" / f"p{k // 2}" / f"scan {k % 2}.png")
    rows = [f"p{k // 2}/scan {k % 2}.png,{'B' if k < 6 else 'M'}" for k in range(10)]
    (tmp_path / "own" / "truth.csv").write_text("\n".join(["path,kind", *rows]))
    return tmp_path / "own"


LAYOUT = {
    "name": "Hospital",
    "image": "(?P<key>(?P<group>p\\d+)/.+)",
    "mask": "annotations/(?P<key>.+)",
    "table": "truth.csv",
    "columns": {"image": "path", "class": "kind"},
    "classes": {"B": "benign", "M": "malignant"},
}


def test_an_own_layout_is_a_file_of_a_few_lines(hospital, tmp_path):
    (tmp_path / "layout.json").write_text(json.dumps(LAYOUT))
    found = items(prepare(hospital, tmp_path / "out", "--layout", tmp_path / "layout.json"))
    assert len(found) == 10 and {item["source"] for item in found} == {"Hospital"}
    for item in found:
        image, mask = item["sources"]
        assert mask == f"annotations/{image}" and item["group"] == image.split("/")[0]
        assert item["class_name"] == ("benign" if item["group"] in ("p0", "p1", "p2") else "malignant")


def test_a_mask_that_no_image_claims_is_named(hospital, tmp_path):
    save_mask(hospital / "annotations" / "p9" / "scan 0.png")
    (tmp_path / "layout.json").write_text(json.dumps(LAYOUT))
    prepare(hospital, tmp_path / "out", "--layout", tmp_path / "layout.json")
    refused = read_json(tmp_path / "out" / "summary.json")["refused"]
    assert refused == ["annotations/p9/scan 0.png: mask without an image; add its image or remove the mask"]


@pytest.mark.skipif(not (SHARED / "BUS-BRA-sample").is_dir(), reason="needs the sample of BUS-BRA")
def test_bus_bra_in_its_published_layout(tmp_path):
    datalist = prepare(SHARED / "BUS-BRA-sample", tmp_path / "out", "--layout", "bus_bra")
    assert len(items(datalist)) == 76 and datalist["name"] == "BUS-BRA"
    for item in items(datalist):
        name = Path(item["image"]).stem
        assert item["sources"] == [f"Images/{name}.png", f"Masks/{name.replace('bus', 'mask')}.png"]
        assert item["birads"] in "2345" and item["device"] and item["source"] == "BUS-BRA"
        assert int(item["group"]) == int(name[4:8])
    assert len({item["group"] for item in items(datalist)}) == 44


@pytest.mark.skipif(not (SHARED / "external" / "BrEaST").is_dir(), reason="needs BrEaST")
def test_an_external_set_is_for_testing_only(tmp_path):
    datalist = prepare(SHARED / "external" / "BrEaST", tmp_path / "out", "--layout", "breast")
    assert not datalist["training"] and not datalist["validation"] and len(datalist["testing"]) == 256
    assert Counter(item["class_name"] for item in datalist["testing"]) == {"normal": 4, "benign": 154, "malignant": 98}


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--source is missing"),
        (["--source", "nowhere", "--output_dir", "x"], "nowhere: no such folder; pass the folder of the set"),
        (["--source", "docs", "--output_dir", "x"], "docs: no image of this layout in it"),
        (["--source", "docs", "--output_dir", "x", "--layout", "odd"], "no such layout; pass one of breast, bus_bra, "),
        (["--source", "docs", "--output_dir", "x", "--table", "a.csv"], "docs/a.csv: missing"),
        (["--source", "docs", "--output_dir", "x", "--layout", "bundle/configs/train.json"], "no layout ("),
        (["--source", "docs", "--output_dir", "x", "--testing_only", "True", "--folds", "5"], "is for testing only"),
    ],
)
def test_wrong_options_end_with_one_line(options, message):
    assert message in refusal(*options)


def test_columns_that_are_missing_or_clash_are_named(listed, tmp_path):
    text = (listed / "list.csv").read_text(encoding="utf-8-sig")
    for old, new, message in (
        ("class", "kind", "no column class (class); it has file, kind, mask, patient, device"),
        ("device", "label", "column label has the name of an entry of the datalist"),
    ):
        (listed / "list.csv").write_text(text.replace(old, new), encoding="utf-8")
        assert message in refusal("--source", listed, "--output_dir", tmp_path / "out", "--table", "list.csv")
