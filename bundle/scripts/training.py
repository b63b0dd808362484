"""What a training run needs around MONAI's trainer: checked options, repeatable epochs, checkpoints that resume."""

from __future__ import annotations

import ctypes
import inspect
import json
import logging
import re
import sys
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, run
from monai.config import KeysCollection
from monai.data import CacheDataset
from monai.utils import ensure_tuple
from torch import nn
from torch.optim import Optimizer

from .calibration import sha256
from .files import write_checkpoint, write_csv

logger = logging.getLogger(__name__)
RUN_OPTIONS = {*inspect.signature(run).parameters, "workflow_type"} - {"override"}


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next step instead of returning it to the kernel.

    On the CPU, the large activations of each step otherwise fault in page by page again: see ``mallopt(3)``,
    M_MMAP_THRESHOLD (-3) and M_TRIM_THRESHOLD (-1). Returns whether it was done (False without glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, 2**31 - 1) == 1 for option in (-3, -1))


def load_pretrained(network: nn.Module, path: str) -> None:
    """Start from weights of an earlier training or of the warm-up; layers that they lack keep their initialisation.

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
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has one for each kind of damage, with a page of text
        kind = type(error).__name__
        raise ValueError(f"{path}: not readable as weights ({kind}); name another file, or train anew") from None
    own = network.state_dict()
    unlike = [name for name, value in state.items() if name not in own or own[name].shape != value.shape]
    if unlike:
        raise ValueError(f"{path}: {unlike[0]} does not fit; give the features, norm and factor that it was made with")
    network.load_state_dict(state, strict=False)
    logger.info(f"{path}: {len(state)} of {len(own)} entries taken over")


def _in_bundle_command() -> bool:
    return Path(sys.argv[0]).parts[-2:] == ("bundle", "__main__.py")


def first_cause(error: BaseException) -> BaseException:
    """The error that a chain of errors began with; MONAI's own last one names a config expression."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def name_cause_last() -> None:
    """Let a failed ``python -m monai.bundle run`` end with its first cause, where MONAI ends with a config expression.

    Does nothing under another command.
    """

    def report(kind, error, trace) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nstopped; the same command with --resume True goes on", file=sys.stderr)
            return
        sys.__excepthook__(kind, error, trace)
        cause = first_cause(error)
        if cause is not error:
            print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)

    if _in_bundle_command():
        sys.excepthook = report


def check_overrides(arguments: list[str] | None = None) -> None:
    """Refuse options of ``python -m monai.bundle run`` that no config knows; MONAI itself accepts any.

    Does nothing under another command.

    Args:
        arguments: the command line without the program's name; that of this process by default.

    Raises:
        ValueError: naming the unknown options and the known ones.
    """
    if arguments is None:
        if not _in_bundle_command():
            return
        arguments = sys.argv[1:]
    options: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        if re.match(r"--?[A-Za-z_+]", argument):  # Fire takes one dash too
            name, _, value = argument.lstrip("-").partition("=")
            # Fire takes --batch-size for --batch_size.
            options[name.replace("-", "_")] = value or (arguments[i + 1] if i + 1 < len(arguments) else "")
    if "args_file" in options:
        options = json.loads(Path(options["args_file"]).read_text(encoding="utf-8")) | options
    if "config_file" not in options:
        return
    files = str(options["config_file"]).strip("[]").replace("'", "").replace('"', "").split(",")
    parser = ConfigParser(ConfigParser.load_config_files([f.strip() for f in files]))
    unknown = [name for name in options if name not in RUN_OPTIONS and name.lstrip("+") not in parser]
    if unknown:
        known = ", ".join(sorted(k for k in parser.config if not k.startswith("_")))
        raise ValueError(f"unknown option --{', --'.join(unknown)}; the config has: {known}")


