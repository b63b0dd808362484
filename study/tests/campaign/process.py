"""Inputs, how they end, and commands that run in forks of this process, which has imported what they need."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import runpy
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

import ignite.handlers  # noqa: E402, F401
import monai.bundle  # noqa: E402, F401
import monai.engines  # noqa: E402, F401
import monai.handlers  # noqa: E402, F401
import sklearn.metrics  # noqa: E402, F401
import torch.utils.tensorboard  # noqa: E402, F401

SMALL = {"image_size": 64, "features": "[4,4,8,8,8,4]", "batch_size": 4}
NAMES = ("normal", "benign", "malignant")
NETWORK = '''
import torch
class Corners(torch.nn.Module):
    """Marks what is brighter than the mean, and classifies by the corners: any wrong pixel or turn shows."""
    def __init__(self, norm):
        super().__init__()
    def forward(self, x):
        x = (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)
        w, h = x.shape[2] // 2, x.shape[3] // 2
        corners = [x[:, 0, :w, :h], x[:, 0, w:, :h], x[:, 0, :w, h:]]
        return {"pred": torch.cat([-x, x], 1), "class_logits": torch.stack([c.mean((1, 2)) for c in corners], 1)}
'''


class Job(NamedTuple):
    """A command to run: `monai.bundle` where it has no script, else that script of the project."""

    arguments: list[str]
    log: Path
    script: str = ""
    kill_after: float | None = None  # seconds
    folder: Path | None = None  # to be on PYTHONPATH


class Input(NamedTuple):
    """What is called in this process."""

    kind: str
    name: str
    call: Callable[[], object]
    right: Callable[[object], str]  # from what it returns: `right`, `named`, or empty where it is neither
    words: tuple[str, ...] = ()  # of which the error has to hold one; without any it must not fail


class Case(NamedTuple):
    """An input: what it was made from, and how to judge its end."""

    kind: str
    name: str
    expected: object


def ends(inputs: Iterable[Input]) -> list[tuple[Case, str]]:
    """Call each input in this process, and judge it."""
    found = []
    for kind, name, call, right, words in inputs:
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                end = right(call()) or "silent"
        except (OSError, ValueError) as error:  # what every command tells in one line
            text = str(error).strip()
            end = "named" if "\n" not in text and any(word in text for word in words) else "opaque"
            name += f": {text}" * (end == "opaque")
        except Exception as error:
            end = "opaque"
            name += f": {error!r}"
        found.append((Case(kind, name, None), end))
    return found


def options(**values: object) -> list[str]:
    """Options of a command as a list of texts."""
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def start(project: Path, job: Job) -> int:
    """Fork a child that runs the command, and return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        os.chdir(project)
        sys.path[:0] = [str(job.folder)] if job.folder else []
        if job.script:
            sys.path.insert(0, str(project / "scripts"))
            sys.argv = [job.script, *job.arguments]
            runpy.run_path(str(project / "scripts" / job.script), run_name="__main__")
        else:
            sys.argv = ["monai.bundle", "run", *job.arguments]
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def run(project: Path, jobs: list[Job], at_once: int = 2, limit: float = 240) -> list[int]:
    """Run commands, some at a time, and return their exit statuses; -9 for those that were killed."""
    statuses: dict[int, int] = {}
    running: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(jobs))
    while waiting or running:
        while waiting and len(running) < at_once:
            index, job = waiting.pop(0)
            running[start(project, job)] = (index, time.time())
        for process, (index, began) in list(running.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                statuses[index] = os.waitstatus_to_exitcode(status)
                del running[process]
            elif time.time() - began > (jobs[index].kill_after or limit):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[index] for index in range(len(jobs))]


def text_of(log: Path) -> str:
    """What a command printed."""
    return log.read_bytes().decode("utf-8", "backslashreplace")


def end_of(log: Path) -> str:
    """The last error of a log: what stands after the last traceback."""
    lines = [line for line in text_of(log).splitlines() if line.strip()]
    inner = [i for i, line in enumerate(lines) if line.startswith(("  ", "Traceback")) or "_mode_=debug" in line]
    return "\n".join(lines[inner[-1] + 1 if inner else -1 :])


def printable(name: str) -> str:
    """A name with what does not print escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
