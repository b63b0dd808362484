"""What a training tells while it goes on, and how many threads it takes."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from torch import nn

from .handlers import TrainingCurve

logger = logging.getLogger(__name__)
# A step of more seconds, and so many times as long as with another number of threads, is tried but once
LONG, HOPELESS = 2.0, 3
# How the lines begin that ignite and MONAI log of each epoch
SILENCED = ("Epoch[", "Engine run", "Got new best metric")
TRIAL_STEPS = 2  # of each number of threads, behind one that warms up


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would choose."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class EpochReport:
    """Handler of the trainer that logs one line an epoch: the loss, what the validation said, the time left.

    It stands behind ``ValidationHandler`` and silences what ignite's engines say of each epoch themselves.

    Args:
        curve: whose terms of the loss are told.
        evaluator: the evaluator that the ``ValidationHandler`` runs.
        interval: epochs between validations.
    """

    def __init__(self, curve: TrainingCurve, evaluator: Engine, interval: int = 1) -> None:
        self.curve = curve
        self.evaluator = evaluator
        self.interval = interval
        self.began = (0.0, 0)  # seconds, and the epoch that this process began after

    def attach(self, engine: Engine) -> None:
        """Begin the clock at the start, report after each epoch."""
        for one in (engine, self.evaluator):
            one.logger.addFilter(lambda record: not str(record.msg).startswith(SILENCED))
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Begin the clock."""
        self.began = (time.monotonic(), engine.state.epoch)

    def __call__(self, engine: Engine) -> None:
        """Log the line on the first rank."""
        epoch, epochs = engine.state.epoch, engine.state.max_epochs
        told = [f"Epoch: {epoch}/{epochs}", f"loss {self.curve.means()['loss']:.3f}"]
        if epoch % self.interval == 0:
            found = self.evaluator.state.metrics
            names = {"score": "validation score", "lesion_dice": "lesion Dice", "missed_rate": "missed"}
            told += [f"{name} {float(found[key]):.3f}" for key, name in names.items() if key in found]
        spent = time.monotonic() - self.began[0]
        each = spent / max(1, epoch - self.began[1])
        told.append(f"{duration(each * (epochs - epoch))} left" if epoch < epochs else f"{duration(spent)} in all")
        if engine.state.rank == 0:
            logger.info(", ".join(told))


class ThreadTrial:
    """How many threads a training on the CPU takes: PyTorch's own number or one, whichever makes a step quicker.

    Where cores are shared with other programs, threads wait for each other, and one alone can be many times as fast.
    It tries both on a copy of the network before the first step, without touching a random number or a weight, and the
    choice goes with the checkpoint: another number of threads rounds differently, and a resumed training is to give
    what an uninterrupted one gives. ``OMP_NUM_THREADS`` in the environment and another device switch the trial off.

    Args:
        network: that is trained; its copy takes a step forward and back.
        inferer: that the trainer calls it with.
        loss: of a batch, as the trainer has it.
        shape: of a batch of images (B, 1, W, H).
        device: of the training.
    """

    def __init__(
        self, network: nn.Module, inferer: Callable, loss: nn.Module, shape: tuple[int, ...], device: torch.device | str
    ) -> None:
        self.network = network
        self.inferer = inferer
        self.loss = loss
        self.shape = tuple(shape)
        self.threads = 0  # 0: not chosen
        self.choices = tuple(dict.fromkeys([1, torch.get_num_threads()]))
        self.free = torch.device(device).type == "cpu" and "OMP_NUM_THREADS" not in os.environ

    def attach(self, engine: Engine) -> None:
        """Choose before the first step."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Choose, unless a checkpoint has, and say so in one line."""
        if not self.free or not self.threads and len(self.choices) < 2:
            return
        if not self.threads:
            seconds = self.measure()
            self.threads = min(seconds, key=seconds.get)
            took = ", ".join(f"{value:.2f} s a step with {count}" for count, value in seconds.items())
            waits = self.threads == 1 and "OMP_WAIT_POLICY" not in os.environ
            advice = "; the cores are shared: OMP_WAIT_POLICY=PASSIVE in the environment helps" if waits else ""
            logger.info(f"threads: {self.threads} ({took}; OMP_NUM_THREADS sets another number){advice}")
        torch.set_num_threads(self.threads)

    def measure(self) -> dict[int, float]:
        """The shorter of the seconds of some steps, by number of threads."""
        before = torch.get_num_threads()
        network, loss = copy.deepcopy(self.network).train(), copy.deepcopy(self.loss)
        targets = {"label": torch.zeros(self.shape), "class": torch.zeros(self.shape[0], dtype=torch.long)}
        seconds = {}
        try:
            with torch.random.fork_rng(devices=[]):
                images = torch.rand(self.shape)
                for count in self.choices:
                    torch.set_num_threads(count)
                    for step in range(1 + TRIAL_STEPS):
                        start = time.monotonic()
                        loss(self.inferer(images, network), targets).backward()
                        took = time.monotonic() - start
                        hopeless = took > max(LONG, HOPELESS * min(seconds.values(), default=took))
                        if step or hopeless:
                            seconds[count] = min(seconds.get(count, took), took)
                        if hopeless:
                            break
        finally:
            torch.set_num_threads(before)
        return seconds

    def state_dict(self) -> dict:
        """The number in use."""
        return {"threads": self.threads or torch.get_num_threads()}

    def load_state_dict(self, state: dict) -> None:
        """Take over the number of ``state_dict``."""
        self.threads = state["threads"]
