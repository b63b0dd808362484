"""Command lines: python-fire splits them, pydantic converts the values, one line names what is wrong.

Imports nothing heavy, so that help and a mistyped option answer at once: a command imports PyTorch when it works.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import fire

from . import BUNDLE

CONFIGS = ("train", "evaluate", "inference", "inference_dicom")
# Options of earlier versions: their new names, and those that are gone
RENAMED = {"part": "split", "part_threshold": "component_threshold", "split": "protocol"}
RENAMED |= {"smallest_share": "smallest_fraction"}
GONE = ("early_stop_patience", "test_time_flip", "normal_gate")
# Ids of the configs that are paths
PATHS = ("bundle_root", "dataset_dir", "datalist", "ckpt_dir", "output_dir", "weights", "onnx_file", "pretrained")
PATHS += ("imagenet",)
# A thread that waits for another sleeps. Spinning takes the core from whoever has the work, wherever cores are shared.
# OpenMP's libraries (GNU's, then Intel's and LLVM's) read this once, when they are loaded.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


def run(function: Callable[..., object], arguments: list[str] | None = None, record: bool = False) -> None:
    """Let python-fire call a function with the options of the command line, checked before any work is done.

    Fire itself calls first and complains of a misspelt option later, and takes `2024` for a number where a folder is
    meant. Here values become what the annotations say; a parameter without default is required; `class_` is typed
    --class. A function with `**options` takes the bundle's options too, as text.

    Args:
        function: the command; the docstrings of its module and its `Args` are the text of --help.
        arguments: the command line without the program's name; that of this process by default.
        record: whether `run.json` in its `output_dir` tells of the run when it is complete.

    Raises:
        SystemExit: with one line, where an option is wrong or the function raises an OSError or a ValueError; with 130,
            as of a shell, where Ctrl-C or SIGTERM stops it, once the function has removed what it left half written.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files that the terminal's encoding lacks

    def command(*values: str, **options: str) -> None:
        if {"help", "h"} & options.keys():
            print(help_text(function))
            return
        # Fire reads an unknown --normal without a value as --no-rmal.
        cut = {name for name in options if f"--no{name}" in typed and name not in _parameters(function)}
        options = {f"no{name}" if name in cut else name: value for name, value in options.items()}
        given = checked(function, values, options)
        _recorded(function, given) if record else function(**given)

    fire.decorators.SetParseFn(str)(command)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fire.Fire(command, typed, name=function.__name__, serialize=lambda _: None)
    except (OSError, ValueError) as error:
        sys.exit(f"{function.__name__}: {error}")
    except KeyboardInterrupt:
        print(f"\n{function.__name__}: stopped", file=sys.stderr)
        sys.exit(130)


def _recorded(function: Callable[..., object], given: dict[str, Any]) -> None:
    """Call a function and write `run.json` in its `output_dir`."""
    from .record import now, write_record  # takes NumPy, which a mistyped option does not wait for

    started, defaults = now(), {name: parameter.default for name, parameter in _parameters(function).items()}
    found = function(**given)
    write_record((defaults | given)["output_dir"], function.__name__, started, defaults | given, found)


def _parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters by the names of their options, without `**options`."""
    found = inspect.signature(function).parameters.values()
    return {p.name.rstrip("_"): p for p in found if p.kind != inspect.Parameter.VAR_KEYWORD}


def checked(function: Callable[..., object], values: Collection[str], options: dict[str, str]) -> dict[str, Any]:
    """The arguments to call a function with, from what was typed.

    Args:
        function: the command.
        values: what was typed without the name of an option.
        options: what was typed by name.

    Raises:
        ValueError: naming an option that does not exist, is missing, or has a value of another type.
    """
    parameters = _parameters(function)
    takes_ids = len(parameters) < len(inspect.signature(function).parameters)
    known = [*parameters, *(bundle_options() if takes_ids else ())]
    valid = f"options: {', '.join(f'--{name}' for name in parameters) or 'none'}"
    if values:
        raise ValueError(f"{values[0]}: each value needs its option before it; {valid}")
    for name in options:
        if name not in known and not (takes_ids and "#" in name):
            raise ValueError(f"{unknown_option(name, known)}; {valid}")
    hints = get_type_hints(function)
    own = {p.name: converted(name, options[name], hints[p.name]) for name, p in parameters.items() if name in options}
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"--{name} is missing; {valid}")
    return own | {name: value for name, value in options.items() if name not in parameters}


def unknown_option(name: str, known: Iterable[str]) -> str:
    """What to say of an option that does not exist: its new name, that it is gone, or the nearest that does."""
    known = list(known)
    if RENAMED.get(name) in known:
        return f"unknown option --{name}; it is called --{RENAMED[name]} now"
    if name in GONE:
        return f"unknown option --{name}; it is gone, leave it out"
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown option --{name}" + (f"; did you mean --{close[0]}?" if close else "")


def bundle_options(configs: Iterable[str] = CONFIGS) -> list[str]:
    """The ids at the top of the bundle's configs, each of which is an option of its commands."""
    files = (BUNDLE / "configs" / f"{name}.json" for name in configs)
    return list(dict.fromkeys(name for file in files for name in json.loads(file.read_text(encoding="utf-8"))))


