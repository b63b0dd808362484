"""Outputs appear whole or not at all, and no two share a name."""

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from breast_ultrasound.files import (
    append_csv,
    clear_results,
    locked,
    name_output,
    output_stems,
    read_csv,
    shown,
    write_checkpoint,
    write_csv,
    write_json,
    write_whole,
)
from breast_ultrasound.record import RunRecord
from breast_ultrasound.transforms import WholePILWriter


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail(temporary):
        with open(temporary, "w") as file:
            file.write("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == ["table.csv"]


def test_missing_folders_are_made(tmp_path):
    write_json(tmp_path / "new" / "folder" / "figures.json", {"a": 1})
    assert (tmp_path / "new" / "folder" / "figures.json").read_text() == '{\n    "a": 1\n}\n'


def test_csv_has_the_columns_asked_for_and_six_digits(tmp_path):
    write_csv(
        tmp_path / "t.csv", [{"name": "a, b", "value": 1 / 3, "more": 1}, {"name": "c", "value": 2}], ["name", "value"]
    )
    assert (tmp_path / "t.csv").read_bytes() == b'name,value\n"a, b",0.333333\nc,2\n'


NAMES = [
    "a\rb",
    "a\nb",
    "a\r\nb",
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\t=1",
    "'=1",
    "''+1",
    "'plain",
    'quo"te',
    "latin\udce9",
    "",
]


def test_a_table_gives_back_any_name_and_no_cell_is_a_formula(tmp_path):
    write_csv(tmp_path / "t.csv", [{"name": name, "value": -0.5} for name in NAMES[:5]], ["name", "value"])
    append_csv(tmp_path / "t.csv", [{"name": name, "value": -0.5} for name in NAMES[5:]], ["name", "value"])
    assert [row["name"] for row in read_csv(tmp_path / "t.csv")] == NAMES
    cells = (tmp_path / "t.csv").read_bytes().decode("utf-8", "surrogateescape").replace('"', "").split("\n")
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t"))]
    assert {row["value"] for row in read_csv(tmp_path / "t.csv")} == {"-0.500000"}


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    write_csv(tmp_path / "t.csv", [{"name": "a"}, {"name": "b"}], ["name"])
    with open(tmp_path / "t.csv", "a") as file:
        file.write("cut")
    assert [row["name"] for row in read_csv(tmp_path / "t.csv")] == ["a", "b"]


def test_a_name_stands_in_one_line():
    assert shown("größe\r\n\x1b\udce9.png") == "größe\\r\\n\\x1b\\udce9.png"


def test_a_full_disk_names_the_file(tmp_path):
    def fail(temporary):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"not written \(No space left on device\); make room .*model.pt"):
        write_whole(tmp_path / "model.pt", fail)


def test_a_folder_is_kept_for_one_process_and_free_when_that_is_killed(tmp_path):
    (tmp_path / ".model.1.partial.pt").touch()
    program = (
        "import sys, time; sys.path.insert(0, 'bundle')\n"
        "from breast_ultrasound.files import locked\n"
        "with locked(sys.argv[1], 'training', '--ckpt_dir'):\n"
        "    print('locked', flush=True); time.sleep(99)\n"
    )
    root = __file__.rsplit("/tests/", 1)[0]
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n" and not (tmp_path / ".model.1.partial.pt").exists()
        with pytest.raises(ValueError, match=f"{tmp_path}: another run writes there; .* another --ckpt_dir"):
            with locked(tmp_path, "training", "--ckpt_dir"):
                pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path, "training", "--ckpt_dir"):
        pass
    assert not list(tmp_path.iterdir())


def test_two_runs_do_not_write_into_one_folder_at_once(tmp_path):
    first, second = (RunRecord(str(tmp_path), "cpu", {}, {}) for _ in range(2))
    with pytest.raises(ValueError, match="another run writes there; wait for it, or pass another --output_dir"):
        first.alone(second.alone, print, "both")
    second.alone(lambda text: (tmp_path / "done").write_text(text), "after the first")
    assert [file.name for file in tmp_path.iterdir()] == ["done"]


def test_results_are_replaced_with_a_word_only(tmp_path):
    for name in ("metrics.json", "images.csv", "x_seg.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="metrics.json: of an earlier evaluation; pass --overwrite True"):
        clear_results(tmp_path, False)
    clear_results(tmp_path, True)
    clear_results(tmp_path, False)
    assert [f.name for f in tmp_path.iterdir()] == ["x_seg.png"]


def test_names_as_long_as_file_systems_allow_get_an_output(tmp_path):
    names = ["k" * 246 + end for end in ("1.png", "2.png", "1.jpg")] + ["ö" * 123 + ".png"]
    for name in names:
        (tmp_path / name).touch()
    stems = output_stems(tmp_path)
    assert len(set(stems.values())) == len(names)
    for stem in stems.values():
        write_whole(tmp_path / f"{stem}_seg.png", lambda p: open(p, "w").close())


def test_checkpoints_load_without_unpickling_code(tmp_path):
    write_checkpoint(tmp_path / "m.pt", {"w": torch.ones(2), "epoch": 3, "names": ["a"]})
    assert torch.load(tmp_path / "m.pt", weights_only=True)["epoch"] == 3


def test_masks_are_written_whole(tmp_path):
    writer = WholePILWriter(output_dtype=np.uint8)
    writer.set_data_array(np.full((1, 3, 2), 255, np.uint8), channel_dim=0)
    writer.set_metadata({}, resample=False)
    writer.write(str(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.png") as mask:
        assert mask.size == (3, 2)  # arrays are (W, H), as MONAI reads images
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]


def test_a_mask_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def fail(image, path, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", fail)
    writer = WholePILWriter(output_dtype=np.uint8)
    writer.set_data_array(np.ones((1, 3, 2), np.uint8))
    with pytest.raises(OSError, match="disk full"):
        writer.write(str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes() == b"old" and [f.name for f in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "names, stems",
    [
        (["a.png", "b.jpg"], ["a", "b"]),
        (["a.png", "a.jpg"], ["a.png", "a.jpg"]),
        (["A.png", "a.tif"], ["A.png", "a.tif"]),  # one file on systems that ignore case
        (["X.PNG", "x.png"], ["X.PNG", "x.png_"]),
        (["a.png", "a.jpg", "a.png.bmp"], ["a.png_", "a.jpg", "a.png"]),
    ],
)
def test_no_two_images_share_an_output(names, stems, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert output_stems(tmp_path) == dict(zip(names, stems))
    for name, stem in zip(names, stems):
        subject = name_output({"filename_or_obj": str(tmp_path / name)}, None)["subject"]
        assert subject.rpartition(".")[0] == str(tmp_path / stem)  # MONAI cuts the extension off


def test_an_image_without_a_folder_keeps_its_name():
    assert name_output({"filename_or_obj": "somewhere/a.b.png"}, None) == {"subject": "somewhere/a.b.png", "idx": None}
