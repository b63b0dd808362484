"""Handlers of the engines: repeatable epochs, checkpoints that resume."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import CacheDataset
from monai.utils import ensure_tuple
from torch import nn
from torch.optim import Optimizer

from .command import in_bundle_command, last_line
from .files import locked, sha256, write_checkpoint, write_csv
from .weights import load_tensors, settings_file, write_weights

logger = logging.getLogger(__name__)


class SeedEachEpoch:
    """Handler of the trainer that makes an epoch's randomness a function of seed, epoch and rank alone.

    A resumed run then draws the same images, augmentations and dropouts as one that was never interrupted.

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
    """Handler of the trainer that saves the best weights, and can be resumed.

    It stands behind ``ValidationHandler`` and reads the evaluator's key metric. MONAI's ``CheckpointSaver`` forgets the
    best value on resuming and writes ``model.pt`` in place. Weights of another training at ``path`` are kept as
    ``model_<first digits of their SHA-256>.pt``.

    Args:
        network: the network whose ``state_dict`` is saved, alone, as ``torch.load(..., weights_only=True)`` reads it.
        evaluator: the evaluator that the ``ValidationHandler`` runs.
        path: where the weights go, e.g. ``models/model.pt``.
        interval: epochs between validations.
        settings: what ``breast_ultrasound.weights.write_weights`` keeps beside the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        evaluator: Engine,
        path: str,
        interval: int = 1,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.network = network
        self.evaluator = evaluator
        self.path = path
        self.interval = interval
        self.settings = settings or {}
        self.best = float("-inf")
        self.best_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Look at the key metric after each validation."""
        engine.add_event_handler(Events.STARTED, self.check_interval)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def check_interval(self, engine: Engine) -> None:
        """Raise a ValueError where no validation would ever take place, so that no weights would be kept."""
        if self.interval > engine.state.max_epochs:
            epochs = engine.state.max_epochs
            raise ValueError(f"val_interval {self.interval} is larger than epochs {epochs}: no weights would be kept")

    def __call__(self, engine: Engine) -> None:
        """Save what is better than before."""
        value = float(self.evaluator.state.metrics[self.evaluator.state.key_metric_name])
        if value > self.best:
            first = self.best == float("-inf")
            self.best, self.best_epoch = value, engine.state.epoch
            if engine.state.rank == 0:
                if first:
                    self._set_aside()
                write_weights(self.path, _unwrapped(self.network).state_dict(), self.settings)
                logger.info(f"best so far: {value:.4f} in epoch {self.best_epoch}, weights in {self.path}")

    def _set_aside(self) -> None:
        """Rename weights of another training, such as those that the bundle came with."""
        path = Path(self.path)
        if path.is_file():
            kept = path.with_name(f"{path.stem}_{sha256(path)[:8]}{path.suffix}")
            path.replace(kept)
            if settings_file(path).is_file():
                settings_file(path).replace(settings_file(kept))
            logger.warning(f"{path}: held other weights, which are now {kept.name}")

    def state_dict(self) -> dict:
        """The values to resume from."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict) -> None:
        """Take over the values of ``state_dict``."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]


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
        row |= self.means()
        row |= {k: float(v) for k, v in self.evaluator.state.metrics.items() if not isinstance(v, dict)}
        self.rows.append(row)
        if engine.state.rank == 0:
            write_csv(self.path, self.rows, list(row))

    def means(self) -> dict[str, float]:
        """The mean of each term of the loss over the epoch so far."""
        return {name: sum(t[name] for t in self.terms) / len(self.terms) for name in self.terms[0]}

    def state_dict(self) -> dict:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict) -> None:
        """Take over the rows of ``state_dict``."""
        self.rows = list(state["rows"])


class Upright:
    """MONAI's ``from_engine`` for images that TensorBoard shows: as they stand, not as MONAI loads them.

    Args:
        keys: of the images (C, W, H) in each item; they come back as (C, H, W), a list for each of several keys.
    """

    def __init__(self, keys: KeysCollection) -> None:
        self.keys = ensure_tuple(keys)

    def __call__(self, items: list[dict]) -> tuple | list:
        """Return the images of decollated items."""
        found = [[item[key].transpose(-1, -2) for item in items] for key in self.keys]
        return tuple(found) if len(found) > 1 else found[0]


