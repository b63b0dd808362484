"""What a bundle command needs around MONAI's: checked options, the cause of an error last."""

from __future__ import annotations

import ctypes
import inspect
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, run
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import MONAIEnvVars, OptionalImportError

from .cli import PATHS, literal, unknown_option

logger = logging.getLogger(__name__)
RUN_OPTIONS = {*inspect.signature(run).parameters, "workflow_type"} - {"override"}

STOP_AGAIN = 5.0  # seconds after which a command that goes on all the same is stopped again
# Errors whose text says what a user can mend
EXPECTED = (OSError, ValueError, ModuleNotFoundError, OptionalImportError, MemoryError, torch.OutOfMemoryError)


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next step instead of returning it to the kernel.

    On the CPU, the large activations of each step otherwise fault in page by page again: see ``mallopt(3)``,
    M_MMAP_THRESHOLD (-3) and M_TRIM_THRESHOLD (-1). Returns whether it was done (False without glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, 2**31 - 1) == 1 for option in (-3, -1))


def in_bundle_command() -> bool:
    """Whether this process is ``python -m monai.bundle``."""
    return Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py")


def first_cause(error: BaseException) -> BaseException:
    """The error that a chain of errors began with; MONAI's own last one names a config expression."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def is_told(error: BaseException | None) -> bool:
    """Whether one line is all that a command says of an error; MONAI_DEBUG=1 in the environment shows tracebacks."""
    return error is not None and not MONAIEnvVars.debug() and isinstance(first_cause(error), EXPECTED)


def repeats_error(record: logging.LogRecord) -> bool:
    """Whether a record, made while an error passes, is what ignite and MONAI say of one that the last line tells."""
    return not record.name.startswith(__package__) and is_told(sys.exc_info()[1])


def last_line(error: BaseException) -> str:
    """The last line of an error's text; MONAI puts whole tracebacks into some, with the cause at their end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def name_cause_last(resumable: bool = True, checkpoint: str | None = None) -> None:
    """Let a failed ``python -m monai.bundle run`` end with its first cause, where MONAI ends with a config expression.

    What a user can mend (``EXPECTED``) is told alone, without what ignite and MONAI log of it; a programming error
    keeps its traceback.
    A command that is stopped by Ctrl-C, or that the system asks to end (SIGTERM), says how to go on, in one line. Does
    nothing under another command.

    Args:
        resumable: whether ``--resume True`` goes on with the command.
        checkpoint: the file that it goes on from; there is none before the first epoch has ended.
    """
    own = os.getpid()
    stopped = []

    def stop(number: int, _) -> None:
        if os.getpid() != own:  # a worker, which its loader ends
            return
        stopped.append(True)
        logging.disable()  # ignite and MONAI would log a traceback each
        # Python drops what is raised inside a callback of its own, such as that of a fork or __del__, and tells of it
        sys.unraisablehook = lambda _: None
        again = threading.Timer(STOP_AGAIN, os.kill, [own, number])
        again.daemon = True
        again.start()
        raise KeyboardInterrupt

    def report(kind, error, trace) -> None:
        if os.getpid() != own:  # a worker's loader tells of it
            return
        if stopped or issubclass(kind, KeyboardInterrupt):
            goes_on = resumable and (checkpoint is None or os.path.isfile(checkpoint))
            words = "with --resume True goes on" if goes_on else "starts anew"
            print(f"\nstopped; the same command {words}", file=sys.stderr, flush=True)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(own, signal.SIGINT)  # so that a shell knows, whatever error a loader raised on the way out
            time.sleep(1)  # another thread may get it a moment later
            return
        cause = first_cause(error)
        if not is_told(error):
            sys.__excepthook__(kind, error, trace)
        print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    if in_bundle_command():
        sys.excepthook = report
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not repeats_error(record))
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
        ValueError: naming the unknown options and the nearest known ones.
    """
    if arguments is None:
        if not in_bundle_command():
            return None
        arguments = sys.argv[1:]
    typed = typed_options(arguments)
    options: dict[str, object] = dict(typed)
    if "args_file" in options:
        options = json.loads(Path(options["args_file"]).read_text(encoding="utf-8")) | options
    if "config_file" not in options:
        return None
    files = options["config_file"]  # a list of several as MONAI gets it from Fire
    files = DefaultParseValue(files) if isinstance(files, str) else files
    parser = ConfigParser(ConfigParser.load_config_files(files))
    tracked = DEFAULT_EXP_MGMT_SETTINGS.get(str(options.get("tracking")), {}).get("configs", {})
    unknown = [n for n in options if n not in RUN_OPTIONS and n not in tracked and n.lstrip("+") not in parser]
    if unknown:
        known = [*RUN_OPTIONS, *parser.config]
        told = "; ".join(unknown_option(name, known) for name in unknown)
        raise ValueError(f"{told}; docs/reference.md of the bundle explains all options")
    misread = [told for name, text in typed.items() for told in _misread(name, text, parser)]
    if misread:
        raise ValueError("\n".join(misread))
    values = {k: DefaultParseValue(v) if isinstance(v, str) else v for k, v in options.items() if k not in RUN_OPTIONS}
    parser.update(values)
    return parser


def typed_options(arguments: list[str]) -> dict[str, str]:
    """The options of a command line by name, each as it was typed."""
    options = {}
    for i, argument in enumerate(arguments):
        if re.match(r"--?[A-Za-z_+]", argument):  # Fire takes one dash too
            name, given, value = argument.lstrip("-").partition("=")
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            alone = re.match(r"--?([A-Za-z_+]|$)", following)  # Fire takes such an option for a flag
            # Fire takes --batch-size for --batch_size.
            options[name.replace("-", "_")] = value if given else "True" if alone else following
    return options


def _misread(name: str, text: str, parser: ConfigParser) -> list[str]:
    """A line where MONAI or Fire reads a path otherwise than it was typed, with the spelling that they leave alone."""
    listed = name == "datalist" and text.startswith("{")
    reference = text[:1] == "@" and text[1:] in parser
    if name not in PATHS or listed or reference or text in ("True", literal(text)) or text.startswith("$"):
        return []
    spelt = literal(text)
    quoted = shlex.quote(spelt) if set('"`\\') & set(spelt.replace("\\x", "")) else f'"{spelt}"'
    return [f"--{name} {text}: MONAI would read another path; spell it --{name} {quoted}, or use breast-ultrasound"]
