"""Behaviour of scripts/make_phantoms.py: layout and oddities, same bytes, refusals, and the physics of the images."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from make_phantoms import make_phantoms
from PIL import Image
from tools import phantoms

ROOT = Path(__file__).resolve().parents[1]


def command(*options):
    """Run the command from the repository root; returns the finished process with text output."""
    return subprocess.run(
        [sys.executable, "scripts/make_phantoms.py", *map(str, options)], cwd=ROOT, capture_output=True, text=True
    )


def tree(folder):
    """Bytes of every file below `folder` by relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Thirty phantoms made by the command, in a folder that Fire would read as a number."""
    folder = tmp_path_factory.mktemp("phantoms") / "2024"
    done = command("--output_dir", folder, "--count", 30)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The smallest set. Tests must leave it as it is."""
    folder = tmp_path_factory.mktemp("few") / "few"
    assert make_phantoms(folder, count=12) == {"benign": 7, "malignant": 3, "normal": 2, "masks": 15}
    return folder


def grey(path):
    return np.asarray(Image.open(path).convert("L")).astype(float)


def masks_of(image):
    """Masks of an image by file order, as bool [height, width]."""
    paths = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
    return [np.asarray(Image.open(path).convert("L")) > 0 for path in paths]


def images(folder, label):
    return sorted((folder / label).glob(f"{label} (*).png"), key=lambda path: int(re.findall(r"\d+", path.stem)[0]))


def test_the_folder_holds_nothing_but_three_class_folders_of_named_pngs(made):
    assert sorted(path.name for path in made.iterdir()) == ["benign", "malignant", "normal"]
    for name in tree(made):
        assert re.fullmatch(r"(benign|malignant|normal)/\1 \([1-9]\d*\)(_mask(_[1-9])?)?\.png", name), name
    assert not any("busi" in name.lower() for name in tree(made))
    assert not list(made.parent.glob(".*")), "the temporary folder is gone"


