"""What the commands of this folder share: help, refusal of unknown options, and calls of the bundle's own commands."""

import inspect
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def asked_for_help(command, extra, unknown):
    """Print the command's help where `--help` is among its options, and refuse options that it does not have.

    Args:
        command: the function that python-fire calls, with `*extra` and `**unknown` for what it does not know.
        extra: values without a name.
        unknown: values of unknown names; `help` is taken out.

    Returns:
        bool: whether the help was printed, so that there is nothing else to do.

    Raises:
        ValueError: naming the unknown options and the valid ones.
    """
    if unknown.pop("help", None):
        print(sys.modules[command.__module__].__doc__)
        return True
    if extra or unknown:
        names = ", ".join([f"--{name}" for name in unknown] + [str(value) for value in extra])
        # A trailing underscore stands where Python has the word for itself: `class_` is typed --class.
        known = [name for name in inspect.signature(command).parameters if name not in ("extra", "unknown")]
        valid = [f"--{name.rstrip('_')}" for name in known]
        raise ValueError(f"unknown option {names}; valid options: {', '.join(valid)}")
    return False


def as_arguments(options):
    """Options by name, as the list of texts that a command takes."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def run_bundle(title, *arguments):
    """Run `python -m monai.bundle run` in the repository's root, its output on the screen below the command.

    Raises:
        ValueError: the command failed; its own message stands above.
    """
    command = ["-m", "monai.bundle", "run", *map(str, arguments)]
    print(f"\n== {title}\n$ python {shlex.join(command)}", flush=True)
    if subprocess.call([sys.executable, *command], cwd=ROOT):
        raise ValueError(f"{title} failed; mend what its last line names and run the same command again")
