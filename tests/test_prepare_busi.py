"""scripts/prepare_busi.py: what it makes of BUSI-like folders, what it refuses, and how it splits."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import prepare_busi as command
import pytest
from monai.data import load_decathlon_datalist
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data" / "Dataset_BUSI_with_GT"
COUNTS = {"normal": 133, "benign": 437, "malignant": 210}
CLASSES = list(COUNTS)
HEIGHT, WIDTH = 40, 56


def run(*options, cwd=ROOT):
    script = ROOT / "scripts" / "prepare_busi.py"
    return subprocess.run([sys.executable, script, *map(str, options)], cwd=cwd, capture_output=True, text=True)


def noise(seed, height=HEIGHT, width=WIDTH):
    """A grey picture unlike that of any other seed."""
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
    """`number` pictures of each class named as in BUSI, each with one mask."""
    for index, name in enumerate(CLASSES):
        for k in range(1, number + 1):
            save(folder / name / f"{name} ({k}).png", noise(100 * index + k))
            mask = box(5, 10, 15, 30) if name != "normal" else box(0, 0, 0, 0)
            save(folder / name / f"{name} ({k})_mask.png", mask)
    return folder


def read(path):
    return np.asarray(Image.open(path))


def items(output):
    lists = json.loads((output / "datalist.json").read_text(encoding="utf-8"))
    return {item["sources"][0]: item for part in command.PARTS for item in lists[part]}


def prepare(source, output, **options):
    """Prepare without leaving anything out; return the items by source file and the summary."""
    command.prepare_busi(str(source), str(output), **{"split": "random", **options})
    return items(output), json.loads((output / "summary.json").read_text(encoding="utf-8"))


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def facts_as_pictures():
    """The published list as if all 780 pictures had been read and no further copy had been found on the pixels."""
    return [
        command.Picture(f"{name}/{file}", name, [], file, [], row["group"], row["objection"])
        for (name, file), row in command.read_facts().items()
    ]


def kept(split):
    pictures = facts_as_pictures()
    command.leave_out(pictures, split)
    return [picture for picture in pictures if not picture.left_out]


# What the command writes


def test_the_command_writes_a_folder_that_is_complete_on_its_own(tmp_path):
    source = make_source(tmp_path / "busi")
    result = run("--source", source, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "testing" in result.stdout and "not a medical device" in result.stdout
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert {p.name for p in moved.iterdir()} == {"images", "labels", "datalist.json", "summary.json", "summary.txt"}
    assert (moved / "summary.txt").read_text(encoding="utf-8") == result.stdout
    found = [item for part in command.PARTS for item in load_decathlon_datalist(moved / "datalist.json", True, part)]
    assert len(found) == 12
    assert {Path(item["image"]) for item in found} == set((moved / "images").iterdir())
    for item in found:
        image, label = Image.open(item["image"]), Image.open(item["label"])
        assert (image.format, image.mode, label.mode, label.size) == ("PNG", "L", "L", (WIDTH, HEIGHT))
        assert np.array_equal(read(item["image"]), read(source / item["sources"][0]))
        assert np.array_equal(read(item["label"]), read(source / item["sources"][1]))
        assert CLASSES[item["class"]] == item["class_name"] == Path(item["sources"][0]).parent.name
    assert str(tmp_path) not in "".join(path.read_text(encoding="utf-8") for path in moved.glob("*.*"))


def test_the_summary_corrects_the_shares_of_the_notebook(tmp_path):
    _, summary = prepare(make_source(tmp_path / "busi"), tmp_path / "out")
    assert "57.2/17.1/25.7 %" in summary["notes"][0] and "56.0/26.9/17.1 %" in summary["notes"][0]
    assert [round(100 * COUNTS[name] / 780, 1) for name in ("benign", "malignant", "normal")] == [56.0, 26.9, 17.1]
    assert summary["shares_percent"]["found"] == {"normal": 33.3, "benign": 33.3, "malignant": 33.3}


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
        (Image.fromarray(np.dstack([MASK, np.full_like(MASK, 255)]), "LA"), "a_mask.png"),
        (Image.fromarray(MASK // 255), "a_mask.png"),
        (Image.fromarray(MASK.astype(np.uint16) * 257), "a_mask.png"),
        (Image.fromarray(MASK).convert("RGB"), "a_MASK_1.TIF"),
    ],
    ids=["1-bit", "L", "P", "RGB", "RGBA", "LA", "0/1", "16-bit", "tif"],
)
def test_masks_of_any_mode_give_the_same_label(mask, name, tmp_path):
    save(tmp_path / name, mask)
    assert np.array_equal(command.read_mask(tmp_path / name), MASK > 0)


def test_jpeg_noise_around_a_mask_is_no_lesion(tmp_path):
    save(tmp_path / "a_mask.jpg", MASK, quality=60)
    assert (read(tmp_path / "a_mask.jpg") % 255 > 0).any()
    assert np.array_equal(command.read_mask(tmp_path / "a_mask.jpg"), MASK > 0)


GREY = noise(7)
RGB = np.dstack([GREY] * 3)


@pytest.mark.parametrize(
    "image, expected, repair",
    [
        (Image.fromarray(GREY), GREY, ""),
        (Image.fromarray(RGB), GREY, ""),
        (Image.fromarray(GREY).convert("P"), GREY, ""),
        (Image.fromarray(np.dstack([RGB, np.full_like(GREY, 255)])), GREY, ""),
        (Image.fromarray(np.dstack([RGB, GREY])), GREY, "transparency ignored"),
        (Image.fromarray(np.dstack([GREY, GREY]), "LA"), GREY, "transparency ignored"),
        (Image.fromarray(MASK).convert("1"), MASK, "1-bit"),
        (Image.fromarray(np.array([[0, 1000], [2000, 4000]], np.uint16)), [[0, 64], [128, 255]], "more than 8 bits"),
        (Image.fromarray(np.full((2, 3, 3), (255, 0, 0), np.uint8)), np.full((2, 3), 76), "colour turned to grey"),
    ],
    ids=["L", "RGB", "P", "opaque", "RGBA", "LA", "1-bit", "16-bit", "colour"],
)
def test_pictures_of_any_mode_become_8_bit_grey_and_repairs_are_told(image, expected, repair, tmp_path):
    save(tmp_path / "a.png", image)
    grey, repairs = command.read_grey(tmp_path / "a.png")
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


def test_a_lesion_without_any_mask_gets_zeros_and_is_named(tmp_path):
    source = make_source(tmp_path / "busi")
    (source / "malignant" / "malignant (3)_mask.png").unlink()
    found, summary = prepare(source, tmp_path / "out")
    assert not read(tmp_path / "out" / found["malignant/malignant (3).png"]["label"]).any()
    assert "without a mask" in summary["repaired"]["malignant/malignant (3).png"]
    assert "malignant/malignant (3).png" in (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")


def test_equal_names_do_not_overwrite_one_another(tmp_path):
    source = make_source(tmp_path / "busi")
    pictures = {
        "benign/x.png": 1,
        "benign/x.jpg": 2,
        "benign/X.bmp": 3,
        "malignant/x.TIFF": 4,
        "normal/normal_x.png": 5,
    }
    for seed, file in enumerate([*pictures, "normal/x.png"], start=900):
        save(source / file, noise(seed))
    found, _ = prepare(source, tmp_path / "out")
    images = {found[file]["image"].lower() for file in pictures}
    assert len(found) == 18 and len(images) == 5 and found["benign/benign (1).png"]["image"] == "images/benign (1).png"
    assert len(list((tmp_path / "out" / "images").iterdir())) == 18
    for seed, file in enumerate(pictures, start=900):
        assert np.abs(read(tmp_path / "out" / found[file]["image"]).astype(int) - noise(seed)).max() < 12  # JPEG


def test_the_same_input_gives_the_same_bytes_and_the_source_stays_as_it_was(tmp_path):
    source = make_source(tmp_path / "busi")
    before = hashes(source)
    for name in ("one", "two"):
        assert run("--source", source, "--output", tmp_path / name, "--folds", 2, "--seed", 5).returncode == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(source) == before


def test_a_folder_named_like_a_number_is_a_folder(tmp_path):
    make_source(tmp_path / "2023")
    result = run("--source", 2023, "--output", 2024, cwd=tmp_path)
    assert result.returncode == 0 and (tmp_path / "2024" / "datalist.json").exists(), result.stderr


# Bad input


def refused_source(folder):
    """A source with one of each file that cannot be used; returns what is said of each."""
    make_source(folder, 12)
    benign = folder / "benign"
    (benign / "benign (1).png").write_bytes(b"")
    whole = (benign / "benign (2).png").read_bytes()
    (benign / "benign (2).png").write_bytes(whole[: len(whole) // 2])
    (benign / "benign (3)_mask.png").write_bytes(b"no picture")
    save(benign / "benign (4)_mask.png", box(5, 10, 15, 30)[:-1])
    save(benign / "benign (5)_mask.png", box(0, 0, 0, 0))
    (benign / "benign (6).png").unlink()
    (benign / "scan.dcm").write_bytes(b"DICM")
    (benign / "Thumbs.db").write_bytes(b"")
    return [
        "benign/benign (1).png: empty file (0 bytes); copy it again",
        "benign/benign (2).png: unreadable or truncated picture; copy it again",
        "benign/benign (3).png: its mask benign/benign (3)_mask.png: unreadable or truncated picture; copy it again",
        "benign/benign (4).png: its mask benign/benign (4)_mask.png is 56x39, its image 56x40 pixels; "
        "export the mask in the size of the image",
        "benign/benign (5).png: its mask benign/benign (5)_mask.png is empty, but the class is benign; "
        "draw or remove the mask",
        "benign/benign (6)_mask.png: mask without an image; add its picture or remove the mask",
        "benign/scan.dcm: not a picture file (.png .jpg .jpeg .bmp .tif .tiff); convert it or move it out",
    ]


def test_unusable_files_are_refused_by_name_and_the_rest_goes_on(tmp_path):
    expected = refused_source(tmp_path / "busi")
    result = run("--source", tmp_path / "busi", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert [line[9:] for line in result.stdout.splitlines() if line.startswith("Refused: ")] == expected
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["refused"] == expected
    assert summary["counts"]["used"] == {"normal": 12, "benign": 6, "malignant": 12}
    assert len(items(tmp_path / "out")) == len(list((tmp_path / "out" / "images").iterdir())) == 30


def test_strict_stops_at_an_unusable_file_and_writes_nothing(tmp_path):
    for damage, file in ((refused_source, "(6)_mask.png"), (make_source, "(1).png")):
        source = tmp_path / damage.__name__
        damage(source)
        if damage is make_source:
            (source / "benign" / "benign (1).png").write_bytes(b"")
        result = run("--source", source, "--output", tmp_path / "out", "--strict")
        assert result.returncode == 1 and result.stderr.startswith("--strict: ") and file in result.stderr
        assert result.stderr.count("\n") == 1 and list(tmp_path.glob("*out*")) == []


def test_every_truncation_of_a_picture_is_refused_or_harmless(tmp_path):
    for suffix in (".png", ".jpg", ".bmp", ".tif"):
        save(tmp_path / f"whole{suffix}", noise(3))
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        expected = read(tmp_path / f"whole{suffix}")
        for length in range(0, len(whole), max(1, len(whole) // 60)):
            (tmp_path / f"cut{suffix}").write_bytes(whole[:length])
            try:
                grey, _ = command.read_grey(tmp_path / f"cut{suffix}")
            except command.Unusable:
                continue
            assert np.array_equal(grey, expected)


def empty(folder):
    folder.mkdir()


def no_pictures(folder):
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


def two_pictures(folder):
    for k in (1, 2):
        save(folder / "normal" / f"{k}.png", noise(k))


def half_written(folder):
    make_source(folder)
    save(folder.parent / "out" / "images" / "benign (1).png", noise(1))


def output_is_a_file(folder):
    make_source(folder)
    (folder.parent / "out").write_text("mine")


@pytest.mark.parametrize(
    "make, options, message",
    [
        (lambda folder: None, {}, "busi: no such folder; pass the folder that holds normal, benign, malignant"),
        (empty, {}, "busi: none of the folders normal, benign, malignant in it; pass the folder that holds"),
        (one_level_up, {}, "in it; pass {busi}/Dataset_BUSI_with_GT as --source"),
        (no_pictures, {}, "busi: no picture (.png .jpg .jpeg .bmp .tif .tiff) in its class folders"),
        (unknown_class, {}, "bening: no class; rename it to one of normal, benign, malignant or move it out"),
        (all_broken, {}, "busi: none of its pictures can be used; the first: benign/a.png: empty file"),
        (two_pictures, {}, "--split clean: 2 groups are too few for 3 parts; add pictures"),
        (half_written, {}, "out: half-written, or made by something else; remove it or choose another --output"),
        (half_written, {"overwrite": True}, "out: half-written, or made by something else; remove it"),
        (output_is_a_file, {}, "out: not a folder; choose another --output"),
        (make_source, {"output": "{busi}/out"}, "lies inside the source {busi} or holds it; choose another --output"),
        (make_source, {"output": "{busi}"}, "lies inside the source {busi} or holds it; choose another --output"),
        (make_source, {"output": "{busi}/.."}, "lies inside the source {busi} or holds it; choose another --output"),
        (make_source, {"folds": 5}, "--folds 5: class normal has 4 groups; pass fewer folds or add pictures"),
        (make_source, {"folds": 1}, "--folds 1: pass 0 for training, validation and testing, or a whole number from 2"),
        (make_source, {"folds": "2.5"}, "--folds 2.5: pass 0"),
        (make_source, {"split": "patient"}, "--split patient: pass one of clean, grouped, random"),
        (make_source, {"split": "[1,2]"}, "--split [1, 2]: pass one of clean, grouped, random"),
        (make_source, {"seed": -1}, "--seed -1: pass a whole number from 0 to 4294967295"),
        (make_source, {"strict": "no"}, "--strict no: a switch without a value; write --strict last or --strict=True"),
        (make_source, {"output": "[a]"}, "--output ['a']: pass a folder; one whose name looks like a value as"),
        (make_source, {"sead": 3}, "--sead: no such option; the options are --source, --output, --split, --folds,"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing_behind(make, options, message, tmp_path):
    source = tmp_path / "busi"
    make(source)
    before = hashes(tmp_path)
    options = {"source": source, "output": tmp_path / "out", **options}
    result = run(*(f"--{name}={str(value).format(busi=source)}" for name, value in options.items()))
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    assert message.format(busi=source) in result.stderr
    assert hashes(tmp_path) == before and not list(tmp_path.glob(".*"))


def test_an_output_is_replaced_only_on_demand_and_only_when_nothing_else_lies_in_it(tmp_path):
    source, output = make_source(tmp_path / "busi"), tmp_path / "out"
    prepare(source, output)
    with pytest.raises(SystemExit, match="out: exists already; add --overwrite to replace it"):
        prepare(source, output)
    (output / "images" / "benign (1).png").unlink()
    with pytest.raises(SystemExit, match=r"out: incomplete, images/benign \(1\).png is missing; add --overwrite"):
        prepare(source, output)
    prepare(source, output, overwrite=True)
    assert (output / "images" / "benign (1).png").exists() and not list(tmp_path.glob(".*"))
    (output / "labels" / "mine.png").write_bytes(b"drawn by hand")
    with pytest.raises(SystemExit, match=r"labels/mine.png: not made by this command; move it out of the output"):
        prepare(source, output, overwrite=True)
    assert (output / "labels" / "mine.png").read_bytes() == b"drawn by hand"


def test_a_run_that_is_cut_off_leaves_no_output_and_the_next_one_clears_up(tmp_path, monkeypatch, capsys):
    source, output, partial = make_source(tmp_path / "busi"), tmp_path / "out", tmp_path / ".out.partial"
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_files", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(SystemExit, match="out: No space left on device; nothing was written"):
            prepare(source, output)
    assert not output.exists() and not partial.exists()
    partial.mkdir()
    (partial / "mine.txt").touch()
    with pytest.raises(SystemExit, match="in the way and not made by this command; move it away"):
        prepare(source, output)
    (partial / command.MARKER).touch()
    prepare(source, output)
    assert "half-written by an earlier run, removed" in capsys.readouterr().out
    assert output.exists() and not partial.exists()
    output.rename(tmp_path / ".out.replaced")  # killed between the two renames of --overwrite
    with pytest.raises(SystemExit, match="exists already|not empty"):
        prepare(source, output)
    assert output.exists()


# Groups and splits


def test_copies_stay_in_one_part_and_copies_across_classes_are_left_out(tmp_path):
    source = make_source(tmp_path / "busi", 8)
    brighter = np.clip(noise(101, 44, 60) * 0.8 + 30, 0, 255).astype(np.uint8)
    save(source / "benign" / "copy.png", brighter)
    save(source / "benign" / "mirrored.png", noise(101)[:, ::-1])
    save(source / "normal" / "copy of malignant.jpg", noise(203))
    found, summary = prepare(source, tmp_path / "out", split="grouped")
    copies = [found[f"benign/{name}.png"]["group"] for name in ("benign (1)", "copy", "mirrored")]
    assert len(set(copies)) == 1 and summary["groups_of_several_pictures"] == 1
    assert set(summary["left_out"]) == {"normal/copy of malignant.jpg", "malignant/malignant (3).png"}
    assert set(summary["left_out"].values()) == {"scan stands in several classes"}
    assert summary["in_published_list"] == 0 and "burned_in_marks" not in found["benign/benign (1).png"]


def test_the_published_list_is_used_where_name_and_size_agree_and_the_folder_is_busi(tmp_path):
    facts, source = command.read_facts(), tmp_path / "busi"
    for (name, file), row in list(facts.items())[::12]:
        save(source / name / file, noise(len(file), int(row["height"]), int(row["width"])))
    save(source / "benign" / "my own.png", noise(5000))
    (source / "normal").mkdir(exist_ok=True)
    pictures, _ = command.scan(source)
    sizes = [Image.open(source / picture.file).size for picture in pictures]
    thumbs = np.stack([noise(k, 48, 48) for k in range(len(pictures))])
    command.join_groups(pictures, sizes, thumbs, facts)
    for picture in pictures[:-1]:
        row = facts[picture.class_name, Path(picture.file).name]
        assert (picture.group, picture.objection) == (row["group"], row["objection"])
    own = next(picture for picture in pictures if "my own" in picture.file)
    assert own.group.startswith("P") and own.burned_in_marks is None
    for picture in pictures:
        picture.burned_in_marks, picture.objection = None, ""
    half = [size if k % 4 else (500, 500) for k, size in enumerate(sizes)]  # a quarter of another size: another set
    command.join_groups(pictures, half, thumbs, facts)
    assert all(picture.group.startswith("P") and not picture.objection for picture in pictures)


def test_the_list_of_facts_holds_what_was_published():
    facts = command.read_facts().values()
    assert Counter(row["class"] for row in facts) == COUNTS
    assert Counter(row["objection"] for row in facts) == {"": 684, "axilla": 70, "multiclass": 19, "needle": 7}
    classes = {}
    for row in facts:
        classes.setdefault(row["group"], set()).add(row["class"])
    assert len(classes) == 587 and sum(len(found) > 1 for found in classes.values()) == 8
    for row in facts:
        assert (row["objection"] == "multiclass") == (len(classes[row["group"]]) > 1)
    head = command.FACTS.read_text(encoding="utf-8")
    assert "10.17632/k8t3gnx9h6.1" in head and "CC BY 4.0" in head


@pytest.mark.parametrize("split, number", [("random", 780), ("grouped", 761), ("clean", 684)])
def test_each_split_keeps_the_pictures_it_should(split, number):
    assert len(kept(split)) == number


def test_random_is_stratified_546_117_117():
    for seed in range(20):
        parts = command.make_datalists(kept("random"), "random", 0, seed)["datalist.json"]
        assert {part: len(found) for part, found in parts.items()} == {
            "training": 546,
            "validation": 117,
            "testing": 117,
        }
        for part, found in parts.items():
            for name, number in Counter(picture.class_name for picture in found).items():
                assert abs(number - command.PARTS[part] * COUNTS[name]) < 1


@pytest.mark.parametrize("split", ["grouped", "clean"])
def test_no_group_crosses_and_class_shares_hold_for_200_seeds(split):
    pictures = kept(split)
    classes = np.array([CLASSES.index(picture.class_name) for picture in pictures])
    groups = np.array([picture.group for picture in pictures])
    whole, drawn = np.bincount(classes), set()
    for seed in range(200):
        for shares in ([0.7, 0.15, 0.15], [0.2] * 5):
            parts = command.allocate(classes, groups, shares, seed)
            assert len(set(zip(groups, parts))) == len(set(groups))
            for part, share in enumerate(shares):
                counts = np.bincount(classes[parts == part], minlength=3)
                assert np.abs(counts - share * whole).max() < 1  # pictures
                assert np.abs(counts / counts.sum() - whole / len(classes)).max() < 0.01
        drawn.add(parts.tobytes())
    assert len(drawn) == 200


def test_a_group_in_two_parts_would_be_noticed(monkeypatch):
    monkeypatch.setattr(command, "allocate", lambda classes, *_: np.arange(len(classes)) % 3)
    with pytest.raises(RuntimeError, match="a group stands in several parts"):
        command.make_datalists(kept("clean"), "clean", 0, 0)


@pytest.mark.parametrize("split", ["random", "clean"])
def test_folds_test_every_picture_once_and_never_leak(split):
    pictures = kept(split)
    files = command.make_datalists(pictures, split, 5, 3)
    assert list(files) == ["datalist.json", *(f"datalist_fold_{k}.json" for k in range(5))]
    folds = files.pop("datalist.json")
    assert sorted(p.name for fold in folds.values() for p in fold) == sorted(p.name for p in pictures)
    for (name, fold), lists in zip(folds.items(), files.values()):
        assert lists["testing"] == fold
        assert sum(map(len, lists.values())) == len(pictures)
        assert abs(len(lists["validation"]) - (len(pictures) - len(fold)) / 8) < 1
        unit = (lambda p: p.name) if split == "random" else (lambda p: p.group)
        groups = [{unit(picture) for picture in found} for found in lists.values()]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


def test_the_fold_lists_are_written_and_read_by_monai(tmp_path):
    command.prepare_busi(str(make_source(tmp_path / "busi", 5)), str(tmp_path / "out"), folds=3)
    names = {}
    for k in range(3):
        fold = load_decathlon_datalist(tmp_path / "out" / "datalist.json", True, f"fold_{k}")
        assert fold == load_decathlon_datalist(tmp_path / "out" / f"datalist_fold_{k}.json", True, "testing")
        names.update({item["image"]: k for item in fold})
    assert len(names) == 15 and all(Path(name).exists() for name in names)
    with pytest.raises(SystemExit, match="exists already"):
        command.prepare_busi(str(tmp_path / "busi"), str(tmp_path / "out"))


# The real set, where a development checkout has it


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    if not REAL.is_dir():
        pytest.skip("the real BUSI is not here")
    output = tmp_path_factory.mktemp("real") / "busi"
    result = run("--source", REAL, "--output", output, "--split", "random")
    assert result.returncode == 0, result.stderr
    yield output
    shutil.rmtree(output)


@pytest.mark.slow
def test_the_real_set_has_780_pictures_798_masks_17_of_them_merged(real):
    summary = json.loads((real / "summary.json").read_text(encoding="utf-8"))
    assert summary["counts"]["found"] == COUNTS and summary["masks"] == 798 and len(summary["merged_masks"]) == 17
    assert not summary["refused"] and not summary["left_out"] and summary["in_published_list"] == 780
    assert set(summary["repaired"].values()) == {"colour turned to grey"} and len(summary["repaired"]) == 16
    parts = [load_decathlon_datalist(real / "datalist.json", True, part) for part in command.PARTS]
    assert [len(part) for part in parts] == [546, 117, 117]


@pytest.mark.slow
def test_every_label_of_the_real_set_is_the_union_of_its_masks(real):
    for item in items(real).values():
        image, label = read(real / item["image"]), read(real / item["label"])
        union = np.zeros(image.shape, bool)
        for file in item["sources"][1:]:
            union |= np.asarray(Image.open(REAL / file).convert("L")) > 0
        assert np.array_equal(label, np.where(union, 255, 0)), item["label"]
        assert union.any() == (item["class"] != 0)


@pytest.mark.slow
def test_on_the_real_set_the_pixels_join_no_group_that_the_list_keeps_apart(real):
    facts = command.read_facts()
    for file, item in items(real).items():
        assert item["group"] == facts[item["class_name"], Path(file).name]["group"]
