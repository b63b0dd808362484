"""explore draws what is in the files, and leaves a page and charts that need nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from explore import explore
from PIL import Image
from tools import data_page
from tools.style import COLOURS, class_colours

from conftest import CLASS_NAMES, ROOT

CHARTS = {"classes", "image_sizes", "lesion_area"}


def run(script, *options):
    """Run a command in the repository's root."""
    command = [sys.executable, f"scripts/{script}.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(prepared, tmp_path_factory):
    """The report on the phantoms, as a user makes it."""
    output = tmp_path_factory.mktemp("explore") / "re port"
    done = run("explore", "--dataset_dir", prepared, "--output_dir", output, "--count", 2)
    assert done.returncode == 0, done.stderr
    return output


def test_the_report_holds_every_chart_and_needs_no_other_file(made):
    names = {f.stem for f in made.glob("*.png")}
    assert CHARTS | {f"samples_{name}" for name in CLASS_NAMES} <= names
    html = (made / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(source.startswith(("data:", "#")) for source in sources) and "<script" not in html
    assert html.count("data:image/png") == len(list(made.rglob("*.png")))
    assert not re.search(r"https?://|url\(", html) and "not a medical device" in html.lower()
    for file in made.rglob("*.png"):
        assert Image.open(file).size > (20, 20)


def test_the_numbers_are_those_of_the_datalist(made, prepared):
    html = (made / "report.html").read_text(encoding="utf-8")
    lists = json.loads((prepared / "datalist.json").read_text())
    for part in ("training", "validation", "testing"):
        counts = [sum(item["class_name"] == name for item in lists[part]) for name in CLASS_NAMES]
        cells = "".join(f'<td class="number">{count}</td>' for count in (*counts, sum(counts)))
        assert f"<td>{part}</td>{cells}" in html
    summary = json.loads((prepared / "summary.json").read_text())
    for file in (*summary["left_out"], *summary["repaired"]):
        assert file in html
    assert f"{len(summary['left_out'])} images were left out, {len(summary['refused'])} files refused." in html


def test_what_is_measured_of_an_image_is_right(tiny_prepared):
    items, names, summary = data_page.read_lists(tiny_prepared)
    assert names == list(CLASS_NAMES)
    images, problems = data_page.read_images(tiny_prepared, items)
    assert len(images) == len(items) == 18 and not problems and summary == {}
    for _, row in images.iterrows():
        image = np.asarray(Image.open(tiny_prepared / row["image"]))
        assert (row["height"], row["width"]) == image.shape
        assert row["class_name"] in row["name"] and row["split"] in row["name"]
        lesion = row["class_name"] != "normal"
        assert row["area"] == pytest.approx(100 * 20 * 35 / image.size if lesion else 0)
        assert row["components"] == lesion and row["thumb"].shape[0] == data_page.THUMB


def test_scans_that_cross_splits_or_classes_come_first_and_marks_are_counted(tiny_prepared, tmp_path):
    items, names, _ = data_page.read_lists(tiny_prepared)
    colours = class_colours(names)
    images, _ = data_page.read_images(tiny_prepared, items)
    assert data_page.same_scans(images, colours, tmp_path) == [{"text": "No scan stands in several images."}]
    groups = [f"G{i // 2}" for i in range(len(images))]
    groups[2] = groups[-1] = "../../G9"  # benign, training; malignant, testing
    images["group"] = groups
    told, shown = data_page.same_scans(images, colours, tmp_path / "page")
    assert "8 scans or patients stand in several images (16 in all); 1 of them in several splits" in told["text"]
    assert "1 in several classes" in told["text"] and shown["strips"][0]["text"].startswith("../../G9: ")
    assert len(list((tmp_path / "page" / "same_scan").iterdir())) == 8 and len(list(tmp_path.iterdir())) == 1
    assert data_page.marks(images, colours) == []
    images["burned_in_marks"] = ["text&measurement" if name == "benign" else "" for name in images["class_name"]]
    told, shown = data_page.marks(images, colours)
    assert told["text"].startswith("Known for 18 of 18 images") and shown["head"] == ("Kind", *CLASS_NAMES)
    assert shown["rows"] == [(kind, "0 (0 %)", "6 (100 %)", "0 (0 %)") for kind in ("any", "measurement", "text")]


def test_samples_follow_seed_count_and_class(tiny_prepared, tmp_path):
    def drawn(name, **options):
        done = run(
            "explore",
            "--dataset_dir",
            tiny_prepared,
            "--output_dir",
            tmp_path / name,
            *(f"--{k}={v}" for k, v in options.items()),
        )
        assert done.returncode == 0, done.stderr
        html = (tmp_path / name / "report.html").read_text()
        return re.findall(r'alt="Class (\w+): image, mask and outline of ([^"]+)"', html)

    one = drawn("one", count=3, seed=1, **{"class": "benign"})
    assert [name for name, _ in one] == ["benign"] and one[0][1].count(".png") == 3
    assert drawn("again", count=3, seed=1, **{"class": "benign"}) == one
    first, second = (tmp_path / name / "samples_benign.png" for name in ("one", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert not (tmp_path / "one" / "samples_normal.png").exists()


def test_images_that_cannot_be_read_are_named_and_the_rest_is_shown(tiny_prepared, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_prepared, folder)
    items, _, _ = data_page.read_lists(folder)
    (folder / items[0]["image"]).write_bytes(b"no image")
    (folder / items[1]["label"]).unlink()
    done = run("explore", "--dataset_dir", folder, "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and "16 images" in done.stdout
    html = (tmp_path / "out" / "report.html").read_text()
    for item in items[:2]:
        assert f"{item['image']}: left out" in done.stderr and item["image"] in html


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset_dir": Path("nowhere")}, "nowhere/datalist.json: missing; name a prepared folder"),
        ({"class_": "benin"}, "--class benin: pass one of normal, benign, malignant"),
        ({"count": 0}, "--count needs a whole number"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(options, message, prepared, tmp_path):
    with pytest.raises((OSError, ValueError), match=re.escape(message)):
        explore(**{"dataset_dir": prepared, "output_dir": tmp_path / "out"} | options)
    assert not (tmp_path / "out").exists()


def test_a_datalist_that_was_written_on_windows_is_shown_too(tiny_prepared, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_prepared, folder)
    text = (folder / "datalist.json").read_text().replace("images/", r"images\\").replace("labels/", r"labels\\")
    (folder / "datalist.json").write_text(text)
    assert explore(folder, tmp_path / "out") == {"shown": 18, "left_out": 0}


def test_classes_of_ones_own_have_their_names_and_colours(tiny_prepared, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_prepared, folder)
    content = json.loads((folder / "datalist.json").read_text())
    content["class_names"] = ["no", "<fluid>", "solid", "fat", "other"]
    (folder / "datalist.json").write_text(json.dumps(content))
    done = run("explore", "--dataset_dir", folder, "--output_dir", tmp_path / "out", "--class", "<fluid>")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;fluid&gt;</span>" in html and "<fluid>" not in html and "malignant" not in html
    assert len(set(re.findall(r'class="mark" style="--c:(#\w+)"', html))) == 5


def test_other_classes_have_their_names_and_colours(tiny_prepared, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_prepared, folder)
    datalist = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    names = [f"BI-RADS {number}" for number in range(1, 6)]
    datalist["training"][0]["class"] = 4
    (folder / "datalist.json").write_text(json.dumps({"class_names": names, **datalist}), encoding="utf-8")
    explore(folder, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for name, colour in class_colours(names).items():
        assert f'style="--c:{colour}">{name}</span>' in html
    assert "benign" not in re.sub(r"(training|validation|testing) \w+ \(\d\)", "", html) and "BUSI" not in html
    assert (tmp_path / "out" / "samples_BI-RADS_5.png").is_file()


def test_each_class_has_a_colour_that_no_other_has():
    for names in (["normal", "benign", "malignant"], ["benign", "cyst", "malignant"], list("abcdefgh")):
        colours = class_colours(names)
        assert list(colours) == names and len(set(colours.values())) == len(names)
        assert all(colours[name] == colour for name, colour in COLOURS.items() if name in names)
