"""What a command of the bundle is given, checked as a whole before any work: options by one table, then the data."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from monai.bundle import ConfigParser

from .command import check_overrides, first_cause, last_line
from .data import UNKNOWN_CLASS
from .files import shown
from .transforms import open_image, to_contrasted_grey, to_mask

NAMED = 50  # files of one problem that its line names


class Rule(NamedTuple):
    """What an option's value must be: a test, and its words."""

    fits: Callable[[object], bool]
    words: str


def _whole(value: object, least: float = 0, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object, least: float = 0, most: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def _inside(value: object, most: float) -> bool:
    return _number(value) and 0 < value < most


def _list_of(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(fits(v) for v in value)


def _name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _splits(value: object) -> bool:
    return _name(value) and all(part.strip() for part in value.split("+"))


def _datalists(value: object) -> bool:
    """Whether a value is a path, or paths with weights."""
    if isinstance(value, Mapping):
        return bool(value) and all(_path(k) and _inside(v, math.inf) for k, v in value.items())
    return _path(value)


def _path(value: object) -> bool:
    return isinstance(value, (str, os.PathLike)) and bool(str(value)) and "\0" not in str(value)


YES_OR_NO = Rule(lambda v: isinstance(v, bool), "True or False")
COUNT = Rule(lambda v: _whole(v, 1), "a whole number of 1 or more")
COUNT_OR_NONE = Rule(_whole, "a whole number of 0 or more")
WEIGHT = Rule(lambda v: _number(v) and v < math.inf, "a number of 0 or more")
PATH = Rule(_path, "a path")
# One rule for each option of the configs that a user may set to a plain value.
RULES = {
    "bundle_root": PATH,
    "dataset_dir": PATH,
    "datalist": Rule(_datalists, "a path, or {path: weight, ...} with weights above 0"),
    "ckpt_dir": PATH,
    "output_dir": PATH,
    "weights": PATH,
    "onnx_file": PATH,
    "pretrained": Rule(lambda v: v == "" or _path(v), "a path, or empty"),
    "part": Rule(_splits, "a split of the datalist, or several joined by +"),
    "train_split": Rule(_splits, "a split of the datalist, or several joined by +"),
    "seed": Rule(lambda v: _whole(v, 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
    "epochs": COUNT,
    "train#trainer#max_epochs": COUNT,
    "batch_size": COUNT,
    "val_interval": COUNT,
    "early_stop_patience": COUNT_OR_NONE,
    "num_workers": COUNT_OR_NONE,
    "learning_rate": Rule(lambda v: _inside(v, math.inf), "a number above 0"),
    "classification_weight": WEIGHT,
    "image_size": Rule(lambda v: _whole(v, 32, 8192), "a whole number of pixels from 32 to 8192"),
    "features": Rule(lambda v: _list_of(v, lambda n: _whole(n, 1)) and len(v) == 6, "a list of six whole numbers"),
    "downscale_factor": Rule(lambda v: v in (1, 2, 4) and _whole(v), "1, 2 or 4"),
    "class_names": Rule(
        lambda v: _list_of(v, _name) and len(v) > 1 and len(set(v)) == len(v), "a list of two or more different names"
    ),
    "amp": Rule(lambda v: isinstance(v, bool) or v == "auto", "True, False or auto"),
    "mask_threshold": Rule(lambda v: _inside(v, 1), "a number between 0 and 1"),
    **dict.fromkeys(
        ["smallest_fraction", "part_threshold"], Rule(lambda v: _number(v) and v < 1, "a number from 0 to less than 1")
    ),
    "output_ext": Rule(lambda v: v in (".png", ".bmp", ".tif", ".tiff"), ".png, .bmp, .tif or .tiff"),
    "output_postfix": Rule(
        lambda v: _name(v) and not set(v) & set("/\\:") and len(v) < 16, "a short word without / \\ or :"
    ),
    **dict.fromkeys(
        ["resume", "recursive", "overwrite", "save_masks", "load_pretrain", "separate_folder", "test_time_flip"],
        YES_OR_NO,
    ),
}


def check_command(arguments: list[str] | None = None) -> None:
    """Check options and data of ``python -m monai.bundle run`` before any work; does nothing under another command.

    Args:
        arguments: the command line without the program's name; that of this process by default.

    Raises:
        ValueError: with one line for each problem, which names the option or the files and the remedy.
    """
    parser = check_overrides(arguments)
    if parser is None:
        return
    problems = option_problems(parser)
    if "train#dataset#data" in parser:
        problems += data_problems(parser)
    if problems:
        count = f"{len(problems)} problems:\n" if len(problems) > 1 else ""
        raise ValueError(count + "\n".join(problems))


def option_problems(parser: ConfigParser) -> list[str]:
    """One line for each option whose value breaks its rule."""
    problems = []
    for name, rule in RULES.items():
        if name not in parser or str(parser[name]).startswith("@"):  # another option's
            continue
        try:
            value = parser.get_parsed_content(name)
        except Exception as error:  # an expression of the user's own may fail in any way
            problems.append(f"--{name} {parser[name]}: {last_line(first_cause(error))}; give {rule.words}")
            continue
        if not rule.fits(value):
            problems.append(f"--{name} {shown(str(value))}: give {rule.words}")
    if not problems and "val_interval" in parser:
        interval, epochs = (parser.get_parsed_content(n) for n in ("val_interval", "train#trainer#max_epochs"))
        if interval > epochs:
            problems.append(f"--val_interval {interval} is larger than --epochs {epochs}: no weights would be kept")
    return problems


def data_problems(parser: ConfigParser) -> list[str]:
    """One line for each kind of problem of the items that a training or an evaluation is going to read."""
    evaluation = "evaluating" in parser
    wanted = {parser["part"]: "validate"} if evaluation else {parser["train_split"]: "train", "validation": "validate"}
    try:
        names = parser.get_parsed_content("class_names")
    except Exception:  # told of the option already
        return []
    if not RULES["class_names"].fits(names):
        return []
    datalist = parser.get_parsed_content("datalist")
    problems = []
    for split, section in wanted.items():
        try:
            items = parser.get_parsed_content(f"{section}#dataset#data")
        except Exception as error:
            cause = last_line(first_cause(error))
            remedy = "correct it, or name another --datalist or --dataset_dir"
            problems.append(f"{datalist}: {split} cannot be read from it ({cause}); {remedy}")
            continue
        problems += item_problems(items, split, names)
        if not items:
            problems.append(f"{datalist}: no item in {split}; fill it, or name another --datalist")
    return problems


def item_problems(items: Sequence[Mapping], split: str, class_names: Sequence[str] | None) -> list[str]:
    """One line for each kind of problem of the items of one split, with its count and the first files.

    Items hold ``image`` and ``label`` as paths and ``class``, an index of ``class_names`` or -1 (unknown); without
    names, classes are not looked at.
    """
    found = defaultdict(list)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for kind, what in (problem for one in pool.map(_problems_of, items) for problem in one):
            found[kind].append(what)
    have_class = sum("class" in item for item in items)
    for item in items if class_names else ():
        value = item.get("class", UNKNOWN_CLASS if not have_class else None)
        if not _whole(value, UNKNOWN_CLASS, len(class_names) - 1):
            kind = f"class that is none of 0 to {len(class_names) - 1} ({', '.join(class_names)}); correct the datalist"
            found[kind].append(f"{shown(item.get('image', '?'))}: {value!r}")
    lines = []
    for kind, whats in found.items():
        what, _, remedy = kind.partition("; ")
        more = f" and {len(whats) - NAMED} more" if len(whats) > NAMED else ""
        lines.append(f"{split}: {len(whats)} x {what}: {', '.join(whats[:NAMED])}{more}; {remedy}")
    return lines


def _problems_of(item: Mapping) -> list[tuple[str, str]]:
    """Kind and file of each problem of one item."""
    problems, sizes = [], {}
    for key, convert in (("image", to_contrasted_grey), ("label", to_mask)):
        file = item.get(key)
        if not isinstance(file, str):
            problems.append((f"item without {key}; correct the datalist", json.dumps(dict(item), default=str)[:80]))
        elif not Path(file).is_file():
            problems.append((f"{key} missing; correct the datalist or --dataset_dir", shown(file)))
        else:
            try:
                sizes[key] = convert(open_image(file)).shape[::-1]
            except (ValueError, OSError, MemoryError) as error:
                problems.append((f"{key} that cannot be used; replace the file", f"{shown(file)} ({last_line(error)})"))
    if len(set(sizes.values())) > 1:
        both = "{} x {}, its image {} x {}".format(*sizes["label"], *sizes["image"])
        problems.append(("label of another size than its image; replace the file", f"{shown(item['label'])} ({both})"))
    return problems
