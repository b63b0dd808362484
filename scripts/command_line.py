"""What the commands of this folder share: the bundle on the path, strict options, the bundle's own commands."""

from __future__ import annotations

import difflib
import inspect
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import fire

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
# The package `scripts` that configs and commands import is the bundle's, and `lib` is that of the annotation server.
sys.path[:0] = [str(BUNDLE), str(ROOT / "label_app")]
KINDS = {int: "a whole number", float: "a number", bool: "True or False", dict: "a dictionary such as \"{'a': 1}\""}


def run(function: Callable[..., object], arguments: list[str] | None = None) -> None:
    """Let python-fire call a function with the options of the command line, checked before any work is done.

    Fire itself calls first and complains of a misspelt option later, and takes `2024` for a number where a folder is
    meant. Here values become what the annotations say; a parameter without default is required; `class_` is typed
    --class. A function with `**options` takes the bundle's options too, as text.

    Args:
        function: the command; the docstrings of its module and its `Args` are the text of --help.
        arguments: the command line without the program's name; that of this process by default.

    Raises:
        SystemExit: with one line, where an option is wrong or the function raises an OSError or a ValueError; with 130,
            as of a shell, where Ctrl-C or SIGTERM stops it, once the function has removed what it left half written.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files that the terminal's encoding lacks

    def command(*values: str, **options: str) -> None:
        if {"help", "h"} & options.keys():
            print(help_text(function))
            return
        # Fire reads an unknown --normal without a value as --no-rmal.
        cut = {name for name in options if f"--no{name}" in typed and name not in _parameters(function)}
        options = {f"no{name}" if name in cut else name: value for name, value in options.items()}
        function(**checked(function, values, options))

    named = [p.replace(kind=p.KEYWORD_ONLY, default=None) for p in _parameters(function).values()]
    given = list(inspect.signature(command).parameters.values())
    command.__signature__ = inspect.Signature([given[0], *named, given[1]])
    fire.decorators.SetParseFn(str)(command)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        fire.Fire(command, typed, name=function.__name__, serialize=lambda _: None)
    except (OSError, ValueError) as error:
        sys.exit(f"{function.__name__}: {error}")
    except KeyboardInterrupt:
        print(f"\n{function.__name__}: stopped", file=sys.stderr)
        sys.exit(130)


def _parameters(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters by the names of their options, without `**options`."""
    found = inspect.signature(function).parameters.values()
    return {p.name.rstrip("_"): p for p in found if p.kind != inspect.Parameter.VAR_KEYWORD}


def checked(function: Callable[..., object], values: tuple[str, ...], options: dict[str, str]) -> dict[str, Any]:
    """The arguments to call a function with, from what was typed.

    Args:
        function: the command.
        values: what was typed without the name of an option.
        options: what was typed by name.

    Raises:
        ValueError: naming an option that does not exist, is missing, or has a value of another type.
    """
    parameters = _parameters(function)
    if values:
        raise ValueError(f"{values[0]}: each value needs its option before it; {_valid(parameters)}")
    known = [*parameters, *(bundle_options() if len(parameters) < len(inspect.signature(function).parameters) else ())]
    for name in options:
        if name not in known and not ("#" in name and len(known) > len(parameters)):
            close = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean --{close[0]}? " if close else ""
            raise ValueError(f"unknown option --{name}; {meant}{_valid(parameters)}")
    hints = get_type_hints(function)
    own = {p.name: converted(n, options[n], hints[p.name]) for n, p in parameters.items() if n in options}
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise ValueError(f"--{name} is missing; {_valid(parameters)}")
    return own | {name: value for name, value in options.items() if name not in parameters}


def _valid(parameters: dict[str, inspect.Parameter]) -> str:
    return f"options: {', '.join(f'--{name}' for name in parameters) or 'none'}"


def bundle_options() -> list[str]:
    """The ids at the top of the bundle's configs, each of which is an option of its commands."""
    files = (CONFIGS / f"{name}.json" for name in ("train", "evaluate", "inference"))
    ids = dict.fromkeys(name for file in files for name in json.loads(file.read_text(encoding="utf-8")))
    return [name for name in ids if "#" not in name]


