"""scripts/prepare.py: class folders of any names, tables, published layouts, and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from prepare import prepare as command
from tools.cli import run

from conftest import CLASS_NAMES, ROOT

SHARED = ROOT.parent / "shared" / "data"
SIZE = (56, 40)
FOLDERS = [f"BI-RADS {number}" for number in (1, 2, 3, 4, 10)]


def prepare(source, output, *options):
    run(command, ["--source", str(source), "--output_dir", str(output), *map(str, options)])
    return read_json(output / "datalist.json")


def refusal(*options):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as stopped:
        run(command, list(map(str, options)))
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def items(datalist):
    return [item for split in ("training", "validation", "testing") for item in datalist[split]]


def pixels(folder, item):
    """The label of an entry."""
    return np.asarray(Image.open(folder / item["label"]))


def summary(folder):
    return read_json(folder / "out" / "summary.json")


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


def test_a_drawn_empty_mask_says_that_an_image_of_an_own_class_shows_no_lesion(folders, tmp_path):
    Image.new("L", SIZE).save(folders / FOLDERS[0] / "image 0_mask.png")
    found = {item["sources"][0]: item for item in items(prepare(folders, tmp_path / "out"))}
    assert not pixels(tmp_path / "out", found[f"{FOLDERS[0]}/image 0.png"]).any()
    repaired = summary(tmp_path)["repaired"]
    assert repaired == {f"{FOLDERS[0]}/image 0.png": "empty mask: taken as drawn, an image without a lesion"}


def test_a_forgotten_mask_is_refused_unless_the_class_is_declared_free_of_lesions(folders, tmp_path):
    for file in (*(folders / FOLDERS[0]).glob("*_mask.png"), folders / FOLDERS[1] / "image 1_mask.png"):
        file.unlink()
    refused = (
        f"{FOLDERS[1]}/image 1.png: no mask, but the class is {FOLDERS[1]}; add the mask or move the image out, or "
    )
    refused += "declare the class with --without_lesions"
    assert len(items(prepare(folders, tmp_path / "out", "--without_lesions", [FOLDERS[0]]))) == 29
    assert summary(tmp_path)["refused"] == [refused] and not summary(tmp_path)["repaired"]
    shutil.rmtree(tmp_path / "out")
    assert len(items(prepare(folders, tmp_path / "out"))) == 23
    assert len(summary(tmp_path)["refused"]) == 7
    for name in ("BI-RADS 7", "benign"):
        message = f"--without_lesions {name}: pass names of classes that hold no lesion, of BI-RADS 1, "
        assert message in refusal("--source", folders, "--output_dir", tmp_path / "no", "--without_lesions", [name])


def test_the_order_of_class_names_may_be_given(folders, tmp_path):
    names = FOLDERS[::-1]
    assert prepare(folders, tmp_path / "out", "--class_names", names)["class_names"] == names


def test_images_of_a_class_that_is_not_among_those_given_are_named(folders, tmp_path):
    datalist = prepare(folders, tmp_path / "out", "--class_names", FOLDERS[:4])
    refused = summary(tmp_path)["refused"]
    assert len(items(datalist)) == 24 and len(refused) == 6
    assert all("class 'BI-RADS 10' is not among BI-RADS 1, " in line for line in refused)


def test_copies_stay_in_one_split_where_no_patient_is_known(folders, tmp_path):
    for k in range(3):
        for ending in ("", "_mask"):
            shutil.copy(folders / FOLDERS[0] / f"image 0{ending}.png", folders / FOLDERS[0] / f"copy {k}{ending}.png")
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


def test_a_mask_beside_an_image_that_a_table_gives_another_one_is_told(listed, tmp_path):
    save_mask(listed / "images" / "3_mask.png", left=40)
    found = {Path(item["image"]).stem: item for item in items(prepare(listed, tmp_path / "out", "--table", "list.csv"))}
    assert found["3"]["sources"] == ["images/3.jpg", "drawn/m3.png"] and not summary(tmp_path)["refused"]
    assert summary(tmp_path)["ignored"] == ["images/3_mask.png"]


def test_what_cannot_be_used_is_named_and_counted(listed, tmp_path):
    text = (listed / "list.csv").read_text(encoding="utf-8")
    text += "\nnowhere.jpg;benign;;P9;\n1.jpg;benign;;P9;\n"
    (listed / "list.csv").write_text(text.replace("malignant", "").replace("2.jpg;benign", "2.jpg;"), encoding="utf-8")
    save(listed / "images" / "unlisted.png", 99)
    save_mask(listed / "drawn" / "m4.png", size=(30, 30))
    (listed / "images" / "5.jpg").write_bytes(b"no image")
    (listed / "notes.txt").write_text("mine")
    datalist = prepare(listed, tmp_path / "out", "--table", "list.csv")
    told = summary(tmp_path)
    for expected in (
        "images/2.jpg: no class",
        "images/4.jpg: its mask drawn/m4.png is 30x30, its image 56x40",
        "images/5.jpg: ",
        "images/unlisted.png: not in list.csv",
        "list.csv, line 14, nowhere.jpg: no such image",
        "list.csv, line 15, 1.jpg: its image has an earlier row",
    ):
        assert any(line.startswith(expected) for line in told["refused"]), expected
    assert len(told["refused"]) == 6 and told["ignored"] == ["notes.txt"] and len(items(datalist)) == 9
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
    refused = summary(tmp_path)["refused"]
    assert refused == ["annotations/p9/scan 0.png: mask without an image; add the image or remove the mask"]


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
        (["--source", "docs", "--output_dir", "x"], "docs: no image (.png .jpg .jpeg .bmp .tif .tiff .webp .gif) of"),
        (
            ["--source", "docs", "--output_dir", "x", "--layout", "odd"],
            "no such layout; pass one of breast, breast_published, ",
        ),
        (["--source", "docs", "--output_dir", "x", "--table", "a.csv"], "docs/a.csv: missing"),
        (["--source", "docs", "--output_dir", "x", "--layout", "bundle/configs/train.json"], "no layout ("),
        (["--source", "docs", "--output_dir", "x", "--testing_only", "True", "--folds", "5"], "is for testing only"),
        (
            ["--source", "docs", "--output_dir", "x", "--layout", "busi", "--table", "a"],
            "a: layout busi reads none; leave",
        ),
        (["--source", "docs", "--output_dir", "x", "--protocol", "clean"], "nobody has published a list of this set's"),
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


def test_the_old_names_of_the_command_make_the_same_bytes(folders, tmp_path):
    phantoms = tmp_path / "busi"
    for k in range(12):
        save(phantoms / CLASS_NAMES[k % 3] / f"{k}.png", k)
        save_mask(phantoms / CLASS_NAMES[k % 3] / f"{k}_mask.png", value=255 * (k % 3 > 0))
    for name, source, options in (("prepare_dataset", folders, []), ("prepare_busi", phantoms, ["--layout", "busi"])):
        prepare(source, tmp_path / name, *options)
        command = [ROOT / "scripts" / f"{name}.py", "--source", source, "--output_dir", tmp_path / f"old {name}"]
        subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
        files = [path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert len(files) > 24
        for file in files:
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"old {name}" / file).read_bytes()


# Identity is one rule


@pytest.fixture
def twelve(tmp_path):
    """Twelve images p00 to p11 in one folder, a mask beside each; returns a function that writes the table."""
    for k in range(12):
        save(tmp_path / "own" / f"p{k:02}.png", k)
        save_mask(tmp_path / "own" / f"p{k:02}_mask.png")

    def with_table(head, row, encoding="utf-8", name="list.csv"):
        lines = [head, *(row(k) for k in range(12))]
        (tmp_path / "own" / name).write_bytes("\r\n".join(lines).encode(encoding))
        return tmp_path / "own"

    return with_table


def by_patient(patient):
    """The row of image k, two images a patient, who is spelled by `patient(number, which of the two)`."""
    return lambda k: f"p{k:02}.png,{('benign', 'malignant')[k % 2]},{patient(k // 2, k % 2)}"


@pytest.mark.parametrize(
    "patient, told",
    [
        (lambda n, second: f"P{n} " if second else f"P{n}", 0),
        (lambda n, second: f"\u00a0P{n}\u200b" if second else f"P{n}", 0),
        (lambda n, second: f"P{n}" if second else f"p{n}", 6),
        (lambda n, second: f"e\u0301{n}" if second else f"\u00e9{n}", 0),
        (lambda n, second: f"00{n + 1}" if second else f"{n + 1}", 6),
        (lambda n, second: f"{n + 1}.0" if second else f"{n + 1}", 6),
    ],
    ids=["space", "invisible", "case", "NFD", "leading zeros", "1.0"],
)
def test_a_patient_is_one_however_it_is_spelled(patient, told, twelve, tmp_path):
    datalist = prepare(twelve("file,class,patient", by_patient(patient)), tmp_path / "out", "--table", "list.csv")
    groups = Counter(item["group"] for item in items(datalist))
    assert sorted(groups.values()) == [2] * 6
    notes = [note for note in summary(tmp_path)["notes"] if note.startswith(f"Taken for one patient each ({told}): ")]
    assert bool(notes) == bool(told)


@pytest.mark.parametrize("unknown", ["", " ", "NA", "n/a", "nan", "Unknown", "?", "-"])
def test_an_unknown_patient_is_nobody(unknown, twelve, tmp_path):
    rows = by_patient(lambda n, second: f"P{n}" if n < 3 else unknown)
    datalist = prepare(twelve("file,class,patient", rows), tmp_path / "out", "--table", "list.csv")
    assert sorted(Counter(item["group"] for item in items(datalist)).values()) == [1] * 6 + [2] * 3
    assert summary(tmp_path)["notes"][0].startswith("6 images name no patient")


@pytest.mark.parametrize("head", ["Patient", "patient ", "\ufeffPATIENT", "patient_id", "Patient ID"])
def test_the_column_of_patients_is_found_however_it_is_spelled(head, twelve, tmp_path):
    rows = by_patient(lambda n, second: f"P{n}")
    datalist = prepare(twelve(f"file,class,{head}", rows), tmp_path / "out", "--table", "list.csv")
    assert len({item["group"] for item in items(datalist)}) == 6 and datalist["protocol"] == "patients"


@pytest.mark.parametrize(
    "head, row, message",
    [
        (
            "file,class,patient,class",
            "{},benign,P1,malignant",
            "two columns say class; it has file, class, patient, cl",
        ),
        ("file,class,patient,Class ", "{},benign,P1,malignant", "two columns say class"),
        ("file,class,image", "{},benign,p01.png", "two columns say image"),
        ("file,class,patient,group", "{},benign,P1,A", "two columns say group"),
        ("file,class,patient,patient_id", "{},benign,P1,A", "two columns say group"),
        ("file,class,Patient no.", "{},benign,P1", "column Patient no. seems to name patients; call it patient"),
        ("file,class,label", "{},benign,x", "column label has the name of an entry of the datalist; rename"),
        ("file,class,size,patient", "{},benign,3,5,P1", "list.csv, line 2: 5 cells, but 4 columns; quote cells"),
        ("file,class,patient", "{},benign", "list.csv, line 2: 2 cells, but 3 columns; add the missing ones"),
        ("file,class,", "{},benign,P1", "list.csv, line 2: a cell in a column without a name"),
        ("file,class", "{},cyst", "one class alone (cyst); name all classes with --class_names"),
        ("file,class", "{},?", "p00.png: no class"),
        ("file,class,mask", "{},benign,p00_mask.png|p01_mask.png", "its mask p00_mask.png|p01_mask.png: no such file"),
        ("file,class,mask", "{},benign,/etc/passwd", "its mask /etc/passwd: no such file"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(head, row, message, twelve, tmp_path):
    source = twelve(head, lambda k: row.format(f"p{k:02}.png"))
    assert message in refusal("--source", source, "--output_dir", tmp_path / "out", "--table", "list.csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-32"])
def test_a_table_of_another_encoding_is_named(encoding, twelve, tmp_path):
    source = twelve("file,class", lambda k: f"p{k:02}.png,gutartig \u00e9", encoding)
    message = refusal("--source", source, "--output_dir", tmp_path / "out", "--table", "list.csv")
    assert message.endswith('own/list.csv: not UTF-8; save it as "CSV UTF-8"')
    twelve("file,class", lambda k: f"p{k:02}.png,\0benign")
    assert "it holds NUL" in refusal("--source", source, "--output_dir", tmp_path / "out", "--table", "list.csv")


def test_a_class_is_one_however_it_is_spelled(twelve, tmp_path):
    spellings = ["Fibr\u00f6s", "fibro\u0308s", " FIBR\u00d6S", '"Fibr\u00f6s\n"', "Fibr\u00f6s\u200b", "Fibr\u00f6s"]
    source = twelve("file,class", lambda k: f"./p{k:02}.png,{spellings[k % 6] if k < 6 else 'cyst'}")
    datalist = prepare(source, tmp_path / "out", "--table", "list.csv")
    assert datalist["class_names"] == ["cyst", "Fibr\u00f6s"]
    assert Counter(item["class_name"] for item in items(datalist)) == {"cyst": 6, "Fibr\u00f6s": 6}
    assert any(note.startswith("Taken for one class, Fibr\u00f6s: ") for note in summary(tmp_path)["notes"])
    message = "--class_names ['cyst', 'Cyst ']: each needs a name of its own"
    options = ["--source", source, "--output_dir", tmp_path / "no", "--table", "list.csv"]
    assert message in refusal(*options, "--class_names", ["cyst", "Cyst "])


def test_images_without_a_patient_are_still_compared_with_all_others(twelve, tmp_path):
    source = twelve("file,class,patient", lambda k: f"p{k:02}.png,{('benign', 'malignant')[k > 6]},{'' if k else 'P1'}")
    for copy in ("p01.png", "p02.png"):
        shutil.copy(source / "p00.png", source / copy)
    shutil.copy(source / "p08.png", source / "p03.png")
    found = {item["sources"][0]: item for item in items(prepare(source, tmp_path / "out", "--table", "list.csv"))}
    assert [found[f"p0{k}.png"]["group"] for k in range(3)] == ["P1"] * 3
    assert found["p03.png"]["group"] == found["p08.png"]["group"]
    crossing = "Copies of one scan in several classes, check which is right (1): p03.png = p08.png."
    assert crossing in summary(tmp_path)["notes"]


def test_copies_under_two_patients_are_kept_together_and_told(twelve, tmp_path):
    source = twelve("file,class,patient", by_patient(lambda n, second: f"P{n}"))
    shutil.copy(source / "p00.png", source / "p10.png")
    datalist = prepare(source, tmp_path / "out", "--table", "list.csv")
    assert sorted(Counter(item["group"] for item in items(datalist)).values()) == [2, 2, 2, 2, 4]
    assert "Copies of one scan under several names, kept together (1): P0 = P5." in summary(tmp_path)["notes"]


def test_copies_of_another_set_are_told(folders, tmp_path):
    prepare(folders, tmp_path / "other")
    source = shutil.copytree(folders, tmp_path / "second", ignore=shutil.ignore_patterns("image [1-5]*"))
    for number, name in enumerate(FOLDERS):
        for k in range(6, 10):
            save(source / name / f"image {k}.png", 100 + 10 * number + k)
            save_mask(source / name / f"image {k}_mask.png")
    mirrored = source / FOLDERS[4] / "image 0.png"
    with Image.open(mirrored) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    prepare(source, tmp_path / "out", "--compare_with", tmp_path / "other")
    start = f"Copies of images of {tmp_path / 'other'} (5 pairs), a leak where one set trains and the other tests: "
    (told,) = [note for note in summary(tmp_path)["notes"] if note.startswith(start)]
    assert told.endswith(", BI-RADS 10/image 0.png = BI-RADS 10_image 0.png.")
    options = ["--source", source, "--output_dir", tmp_path / "no", "--compare_with", tmp_path / "nowhere"]
    assert "nowhere: no prepared folder" in refusal(*options)


def test_nothing_is_written_outside_the_output_whatever_a_class_is_called(tmp_path):
    (tmp_path / "victim").mkdir()
    lines = ["file,class"]
    for k in range(12):
        for folder in ("a", "b"):
            save(tmp_path / "own" / folder / f"p{k}.png", 2 * k + (folder == "a"))
            save_mask(tmp_path / "own" / folder / f"p{k}_mask.png")
            lines.append(f"{folder}/p{k}.png,{('../../victim/EVIL', '/benign/cyst')[k % 2]}")
    (tmp_path / "own" / "list.csv").write_text("\n".join(lines))
    before = set(tmp_path.rglob("*"))
    assert len(items(prepare(tmp_path / "own", tmp_path / "out", "--table", "list.csv"))) == 24
    assert len(list((tmp_path / "out" / "images").iterdir())) == 24
    assert all(path.is_relative_to(tmp_path / "out") for path in set(tmp_path.rglob("*")) - before)


# Masks and files as people keep them


@pytest.mark.parametrize("ending", ["_MASK", "_Mask_1", "-mask", " mask", "_seg", "_mask1", "_segmentation"])
def test_a_mask_is_known_by_its_usual_names(ending, tmp_path):
    for name in ("cyst", "fibro"):
        for k in range(6):
            save(tmp_path / "own" / name / f"{name[0]}{k}.png", 10 * ord(name[0]) + k)
            save_mask(tmp_path / "own" / name / f"{name[0]}{k}{ending}.png")
    found = items(prepare(tmp_path / "own", tmp_path / "out"))
    assert len(found) == 12 and all(pixels(tmp_path / "out", item).sum() == 80 * 255 for item in found)


def test_a_mask_by_a_name_that_nobody_knows_is_no_image(folders, tmp_path):
    (folders / FOLDERS[0] / "image 0_mask.png").rename(folders / FOLDERS[0] / "image 0_truth.png")
    assert len(items(prepare(folders, tmp_path / "out", "--without_lesions", [FOLDERS[0]]))) == 30
    name = f"{FOLDERS[0]}/image 0_truth.png: two greys alone, which a mask has; name it NAME_mask, or move it out"
    assert summary(tmp_path)["refused"] == [name]


def test_links_are_followed_and_those_that_lead_nowhere_are_named(folders, tmp_path):
    (folders / FOLDERS[0]).rename(tmp_path / "elsewhere")
    (folders / FOLDERS[0]).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folders / FOLDERS[1] / "circle").symlink_to(folders, target_is_directory=True)
    (folders / FOLDERS[2] / "image 7.png").symlink_to(tmp_path / "annex" / "image 7.png")
    os.mkfifo(folders / FOLDERS[2] / "image 8.png")
    (folders / "BI-RADS 6").symlink_to(tmp_path / "annex", target_is_directory=True)
    assert len(items(prepare(folders, tmp_path / "out"))) == 30
    problem = "a link to a file that is not here, or no file; fetch it or move it out"
    assert summary(tmp_path)["refused"] == [
        f"{file}: {problem}" for file in (f"{FOLDERS[2]}/image 7.png", f"{FOLDERS[2]}/image 8.png", "BI-RADS 6")
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_named(folders, tmp_path):
    (folders / FOLDERS[0]).chmod(0)
    try:
        assert "Permission denied; make the folder readable" in refusal(
            "--source", folders, "--output_dir", tmp_path / "o"
        )
    finally:
        (folders / FOLDERS[0]).chmod(0o755)


def test_masks_of_another_size_are_told_before_too_few_are_left(folders, tmp_path):
    for name in FOLDERS:
        for k in range(6 if name != FOLDERS[0] else 5):
            save_mask(folders / name / f"image {k}_mask.png", size=(30, 30))
    message = refusal("--source", folders, "--output_dir", tmp_path / "out")
    first = f"29 of 30 images cannot be used, the first of 29 problems: {FOLDERS[0]}/image 0.png: its mask "
    assert first in message and "is 30x30, its image 56x40 pixels; export the mask in the size of the image" in message
    assert message.endswith("1 groups cannot fill 3 splits; add images")


def smooth_mask(path, blur):
    """A disc of 113 pixels whose edges are blurred; with 2 pixels of blur it is too soft to be judged alone."""
    mask = np.zeros(SIZE[::-1], np.float32)
    cv2.circle(mask, (26, 18), 6, 255, -1)
    Image.fromarray(cv2.GaussianBlur(mask, (0, 0), blur).round().astype(np.uint8)).save(path)


def test_smooth_masks_are_judged_by_one_rule_for_the_set(folders, tmp_path):
    files = sorted(folders.glob("*/*_mask.png"))
    for number, file in enumerate(files):
        smooth_mask(file, 2 if number < 3 else 1)
    found = {item["sources"][1]: item for item in items(prepare(folders, tmp_path / "out"))}
    assert len(found) == 30 and not summary(tmp_path)["refused"]
    for number, file in enumerate(files):
        area = (pixels(tmp_path / "out", found[file.relative_to(folders).as_posix()]) > 0).sum()
        assert area == (101 if number < 3 else 109)
    repaired = summary(tmp_path)["repaired"]
    assert len(repaired) == 30 and sum("as of the set's other masks, cut at" in line for line in repaired.values()) == 3
    shutil.rmtree(tmp_path / "out")
    for number, file in enumerate(files):
        smooth_mask(file, 1 if number < 3 else 2)
    assert "none of its images can be used" in refusal("--source", folders, "--output_dir", tmp_path / "out")


def test_a_mask_of_several_labels_is_none_with_soft_edges(folders, tmp_path):
    files = sorted(folders.glob("*/*_mask.png"))
    for file in files:
        smooth_mask(file, 1)
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[5:15, 10:18], labels[5:15, 18:30] = 100, 200
    Image.fromarray(labels).save(files[0])
    assert len(items(prepare(folders, tmp_path / "out"))) == 29
    assert "several greys (0, 100, 200)" in summary(tmp_path)["refused"][0]


# What annotation programs export


SQUARE = [[10, 5], [18, 5], [18, 15], [10, 15]]  # covers the pixels 10 to 17 across and 5 to 14 down


def coco(images):
    annotations = [
        {"id": k, "image_id": k, "category_id": 1 + k % 2, "segmentation": [sum(SQUARE, [])]}
        for k in range(len(images) - 1)
    ]
    mask = np.zeros(SIZE[::-1], int)
    mask[5:15, 10:18] = 1
    ends = np.flatnonzero(np.diff(mask.T.ravel())) + 1
    runs = {"size": list(SIZE[::-1]), "counts": np.diff([0, *ends, mask.size]).tolist()}
    annotations[0]["segmentation"] = runs
    sized = [
        {"id": k, "file_name": f"other/folder/{n}", "width": SIZE[0], "height": SIZE[1]} for k, n in enumerate(images)
    ]
    categories = [{"id": 1, "name": "Benign"}, {"id": 2, "name": "malignant"}]
    return {"export.json": json.dumps({"images": sized, "annotations": annotations, "categories": categories})}


def labelme(images):
    found = {}
    for k, name in enumerate(images):
        shape = {"label": ("Benign", "malignant")[k % 2], "points": SQUARE, "shape_type": "polygon"}
        shapes = [shape] if k < len(images) - 1 else []
        tree = {"imagePath": f"..\\{name}", "imageWidth": SIZE[0], "imageHeight": SIZE[1], "shapes": shapes}
        found[name.replace(".png", ".json")] = json.dumps(tree)
    return found


def cvat(images):
    lines = ["<annotations>"]
    for k, name in enumerate(images):
        label = ("Benign", "malignant")[k % 2]
        points = ";".join(f"{x},{y}" for x, y in SQUARE)
        shape = f'<polygon label="{label}" points="{points}"/>' if k else ""
        shape = shape or f'<mask label="{label}" rle="0, 80" left="10" top="5" width="8" height="10"/>'
        shape = shape if k < len(images) - 1 else ""
        lines.append(f'<image id="{k}" name="{name}" width="{SIZE[0]}" height="{SIZE[1]}">{shape}</image>')
    return {"annotations.xml": "\n".join([*lines, "</annotations>"])}


@pytest.mark.parametrize("export", [coco, labelme, cvat], ids=["coco", "labelme", "cvat"])
def test_outlines_of_an_annotation_program_become_masks_and_classes(export, tmp_path):
    names = [f"p{k}.png" for k in range(9)]
    for k, name in enumerate(names):
        save(tmp_path / "own" / name, k)
    for file, text in export(names).items():
        (tmp_path / "own" / file).write_text(text)
    datalist = prepare(tmp_path / "own", tmp_path / "out", "--layout", export.__name__)
    assert datalist["class_names"] == ["normal", "benign", "malignant"] and len(items(datalist)) == 8
    for item in items(datalist):
        mask = pixels(tmp_path / "out", item)
        assert mask[5:15, 10:18].all() and mask.sum() == 80 * 255
        assert item["class_name"] == ("benign", "malignant")[int(item["sources"][0][1]) % 2]
        assert len(item["sources"]) == 2 and item["sources"][1].endswith((".json", ".xml"))
    assert summary(tmp_path)["refused"] == ["p8.png: no class; give it one in the table"]
    layout = {"image": "(?P<key>.+)", "annotations": export.__name__, "classes": {"": "normal"}}
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    shutil.rmtree(tmp_path / "out")
    normal = [
        i
        for i in items(prepare(tmp_path / "own", tmp_path / "out", "--layout", tmp_path / "layout.json"))
        if not i["class"]
    ]
    assert [item["sources"][0] for item in normal] == ["p8.png"] and not pixels(tmp_path / "out", normal[0]).any()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"points"', '"dots"', "p0.json: no annotations in the form of labelme (KeyError"),
        ('"polygon"', '"rectangle"', "p0.png: its outline in p0.json: a rectangle; draw polygons"),
        ('"imageWidth": 56', '"imageWidth": 58', "its outline in p0.json: drawn on 58x40, its image 56x40 pixels"),
        ("[18, 15], ", "[NaN, 15], ", "p0.png: its outline in p0.json: a polygon of 4 points, or of one far out"),
        ("p0.png", "q.png", "p0.json, q.png: no such image"),
        ("{", "[", "p0.json: no annotations in the form of labelme (JSONDecodeError"),
    ],
)
def test_annotations_that_cannot_be_used_are_named(old, new, message, tmp_path):
    names = [f"p{k}.png" for k in range(9)]
    for k, name in enumerate(names):
        save(tmp_path / "own" / name, k)
    texts = labelme(names)
    texts["p0.json"] = texts["p0.json"].replace(old, new)
    for file, text in texts.items():
        (tmp_path / "own" / file).write_text(text)
    prepare(tmp_path / "own", tmp_path / "out", "--layout", "labelme")
    assert any(message in line for line in summary(tmp_path)["refused"])


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('rle="0, 80"', 'rle="0, 79"', "run lengths that do not fill their box"),
        ('left="10"', 'left="50"', "a mask that reaches out of the image"),
        ('left="10"', 'left="-1"', "a mask that reaches out of the image"),
        ("<mask", "<box", "p0.png: its outline in annotations.xml: a box; draw polygons or masks"),
        ("<annotations>", "<annotations", "annotations.xml: no annotations in the form of cvat (ParseError"),
        ("<annotations>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>", "annotations.xml: declares entities"),
    ],
)
def test_masks_of_cvat_that_cannot_be_used_are_named(old, new, message, tmp_path):
    names = [f"p{k}.png" for k in range(9)]
    for k, name in enumerate(names):
        save(tmp_path / "own" / name, k)
    (tmp_path / "own" / "annotations.xml").write_text(cvat(names)["annotations.xml"].replace(old, new))
    (tmp_path / "own" / "list.csv").write_text(
        "\n".join(["file,class", *(f"{n},{'ab'[k % 2]}" for k, n in enumerate(names))])
    )
    options = ["--source", tmp_path / "own", "--layout", "cvat", "--table", "list.csv", "--without_lesions", ["a", "b"]]
    prepare(tmp_path / "own", tmp_path / "out", *options[2:])
    assert any(message in line for line in summary(tmp_path)["refused"])


# Sets as they are published


def test_a_layout_with_keys_of_other_types_is_named(folders, tmp_path):
    for key, value in (("classes", ["a"]), ("columns", "x"), ("image", "no key"), ("mask", "("), ("odd", 1)):
        (tmp_path / "layout.json").write_text(json.dumps({"image": "(?P<key>.+)", key: value}))
        options = ["--source", folders, "--output_dir", tmp_path / "out", "--layout", tmp_path / "layout.json"]
        assert f"layout.json: no layout ({key}: " in refusal(*options)


def published_breast(folder):
    """Phantoms in the layout of BrEaST: a folder of images and masks, and its spreadsheet as CSV."""
    lines = ["CaseID,Image_filename,Mask_tumor_filename,Mask_other_filename,Age,Symptoms,BIRADS,Classification"]
    for k in range(1, 13):
        save(folder / "images" / f"case{k:03}.png", k)
        name = "normal" if k % 4 == 0 else ("benign", "malignant")[k % 2]
        if name != "normal":
            save_mask(folder / "images" / f"case{k:03}_tumor.png")
        save_mask(folder / "images" / f"case{k:03}_other1.png", left=30)
        lines.append(f"{k},case{k:03}.png,case{k:03}_tumor.png,case{k:03}_other1.png,{40 + k},pain,4a,{name}")
    (folder / "clinical.csv").write_text("\n".join(lines))
    return folder


def test_breast_as_it_is_published(tmp_path):
    source = published_breast(tmp_path / "own")
    options = ["--layout", "breast_published", "--table", "clinical.csv"]
    found = items(prepare(source, tmp_path / "out", *options))
    assert Counter(item["class_name"] for item in found) == {"normal": 3, "benign": 3, "malignant": 6}
    for item in found:
        assert pixels(tmp_path / "out", item).sum() == (0 if item["class_name"] == "normal" else 80 * 255)
        assert item["birads"] == "4a" and item["age"] == str(40 + int(item["group"])) and "Symptoms" not in item
    assert len(summary(tmp_path)["ignored"]) == 12 and not summary(tmp_path)["refused"]


def test_a_spreadsheet_of_excel_is_read_as_it_is(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    source = published_breast(tmp_path / "own")
    expected = prepare(source, tmp_path / "out", "--layout", "breast_published", "--table", "clinical.csv")
    book = openpyxl.Workbook()
    book.active.append(["about", "this file"])
    sheet = book.create_sheet("BrEaST-Lesions-USG clinical dat")
    for line in (source / "clinical.csv").read_text().splitlines():
        sheet.append([int(cell) if cell.isdigit() else cell for cell in line.split(",")])
    book.save(source / "BrEaST-Lesions-USG-clinical-data.xlsx")
    (source / "clinical.csv").unlink()
    shutil.rmtree(tmp_path / "out")
    assert prepare(source, tmp_path / "out", "--layout", "breast_published") == expected


@pytest.mark.skipif(not (SHARED / "BUS-UCLM-sample").is_dir(), reason="needs the sample of BUS-UCLM")
def test_bus_uclm_in_its_published_layout(tmp_path):
    found = items(prepare(SHARED / "BUS-UCLM-sample", tmp_path / "out", "--layout", "bus_uclm"))
    left_out = summary(tmp_path)["left_out"]
    with (SHARED / "BUS-UCLM-sample" / "INFO.csv").open(encoding="utf-8-sig") as file:
        doppler = {f"images/{row['Image']}" for row in csv.DictReader(file, delimiter=";") if row["Doppler"] != "No"}
    other_size = {"images/HESN_000.png", "images/HESN_001.png"}
    assert {f for f, reason in left_out.items() if reason == "colour Doppler"} == doppler
    assert {f for f, reason in left_out.items() if reason == "its published mask has another size"} == other_size
    assert len(found) == 40 - len(left_out) and not summary(tmp_path)["refused"]
    for item in found:
        with Image.open(SHARED / "BUS-UCLM-sample" / item["sources"][1]) as mask:
            lesion = np.asarray(mask.convert("RGB")).any(axis=2)
        assert np.array_equal(pixels(tmp_path / "out", item) > 0, lesion) and lesion.any() == (item["class"] > 0)
        patient = Path(item["image"]).name[:4]
        assert item["group"] == {"CHVI": "CHCO"}.get(patient, patient)


@pytest.mark.skipif(not (SHARED / "BUS-BRA-sample").is_dir(), reason="needs the sample of BUS-BRA")
def test_published_folds_are_taken_as_they_are(tmp_path):
    source = shutil.copytree(SHARED / "BUS-BRA-sample", tmp_path / "own")
    names = sorted(path.stem for path in (source / "Images").iterdir())
    folds = {name: 1 + int(name[4:8]) % 5 for name in names}
    (source / "5-fold-cv.csv").write_text("\n".join(["ID,kFold", *(f"{n},{k}" for n, k in list(folds.items())[1:])]))
    datalist = prepare(source, tmp_path / "out", "--layout", "bus_bra", "--folds", "official")
    assert datalist["folds"] == "official"
    for k in range(5):
        tested = {Path(item["image"]).stem for item in datalist[f"fold_{k}"]}
        assert tested == {name for name in names[1:] if folds[name] == k + 1}
        lists = read_json(tmp_path / "out" / f"datalist_fold_{k}.json")
        groups = [{item["group"] for item in lists[split]} for split in ("training", "validation", "testing")]
        assert lists["testing"] == datalist[f"fold_{k}"] and sum(map(len, groups)) == len(set().union(*groups))
    assert (
        f"Images/{names[0]}.png: no fold in 5-fold-cv.csv; add it, or pass another --folds"
        in summary(tmp_path)["refused"]
    )
    options = ["--source", SHARED / "external", "--output_dir", tmp_path / "no", "--folds", "official"]
    assert "--folds official: this layout knows none" in refusal(*options)
