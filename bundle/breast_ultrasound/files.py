"""Outputs that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from .images import DICOM_EXTENSIONS, is_dicom, is_image_name, split_frame

RECORD = "run.json"
RESULTS = ("metrics.json", "images.csv", RECORD)  # of an evaluation
LONGEST_STEM = 230  # bytes; 255 is the most that file systems take, postfix and extension included
CSV_TEXT = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
FORMULA = re.compile("'*[=+\\-@\t\r]")  # and what begins like a guarded one, so that reading gives it back
GUARDED = re.compile("'+[=+\\-@\t\r]")


def shown(name: str | Path) -> str:
    """A name or path as it stands in one line of a log: what does not print (line ends, other encodings) escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


@contextmanager
def locked(folder: str | Path, task: str, option: str) -> Iterator[None]:
    """Keep a folder for one task of this process, and remove what killed runs left half written in it.

    The system frees the lock when the process ends, however it does.

    Args:
        folder: is made where it is missing; ``~`` is expanded.
        task: names the lock's file.
        option: to name in the error.

    Raises:
        ValueError: where another process holds it.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{task}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another run writes there; wait for it, or pass another {option}") from None
    try:
        for file in folder.glob(".*.partial*"):
            file.unlink()
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: FileLock takes no lock of a file without name
        lock.release()


def clear_results(output_dir: str | Path, overwrite: bool) -> None:
    """Remove the tables of an earlier evaluation, so that they cannot be taken for those of one that failed.

    Raises:
        ValueError: where there are some and they are not to be replaced.
    """
    folder = Path(output_dir).expanduser()
    if (folder / RESULTS[0]).is_file() and not overwrite:
        raise ValueError(
            f"{folder / RESULTS[0]}: of an earlier evaluation; pass --overwrite True, or another --output_dir"
        )
    for name in RESULTS:
        (folder / name).unlink(missing_ok=True)


NOTICE = "research software, not a medical device"


def write_whole(path: str | Path, write: Callable[[str], object], durable: bool = False) -> None:
    """Let ``write`` fill a temporary file beside ``path`` (same extension), then rename it to ``path``.

    Args:
        path: the file; ``~`` is expanded.
        write: gets the temporary file's path.
        durable: whether a power cut must not leave an empty file either: wait until the disk has its content.

    Raises:
        OSError: naming the file and what the system says, such as a full disk.
    """
    path = Path(path).expanduser()
    # Not longer than the name itself, which may be as long as the file system allows.
    temporary = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(str(temporary))
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        said = error.strerror or error
        raise OSError(error.errno, f"not written ({said}); make room or name another place", shown(path)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_json(path: str | Path, content: dict) -> None:
    """Write a dictionary as indented JSON."""
    write_whole(path, lambda p: Path(p).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8"))


def write_csv(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Write rows as CSV; floats with six digits behind the point, the same bytes on every run.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, which ``read_csv`` takes away.
    """

    def write(temporary: str) -> None:
        with open(temporary, "w", **CSV_TEXT) as file:
            _write_rows(file, [dict(zip(columns, columns)), *rows], columns)

    write_whole(path, write)


def append_csv(path: str | Path, rows: Iterable[dict], columns: list[str]) -> None:
    """Add rows to a table of ``write_csv``, begun where it is missing; an interruption may cut the last one."""
    if not Path(path).is_file():
        write_csv(path, [], columns)
    with open(path, "a", **CSV_TEXT) as file:
        _write_rows(file, rows, columns)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table of ``write_csv``; a last one that was cut off is left out."""
    with open(path, **CSV_TEXT) as file:
        text = file.read()
    rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    return [{k: v[1:] if isinstance(v, str) and GUARDED.match(v) else v for k, v in row.items()} for row in rows]


def _write_rows(file: TextIO, rows: Iterable[dict], columns: list[str]) -> None:
    for row in rows:
        cells = [_cell(row.get(column, "")) for column in columns]
        # A carriage return alone ends a line for most readers, but csv.writer quotes it from Python 3.13 on only.
        quoting = csv.QUOTE_ALL if any("\r" in str(cell) for cell in cells) else csv.QUOTE_MINIMAL
        csv.writer(file, lineterminator="\n", quoting=quoting).writerow(cells)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def write_checkpoint(path: str | Path, content: dict) -> None:
    """Save tensors and plain Python values, so that ``torch.load(..., weights_only=True)`` reads them."""
    import torch  # here, since what only converts files does without

    memory = io.BytesIO()  # torch's own writer does not say that a disk is full
    torch.save(content, memory)
    write_whole(path, lambda p: Path(p).write_bytes(memory.getbuffer()), durable=True)


def cut_stem(stem: str) -> str:
    """A stem, cut where it leaves no room for a postfix in a file's name."""
    return os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore")


@lru_cache(maxsize=64)
def output_stems(folder: Path) -> dict[str, str]:
    """Map each image of a folder to the stem of its outputs: its own stem, or one that no other image has.

    Stems that leave no room for a postfix in a file's name are cut.
    """
    names = sorted(f.name for f in folder.iterdir() if is_image_name(f))
    own = {name: cut_stem(Path(name).stem) for name in names}
    counts = Counter(stem.lower() for stem in own.values())
    # Lower case, since some file systems take A.png and a.png for one file. Unshared stems choose first.
    result = {name: stem for name, stem in own.items() if counts[stem.lower()] == 1}
    taken = {stem.lower() for stem in result.values()}
    for name in names:
        if name not in result:
            stem = name if len(os.fsencode(name)) <= LONGEST_STEM else own[name]
            while stem.lower() in taken:
                stem += "_"
            result[name] = stem
            taken.add(stem.lower())
    return result


def output_stem(file: Path) -> str:
    """The stem of an image's outputs, as ``output_stems`` has it for the image's folder.

    Of a DICOM object it is its name, without ``.dcm`` where no other file has that name, and the number of its frame.
    """
    path, frame = split_frame(file)
    if is_dicom(path):
        path = Path(path)
        short = path.suffix.lower() in DICOM_EXTENSIONS and not path.with_suffix("").is_file()
        stem = cut_stem(path.stem if short else path.name)
        return f"{stem}_frame{frame}" if frame else stem
    return output_stems(file.parent).get(file.name, file.stem) if file.parent.is_dir() else file.stem


def name_output(meta: dict, saver) -> dict:
    """Name an output after its image: an ``output_name_formatter`` of MONAI's ``SaveImaged``.

    ``x.png`` gives ``x``; where ``x.jpg`` lies beside it, the two give ``x.png`` and ``x.jpg``. The folder stays, for
    ``data_root_dir``.
    """
    file = Path(str(meta["filename_or_obj"]))
    # MONAI cuts the extension off again.
    return {"subject": str(file.with_name(output_stem(file) + (file.suffix or ".dcm"))), "idx": None}


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def digest_or_empty(path: str | Path) -> str:
    """``sha256``, empty where there is no such file."""
    return sha256(path) if Path(path).is_file() else ""
