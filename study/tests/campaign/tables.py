"""Tables of images for scripts/prepare.py: spellings, contradictions, encodings, cells that lead elsewhere."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from campaign.images import scan
from campaign.process import Case, Input, ends
from PIL import Image

IMAGES = 12
HEAD = ("file", "class", "patient")
ENCODINGS = ("latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "mac_roman", "utf-8", "utf-8-sig")
SPELLINGS: dict[str, Callable[[str], str]] = {  # of a patient such as P3
    "space behind": lambda p: p + " ",
    "no-break space": lambda p: "\u00a0" + p,
    "zero width": lambda p: p + "\u200b",
    "lower case": str.lower,
    "leading zeros": lambda p: p.replace("P", "P00"),
    "NFD": lambda p: p.replace("P", "e\u0301").replace("e\u0301", "P"),
    "full width space": lambda p: "\u3000" + p,
}
UNKNOWN = ("", " ", "NA", "n/a", "NaN", "None", "null", "unknown", "?", "-", "\u00a0")
DOUBLED = ("class", "Class", " class", "CLASS", "file", "image", "Image", "patient", "group", "patient_id", "subject")
DOUBLED += ("label", "class_name", "sources")
CLASSES = (
    "../../EVIL",
    "/nowhere/EVIL",
    "benign/cyst",
    "..",
    ".",
    "C:\\x",
    "a\\b",
    "a:b",
    "~",
    "a\0b",
    "x" * 300,
    "%2e%2e",
)
CLASSES += ("CON", "-rf", "$HOME", "{}", "[1]", "a,b", 'q"q', "'", "a\tb", "\u202ecba", "#", "@x", "😀", "a\nb")
CELLS = (
    "../p00.png",
    "/etc/passwd",
    "p99.png",
    "p00.png;p01.png;",
    "*",
    "p0?.png",
    ".",
    "~/p.png",
    "p00_mask",
    "\u00e9.png",
)
NAMES = (
    ["a", "a"],
    ["benign", ""],
    ["benign", "Benign "],
    ["benign"],
    ["x\n", "benign"],
    [" ", "b"],
    ["", ""],
    ["b", "b\u200b"],
)
OPTIONS = (
    {"folds": -1},
    {"folds": 1},
    {"folds": 99},
    {"folds": "official"},
    {"seed": -1},
    {"seed": 2**32},
    {"protocol": "clean"},
    {"layout": "nowhere"},
    {"layout": "/etc/passwd"},
    {"table": "nowhere.csv"},
    {"table": "../source/nowhere.csv"},
    {"table": "p00.png"},
    {"table": "."},
    {"without_lesions": ["benign"]},
    {"without_lesions": ["nobody"]},
    {"compare_with": ["/nowhere"]},
    {"compare_with": ["~nobody"]},
    {"testing_only": True, "folds": 3},
    {"layout": "busi"},
)
BROKEN = (
    b"",
    b"\n\n",
    b"file,class,patient\n",
    b"\0" * 99,
    b"PK\3\4garbage",
    b"file\n",
    b"a,b,c\n1,2,3\n",
    b'"file,class\np00.png',
)
BROKEN += (b"file,class\np00.png," + b"x" * 200_000, b"%PDF-1.4\n", b"<html></html>", b"{}")


def rows(cell: Callable[[int, str, str], str] = lambda k, name, value: value) -> list[list[str]]:
    """The rows of twelve images, two a patient, one of each class; `cell` may change what stands in a column."""
    plain = [(f"p{k:02}.png", ("benign", "malignant")[k % 2], f"P{k // 2}") for k in range(IMAGES)]
    return [[cell(k, name, value) for name, value in zip(HEAD, row)] for k, row in enumerate(plain)]


def text(
    table: list[list[str]], head: tuple[str, ...] = HEAD, separator: str = ",", end: str = "\n", quote: bool = False
):
    """A table as a spreadsheet writes it."""

    def cell(value: str) -> str:
        special = quote or any(sign in value for sign in f'{separator}"\r\n')
        return '"{}"'.format(value.replace('"', '""')) if special else value

    return end.join(separator.join(map(cell, row)) for row in [head, *table]) + end


def groups(found: tuple[list[dict], dict]) -> list[int]:
    """Sizes of the groups."""
    return sorted(Counter(item["group"] for item in found[0]).values())


def whole(found: tuple[list[dict], dict]) -> str:
    """All images, with their classes, two a patient."""
    return "right" if groups(found) == [2] * (IMAGES // 2) and not found[1]["refused"] else ""


def one_named(words: str, found: tuple[list[dict], dict]) -> str:
    """All images but one, which is named."""
    (refused,) = found[1]["refused"] or [""]
    return "named" if words in refused and len(found[0]) == IMAGES - 1 else ""


def inside(folder: Path, name: str, found: tuple[list[dict], dict]) -> str:
    """All images in the output, six of them of this class, or refused by name; nothing beside the output."""
    if {path.name for path in folder.iterdir()} != {"source", "out"} or not all(
        (folder / "out" / item[key]).resolve().is_relative_to(folder / "out")
        for item in found[0]
        for key in ("image", "label")
    ):
        return ""
    refused = [line for line in found[1]["refused"] if "class" in line]
    if len(refused) == IMAGES // 2:
        return "named"
    given = Counter(item["class_name"] for item in found[0])
    return "right" if sorted(given.values()) == [6, 6] and " ".join(name.split()) in given or "\u202e" in name else ""


def of_sizes(sizes: list[int], found: tuple[list[dict], dict]) -> str:
    """All images, in groups of these sizes."""
    return "right" if groups(found) == sizes else ""


def told(words: tuple[str, ...], found: tuple[list[dict], dict]) -> str:
    """All images with all masks, or a line that names what is not used."""
    return whole(found) or ("named" if any(word in line for line in found[1]["refused"] for word in words) else "")


Made = tuple[str, "str | bytes", dict, Callable, tuple[str, ...]]  # name, table, options, judge, words of its error


def spelled(draw: random.Random, kind: str, row: int) -> Made:
    """A table in some spelling, all of whose images can be used but for those that say no class."""
    table, right, words = text(rows()), whole, ()
    if kind == "encoding":
        name = draw.choice(ENCODINGS)
        table = text(rows(lambda k, n, v: v.replace("benign", "b\u00e9nin"))).encode(name)
        words = () if name.startswith("utf-8") else ("list.csv",)
    elif kind == "dialect":
        separator, end, quote = draw.choice(",;\t"), draw.choice(["\n", "\r\n", "\r"]), draw.random() < 0.5
        name, table = repr((separator, end, quote)), text(rows(), HEAD, separator, end, quote)
    elif kind == "patient":
        name = draw.choice(list(SPELLINGS))
        table = text(rows(lambda k, n, v: SPELLINGS[name](v) if n == "patient" and k % 2 else v))
    else:
        name, column = draw.choice(UNKNOWN), kind.removeprefix("unknown ")
        lost = range(6, IMAGES) if column == "patient" else [row]
        table = text(rows(lambda k, n, v: name if n == column and k in lost else v))
        right = partial(of_sizes, [1] * 6 + [2] * 3)
        right = right if column == "patient" else partial(one_named, f"p{row:02}.png: no class")
    return name, table, {}, right, words


def contradicting(draw: random.Random, kind: str, row: int, folder: Path) -> Made:
    """A table that says too much, too little, or leads elsewhere."""
    more: dict = {}
    table, right, words = text(rows()), partial(told, (f"line {row + 2}", f"p{row:02}.png")), ("list.csv",)
    if kind == "doubled column":
        name = draw.choice(DOUBLED)
        table = text([[*cells, "x"] for cells in rows()], (*HEAD, name))
        right, words = (lambda found: ""), (f"column {name}", "two columns say")
    elif kind == "hostile class":
        name = draw.choice(CLASSES)
        table = text(rows(lambda k, n, v: name if v == "malignant" else v))
        right, words = partial(inside, folder, name), ("class", "list.csv")
    elif kind == "row of another length":
        name, cells = draw.choice(["3,5", "one less", "two less"]), rows()
        cells[row] = [*cells[row], "5"] if name == "3,5" else cells[row][: 2 - (name == "two less")]
        table = text(cells)
    elif kind in ("image cell", "mask cell"):
        name, cells = draw.choice(CELLS), [[*line, ""] for line in rows()]
        cells[row][0 if kind == "image cell" else 3] = name
        table = text(cells, (*HEAD, "mask"))
    elif kind == "class_names":
        more = {"class_names": draw.choice(NAMES)}
        name, words = str(more), ("--class_names", "one class alone")
    elif kind == "option":
        more = draw.choice(OPTIONS)
        name, words = str(more), (*(f"--{option}" for option in more), *map(str, more.values()), "list.csv")
    else:
        table = draw.choice(BROKEN)
        name = repr(table[:20])
    if kind in ("class_names", "option", "broken table"):
        right = lambda found: ""  # noqa: E731
    return name, table, more, right, words


SPELLED = ("encoding", "dialect", "patient", "unknown patient", "unknown class")
CONTRADICTING = ("doubled column", "hostile class", "row of another length", "image cell", "mask cell", "class_names")
CONTRADICTING += ("option", "broken table")


def table_campaign(folder: Path, seed: int, count: int) -> list[tuple[Case, str]]:
    """Prepare twelve images by tables of every kind."""
    from preparation.pipeline import Options, prepare_set

    draw, pixels = random.Random(seed), np.random.default_rng(seed)
    source, output = folder / "source", folder / "out"
    source.mkdir()
    for k in range(IMAGES):
        grey = scan(pixels)
        Image.fromarray(grey).save(source / f"p{k:02}.png")
        Image.fromarray(np.where(grey > 170, 255, 0).astype(np.uint8)).save(source / f"p{k:02}_mask.png")

    def prepare(table: bytes, more: dict) -> tuple[list[dict], dict]:
        shutil.rmtree(output, ignore_errors=True)
        (source / "list.csv").write_bytes(table)
        prepare_set(source, output, Options(**{"layout": "table", "table": "list.csv", **more}))
        content = json.loads((output / "datalist.json").read_text(encoding="utf-8"))
        items = [item for split in ("training", "validation", "testing") for item in content.get(split, [])]
        return items, json.loads((output / "summary.json").read_text(encoding="utf-8"))

    inputs = []
    for _ in range(count):
        kind, row = draw.choice([*SPELLED, *CONTRADICTING]), draw.randrange(IMAGES)
        made = spelled(draw, kind, row) if kind in SPELLED else contradicting(draw, kind, row, folder)
        name, table, more, right, words = made
        table = table if isinstance(table, bytes) else table.encode()
        inputs.append(Input(f"table, {kind}", name, partial(prepare, table, more), right, words))
    return ends(inputs)