def test_class_shares_follow_the_real_imbalance_and_numbers_have_no_gap(made):
    assert [len(images(made, label)) for label in ("benign", "malignant", "normal")] == [17, 8, 5]
    for label in phantoms.SHARES:
        numbers = [int(re.findall(r"\d+", path.stem)[0]) for path in images(made, label)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_images_are_rgb_and_masks_have_their_size_and_the_mode_of_their_kind(made):
    rgba = []
    for label in phantoms.SHARES:
        for image in images(made, label):
            size = Image.open(image).size
            assert Image.open(image).mode == "RGB" and size[0] != size[1] and max(size) <= 360
            for path in image.parent.glob(f"{image.stem}_mask*.png"):
                mask = Image.open(path)
                assert mask.size == size
                if mask.mode == "RGBA":
                    rgba.append(path.stem)
                    assert np.asarray(mask)[..., 3].min() == 255, "opaque, so that alpha is not the lesion"
                else:
                    assert mask.mode == ("RGB" if label == "normal" else "1")
                assert (np.asarray(mask.convert("L")).max() > 0) == (label != "normal")
    assert sorted(rgba) == ["benign (4)_mask_1", "benign (5)_mask_2"]


@pytest.mark.parametrize("size", ["few", "made"])
def test_every_oddity_is_there_from_the_smallest_count_on(size, request):
    made = request.getfixturevalue(size)
    numbers = {(label, len(masks_of(path))): [] for label in phantoms.SHARES for path in images(made, label)}
    coloured = []
    for label in phantoms.SHARES:
        for number, path in enumerate(images(made, label), 1):
            numbers[label, len(masks_of(path))].append(number)
            pixels = np.asarray(Image.open(path)).astype(int)
            if (np.ptp(pixels, axis=2) > 60).any():
                coloured.append(path.stem)
    assert numbers["benign", 0] == [2] and ("malignant", 0) not in numbers and ("normal", 0) not in numbers
    assert numbers["benign", 2] == [4] and numbers["benign", 3] == [5] and numbers["malignant", 2] == [2]
    assert coloured == ["benign (3)", "malignant (3)"]
    width, height = Image.open(made / "benign" / "benign (6).png").size
    assert height > 1.5 * width


def test_the_masks_of_one_image_do_not_overlap(made):
    for name in ("benign/benign (4).png", "benign/benign (5).png", "malignant/malignant (2).png"):
        assert np.sum(masks_of(made / name), axis=0).max() == 1


def test_burned_in_marks_stand_in_every_class(made, monkeypatch, tmp_path):
    marked = {path: grey(made / path) for path in tree(made) if "_mask" not in path}
    monkeypatch.setattr(phantoms, "_marks", lambda *_: None)
    make_phantoms(tmp_path / "plain", count=30)
    share = dict.fromkeys(phantoms.SHARES, 0)
    for path, image in marked.items():
        share[path.split("/")[0]] += (image != grey(tmp_path / "plain" / path)).any()
    for label, total in {"benign": 17, "malignant": 8, "normal": 5}.items():
        assert 0.4 < share[label] / total < 0.75, share


def test_the_first_benign_lesion_shows_every_flip_and_turn(made):
    mask = masks_of(made / "benign" / "benign (1).png")[0]
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    assert width > 1.2 * height and rows.mean() < 0.42 * height and columns.mean() < 0.35 * width
    assert np.corrcoef(rows, columns)[0, 1] > 0.3, "tilted: the right end is the deeper one"
    image = grey(made / "benign" / "benign (1).png")
    assert image[mask].mean() < 0.5 * image[mask[:, ::-1]].mean(), "the image has it where the mask says"


def test_the_same_options_give_the_same_bytes_and_a_larger_count_only_adds(made, few, tmp_path):
    assert tree(few).items() <= tree(made).items(), "made by another process, with another count"
    make_phantoms(tmp_path / "other", count=12, seed=1)
    other = tree(tmp_path / "other")
    assert all(other[name] != data for name, data in tree(few).items() if "_mask" not in name)


def test_even_tissue_gives_rayleigh_speckle_and_looks_calm_it():
    rng = np.random.default_rng(0)
    single = phantoms._speckle(np.full((300, 300), -30.0), rng, looks=1)
    assert single.mean() / single.std() == pytest.approx(1.91, abs=0.06)
    assert 10 * np.log10((single**2).mean()) == pytest.approx(-30, abs=0.4)
    many = phantoms._speckle(np.full((300, 300), -30.0), rng, looks=4)
    assert many.mean() / many.std() == pytest.approx(2 * 1.91, abs=0.15)


def behind(path):
    """Grey level below the first lesion less that beside it at the same depth."""
    image, mask = grey(path), masks_of(path)[0]
    rows, columns = np.nonzero(mask)
    depth = slice(rows.max() + 4, rows.max() + 24)
    left, right = columns.min(), columns.max() + 1
    middle = slice(left + (right - left) // 4, right - (right - left) // 4)
    beside = np.concatenate([image[depth, max(left - 40, 0) : left - 8], image[depth, right + 8 : right + 40]], axis=1)
    return image[depth, middle].mean() - beside.mean()


def test_malignant_lesions_shadow_and_benign_ones_enhance(made):
    benign = [behind(path) for path in images(made, "benign") if masks_of(path)]
    malignant = [behind(path) for path in images(made, "malignant")]
    assert np.mean(malignant) < -15 and np.mean(benign) > 3
    assert max(malignant) > min(benign), "the classes overlap, or one pixel below the lesion would tell them"


def compactness(mask):
    """Outline**2 / (4 pi area): 1 for a circle, more for a rough outline."""
    outline = max(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    return cv2.arcLength(outline, True) ** 2 / (4 * np.pi * cv2.contourArea(outline))


def test_malignant_outlines_are_rougher_than_benign_ones(made):
    rough = {
        label: [compactness(mask) for path in images(made, label) for mask in masks_of(path)]
        for label in ("benign", "malignant")
    }
    assert np.median(rough["malignant"]) > 1.25 * np.median(rough["benign"])


def test_lesions_are_darker_than_their_surroundings_on_the_whole(made):
    contrast = []
    for path in images(made, "benign") + images(made, "malignant"):
        for mask in masks_of(path):
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~mask
            contrast.append(grey(path)[mask].mean() - grey(path)[ring].mean())
    assert np.mean(contrast) < -15 and np.mean(np.array(contrast) < 0) > 0.9


@pytest.mark.parametrize(
    "options, words",
    [
        ({"count": 11}, "--count must be a whole number from 12 up, not 11"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        make_phantoms(tmp_path / "deep" / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_replaced_only_when_asked_and_only_when_it_is_ours(few, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(few, out)
    with pytest.raises(FileExistsError, match="give --overwrite"):
        make_phantoms(out, count=12)
    make_phantoms(out, count=13, overwrite=True)
    assert len([name for name in tree(out) if "_mask" not in name]) == 13
    Image.new("RGB", (4, 4)).save(out / "benign" / "mine.png")
    before = tree(out)
    with pytest.raises(FileExistsError, match="not replaced"):
        make_phantoms(out, count=12, overwrite=True)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("kind", ["file", "link", "stranger"])
def test_a_file_a_link_or_a_strange_folder_is_never_replaced(tmp_path, kind):
    out = tmp_path / "out"
    (tmp_path / "target").mkdir()
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        out.symlink_to(tmp_path / "target")
    else:
        (out / "benign" / "deeper").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="not replaced"):
        make_phantoms(out, overwrite=True)
    assert out.exists()


def test_a_failure_midway_leaves_no_output_and_keeps_the_former_one(few, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(few, out)
    before = tree(out)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(phantoms, "_marks", fail)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            make_phantoms(folder, count=12, overwrite=True)
    assert tree(out) == before and sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_partial_folder_of_another_run_is_left_alone(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(FileExistsError, match="another run"):
        make_phantoms(tmp_path / "out", count=12)
    assert (tmp_path / ".out.partial").exists()
