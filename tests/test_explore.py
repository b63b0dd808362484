"""explore.py and plot_training.py draw what is in the files, and leave pages and charts that need nothing else."""

import csv
import json
import re
import shutil
import subprocess
import sys

import explore
import numpy as np
import plot_training
import pytest
import style
from conftest import CLASS_NAMES, ROOT
from PIL import Image

CHARTS = {"classes", "picture_sizes", "lesion_area", "lesion_position", "intensities"}


def run(script, *options):
    """Run a command in the repository's root."""
    command = [sys.executable, f"scripts/{script}.py", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def made(prepared, tmp_path_factory):
    """The report on the phantoms, as a user makes it."""
    output = tmp_path_factory.mktemp("explore") / "re port"
    done = run("explore", prepared, "--output", output, "--count", 2)
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
    assert f"{len(summary['left_out'])} pictures were left out, {len(summary['refused'])} files refused." in html


def test_what_is_measured_of_a_picture_is_right(tiny_prepared):
    items, summary = explore.read_lists(tiny_prepared)
    pictures, problems = explore.read_pictures(tiny_prepared, items)
    assert len(pictures) == len(items) == 18 and not problems and summary == {}
    for p in pictures:
        image = np.asarray(Image.open(tiny_prepared / p["image"]))
        assert p["size"] == image.shape[::-1] and p["class_name"] in p["name"] and p["part"] in p["name"]
        assert p["grey"].sum() == pytest.approx(1) and p["grey"] @ np.arange(256) == pytest.approx(image.mean())
        lesion = p["class_name"] != "normal"
        assert p["area"] == pytest.approx(20 * 35 / image.size if lesion else 0)
        assert p["lesions"] == lesion and (p["grey_inside"] is not None) == lesion
        if lesion:
            assert p["grey_inside"] @ np.arange(256) == pytest.approx(image[8:28, 10:45].mean())
            # The map stands upright: rows from the top, columns from the left.
            row, column = int(18 / image.shape[0] * 128), int(44 / image.shape[1] * 128)
            assert p["position"][row, column] > 0.9 and p["position"][-1, -1] == 0


def test_scans_that_cross_parts_or_classes_come_first_and_marks_are_counted(tiny_prepared, tmp_path):
    items, _ = explore.read_lists(tiny_prepared)
    pictures, _ = explore.read_pictures(tiny_prepared, items)
    for i, p in enumerate(pictures):
        p["group"] = f"G{i // 2}"
    pictures[2]["group"] = "G9"  # benign, training; with the last, malignant, testing
    pictures[-1]["group"] = "G9"
    html = explore.same_scans(pictures, tmp_path)
    assert "8 scans stand in several pictures (16 in all); 1 of them in several parts" in html
    assert "1 in several classes" in html and html.index("Scan G9") < html.index("Scan G0")
    assert len(list((tmp_path / "same_scan").iterdir())) == 8
    assert "does not know these" in explore.marks(pictures, tmp_path)
    for p in pictures:
        p["burned_in_marks"] = "text&measurement" if p["class_name"] == "benign" else ""
    assert "Known for 18 of 18 pictures" in explore.marks(pictures, tmp_path)
    assert (tmp_path / "burned_in_marks.png").is_file()


def test_samples_follow_seed_count_and_class(tiny_prepared, tmp_path):
    def drawn(name, **options):
        done = run("explore", tiny_prepared, "--output", tmp_path / name, *(f"--{k}={v}" for k, v in options.items()))
        assert done.returncode == 0, done.stderr
        html = (tmp_path / name / "report.html").read_text()
        return re.findall(r'alt="Class (\w+): image, mask and outline of ([^"]+)"', html)

    one = drawn("one", count=3, seed=1, **{"class": "benign"})
    assert [name for name, _ in one] == ["benign"] and one[0][1].count(".png") == 3
    assert drawn("again", count=3, seed=1, **{"class": "benign"}) == one
    first, second = (tmp_path / name / "samples_benign.png" for name in ("one", "again"))
    assert first.read_bytes() == second.read_bytes()
    assert not (tmp_path / "one" / "samples_normal.png").exists()


def test_pictures_that_cannot_be_read_are_named_and_the_rest_is_shown(tiny_prepared, tmp_path):
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_prepared, folder)
    items, _ = explore.read_lists(folder)
    (folder / items[0]["image"]).write_bytes(b"no picture")
    (folder / items[1]["label"]).unlink()
    done = run("explore", folder, "--output", tmp_path / "out")
    assert done.returncode == 0 and "16 pictures" in done.stdout
    html = (tmp_path / "out" / "report.html").read_text()
    for item in items[:2]:
        assert f"{item['image']}: left out" in done.stderr and item["image"] in html


@pytest.mark.parametrize(
    "command, options, message",
    [
        (explore.explore, {}, "--prepared needs a folder"),
        (explore.explore, {"prepared": "nowhere"}, "nowhere/datalist.json: missing; name the output folder"),
        (explore.explore, {"class": "benin"}, "--class benin: pass one of normal, benign, malignant"),
        (explore.explore, {"count": 0}, "--count needs a whole number"),
        (plot_training.plot_training, {"output": "x.jpg"}, "give TRAINING"),
        (plot_training.plot_training, {"training": "nowhere"}, "nowhere: missing; name the --output_dir of a training"),
        (plot_training.plot_training, {"training": str(ROOT / "README.md")}, "not the table of a training"),
    ],
)
def test_wrong_options_are_refused(command, options, message):
    if options:
        options = {"prepared" if command is explore.explore else "training": "x", "output": "x.png"} | options
    with pytest.raises((OSError, ValueError), match=re.escape(message)):
        command(**options)


@pytest.mark.parametrize(
    "script, options",
    [("explore", "--prepared, --output, --count, --class"), ("plot_training", "--training, --output")],
)
def test_a_misspelt_option_ends_with_one_line(script, options):
    done = run(script, "x", "--out", "x")
    assert done.returncode != 0 and f"unknown option --out; valid options: {options}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_training_curves_are_drawn_and_name_the_best_epoch(tmp_path, monkeypatch):
    columns = ["epoch", "learning_rate", "loss", "segmentation_loss", "classification_loss", "lesion_dice", "score"]
    rows = [[1, 0.1, 2, 1.5, 1, 0.2, 0.3], [2, 0.2, 1, 0.6, 0.8, 0.5, 0.71], [3, 0.1, 0.9, 0.5, 0.8, 0.5, 0.6]]
    with open(tmp_path / "training_curve.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    figures, save = [], style.save_chart
    monkeypatch.setattr(style, "save_chart", lambda figure, path: (figures.append(figure), save(figure, path)))
    plot_training.plot_training(str(tmp_path), str(tmp_path / "curve.png"))
    (figure,) = figures
    assert figure.get_suptitle() == "Best score 0.710 in epoch 2 (grey line)"
    losses, masks, classes, rate = figure.axes
    assert [line.get_label() for line in losses.lines[:3]] == ["whole", "mask", "class"]
    assert list(losses.lines[0].get_ydata()) == [2, 1, 0.9] and list(rate.lines[0].get_ydata()) == [0.1, 0.2, 0.1]
    assert list(masks.lines[0].get_ydata()) == [0.2, 0.5, 0.5] and len(classes.lines) == 1  # the best epoch alone
    assert Image.open(tmp_path / "curve.png").size[0] > 600