class SeedEachEpoch:
    """Handler of the trainer that makes an epoch's randomness a function of seed, epoch and rank alone.

    A resumed run then draws the same pictures, augmentations and dropouts as one that was never interrupted.

    Args:
        seed: base seed.
        dataset: training data whose random transforms are seeded.
    """

    def __init__(self, seed: int, dataset: CacheDataset) -> None:
        self.seed = seed
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Seed at the start of every epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch and the random transforms."""
        seed = (self.seed * 1_000_003 + engine.state.epoch * 1_009 + engine.state.rank) % 2**32
        torch.manual_seed(seed)
        self.dataset.transform.set_random_state(seed)


class KeepBest:
    """Handler of the trainer that saves the best weights, stops when they no longer improve, and can be resumed.

    It stands behind ``ValidationHandler`` and reads the evaluator's key metric. MONAI's ``CheckpointSaver`` and
    ``EarlyStopHandler`` forget the best value on resuming and write ``model.pt`` in place. Weights of another training
    at ``path`` are kept as ``model_<first digits of their SHA-256>.pt``.

    Args:
        network: the network whose ``state_dict`` is saved, alone, as ``torch.load(..., weights_only=True)`` reads it.
        evaluator: the evaluator that the ``ValidationHandler`` runs.
        path: where the weights go, e.g. ``models/model.pt``.
        interval: epochs between validations.
        patience: validations without a better value after which the training ends; 0 never ends it.
    """

    def __init__(self, network: nn.Module, evaluator: Engine, path: str, interval: int = 1, patience: int = 0) -> None:
        self.network = network
        self.evaluator = evaluator
        self.path = path
        self.interval = interval
        self.patience = patience
        self.best = float("-inf")
        self.best_epoch = 0
        self.worse = 0

    def attach(self, engine: Engine) -> None:
        """Look at the key metric after each validation."""
        engine.add_event_handler(Events.STARTED, self.stop_if_exhausted)  # resumed after it had stopped early
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def stop_if_exhausted(self, engine: Engine) -> None:
        """End the training where the patience is spent.

        Raises:
            ValueError: where no validation would ever take place, so that no weights would be kept.
        """
        if self.interval > engine.state.max_epochs:
            epochs = engine.state.max_epochs
            raise ValueError(f"val_interval {self.interval} is larger than epochs {epochs}: no weights would be kept")
        if 0 < self.patience <= self.worse:
            logger.info(f"stopped early: best was {self.best:.4f} in epoch {self.best_epoch}")
            engine.terminate()

    def __call__(self, engine: Engine) -> None:
        """Save, count or stop."""
        value = float(self.evaluator.state.metrics[self.evaluator.state.key_metric_name])
        if value > self.best:
            first = self.best == float("-inf")
            self.best, self.best_epoch, self.worse = value, engine.state.epoch, 0
            if engine.state.rank == 0:
                if first:
                    self._set_aside()
                write_checkpoint(self.path, _unwrapped(self.network).state_dict())
                logger.info(f"best so far: {value:.4f} in epoch {self.best_epoch}, weights in {self.path}")
        else:
            self.worse += 1
            self.stop_if_exhausted(engine)

    def _set_aside(self) -> None:
        """Rename weights of another training, such as those that the bundle came with."""
        path = Path(self.path)
        if path.is_file():
            kept = path.with_name(f"{path.stem}_{sha256(path)[:8]}{path.suffix}")
            path.replace(kept)
            logger.info(f"{path}: held other weights, which are now {kept.name}")

    def state_dict(self) -> dict:
        """The values to resume from."""
        return {"best": self.best, "best_epoch": self.best_epoch, "worse": self.worse}

    def load_state_dict(self, state: dict) -> None:
        """Take over the values of ``state_dict``."""
        self.best, self.best_epoch, self.worse = state["best"], state["best_epoch"], state["worse"]


class TrainingCurve:
    """Handler of the trainer that writes ``training_curve.csv``: a row for each validation, kept when resuming.

    Columns: ``epoch``, ``learning_rate``, the mean over the epoch of each term of the loss, and every metric of the
    evaluator. It stands behind ``ValidationHandler``.

    Args:
        loss: the joint loss, whose ``last_terms`` are averaged.
        optimizer: its first learning rate is noted.
        evaluator: the evaluator that the ``ValidationHandler`` runs.
        path: the table.
        interval: epochs between validations.
    """

    def __init__(self, loss: nn.Module, optimizer: Optimizer, evaluator: Engine, path: str, interval: int = 1) -> None:
        self.loss = loss
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.path = path
        self.interval = interval
        self.rows: list[dict] = []
        self.terms: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Collect the terms of each step, write after each validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.terms.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.terms.append(self.loss.last_terms()))
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Add the epoch's row; the first rank writes."""
        row = {"epoch": engine.state.epoch, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        row |= {name: sum(t[name] for t in self.terms) / len(self.terms) for name in self.terms[0]}
        row |= {k: float(v) for k, v in self.evaluator.state.metrics.items() if not isinstance(v, dict)}
        self.rows.append(row)
        if engine.state.rank == 0:
            write_csv(self.path, self.rows, list(row))

    def state_dict(self) -> dict:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        """Take over the rows of ``state_dict``."""
        self.rows = list(state["rows"])


class Upright:
    """MONAI's ``from_engine`` for pictures that TensorBoard shows: as they stand, not as MONAI loads them.

    Args:
        keys: of the pictures (C, W, H) in each item; they come back as (C, H, W), a list for each of several keys.
    """

    def __init__(self, keys: KeysCollection) -> None:
        self.keys = ensure_tuple(keys)

    def __call__(self, items: list[dict]) -> tuple | list:
        """Return the pictures of decollated items."""
        found = [[item[key].transpose(-1, -2) for item in items] for key in self.keys]
        return tuple(found) if len(found) > 1 else found[0]


class TrainingCheckpoint:
    """Handler of the trainer that saves everything a training needs to go on, after each epoch.

    Args:
        path: the file, e.g. ``models/checkpoint.pt``; each epoch replaces it.
        objects: what is saved by name, each with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, path: str, objects: dict) -> None:
        self.path = Path(path)
        self.objects = objects
        self.finished = False

    def attach(self, engine: Engine) -> None:
        """Save at the end of every epoch; attach it behind all handlers whose work is to be saved."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save on the first rank."""
        if engine.state.rank == 0:
            state = {name: _unwrapped(value).state_dict() for name, value in self.objects.items()}
            write_checkpoint(self.path, {**state, "trainer": dict(engine.state_dict())})

    def refuse_to_replace(self) -> None:
        """Guard an earlier training before a command starts a new one; MONAI Label trains again and again.

        Raises:
            ValueError: where ``python -m monai.bundle run`` would replace a checkpoint.
        """
        if _in_bundle_command() and self.path.is_file():
            raise ValueError(
                f"{self.path}: an earlier training would be replaced; pass --resume True to go on, another --ckpt_dir, "
                "or remove the file"
            )

    def resume(self, trainer: Engine) -> None:
        """Put a trainer and the objects back to the last epoch saved; without a checkpoint, start anew and say so.

        Raises:
            ValueError: where the checkpoint belongs to a training of other length, which would bend its schedule.
        """
        if not self.path.is_file():
            logger.info(f"{self.path}: nothing to resume, the training starts anew")
            return
        state = torch.load(self.path, map_location=trainer.state.device, weights_only=True)
        for name in ("max_epochs", "epoch_length"):
            saved, now = state["trainer"][name], getattr(trainer.state, name)
            if saved != now:
                raise ValueError(
                    f"{self.path}: saved with {name} {saved}, now {now}; resume with the options and data of that run, "
                    "or remove the file"
                )
        for name, value in self.objects.items():
            _unwrapped(value).load_state_dict(state[name])
        trainer.load_state_dict(state["trainer"])
        # ignite would begin a finished run anew.
        self.finished = trainer.state.epoch >= trainer.state.max_epochs
        logger.info(f"{self.path}: {'finished' if self.finished else 'resumed'} after epoch {trainer.state.epoch}")


def _unwrapped(value):
    """What ``DistributedDataParallel`` wraps, so that weights have the same names with and without it."""
    return value.module if isinstance(value, nn.parallel.DistributedDataParallel) else value
