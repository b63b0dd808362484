"""Handlers of the engines: repeatable epochs, checkpoints that resume, the table of a folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import CacheDataset
from monai.utils import ensure_tuple
from torch import nn
from torch.optim import Optimizer

from .command import in_bundle_command
from .files import append_csv, read_csv, sha256, write_checkpoint, write_csv

logger = logging.getLogger(__name__)


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
        if in_bundle_command() and self.path.is_file():
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


class PredictionTable:
    """Handler of the inference engine that writes ``predictions.csv`` when all pictures are done.

    Columns: ``filename``, ``class``, ``p_<class>`` for each class (sum 1), ``lesion_area_px`` (pixels of the mask at
    the picture's own size), ``suspicious`` and ``unsure`` (yes, no; empty where the weights have no calibration).

    Each process notes its pictures batch by batch in a hidden file of its own. The first one joins those of all
    processes at the end; after an interruption they say which pictures are done.

    Args:
        output_dir: folder of the table.
        class_names: names in the order of the class indices.
        source: what the answers depend on, such as the hash of the weights; a run with another one is not gone on with.
        resume: whether to go on with an interrupted run.
    """

    def __init__(
        self, output_dir: str, class_names: Sequence[str], source: Mapping | None = None, resume: bool = False
    ) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        probabilities = [f"p_{name}" for name in class_names]
        self.columns = ["filename", "class", *probabilities, "lesion_area_px", "suspicious", "unsure"]
        self.tag = hashlib.sha256(repr(source).encode()).hexdigest()[:8]
        self.resume = resume
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def done(self) -> set[str]:
        """File names of the pictures that an interrupted run has finished; none where it is not to be gone on with."""
        if not self.resume:
            return set()
        found = {row["filename"] for row in self._noted()}
        logger.info(f"{self.path.parent}: {len(found)} pictures are done" if found else "nothing to resume")
        return found

    def attach(self, engine: Engine) -> None:
        """Note after each batch, write at the end."""
        engine.add_event_handler(Events.STARTED, lambda _: self.start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.write())

    def start(self) -> None:
        """Forget other runs, once every process has asked for the pictures that are done."""
        self._wait()
        if self.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._noted() if self.resume else []
            # Written anew, since the last line of a file may have been cut off.
            write_csv(self._note("done"), kept, self.columns)
            for file in self.path.parent.glob(".predictions_*"):
                if file != self._note("done"):
                    file.unlink()
        self._wait()

    def collect(self, engine: Engine) -> None:
        """Note a row for each picture of the batch, whose mask is written by then."""
        rows = []
        for batch, output in zip(engine.state.batch, engine.state.output):
            item = {**batch, **output}
            row = {"filename": Path(str(item["image"].meta["filename_or_obj"])).name, "class": item["result"]["class"]}
            row |= {f"p_{entry['label']}": entry["score"] for entry in item["result"]["classification"]}
            row["lesion_area_px"] = int((item["pred"] > 0).sum())
            row |= {k: "yes" if item["result"][k] else "no" for k in ("suspicious", "unsure") if k in item["result"]}
            rows.append(row)
        append_csv(self._note(self.rank), rows, self.columns)

    def write(self) -> None:
        """Write the table of all processes."""
        self._wait()
        if self.rank == 0:
            rows = sorted(self._noted(), key=lambda row: row["filename"])
            write_csv(self.path, rows, self.columns)
            for file in self.path.parent.glob(".predictions_*"):
                file.unlink()
            logger.info(f"{len(rows)} pictures: masks and {self.path.name} in {self.path.parent}")

    def write_without_pictures(self) -> None:
        """Take part in what the other processes do, or end an interrupted run, where no picture is left."""
        self.start()
        self.write()

    def _note(self, name: object) -> Path:
        return self.path.with_name(f".predictions_{self.tag}_{name}.csv")

    def _noted(self) -> list[dict[str, str]]:
        """The rows of all files; a picture counts once."""
        files = sorted(self.path.parent.glob(self._note("*").name))
        return list({row["filename"]: row for file in files for row in read_csv(file)}.values())

    @staticmethod
    def _wait() -> None:
        if dist.is_initialized():
            dist.barrier()
