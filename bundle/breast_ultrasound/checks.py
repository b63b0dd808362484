"""What a command of the bundle is given, checked as a whole before any work: options by one table, then the data."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser

from .cli import PATHS
from .command import check_overrides, first_cause, last_line, typed_options
from .data import UNKNOWN_CLASS, load_datalist, read_datalist
from .files import sha256, shown
from .images import FRAMES, near_duplicates, open_image, thumbnail, to_contrasted_grey, to_grey, to_mask
from .pretrained import STAGES

logger = logging.getLogger(__name__)
NAMED = 50  # files of one problem that its line names
LOOKING = 20.0  # seconds, for the images of one split that are compared alone
Thumbs = dict[str, np.ndarray]  # what `images.thumbnail` gives, by the image's path
SHARED = Path("/dev/shm")
PREFETCHED = 2  # batches that a worker holds ready


class Rule(NamedTuple):
    """What an option's value must be: a test, and its words."""

    fits: Callable[[object], bool]
    words: str


def _whole(value: object, least: float = 0, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: object, least: float = 0, most: float = math.inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and least <= value <= most


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


def _device(value: object) -> bool:
    """Whether PyTorch has a device here."""
    try:
        torch.empty(0, device=value)
    except (RuntimeError, TypeError, AssertionError):
        return False
    return isinstance(value, (str, torch.device))


def _prevalence(value: object) -> bool:
    """Whether a value is empty, or a fraction for each class, 1 in all."""
    if not isinstance(value, Mapping) or not all(_name(k) and _number(v) for k, v in value.items()):
        return False
    return not value or abs(sum(value.values()) - 1) < 0.001


def _shared_memory_problem(parser: ConfigParser) -> str:
    """A line where worker processes could not hand their images over, for want of which they hang; else empty."""
    if not (workers := parser.get_parsed_content("num_workers")):
        return ""
    try:
        batch, side = (parser.get_parsed_content(name) for name in ("batch_size", "image_size"))
    except Exception:  # of weights or a network that cannot be read, which says so itself
        return ""
    needed = workers * PREFETCHED * batch * 2 * 4 * side**2  # an image and its label, as float32
    if not SHARED.is_dir() or needed <= (free := shutil.disk_usage(SHARED).free):
        return ""
    remedy = "pass --num_workers 0, or enlarge it (docker run --shm-size 2g)"
    return f"--num_workers {workers}: {SHARED} has {free >> 10} kB left for images of {needed >> 10} kB; {remedy}"


YES_OR_NO = Rule(lambda v: isinstance(v, bool), "True or False")
COUNT = Rule(lambda v: _whole(v, 1), "a whole number of 1 or more")
COUNT_OR_NONE = Rule(_whole, "a whole number of 0 or more")
WEIGHT = Rule(lambda v: _number(v) and v < math.inf, "a number of 0 or more")
PATH = Rule(_path, "a path")
# One rule for each option of the configs that a user may set to a plain value.
RULES = {
    **dict.fromkeys(PATHS, PATH),
    "datalist": Rule(_datalists, "a path, or {path: weight, ...} with weights above 0"),
    **dict.fromkeys(["pretrained", "imagenet"], Rule(lambda v: v == "" or _path(v), "a path, or empty")),
    "split": Rule(_splits, "a split of the datalist, or several joined by +"),
    "train_split": Rule(_splits, "a split of the datalist, or several joined by +"),
    "seed": Rule(lambda v: _whole(v, 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
    "epochs": COUNT,
    "train#trainer#max_epochs": COUNT,
    "batch_size": COUNT,
    "val_interval": COUNT,
    "num_workers": COUNT_OR_NONE,
    "learning_rate": Rule(lambda v: _inside(v, math.inf), "a number above 0"),
    "classification_weight": WEIGHT,
    "image_size": Rule(lambda v: _whole(v, 32, 8192), "a whole number of pixels from 32 to 8192"),
    "features": Rule(lambda v: _list_of(v, lambda n: _whole(n, 1)) and len(v) == 6, "a list of six whole numbers"),
    "backbone": Rule(lambda v: v in tuple(STAGES), f"one of {', '.join(STAGES)}"),
    "downscale_factor": Rule(lambda v: v in (1, 2, 4) and _whole(v), "1, 2 or 4"),
    "class_names": Rule(
        lambda v: _list_of(v, _name) and len(v) > 1 and len(set(v)) == len(v), "a list of two or more different names"
    ),
    "prevalence": Rule(
        _prevalence, "{class: fraction, ...} of all classes, 1 in all, or {} for that of the calibration"
    ),
    "device": Rule(_device, "a device of PyTorch that is here, such as cpu or cuda:0"),
    "amp": Rule(lambda v: isinstance(v, bool) or v == "auto", "True, False or auto"),
    "mask_threshold": Rule(lambda v: _inside(v, 1), "a number between 0 and 1"),
    **dict.fromkeys(
        ["smallest_fraction", "component_threshold"],
        Rule(lambda v: _number(v) and v < 1, "a number from 0 to less than 1"),
    ),
    "output_dtype": Rule(lambda v: v in ("uint8", np.uint8), "uint8, in which masks are 0 and 255"),
    "output_ext": Rule(lambda v: v in (".png", ".bmp", ".tif", ".tiff"), ".png, .bmp, .tif or .tiff"),
    "output_postfix": Rule(
        lambda v: _name(v) and not set(v) & set("/\\:") and len(v) < 16, "a short word without / \\ or :"
    ),
    "frames": Rule(
        lambda v: isinstance(v, (str, int)) and FRAMES.fullmatch(str(v)),
        "all, middle, every and a number (every10), or the number of one frame",
    ),
    "objects": Rule(
        lambda v: _list_of(v, lambda o: o in ("seg", "sr", "sc")) and len(set(v)) == len(v), "a list of seg, sr and sc"
    ),
    **dict.fromkeys(
        ["resume", "recursive", "overwrite", "save_masks", "load_pretrain", "separate_folder", "predict_refused"],
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
    problems, thumbs = option_problems(parser), {}
    problems += [] if problems else _without_effect(parser, arguments)
    if "train#dataset#data" in parser:
        problems += data_problems(parser, thumbs)
        for line in [] if problems else data_warnings(parser, thumbs):
            logger.warning(line)
    if problems:
        count = f"{len(problems)} problems:\n" if len(problems) > 1 else ""
        raise ValueError(count + "\n".join(problems))


def _without_effect(parser: ConfigParser, arguments: list[str] | None) -> list[str]:
    """One line for each given option of the BasicUNet where the network in force is another one."""
    given = typed_options(sys.argv[1:] if arguments is None else arguments)
    names = [name for name in ("features", "downscale_factor") if name in given]
    if not names:
        return []
    network = parser.get_parsed_content("network_def")
    told = f"the network in force, {type(network).__name__}, has none; leave it out"
    return [f"--{name}: {told}" for name in names if name not in getattr(network, "settings", {})]


def options_in_force() -> dict[str, object]:
    """Value of each option of ``RULES`` that this command has, but for those of a calibration; empty under another."""
    parser = check_overrides()
    names = [n for n in RULES if parser and "#" not in n and n in parser]
    names = [name for name in names if not str(parser[name]).startswith("$@calibration")]
    return {name: json.loads(json.dumps(parser.get_parsed_content(name), default=str)) for name in names}


def option_problems(parser: ConfigParser, names: Collection[str] = tuple(RULES)) -> list[str]:
    """One line for each of these options whose value breaks its rule."""
    problems = []
    for name, rule in RULES.items():
        if name not in names or name not in parser:
            continue
        if str(parser[name]).startswith(("@", "$@calibration")):  # another option's, or checked
            continue
        try:
            value = parser.get_parsed_content(name)
        except Exception as error:  # an expression of the user's own may fail in any way
            cause = last_line(first_cause(error))
            default = str(parser[name]).startswith("$@")  # another id's value, whose error it is
            problems.append(cause if default else f"--{name} {parser[name]}: {cause}; give {rule.words}")
            continue
        if not rule.fits(value):
            problems.append(f"--{name} {shown(str(value))}: give {rule.words}")
    if not problems and "num_workers" in parser and (problem := _shared_memory_problem(parser)):
        problems.append(problem)
    if not problems and "val_interval" in parser:
        interval, epochs = (parser.get_parsed_content(n) for n in ("val_interval", "train#trainer#max_epochs"))
        if interval > epochs:
            problems.append(f"--val_interval {interval} is larger than --epochs {epochs}: no weights would be kept")
    return list(dict.fromkeys(problems))


def data_problems(parser: ConfigParser, thumbs: Thumbs) -> list[str]:
    """One line for each kind of problem of the items that a training or an evaluation is going to read; `thumbs` gets
    their thumbnails."""
    evaluation = "evaluating" in parser
    wanted = {parser["split"]: "validate"} if evaluation else {parser["train_split"]: "train", "validation": "validate"}
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
        problems += item_problems(items, split, names, thumbs)
        if not items:
            problems.append(f"{datalist}: no item in {split}; fill it, or name another --datalist")
    return problems


def data_warnings(parser: ConfigParser, thumbs: Thumbs) -> list[str]:
    """One line for each thing about the items that makes metrics say less, or better, than they seem to."""
    names, datalist = (parser.get_parsed_content(name) for name in ("class_names", "datalist"))
    validated = parser["split"] if "evaluating" in parser else "validation"
    splits = {validated: parser.get_parsed_content("validate#dataset#data")}
    lines = []
    classes = {item.get("class", UNKNOWN_CLASS) for item in splits[validated]}
    absent = [name for index, name in enumerate(names) if index not in classes]
    if absent:
        lines.append(f"{datalist}: no image of {', '.join(absent)} in {validated}; the metrics say nothing of it")
    if "evaluating" not in parser:
        splits[parser["train_split"]] = parser.get_parsed_content("train#dataset#data")
    elif isinstance(datalist, str):
        others = {name: value for name, value in read_datalist(datalist).items() if isinstance(value, list)}
        for name in {"training", "validation"} & others.keys() - set(validated.split("+")):
            splits[name] = load_datalist(datalist, name, parser.get_parsed_content("dataset_dir"), names)
    return [*lines, *leaks(splits, thumbs)]


def leaks(splits: Mapping[str, Sequence[Mapping]], thumbs: Thumbs) -> list[str]:
    """One line for each way in which a split has an image twice, or two splits share images or groups (patients), or
    the first has near-duplicates of another's images.

    Images are the same where their files are, whatever their names; groups where their set is the same too;
    near-duplicates are what ``images.near_duplicates`` finds.

    Args:
        splits: items by split, that of the metrics first.
        thumbs: thumbnails by path, as far as they are known. The others are made, for ``LOOKING`` seconds at most.
    """
    places, digests = defaultdict(list), {}
    for split, items in splits.items():
        for item in items:
            file = item["image"]
            if Path(file).is_file():
                digests[file] = sha256(file)
                places["images", digests[file]].append((split, shown(Path(file).name)))
            if item.get("group"):
                places["patients", (item.get("set"), item["group"])].append((split, shown(str(item["group"]))))
    found = defaultdict(list)
    for (kind, _), where in places.items():
        names = list(dict.fromkeys(split for split, _ in where))
        if len(names) > 1:
            found[f"{kind} in both {' and '.join(names)}"].append(where[0][1])
        elif len(where) > 1 and kind == "images":
            found[f"{kind} twice or more often in {names[0]}"].append(where[0][1])
    lists = {split: list(dict.fromkeys(item["image"] for item in items)) for split, items in splits.items()}
    lines = [_look(files, split, thumbs) for split, files in lists.items()]
    first, *others = lists
    for other in others:
        pairs = [pair for pair in _alike(lists[first], lists[other], thumbs) if len({*map(digests.get, pair)}) > 1]
        for pair in pairs:
            told = " = ".join(shown(Path(file).name) for file in pair)
            found[f"near-duplicates in both {first} and {other}"].append(told)
    advice = "metrics look better than they are; prepare the set again, or correct the datalist"
    lines += [
        f"{len(w)} {kind} ({', '.join(w[:3])}{', ...' if len(w) > 3 else ''}): {advice}" for kind, w in found.items()
    ]
    return list(filter(None, lines))


def _look(files: Sequence[str], split: str, thumbs: Thumbs) -> str:
    """Add the thumbnails that are missing, and say of how many images there are none in the end."""
    end = time.monotonic() + LOOKING

    def look(file: str) -> None:
        if file not in thumbs and time.monotonic() < end:
            with suppress(ValueError, OSError, MemoryError):  # of a split that is not read otherwise
                thumbs[file] = thumbnail(to_grey(open_image(file)))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(look, files))
    lost = sum(file not in thumbs for file in files)
    reason = f"(not to be read, or more than {LOOKING:g} s)"
    return f"{lost} of {len(files)} images of {split} were not searched for near-duplicates {reason}" if lost else ""


def _alike(files: Sequence[str], others: Sequence[str], thumbs: Thumbs) -> list[tuple[str, str]]:
    """Pairs of near-duplicates, one of each list."""
    files, others = ([file for file in each if file in thumbs] for each in (files, others))
    if not files or not others:
        return []
    seen, pairs = np.array([thumbs[file] for file in others]), []
    for start in range(0, len(files), 1000):  # bounds the memory that a large set takes
        part = files[start : start + 1000]
        found = np.argwhere(near_duplicates(np.array([thumbs[file] for file in part]), seen))
        pairs += [(part[n], others[m]) for n, m in found]
    return pairs


def item_problems(
    items: Sequence[Mapping], split: str, class_names: Sequence[str] | None, thumbs: Thumbs | None = None
) -> list[str]:
    """One line for each kind of problem of the items of one split, with its count and the first files.

    Items hold ``image`` and ``label`` as paths and ``class``, an index of ``class_names`` or -1 (unknown); without
    names, classes are not looked at. `thumbs` gets the images' thumbnails.
    """
    found, thumbs = defaultdict(list), {} if thumbs is None else thumbs
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for kind, what in (problem for one in pool.map(partial(_problems_of, thumbs), items) for problem in one):
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


def _problems_of(thumbs: Thumbs, item: Mapping) -> list[tuple[str, str]]:
    """Kind and file of each problem of one item; `thumbs` gets its image's thumbnail."""
    problems, sizes = [], {}
    for key, convert in (("image", to_contrasted_grey), ("label", to_mask)):
        file = item.get(key)
        if not isinstance(file, str):
            problems.append((f"item without {key}; correct the datalist", json.dumps(dict(item), default=str)[:80]))
        elif not Path(file).is_file():
            problems.append((f"{key} missing; correct the datalist or --dataset_dir", shown(file)))
        else:
            try:
                pixels = convert(open_image(file))
                sizes[key] = pixels.shape[::-1]
                if key == "image":
                    thumbs[file] = thumbnail(pixels)
            except (ValueError, OSError, MemoryError) as error:
                problems.append((f"{key} that cannot be used; replace the file", f"{shown(file)} ({last_line(error)})"))
    if len(set(sizes.values())) > 1:
        both = "{} x {}, its image {} x {}".format(*sizes["label"], *sizes["image"])
        problems.append(("label of another size than its image; replace the file", f"{shown(item['label'])} ({both})"))
    return problems
