"""How far trainings are, from all that their processes tell; MONAI Label keeps the last twenty lines alone."""

from __future__ import annotations

import logging
import re

from monailabel.utils.async_tasks.utils import processes

EPOCH = re.compile(r"[Ee]poch\D{0,3}(\d+)\s*/\s*(\d+)")
FAILED = "the training failed: "  # begins the line that says why


class Progress(logging.Handler):
    """Handler of the logger that MONAI Label's server gives each line of the training that runs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._done: dict[str, float] = {}  # by task
        self._failed: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Note what a line says of the training that runs."""
        task, line = next(iter(processes("train")), ""), record.getMessage()
        if found := EPOCH.search(line):
            epoch, epochs = map(int, found.groups())
            self._done[task] = max(self.done(task), epoch / max(1, epochs))
        if FAILED in line:
            self._failed[task] = line.partition(FAILED)[2]

    def done(self, task: str) -> float:
        """Fraction of the epochs of a task that are over."""
        return self._done.get(task, 0.0)

    def failed(self, task: str) -> str:
        """Why a task failed; empty where it has not said."""
        return self._failed.get(task, "")


PROGRESS = Progress()
logging.getLogger("task_train").addHandler(PROGRESS)
