"""scripts/prepare_busi.py: what it makes of BUSI-like folders, what it refuses, and how it splits."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImaged
from PIL import Image
from preparation import conversion, pipeline
from preparation import split as split_module
from preparation.item import Item, Unusable
from prepare_busi import prepare_busi
from tools.cli import run as run_command_line

from breast_ultrasound.images import EXTENSIONS

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "Dataset_BUSI_with_GT"
COUNTS = {"normal": 133, "benign": 437, "malignant": 210}
CLASSES = list(COUNTS)
HEIGHT, WIDTH = 40, 56
FACTS = "busi_groups.csv"


SCRIPT = ROOT / "scripts" / "prepare_busi.py"


def run(*options, cwd=ROOT, **variables):
    arguments = [sys.executable, str(SCRIPT), *map(str, options)]
    return subprocess.run(
        arguments, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )


def noise(seed, height=HEIGHT, width=WIDTH):
    """A grey image unlike that of any other seed."""
    coarse = np.random.RandomState(seed).randint(0, 256, (8, 8)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def box(top, left, bottom, right):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)


def make_source(folder, number=4):
    """`number` images of each class named as in BUSI, each with one mask."""
    for index, name in enumerate(CLASSES):
        for k in range(1, number + 1):
            save(folder / name / f"{name} ({k}).png", noise(100 * index + k))
            mask = box(5, 10, 15, 30) if name != "normal" else box(0, 0, 0, 0)
            save(folder / name / f"{name} ({k})_mask.png", mask)
    return folder


def read(path):
    return np.asarray(Image.open(path))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def items(output):
    datalist = read_json(output / "datalist.json")
    return {item["sources"][0]: item for part in split_module.SPLITS for item in datalist[part]}


def prepare(source, output, **options):
    """Prepare without leaving anything out; return the items by source file and the summary."""
    prepare_busi(source, output, **{"protocol": "random", **options})
    return items(output), read_json(output / "summary.json")


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def facts_as_images():
    """The published list as if all 780 images had been read and no further copy had been found on the pixels."""
    return [
        Item(f"{name}/{file}", name, [], file, group=row["group"], objection=row["objection"])
        for (name, file), row in split_module.read_facts(FACTS).items()
    ]


def kept(split):
    images = facts_as_images()
    split_module.leave_out(images, split)
    return [image for image in images if not image.left_out]


# What the command writes


def test_the_command_writes_a_folder_that_is_complete_on_its_own(tmp_path):
    source = make_source(tmp_path / "busi")
    result = run("--source", source, "--output_dir", tmp_path / "out")
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert "testing" in result.stdout and "not a medical device" in result.stdout
    originals = {str(p.relative_to(source)): read(p) for p in source.rglob("*.png")}
    shutil.rmtree(source)
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert {p.name for p in moved.iterdir()} == {"images", "labels", "datalist.json", "summary.json", "summary.txt"}
    assert (moved / "summary.txt").read_text(encoding="utf-8") == result.stdout
    found = [
        item for part in split_module.SPLITS for item in load_decathlon_datalist(moved / "datalist.json", True, part)
    ]
    assert len(found) == 12
    assert {Path(item["image"]) for item in found} == set((moved / "images").iterdir())
    assert {Path(item["label"]) for item in found} == set((moved / "labels").iterdir())
    for item in found:
        image, label = Image.open(item["image"]), Image.open(item["label"])
        assert (image.format, image.mode, label.mode, label.size) == ("PNG", "L", "L", (WIDTH, HEIGHT))
        assert np.array_equal(read(item["image"]), originals[item["sources"][0]])
        assert np.array_equal(read(item["label"]), originals[item["sources"][1]])
        assert CLASSES[item["class"]] == item["class_name"] == Path(item["sources"][0]).parent.name
        loaded = LoadImaged(keys=("image", "label"), ensure_channel_first=True)(item)
        for key in ("image", "label"):  # MONAI gives (channel, W, H)
            assert np.array_equal(np.asarray(loaded[key])[0].T, read(item[key]))
    text = "".join(path.read_text(encoding="utf-8") for path in moved.glob("*.*"))
    assert str(tmp_path) not in text and str(ROOT) not in text


def test_a_backslash_in_a_name_which_parts_folders_elsewhere_is_replaced(tmp_path):
    source = make_source(tmp_path / "busi")
    for ending in ("", "_mask"):
        (source / "benign" / f"benign (2){ending}.png").rename(source / "benign" / f"a\\b{ending}.png")
    found, _ = prepare(source, tmp_path / "out")
    assert found["benign/a\\b.png"]["image"] == "images/a_b.png"


def test_several_masks_become_their_union(tmp_path):
    source = make_source(tmp_path / "busi")
    masks = [box(5, 10, 15, 30), box(10, 20, 30, 35), box(35, 50, 40, 56)]
    for mask, ending in zip(masks, ("", "_1", "_2")):
        save(source / "benign" / f"benign (2)_mask{ending}.png", mask)
    found, summary = prepare(source, tmp_path / "out")
    item = found["benign/benign (2).png"]
    assert np.array_equal(read(tmp_path / "out" / item["label"]), np.maximum.reduce(masks))
    assert len(item["sources"]) == 4 and summary["merged_masks"] == {"benign/benign (2).png": 3}


MASK = box(5, 10, 15, 30)
COLOUR = np.dstack([MASK // 255 * 200, MASK * 0, MASK * 0])


@pytest.mark.parametrize(
    "mask, name",
    [
        (Image.fromarray(MASK).convert("1"), "a_mask.png"),
        (Image.fromarray(MASK), "a_mask.png"),
        (Image.fromarray(MASK).convert("P"), "a_mask.png"),
        (Image.fromarray(COLOUR), "a_mask.png"),
        (Image.fromarray(np.dstack([COLOUR, np.full_like(MASK, 255)])), "a_mask.png"),
        (Image.fromarray(np.dstack([MASK, np.full_like(MASK, 255)])), "a_mask.png"),
        (Image.fromarray(MASK // 255), "a_mask.png"),
        (Image.fromarray(MASK.astype(np.uint16) * 257), "a_mask.png"),
        (Image.fromarray(MASK).convert("RGB"), "a_MASK_1.TIF"),
        (Image.fromarray(MASK).convert("CMYK"), "a_mask.tif"),
        (Image.fromarray(MASK.astype(np.float32)), "a_mask.tif"),
        (Image.fromarray(np.dstack([np.full_like(MASK, 255), MASK])), "a_mask.png"),
    ],
    ids=["1-bit", "L", "P", "RGB", "RGBA", "LA", "0/1", "16-bit", "tif", "CMYK", "float", "transparent white"],
)
def test_masks_of_any_mode_give_the_same_label(mask, name, tmp_path):
    save(tmp_path / name, mask)
    found, repairs, cut = conversion.read_mask(tmp_path / name)
    assert np.array_equal(found, MASK > 0) and not repairs and not cut


def test_jpeg_noise_around_a_mask_is_no_lesion(tmp_path):
    save(tmp_path / "a_mask.jpg", MASK, quality=60)
    assert (read(tmp_path / "a_mask.jpg") % 255 > 0).any()
    found, repairs, cut = conversion.read_mask(tmp_path / "a_mask.jpg")
    assert cut and np.array_equal(found, MASK > 0) and repairs == ["greys around 0 and 255, cut at 127.5"]


GREY = noise(7)
RGB = np.dstack([GREY] * 3)


@pytest.mark.parametrize(
    "image, suffix, expected, repair",
    [
        (Image.fromarray(GREY), "png", GREY, ""),
        (Image.fromarray(RGB), "png", GREY, ""),
        (Image.fromarray(GREY).convert("P"), "png", GREY, ""),
        (Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), "png", GREY, ""),
        (Image.fromarray(np.dstack([RGB, GREY])), "png", GREY, "transparency ignored"),
        (Image.fromarray(np.dstack([GREY, GREY])), "png", GREY, "transparency ignored"),
        (Image.fromarray(GREY).convert("CMYK"), "tif", GREY, ""),
        (Image.fromarray(np.array([[0, 1000], [2000, 4000]], np.uint16)), "png", [[0, 64], [128, 255]], "8 bits"),
        (Image.fromarray(np.array([[-1, 0], [0, 1]], np.int32)), "tif", [[0, 128], [128, 255]], "8 bits"),
        (Image.fromarray(np.array([[0, 0.2], [0.6, 1]], np.float32)), "tif", [[0, 51], [153, 255]], "8 bits"),
        (Image.fromarray(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8)), "png", [[76, 0]], "colour turned"),
    ],
    ids=["L", "RGB", "P", "opaque", "RGBA", "LA", "CMYK", "16-bit", "32-bit", "float", "colour"],
)
def test_images_of_any_mode_become_8_bit_grey_and_repairs_are_told(image, suffix, expected, repair, tmp_path):
    save(tmp_path / f"a.{suffix}", image)
    grey, repairs = conversion.read_grey(tmp_path / f"a.{suffix}")
    assert grey.dtype == np.uint8 and np.array_equal(grey, expected)
    assert repair in repairs[0] if repair else not repairs


def test_a_normal_gets_zeros_with_a_mask_without_one_and_even_with_a_marked_one(tmp_path):
    source = make_source(tmp_path / "busi")
    (source / "normal" / "normal (1)_mask.png").unlink()
    save(source / "normal" / "normal (2)_mask.png", MASK)
    found, summary = prepare(source, tmp_path / "out")
    for k in (1, 2, 3):
        assert not read(tmp_path / "out" / found[f"normal/normal ({k}).png"]["label"]).any()
    assert list(summary["repaired"]) == ["normal/normal (2).png"]


def test_a_lesion_without_any_mask_or_with_an_inverted_one_is_refused(tmp_path):
    source = make_source(tmp_path / "busi")
    (source / "malignant" / "malignant (3)_mask.png").unlink()
    for number, pixels in ((1, 255 - MASK), (2, np.full_like(MASK, 255))):
        save(source / "benign" / f"benign ({number})_mask.png", pixels)
    found, summary = prepare(source, tmp_path / "out")
    assert [line.partition(": ")[0] for line in summary["refused"]] == [
        "benign/benign (1).png",
        "benign/benign (2).png",
        "malignant/malignant (3).png",
    ]
    assert "benign (1)_mask.png marks all four corners; invert it" in summary["refused"][0]
    assert "no mask, but the class is malignant; add the mask" in summary["refused"][2]
    assert len(found) == 9


def test_a_mask_that_two_images_share_is_named(tmp_path):
    source = make_source(tmp_path / "busi")
    Image.open(source / "benign" / "benign (2).png").save(source / "benign" / "benign (2).bmp")
    _, summary = prepare(source, tmp_path / "out", protocol="random")
    for name in ("benign (2).png", "benign (2).bmp"):
        assert "benign (2)_mask.png: of 2 images, check whose" in summary["repaired"][f"benign/{name}"]


def test_names_that_are_too_long_for_a_file_system_are_cut(tmp_path):
    source = make_source(tmp_path / "busi")
    for name in ("benign", "malignant"):
        for ending in ("", "_mask"):
            (source / name / f"{name} (1){ending}.png").rename(source / name / f"{'x' * 240}{ending}.png")
    found, summary = prepare(source, tmp_path / "out")
    assert len(found) == 12 and not summary["refused"]


def test_equal_names_do_not_overwrite_one_another(tmp_path):
    source = make_source(tmp_path / "busi")
    files = {
        "benign/x.png": 1,
        "benign/x.jpg": 2,
        "benign/X.bmp": 3,
        "malignant/x.TIFF": 4,
        "normal/normal_x.png": 5,
    }
    for seed, file in enumerate([*files, "normal/x.png"], start=900):
        save(source / file, noise(seed))
    for file in ("benign/x", "benign/X", "malignant/x"):
        save(source / f"{file}_mask.png", MASK)
    found, _ = prepare(source, tmp_path / "out")
    images = {found[file]["image"].lower() for file in files}
    assert len(found) == 18 and len(images) == 5 and found["benign/benign (1).png"]["image"] == "images/benign (1).png"
    assert len(list((tmp_path / "out" / "images").iterdir())) == 18
    for seed, file in enumerate(files, start=900):
        assert np.abs(read(tmp_path / "out" / found[file]["image"]).astype(int) - noise(seed)).max() < 12  # JPEG
    assert found["malignant/x.TIFF"]["image"] == "images/malignant_x.png"


def test_the_same_input_gives_the_same_bytes_and_the_source_stays_as_it_was(tmp_path):
    source = make_source(tmp_path / "busi")
    before = hashes(source)
    for name in ("one", "two"):
        assert run("--source", source, "--output_dir", tmp_path / name, "--folds", 2, "--seed", 5).returncode == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(source) == before


def test_a_folder_named_like_a_number_is_a_folder(tmp_path):
    make_source(tmp_path / "2023")
    result = run("--source", 2023, "--output_dir", "2024_01", cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "2024_01" / "datalist.json").exists(), result.stderr


def test_folders_as_people_keep_them_give_the_same_images(tmp_path):
    plain = make_source(tmp_path / "busi")
    prepare(plain, tmp_path / "expected")
    kept = shutil.copytree(plain, tmp_path / "Brust Ü 2")
    (kept / "benign").rename(kept / "Benign")
    (kept / "normal").rename(kept / "NORMAL")
    for path in list((kept / "malignant").iterdir()):
        path.rename(path.with_name(path.stem.replace("_mask", "_MASK") + ".PNG"))
    for name in ("Thumbs.db", ".DS_Store", "._benign (1).png", "desktop.ini"):
        (kept / "Benign" / name).write_bytes(b"no image")
    (kept / "__MACOSX").mkdir()
    (kept / "read me.txt").touch()
    (tmp_path / "link").symlink_to(kept, target_is_directory=True)
    result = run("--source", "link", "--output_dir", "neu/größer als", "--protocol", "random", cwd=tmp_path)
    assert result.returncode == 0 and "Refused" not in result.stdout, result.stderr
    made, expected = hashes(tmp_path / "neu" / "größer als"), hashes(tmp_path / "expected")
    assert len(made) == len(expected) == 27
    assert all(made[file] == expected[file] for file in expected if file.endswith(".png"))


def test_the_summary_is_printed_where_the_terminal_lacks_the_letters_of_a_name(tmp_path):
    source = make_source(tmp_path / "busi")
    save(source / "benign" / "Läsion.png", noise(1))
    result = run("--source", source, "--output_dir", tmp_path / "out", PYTHONIOENCODING="ascii")
    assert result.returncode == 0 and "L\\xe4sion.png" in result.stdout, result.stderr
    assert "Läsion.png" in (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")


# Bad input


def refused_source(folder):
    """A source with one of each file that cannot be used; returns what is said of each."""
    make_source(folder, 12)
    benign = folder / "benign"
    (benign / "benign (1).png").write_bytes(b"")
    whole = (benign / "benign (2).png").read_bytes()
    (benign / "benign (2).png").write_bytes(whole[: len(whole) // 2])
    (benign / "benign (3)_mask.png").write_bytes(b"no image")
    save(benign / "benign (4)_mask.png", box(5, 10, 15, 30)[:-1])
    save(benign / "benign (5)_mask.png", box(0, 0, 0, 0))
    (benign / "benign (6).png").unlink()
    (benign / "scan.dcm").write_bytes(b"DICM")
    (benign / "Thumbs.db").write_bytes(b"")
    return [
        "benign/benign (1).png: empty file (0 bytes); copy it again or save it as a grey PNG",
        "benign/benign (2).png: Truncated File Read; copy it again or save it as a grey PNG",
        "benign/benign (3).png: its mask benign/benign (3)_mask.png: not PNG, JPEG, BMP, TIFF, WebP or GIF; "
        "copy it again or save it as a grey PNG",
        "benign/benign (4).png: its mask benign/benign (4)_mask.png is 56x39, its image 56x40 pixels; "
        "export the mask in the size of the image",
        "benign/benign (5).png: its mask benign/benign (5)_mask.png is empty, but the class is benign; "
        "draw or remove the mask",
        "benign/benign (6)_mask.png: mask without an image; add the image or remove the mask",
        "benign/scan.dcm: not an image file (.png .jpg .jpeg .bmp .tif .tiff .webp .gif); "
        "--layout dicom converts it or move it out",
    ]


def test_unusable_files_are_refused_by_name_and_the_rest_goes_on(tmp_path):
    expected = refused_source(tmp_path / "busi")
    result = run("--source", tmp_path / "busi", "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "\n".join(["Refused (7):", *expected, ""]) in result.stdout
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["refused"] == expected
    assert summary["counts"]["used"] == {"normal": 12, "benign": 6, "malignant": 12}
    assert len(items(tmp_path / "out")) == len(list((tmp_path / "out" / "images").iterdir())) == 30


def test_strict_stops_at_unusable_files_names_all_and_writes_nothing(tmp_path):
    expected = refused_source(tmp_path / "busi")
    result = run("--source", tmp_path / "busi", "--output_dir", tmp_path / "out", "--strict")
    lines = ["prepare_busi: --strict: 7 files refused, nothing was written", *expected]
    assert result.returncode == 1 and result.stderr.splitlines() == lines
    assert list(tmp_path.iterdir()) == [tmp_path / "busi"]
    assert (
        run("--source", make_source(tmp_path / "sound"), "--output_dir", tmp_path / "out", "--strict").returncode == 0
    )


def test_a_file_that_the_system_cannot_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    save(tmp_path / "a.png", noise(1))
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(Unusable, match="^Permission denied; copy it again"):
        conversion.read_grey(tmp_path / "a.png")


def test_damage_at_which_pillow_raises_no_oserror_is_refused_too(tmp_path):
    save(tmp_path / "a.tif", noise(3))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    struct.pack_into("<I", data, directory + 2 + 12 * entries, len(data))  # a second frame that says nothing of itself
    (tmp_path / "a.tif").write_bytes(data + bytes(6))
    with pytest.raises(TypeError):
        Image.open(tmp_path / "a.tif").n_frames
    with pytest.raises(Unusable, match="copy it again"):
        conversion.read_grey(tmp_path / "a.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_every_truncation_of_an_image_is_refused_or_harmless(tmp_path):
    for suffix in EXTENSIONS:
        save(tmp_path / f"whole{suffix}", noise(3))
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        expected, _ = conversion.read_grey(tmp_path / f"whole{suffix}")
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            (tmp_path / f"cut{suffix}").write_bytes(whole[:length])
            try:
                grey, _ = conversion.read_grey(tmp_path / f"cut{suffix}")
            except Unusable:
                continue
            assert np.array_equal(grey, expected)


def empty(folder):
    folder.mkdir()


def no_images(folder):
    for name in CLASSES:
        (folder / name).mkdir(parents=True)


def unknown_class(folder):
    make_source(folder)
    (folder / "bening").mkdir()


def one_level_up(folder):
    make_source(folder / "Dataset_BUSI_with_GT")


def all_broken(folder):
    save(folder / "benign" / "a.png", noise(1))
    (folder / "benign" / "a.png").write_bytes(b"")


def two_images(folder):
    for k in (1, 2):
        save(folder / "normal" / f"{k}.png", noise(k))


def one_of_each(folder):
    make_source(folder, 1)


def half_written(folder):
    make_source(folder)
    save(folder.parent / "out" / "images" / "benign (1).png", noise(1))


def prepared(folder):
    prepare(make_source(folder), folder.parent / "out")


def output_is_a_file(folder):
    make_source(folder)
    (folder.parent / "out").write_text("mine")


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda folder: None, {}, "busi: no such folder; pass the folder that holds normal, benign, malignant"),
        (empty, {}, "busi: none of the folders normal, benign, malignant in it; pass the folder that holds"),
        (one_level_up, {}, "in it; pass {busi}/Dataset_BUSI_with_GT as --source"),
        (no_images, {}, "busi: no image (.png .jpg .jpeg .bmp .tif .tiff .webp .gif) of this layout in it"),
        (unknown_class, {}, "bening: no class; rename it to one of normal, benign, malignant or move it out"),
        (all_broken, {}, "busi: none of its images can be used; the first: benign/a.png: empty file"),
        (two_images, {}, "2 groups cannot fill 3 splits; add images"),
        (one_of_each, {}, "3 groups cannot fill 3 splits; add images"),
        (half_written, {}, "out: half-written, or made by something else; remove it or choose another --output_dir"),
        (prepared, {}, "out: exists; remove it or choose another --output_dir"),
        (output_is_a_file, {}, "out: not a folder; choose another --output_dir"),
        (output_is_a_file, {"output_dir": "{busi}/../out/new"}, "; choose another --output_dir"),
        (
            make_source,
            {"output_dir": "{busi}/out"},
            "lies inside the source {busi} or holds it; choose another --output_dir",
        ),
        (
            make_source,
            {"output_dir": "{busi}"},
            "lies inside the source {busi} or holds it; choose another --output_dir",
        ),
        (
            make_source,
            {"output_dir": "{busi}/.."},
            "lies inside the source {busi} or holds it; choose another --output_dir",
        ),
        (make_source, {"folds": 5}, "--folds 5: class normal has no more groups than 4; pass fewer folds or add"),
        (make_source, {"folds": 1}, "--folds 1: pass 0 for one split in three, 2 or more, or official"),
        (make_source, {"protocol": "patient"}, "--protocol patient: should be 'clean', 'grouped' or 'random'"),
        (make_source, {"folds": "official"}, "--folds official: should be a valid integer"),
        (make_source, {"seed": -1}, "--seed -1: pass a whole number from 0 to 4294967295"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing_behind(make, options, message, tmp_path, monkeypatch, capsys):
    source = tmp_path / "busi"
    make(source)
    before = hashes(tmp_path)
    options = {"source": source, "output_dir": tmp_path / "out", **options}
    arguments = [f"--{name}={str(value).format(busi=source)}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as stopped:
        run_command_line(prepare_busi)
    line = stopped.value.code
    assert line.startswith("prepare_busi: ") and message.format(busi=source) in line and "\n" not in line
    assert hashes(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_a_full_disk_leaves_no_output(tmp_path, monkeypatch):
    source, output = make_source(tmp_path / "busi"), tmp_path / "out"
    monkeypatch.setattr(
        pipeline, "write_files", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="out: No space left on device; nothing was written"):
        prepare(source, output)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_place_is_named(tmp_path):
    source, place = make_source(tmp_path / "busi"), tmp_path / "read only"
    place.mkdir(mode=0o555)
    with pytest.raises(OSError, match="read only.*Permission denied; choose another --output_dir"):
        prepare(source, place / "out")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["kill -9", "Ctrl-C", "SIGTERM"]
)
def test_a_run_that_is_cut_off_leaves_no_output_and_the_next_one_says_what_to_do(number, tmp_path):
    source, output, partial = make_source(tmp_path / "busi"), tmp_path / "out", tmp_path / ".out.partial"
    prepare(source, tmp_path / "expected")
    slow = source / "malignant" / "zz.png"  # comes last and takes seconds
    save(slow, np.random.RandomState(0).randint(0, 256, (6000, 6000)).astype(np.uint8), compress_level=1)
    arguments = [sys.executable, SCRIPT, "--source", source, "--output_dir", output, "--protocol", "random"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # A CI job in the background of a shell passes on that Ctrl-C is ignored.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(arguments, **options) as process:
        while not (partial / "labels" / "malignant (4).png").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.communicate()[1].strip()
    assert not output.exists()
    expected = (-number, "") if number == signal.SIGKILL else (130, "prepare_busi: stopped")
    assert (process.returncode, said) == expected
    slow.unlink()
    assert partial.exists() == (number == signal.SIGKILL)
    if partial.exists():
        with pytest.raises(
            OSError, match=r"\.out\.partial: File exists; another run is writing it, or a killed one left"
        ):
            prepare(source, output)
        shutil.rmtree(partial)
    prepare(source, output)
    assert hashes(output) == hashes(tmp_path / "expected")


# Groups and splits


def test_copies_stay_in_one_part_and_copies_across_classes_are_left_out(tmp_path):
    source = make_source(tmp_path / "busi", 8)
    brighter = np.clip(noise(101, 44, 60) * 0.8 + 30, 0, 255).astype(np.uint8)
    save(source / "benign" / "copy.png", brighter)
    save(source / "benign" / "mirrored.png", noise(101)[:, ::-1])
    for name, larger in (("copy", 4), ("mirrored", 0)):
        save(source / "benign" / f"{name}_mask.png", np.pad(MASK, (0, larger)))
    save(source / "normal" / "copy of malignant.jpg", noise(203))
    found, summary = prepare(source, tmp_path / "out", protocol="grouped")
    copies = [found[f"benign/{name}.png"]["group"] for name in ("benign (1)", "copy", "mirrored")]
    assert len(set(copies)) == 1 and summary["groups_of_several_images"] == 1
    assert set(summary["left_out"]) == {"normal/copy of malignant.jpg", "malignant/malignant (3).png"}
    assert set(summary["left_out"].values()) == {"scan stands in several classes"}
    assert not (tmp_path / "out" / "images" / "malignant (3).png").exists()
    assert len(list((tmp_path / "out" / "labels").iterdir())) == len(found) == 25
    # Images that are not BUSI's: nothing published is said of them.
    assert summary["in_published_list"] == 0 and "burned_in_marks" not in found["benign/benign (1).png"]
    datalist = read_json(tmp_path / "out" / "datalist.json")
    assert datalist["name"] == "images in the layout of BUSI" and not datalist["reference"]


def test_an_image_of_one_grey_alone_is_refused_by_name(tmp_path):
    source = make_source(tmp_path / "busi")
    save(source / "normal" / "normal (1).png", np.full((HEIGHT, WIDTH), 40, np.uint8))
    _, summary = prepare(source, tmp_path / "out")
    assert summary["refused"] == ["normal/normal (1).png: one grey alone, no image of anything"]


def test_the_published_list_is_used_where_name_and_size_agree_and_the_folder_is_busi():
    facts = split_module.read_facts(FACTS)

    def images(wrong=0):
        """A twelfth of BUSI, every `wrong`-th of another size, and an image that the list does not know."""
        made = [
            Item(f"{name}/{file}", name, [], size=(int(row["width"]), int(row["height"])))
            for (name, file), row in list(facts.items())[::12]
        ]
        for image in made[::wrong] if wrong else []:
            image.size = (500, 500)
        made.append(Item("benign/my own.png", "benign", [], size=(400, 300)))
        for seed, image in enumerate(made):
            image.thumb = noise(seed, 48, 48)
        split_module.apply_facts(made, facts)
        split_module.join_groups(made, "clean")
        return made

    *listed, own = images()
    for image in listed:
        row = facts[image.class_name, Path(image.file).name]
        assert (image.group, image.objection) == (row["group"], row["objection"])
    assert own.group.startswith("P") and own.burned_in_marks is None
    known = [image.group[0] for image in images(wrong=20)]  # some were cropped: the list holds for the others
    assert Counter(known) == {"G": 61, "P": 5}
    assert {image.group[0] for image in images(wrong=4)} == {"P"}  # a quarter of another size: another set


def test_a_copy_joins_two_published_groups_and_bears_the_first_name():
    facts = split_module.read_facts(FACTS)
    files = [("benign", "benign (1).png"), ("benign", "benign (2).png"), ("benign", "benign (3).png")]
    images = [
        Item(
            f"{c}/{f}", c, [], size=tuple(int(facts[c, f][key]) for key in ("width", "height")), thumb=noise(n, 48, 48)
        )
        for (c, f), n in zip(files, (1, 2, 1))
    ]
    split_module.apply_facts(images, facts)
    split_module.join_groups(images, "clean")
    assert [image.group for image in images] == ["G0001", "G0002", "G0001"]


def test_a_scan_listed_in_several_classes_is_left_out_even_where_its_other_side_is_missing():
    one_side = [image for image in facts_as_images() if image.file == "benign/benign (42).png"]
    split_module.leave_out(one_side, "grouped")
    assert [image.left_out for image in one_side] == ["scan stands in several classes"]


def test_the_list_of_facts_holds_what_was_published():
    facts = split_module.read_facts(FACTS).values()
    assert Counter(row["class"] for row in facts) == COUNTS
    assert Counter(row["objection"] for row in facts) == {"": 684, "axilla": 70, "multiclass": 19, "needle": 7}
    classes = {}
    for row in facts:
        classes.setdefault(row["group"], set()).add(row["class"])
    assert len(classes) == 587 and sum(len(found) > 1 for found in classes.values()) == 8
    for row in facts:
        assert (row["objection"] == "multiclass") == (len(classes[row["group"]]) > 1)
    head = Path(split_module.__file__).with_name(FACTS).read_text(encoding="utf-8")
    assert "10.17632/k8t3gnx9h6.1" in head and "CC BY 4.0" in head


@pytest.mark.parametrize("split, number", [("random", 780), ("grouped", 761), ("clean", 684)])
def test_each_split_keeps_the_images_it_should(split, number):
    assert len(kept(split)) == number


def test_random_is_stratified_546_117_117():
    for seed in range(20):
        parts = split_module.make_datalists(kept("random"), "random", 0, seed, CLASSES)["datalist.json"]
        assert {part: len(found) for part, found in parts.items()} == {
            "training": 546,
            "validation": 117,
            "testing": 117,
        }
        for part, found in parts.items():
            for name, number in Counter(image.class_name for image in found).items():
                assert abs(number - split_module.SPLITS[part] * COUNTS[name]) < 1


@pytest.mark.parametrize("split", ["grouped", "clean"])
def test_no_group_crosses_and_class_shares_hold_for_200_seeds(split):
    images = kept(split)
    classes = np.array([CLASSES.index(image.class_name) for image in images])
    groups = np.array([image.group for image in images])
    whole, drawn = np.bincount(classes), set()
    for seed in range(200):
        for shares in ([0.7, 0.15, 0.15], [0.2] * 5):
            parts = split_module.allocate(classes, groups, shares, seed)
            assert len(set(zip(groups, parts))) == len(set(groups))
            for part, share in enumerate(shares):
                counts = np.bincount(classes[parts == part], minlength=3)
                assert np.abs(counts - share * whole).max() < 1  # images
                assert np.abs(counts / counts.sum() - whole / len(classes)).max() < 0.01
        drawn.add(parts.tobytes())
    assert len(drawn) == 200


def test_in_any_set_no_class_is_off_its_share_by_more_than_its_largest_group():
    random = np.random.RandomState(0)
    for seed in range(200):
        sizes = random.geometric(0.6, 120).clip(max=8)
        groups = np.repeat(np.arange(120), sizes)
        classes = groups % 3
        for shares in ([0.7, 0.15, 0.15], [0.2] * 5, [0.875, 0.125]):
            parts = split_module.allocate(classes, groups, shares, seed)
            assert len(set(zip(groups, parts))) == 120
            for number in range(3):
                target = np.array(shares) * np.sum(classes == number)
                off = np.bincount(parts[classes == number], minlength=len(shares)) - target
                assert np.abs(off).max() <= sizes[number::3].max()


def test_a_large_group_of_one_class_does_not_pull_the_others_off():
    groups = np.array([0] * 20 + list(range(1, 21)))
    parts = split_module.allocate((groups > 0).astype(int), groups, [0.7, 0.15, 0.15], 0)
    assert np.abs(np.bincount(parts[20:], minlength=3) - [14, 3, 3]).max() <= 1


def test_a_group_in_two_parts_would_be_noticed(monkeypatch):
    monkeypatch.setattr(split_module, "allocate", lambda classes, *_: np.arange(len(classes)) % 3)
    with pytest.raises(RuntimeError, match="a group stands in several splits"):
        split_module.make_datalists(kept("clean"), "clean", 0, 0, CLASSES)


@pytest.mark.parametrize("split", ["random", "clean"])
def test_folds_test_every_image_once_and_never_leak(split):
    images = kept(split)
    files = split_module.make_datalists(images, split, 5, 3, CLASSES)
    assert list(files) == ["datalist.json", *(f"datalist_fold_{k}.json" for k in range(5))]
    folds = files.pop("datalist.json")
    assert sorted(p.name for fold in folds.values() for p in fold) == sorted(p.name for p in images)
    for (name, fold), lists in zip(folds.items(), files.values()):
        assert lists["testing"] == fold
        assert sum(map(len, lists.values())) == len(images)
        assert abs(len(lists["validation"]) - (len(images) - len(fold)) / 8) < 1
        unit = (lambda p: p.name) if split == "random" else (lambda p: p.group)
        groups = [{unit(image) for image in found} for found in lists.values()]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_the_fold_lists_are_written_and_read_by_monai(tmp_path):
    prepare_busi(make_source(tmp_path / "busi", 5), tmp_path / "out", folds=3)
    names = {}
    for k in range(3):
        fold = load_decathlon_datalist(tmp_path / "out" / "datalist.json", True, f"fold_{k}")
        assert fold == load_decathlon_datalist(tmp_path / "out" / f"datalist_fold_{k}.json", True, "testing")
        names.update({item["image"]: k for item in fold})
    assert len(names) == 15 and all(Path(name).exists() for name in names)
    with pytest.raises(FileExistsError, match="out: exists; remove it"):
        prepare_busi(tmp_path / "busi", tmp_path / "out")


# The real set, where a development checkout has it


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Function that prepares the real BUSI, once for each set of options; returns the folder."""
    if not REAL.is_dir():
        pytest.skip("the real BUSI is not here")
    folder, made = tmp_path_factory.mktemp("real"), {}

    def get(*options):
        if options not in made:
            made[options] = folder / str(len(made))
            result = run("--source", REAL, "--output_dir", made[options], *options)
            assert result.returncode == 0 and not result.stderr, result.stderr
        return made[options]

    yield get
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_real_set_has_780_images_798_masks_17_of_them_merged(real):
    output = real("--protocol", "random")
    summary = read_json(output / "summary.json")
    assert summary["counts"]["found"] == summary["counts"]["used"] == COUNTS
    assert summary["shares_percent"]["found"] == {"normal": 17.1, "benign": 56.0, "malignant": 26.9}
    assert summary["masks"] == 798 and len(summary["merged_masks"]) == 17
    assert not summary["refused"] and not summary["left_out"] and summary["in_published_list"] == 780
    assert set(summary["repaired"].values()) == {"colour turned to grey"} and len(summary["repaired"]) == 16
    assert summary["groups"] == 587 and summary["groups_in_several_splits"] > 50  # why random is not the default
    parts = [load_decathlon_datalist(output / "datalist.json", True, part) for part in split_module.SPLITS]
    assert [len(part) for part in parts] == [546, 117, 117]
    assert len({item["image"] for part in parts for item in part}) == 780


