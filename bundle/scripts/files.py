"""Outputs that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import torch
from monai.data import PILWriter

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")


def names_a_picture(name: str | Path) -> bool:
    """Whether a file's extension, in any case, is that of an image."""
    return Path(name).suffix.lower() in EXTENSIONS


NOTICE = "research software, not a medical device"


def write_whole(path: str | Path, write: Callable[[str], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path`` (same extension), then rename it to ``path``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        write(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: dict) -> None:
    """Write a dictionary as indented JSON."""
    write_whole(path, lambda p: Path(p).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8"))


def write_csv(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Write rows as CSV; floats with six digits behind the point, the same bytes on every run."""

    def write(temporary: str) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writeheader()
            _write_rows(file, rows, columns)

    write_whole(path, write)


def append_csv(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Add rows to a table of ``write_csv``, begun where it is missing; an interruption may cut the last one."""
    if not Path(path).is_file():
        write_csv(path, [], columns)
    with open(path, "a", newline="", encoding="utf-8") as file:
        _write_rows(file, rows, columns)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table; a last one that was cut off is left out."""
    text = Path(path).read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))


def _write_rows(file: TextIO, rows: Iterable[dict], columns: list[str]) -> None:
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    for row in rows:
        writer.writerow({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()})


def write_checkpoint(path: str | Path, content: dict) -> None:
    """Save tensors and plain Python values, so that ``torch.load(..., weights_only=True)`` reads them."""
    write_whole(path, lambda p: torch.save(content, p))


class WholePILWriter(PILWriter):
    """MONAI's ``PILWriter`` whose pictures appear whole or not at all, and PNGs in half the time."""

    def set_data_array(self, data_array, **kwargs) -> None:
        """Take a mask (1, W, H); MONAI's own method would squeeze a height of one pixel away too."""
        self.data_obj = data_array[0]

    def write(self, filename, verbose: bool = False, **kwargs) -> None:
        """Write the picture set before to ``filename``."""
        kwargs = {"compress_level": 1, **kwargs}  # a mask stays a few kilobytes, in half the time
        write_whole(filename, lambda p: super(WholePILWriter, self).write(p, verbose=verbose, **kwargs))


@lru_cache(maxsize=4)
def output_stems(folder: Path) -> dict[str, str]:
    """Map each picture of a folder to the stem of its outputs: its own stem, or one that no other picture has."""
    names = sorted(f.name for f in folder.iterdir() if names_a_picture(f))
    stems = [Path(name).stem.lower() for name in names]
    # Lower case, since some file systems take A.png and a.png for one file. Unshared stems choose first.
    unshared = [name for name, stem in zip(names, stems) if stems.count(stem) == 1]
    result: dict[str, str] = {name: Path(name).stem for name in unshared}
    taken = {stem.lower() for stem in result.values()}
    for name in names:
        if name not in result:
            stem = name
            while stem.lower() in taken:
                stem += "_"
            result[name] = stem
            taken.add(stem.lower())
    return result


def name_output(meta: dict, saver) -> dict:
    """Name an output after its picture: an ``output_name_formatter`` of MONAI's ``SaveImaged``.

    ``x.png`` gives ``x``; where ``x.jpg`` lies beside it, the two give ``x.png`` and ``x.jpg``.
    """
    file = Path(str(meta["filename_or_obj"]))
    stem = output_stems(file.parent).get(file.name, file.stem) if file.parent.is_dir() else file.stem
    # MONAI cuts the extension off again.
    return {"subject": stem + file.suffix, "idx": None}


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