def converted(name: str, text: str, hint: Any) -> Any:
    """What was typed for an option, as the type of its annotation.

    Raises:
        ValueError: naming the option and what it takes.
    """
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] if NoneType in get_args(hint) else [hint]
    (kind,) = kinds
    origin = get_origin(kind) or kind
    if origin in (Path, str, tuple) and text in ("", "True"):  # Fire gives True to an option without a value
        raise ValueError(f"--{name} needs a value")
    if origin in (Path, str):
        return Path(text).expanduser() if origin is Path else text
    if origin is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise ValueError(f"--{name} {text}: pass one of {', '.join(choices)}")
        return choices[text]
    try:
        if origin in (int, float):
            return origin(text)
        if origin is bool:
            return {"true": True, "false": False}[text.lower()]
        value = fire.parser.DefaultParseValue(text)
        if origin is dict:
            return dict(value)
        inner = get_args(kind)[0]
        items = value if isinstance(value, (list, tuple)) else [value]
        found = [converted(name, str(item), inner) for item in items]
        return tuple(found) if origin is tuple else found
    except (KeyError, TypeError, ValueError):
        kind = KINDS.get(origin) or f"{KINDS.get(get_args(kind)[0], 'values')}, or several as \"[...]\""
        raise ValueError(f"--{name} {text}: pass {kind}") from None


def help_text(function: Callable[..., object]) -> str:
    """What --help prints: the module's docstring, and the function's options with their defaults."""
    parsed = fire.docstrings.parse(inspect.getdoc(function) or "")
    lines = [(sys.modules[function.__module__].__doc__ or "").strip(), "", "Options:"]
    about = {arg.name: " ".join(arg.description.split()) for arg in parsed.args or ()}
    for name, parameter in _parameters(function).items():
        shown = "required" if parameter.default is inspect.Parameter.empty else f"default {parameter.default}"
        shown = shown.replace(f"{ROOT}/", "")
        lines.append(f"  --{name}: {about.get(parameter.name, '')} ({shown})")
    return "\n".join(lines)


def run_command(title: str, *arguments: object) -> None:
    """Run `python` with these arguments in the repository's root; its output is shown below the command.

    Raises:
        ValueError: the command failed; its own message stands above.
    """
    command = [str(argument) for argument in arguments]
    print(f"\n== {title}\n$ python {shlex.join(command)}", flush=True)
    start = time.time()
    if subprocess.call([sys.executable, *command], cwd=ROOT):
        raise ValueError(f"{title} failed; mend what its last line names and run the same command again")
    print(f"== {title}: {time.time() - start:.0f} s", flush=True)


def as_arguments(options: dict[str, object]) -> list[str]:
    """Options by name, as the list of texts that a command takes."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def bundle_arguments(run_id: str, configs: str | list[str | Path], **ids: object) -> list[str]:
    """What follows `python` for one of the bundle's own commands.

    Args:
        run_id: `training`, `evaluating` or `run`.
        configs: names of configs of the bundle, such as `train`, or paths of others; later ones override.
        ids: ids of the configs with other values.
    """
    names = [configs] if isinstance(configs, str) else configs
    files = [str(name) if str(name).endswith(".json") else f"bundle/configs/{name}.json" for name in names]
    joined = files[0] if len(files) == 1 else f"[{','.join(map(repr, files))}]"
    options = {"config_file": joined, "bundle_root": "bundle", **ids}
    return ["-m", "monai.bundle", "run", run_id, *as_arguments(options)]


def run_bundle(title: str, run_id: str, configs: str | list[str | Path], **ids: object) -> None:
    """Run one of the bundle's own commands, as `bundle_arguments` spells it.

    Raises:
        ValueError: the command failed; its own message stands above.
    """
    run_command(title, *bundle_arguments(run_id, configs, **ids))


def parse_bundle(configs: str | list[str], **ids: object) -> ConfigParser:
    """Configs of the bundle, by name, with other values for some of their ids.

    Raises:
        ValueError: naming an id that they do not have.
    """
    from monai.bundle import ConfigParser

    names = [configs] if isinstance(configs, str) else configs
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{name}.json") for name in names]))
    unknown = [name for name in ids if name not in parser]
    if unknown:
        raise ValueError(f"--{unknown[0]}: no id of {', '.join(f'bundle/configs/{name}.json' for name in names)}")
    parser.update({"bundle_root": str(BUNDLE), **ids})
    return parser


def load_network(ckpt_dir: str | Path, **ids: object) -> ConfigParser:
    """The bundle's inference, whose `network` has the weights of a folder and is in evaluation mode.

    Args:
        ckpt_dir: folder with `model.pt`.
        ids: ids of bundle/configs/inference.json with other values, such as `image_size=128`.

    Returns:
        the config, of which `get_parsed_content` gives `network`, `preprocessing`, `inferer`, `class_names`...

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: an id is unknown, or the weights belong to another network.
    """
    from scripts.predictor import Predictor

    return Predictor(BUNDLE, ckpt_dir=str(ckpt_dir), **ids).config