@pytest.mark.slow
def test_every_label_of_the_real_set_is_the_union_of_its_masks(real):
    output = real("--protocol", "random")
    for item in items(output).values():
        image, label = read(output / item["image"]), read(output / item["label"])
        union = np.zeros(image.shape, bool)
        for file in item["sources"][1:]:
            union |= np.asarray(Image.open(REAL / file).convert("L")) > 0
        assert np.array_equal(label, np.where(union, 255, 0)), item["label"]
        assert union.any() == (item["class"] != 0)


@pytest.mark.slow
def test_on_the_real_set_the_pixels_join_no_group_that_the_list_keeps_apart(real):
    facts = split_module.read_facts(FACTS)
    for file, item in items(real("--protocol", "random")).items():
        assert item["group"] == facts[item["class_name"], Path(file).name]["group"]


@pytest.mark.slow
def test_the_default_split_of_the_real_set_is_clean_and_keeps_684_images(real):
    summary = read_json(real() / "summary.json")
    assert summary["protocol"] == "clean" and summary["counts"]["used"] == {
        "normal": 102,
        "benign": 399,
        "malignant": 183,
    }
    reasons = {"scan stands in several classes": 19, "axilla": 70, "needle": 7}
    assert Counter(summary["left_out"].values()) == reasons
    parts = [load_decathlon_datalist(real() / "datalist.json", True, part) for part in split_module.SPLITS]
    assert [len(part) for part in parts] == [479, 103, 102]
    assert summary["groups"] == 529 and summary["groups_in_several_splits"] == 0
    # The very split that the shipped weights were trained on
    assert read_json(real() / "datalist.json") == read_json(ROOT / "study/results/splits/clean_datalist.json")
    assert {Path(item["image"]) for part in parts for item in part} == set((real() / "images").iterdir())


@pytest.mark.slow
def test_grouped_folds_of_the_real_set_test_761_images_once(real):
    output = real("--protocol", "grouped", "--folds", 5)
    folds = [load_decathlon_datalist(output / "datalist.json", True, f"fold_{k}") for k in range(5)]
    assert sorted(map(len, folds)) == [152, 152, 152, 152, 153]
    groups = [{item["group"] for item in fold} for fold in folds]
    assert len(set().union(*groups)) == sum(map(len, groups)) == 579
    for fold in folds:
        for number, name in enumerate(CLASSES):
            share = sum(item["class"] == number for item in fold) / len(fold)
            used = read_json(output / "summary.json")["counts"]["used"]
            assert abs(share - used[name] / 761) < 0.01