class TrainingCheckpoint:
    """Handler of the trainer that saves everything a training needs to go on, after each epoch.

    Args:
        path: the file, e.g. ``models/checkpoint.pt``; each epoch replaces it.
        objects: what is saved by name, each with ``state_dict`` and ``load_state_dict``.
        conditions: plain values by name, such as options, that a training has to have in common with the one that it
            goes on with.
    """

    def __init__(self, path: str, objects: dict, conditions: Mapping[str, object] | None = None) -> None:
        self.path = Path(path).expanduser()
        self.objects = objects
        self.conditions = dict(conditions or {})
        self.finished = False

    def attach(self, engine: Engine) -> None:
        """Save at the end of every epoch; attach it behind all handlers whose work is to be saved."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save on the first rank."""
        if engine.state.rank == 0:
            state = {name: _unwrapped(value).state_dict() for name, value in self.objects.items()}
            state |= {"trainer": dict(engine.state_dict()), "conditions": self.conditions}
            write_checkpoint(self.path, state)

    def run(self, trainer: Engine, resume: bool = False) -> None:
        """Train, alone in the folder of the checkpoint.

        Args:
            trainer: to run.
            resume: whether to go on with the training that was saved; without a checkpoint one starts anew.

        Raises:
            ValueError: where another training writes there, where ``python -m monai.bundle run`` would replace a
                checkpoint (MONAI Label trains again and again), or where it cannot be gone on with.
        """
        first = trainer.state.rank == 0
        with locked(self.path.parent, "training", "--ckpt_dir") if first else nullcontext():
            if resume:
                self.resume(trainer)
            elif in_bundle_command() and self.path.is_file():
                raise ValueError(
                    f"{self.path}: an earlier training would be replaced; pass --resume True to go on, another "
                    "--ckpt_dir, or remove the file"
                )
            if not self.finished:
                trainer.run()

    def resume(self, trainer: Engine) -> None:
        """Put a trainer and the objects back to the last epoch saved; without a checkpoint, start anew and say so.

        Raises:
            ValueError: where the checkpoint is damaged, or belongs to a training of another network or another length,
                which would bend its schedule.
        """
        if not self.path.is_file():
            logger.info(f"{self.path}: nothing to resume, the training starts anew")
            return
        state = load_tensors(self.path, trainer.state.device)
        lacking = {"trainer", *self.objects} - set(state)
        if lacking:
            raise ValueError(f"{self.path}: no checkpoint of this training, {min(lacking)} is missing; remove the file")
        advice = "resume with the options and data of that run, or remove the file"
        for name in ("max_epochs", "epoch_length"):
            saved, now = state["trainer"][name], getattr(trainer.state, name)
            if saved != now:
                raise ValueError(f"{self.path}: saved with {name} {saved}, now {now}; {advice}")
        self._check_conditions(state.get("conditions", {}), advice)
        for name, value in self.objects.items():
            try:
                _unwrapped(value).load_state_dict(state[name])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: {name} does not fit ({last_line(error)}); {advice}") from None
        trainer.load_state_dict(state["trainer"])
        # ignite would begin a finished run anew.
        self.finished = trainer.state.epoch >= trainer.state.max_epochs
        logger.info(f"{self.path}: {'finished' if self.finished else 'resumed'} after epoch {trainer.state.epoch}")

    def _check_conditions(self, saved: Mapping[str, object], advice: str) -> None:
        """Raise a ValueError where a condition is not that of the training that was saved."""
        for name, now in self.conditions.items():
            before = saved.get(name, "unknown")
            if before != now:
                other = name.removesuffix("_sha256")
                differ = f"{name} {before}, now {now}" if other == name else f"other {other}"
                raise ValueError(f"{self.path}: saved with {differ}; {advice}")


class StopDiverged:
    """Handler of the trainer that ends a training whose loss or weights are no numbers any more, before they are saved.

    It stands before ``ValidationHandler``. The weights and the checkpoint of earlier epochs stay as they are.

    Args:
        network: the network that is trained.
        evaluator: of the validation, if there is one.
    """

    def __init__(self, network: nn.Module, evaluator: Engine | None = None) -> None:
        self.network = network
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Look at the loss after each step, at the weights after each epoch, and at what validation predicts."""
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self.check_predictions, engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_weights)

    def check_loss(self, engine: Engine) -> None:
        """Raise a ValueError where the loss is NaN or infinite."""
        loss = engine.state.output["loss"] if isinstance(engine.state.output, dict) else engine.state.output[0]["loss"]
        if not torch.isfinite(torch.as_tensor(loss)).all():
            self._stop(engine, f"the loss is {float(loss)}")

    def check_weights(self, engine: Engine) -> None:
        """Raise a ValueError where a weight is NaN or infinite."""
        if not all(torch.isfinite(value).all() for value in self.network.state_dict().values()):
            self._stop(engine, "a weight is no number")

    def check_predictions(self, evaluator: Engine, trainer: Engine) -> None:
        """Raise a ValueError where a probability is NaN: finite weights can be so large that their products are not."""
        if not all(torch.isfinite(item["class_probs"]).all() for item in evaluator.state.output):
            self._stop(trainer, "a prediction is no number")

    def _stop(self, engine: Engine, what: str) -> None:
        raise ValueError(
            f"{what} in epoch {engine.state.epoch}: the training diverged; what earlier epochs saved is kept; train "
            "with a smaller --learning_rate"
        )


def _unwrapped(value):
    """What ``DistributedDataParallel`` wraps, so that weights have the same names with and without it."""
    return value.module if isinstance(value, nn.parallel.DistributedDataParallel) else value