def converted(name: str, text: str, hint: Any) -> Any:
    """What was typed for an option, as the type of its annotation.

    Raises:
        ValueError: naming the option and what it takes.
    """
    if text in ("", "True") and not {bool, True} & {hint, *get_args(hint)}:  # Fire gives True where no value follows
        raise ValueError(f"--{name} needs a value")
    text = os.path.expanduser(text)
    if hint in (str, Path):
        return hint(text)
    from pydantic import TypeAdapter, ValidationError

    python = fire.parser.DefaultParseValue(text)
    listed = [str(item) for item in python] if isinstance(python, (list, tuple)) else python
    problems = []
    for value in (text, listed if text[0] in "[({" else [text], python):  # a path with a comma is one path
        try:
            return TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            problems.append(error.errors()[0]["msg"].removeprefix("Input "))
    listing = {tuple, list} & {get_origin(kind) for kind in (hint, *get_args(hint))}
    several = ', or several as "[...]"' if listing else ""
    raise ValueError(f"--{name} {text}: {problems[1]}{several}")


def help_text(function: Callable[..., object]) -> str:
    """What --help prints: the module's docstring, and the function's options with their defaults."""
    parsed = fire.docstrings.parse(inspect.getdoc(function) or "")
    lines = [(sys.modules[function.__module__].__doc__ or "").strip(), ""]
    lines += [f"{function.__name__}: {parsed.summary or ''}", ""]
    about = {arg.name: " ".join(arg.description.split()) for arg in parsed.args or ()}
    for name, parameter in _parameters(function).items():
        default = str(parameter.default).replace(f"{BUNDLE.parent}/", "")
        shown = "optional" if parameter.default in (None, "", ()) else f"default {default}"
        shown = "required" if parameter.default is inspect.Parameter.empty else shown
        lines.append(f"  --{name}: {about.get(parameter.name, '')} ({shown})")
    return "\n".join(lines)


def literal(path: object) -> str:
    """How a path, or a dictionary of paths, is spelt where MONAI reads it as the value of an id.

    MONAI takes `#` for a separator and `@` and `%` at the beginning for another id's value, and python-fire takes
    `(a)` for `a` and `a #2` for `a`. Such a path becomes an expression of Python without these characters.
    """
    text = str(path)
    plain = fire.parser.DefaultParseValue(text) == text and "#" not in text and text[:1] not in ("$", "@", "%", "-")
    if plain or not text:
        return text
    spelt = ascii(path if isinstance(path, dict) else text)
    return "$" + spelt.replace("#", "\\x23").replace("@", "\\x40").replace("%", "\\x25")


def as_ids(values: dict[str, object]) -> dict[str, object]:
    """Values by the ids of a config, paths as `literal` spells them."""
    paths = {name: literal(value) for name, value in values.items() if name in PATHS}
    return values | paths


def as_arguments(options: dict[str, object]) -> list[str]:
    """Options by name, as the list of texts that a command takes."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def bundle_arguments(
    run_id: str, configs: str | Iterable[str | Path], root: str | Path = "bundle", **ids: object
) -> list[str]:
    """What follows `python` for one of the bundle's own commands.

    Args:
        run_id: `training`, `evaluating` or `run`.
        configs: names of configs of the bundle, such as `train`, or paths of others; later ones override.
        root: folder of the bundle.
        ids: ids of the configs with other values.
    """
    names = [configs] if isinstance(configs, str) else configs
    files = [str(name) if str(name).endswith(".json") else f"{root}/configs/{name}.json" for name in names]
    alone = len(files) == 1 and fire.parser.DefaultParseValue(files[0]) == files[0]
    joined = files[0] if alone else f"[{','.join(map(repr, files))}]"
    ids = {"config_file": joined, **as_ids({"bundle_root": root, **ids})}
    return ["-m", "monai.bundle", "run", run_id, *as_arguments(ids)]
