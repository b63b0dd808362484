"""What a bundle command needs around MONAI's: checked options, the cause of an error last, weights to start from."""

from __future__ import annotations

import ctypes
import inspect
import json
import logging
import os
import re
import signal
import sys
from pathlib import Path

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, run
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from torch import nn

logger = logging.getLogger(__name__)
HEAD = "classifier"  # the classification branch, whose size is the number of classes
RUN_OPTIONS = {*inspect.signature(run).parameters, "workflow_type"} - {"override"}


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next step instead of returning it to the kernel.

    On the CPU, the large activations of each step otherwise fault in page by page again: see ``mallopt(3)``,
    M_MMAP_THRESHOLD (-3) and M_TRIM_THRESHOLD (-1). Returns whether it was done (False without glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, 2**31 - 1) == 1 for option in (-3, -1))


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """The dictionary in a file of weights or of a checkpoint; nothing in it is run.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch has one for each kind of damage, with a page of text
        kind = type(error).__name__
        raise ValueError(f"{path}: not readable as weights ({kind}); name another file, or train anew") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds no weights but {type(content).__name__}; name another file, or train anew")
    return content


def load_pretrained(network: nn.Module, path: str) -> None:
    """Start from weights of an earlier training; layers that they lack keep their initialisation.

    So does the last layer of the classification branch where the weights know another number of classes.

    Args:
        network: the network to fill.
        path: a ``state_dict`` as ``torch.load(..., weights_only=True)`` reads it; empty for none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, or a layer has another shape or does not exist in the network.
    """
    if not path:
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: missing; name weights with --pretrained, or leave the option out")
    state = load_tensors(path)
    own = network.state_dict()
    unlike = [name for name, value in state.items() if name not in own or own[name].shape != getattr(value, "shape", 0)]
    if unlike and all(name in own and name.startswith(HEAD) for name in unlike):
        classes = ", ".join(str(len(states[unlike[0]])) for states in (state, own))
        logger.info(f"{path}: {HEAD} excluded, number of classes there and here: {classes}")
        state, unlike = {name: value for name, value in state.items() if name not in unlike}, []
    if unlike:
        raise ValueError(f"{path}: {unlike[0]} does not fit; give the features, norm and factor that it was made with")
    network.load_state_dict(state, strict=False)
    logger.info(f"{path}: {len(state)} of {len(own)} entries taken over")


def in_bundle_command() -> bool:
    """Whether this process is ``python -m monai.bundle``."""
    return Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py")


def first_cause(error: BaseException) -> BaseException:
    """The error that a chain of errors began with; MONAI's own last one names a config expression."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def last_line(error: BaseException) -> str:
    """The last line of an error's text; MONAI puts whole tracebacks into some, with the cause at their end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def name_cause_last(resumable: bool = True) -> None:
    """Let a failed ``python -m monai.bundle run`` end with its first cause, where MONAI ends with a config expression.

    A command that is stopped by Ctrl-C, or that the system asks to end (SIGTERM), says how to go on, in one line. Does
    nothing under another command.

    Args:
        resumable: whether ``--resume True`` goes on with the command.
    """
    advice = "the same command with --resume True goes on" if resumable else "the same command starts anew"
    own = os.getpid()

    def stop(*_) -> None:
        if os.getpid() != own:  # a worker, which its loader ends
            return
        logging.disable()  # ignite and MONAI would log a traceback each
        raise KeyboardInterrupt

    def report(kind, error, trace) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(f"\nstopped; {advice}", file=sys.stderr)
            return
        sys.__excepthook__(kind, error, trace)
        cause = first_cause(error)
        print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    if in_bundle_command():
        sys.excepthook = report
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a shell's background jobs ignore it
            signal.signal(signal.SIGINT, stop)


def check_overrides(arguments: list[str] | None = None) -> ConfigParser | None:
    """Refuse options of ``python -m monai.bundle run`` that no config knows; MONAI itself accepts any.

    Args:
        arguments: the command line without the program's name; that of this process by default.

    Returns:
        the config with the options in it; None under another command.

    Raises:
        ValueError: naming the unknown options and the known ones.
    """
    if arguments is None:
        if not in_bundle_command():
            return None
        arguments = sys.argv[1:]
    options: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        if re.match(r"--?[A-Za-z_+]", argument):  # Fire takes one dash too
            name, given, value = argument.lstrip("-").partition("=")
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            alone = re.match(r"--?([A-Za-z_+]|$)", following)  # Fire takes such an option for a flag
            # Fire takes --batch-size for --batch_size.
            options[name.replace("-", "_")] = value if given else "True" if alone else following
    if "args_file" in options:
        options = json.loads(Path(options["args_file"]).read_text(encoding="utf-8")) | options
    if "config_file" not in options:
        return None
    files = str(options["config_file"]).strip("[]").replace("'", "").replace('"', "").split(",")
    parser = ConfigParser(ConfigParser.load_config_files([f.strip() for f in files]))
    tracked = DEFAULT_EXP_MGMT_SETTINGS.get(str(options.get("tracking")), {}).get("configs", {})
    unknown = [n for n in options if n not in RUN_OPTIONS and n not in tracked and n.lstrip("+") not in parser]
    if unknown:
        known = ", ".join(sorted(k for k in parser.config if not k.startswith("_")))
        raise ValueError(f"unknown option --{', --'.join(unknown)}; the config has: {known}")
    values = {k: DefaultParseValue(v) if isinstance(v, str) else v for k, v in options.items() if k not in RUN_OPTIONS}
    parser.update(values)
    return parser
