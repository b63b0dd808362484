"""Handlers of the engines: repeatable epochs, checkpoints that resume, the table of a folder."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.data import CacheDataset
from monai.utils import ensure_tuple
from torch import nn
from torch.optim import Optimizer

from .command import in_bundle_command, last_line, load_tensors
from .data import image_name, names_a_picture
from .files import append_csv, locked, read_csv, sha256, shown, write_checkpoint, write_csv
from .networks import settings_file, write_weights

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
        settings: what ``scripts.networks.write_weights`` keeps beside the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        evaluator: Engine,
        path: str,
        interval: int = 1,
        patience: int = 0,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.network = network
        self.evaluator = evaluator
        self.path = path
        self.interval = interval
        self.patience = patience
        self.settings = settings or {}
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
                write_weights(self.path, _unwrapped(self.network).state_dict(), self.settings)
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
            if settings_file(path).is_file():
                settings_file(path).replace(settings_file(kept))
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
    """

    def __init__(self, path: str, objects: dict) -> None:
        self.path = Path(path).expanduser()
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
        for name, value in self.objects.items():
            try:
                _unwrapped(value).load_state_dict(state[name])
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: {name} does not fit ({last_line(error)}); {advice}") from None
        trainer.load_state_dict(state["trainer"])
        # ignite would begin a finished run anew.
        self.finished = trainer.state.epoch >= trainer.state.max_epochs
        logger.info(f"{self.path}: {'finished' if self.finished else 'resumed'} after epoch {trainer.state.epoch}")


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


class PredictionTable:
    """Handler of the inference engine that writes ``predictions.csv`` when all images are done, and nothing else does.

    Columns: ``filename`` (from ``root`` on), ``class``, ``p_<class>`` for each class (sum 1), ``lesion_area_px``
    (pixels of the mask at the image's own size), ``suspicious`` and ``unsure`` (yes, no; empty where the weights have
    no calibration), ``disagreement`` of mask and class (as ``Disagreementd`` words it, empty where there is none).
    Images that cannot be read are named in the log. Every image is one or the other, or ``run`` fails.

    Each process notes its images batch by batch in a hidden file of its own, after their masks are written. The first
    one joins those of all processes at the end; after an interruption they say which images are done.

    Args:
        output_dir: folder of the table, locked from ``run`` on.
        class_names: names in the order of the class indices.
        images: as ``scripts.data.list_images`` returns them.
        root: folder that the names of images are relative to.
        source: what predictions depend on, such as the hash of the weights; a run with another one is not gone on with.
        resume: whether to go on with an interrupted run.
    """

    def __init__(
        self,
        output_dir: str,
        class_names: Sequence[str],
        images: Sequence[Mapping[str, str]],
        root: str,
        source: Mapping | None = None,
        resume: bool = False,
    ) -> None:
        self.folder = Path(output_dir).expanduser()
        self.path = self.folder / "predictions.csv"
        probabilities = [f"p_{name}" for name in class_names]
        self.columns = ["filename", "class", *probabilities, "lesion_area_px", "suspicious", "unsure", "disagreement"]
        self.root = root
        self.images = {image_name(item["image"], root): dict(item) for item in images}
        self.versions = {name: _version(item["image"]) for name, item in self.images.items()}
        self.tag = hashlib.sha256(repr(source).encode()).hexdigest()[:8]
        self.resume = resume
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    def to_do(self) -> list[dict[str, str]]:
        """The images that an interrupted run has not finished; all where it is not to be gone on with."""
        done = self._done() if self.resume else {}
        if self.resume:
            logger.info(f"{self.folder}: {len(done)} images are done" if done else "nothing to resume")
        return [item for name, item in self.images.items() if name not in done]

    def run(self, evaluator: Engine) -> None:
        """Predict what is to be done and write the table; alone in the folder, and with a word where it is cut short.

        Raises:
            ValueError: where another run writes to the folder, or no image could be read.
            RuntimeError: where an image has neither a row nor a reason.
        """
        with locked(self.folder, "predictions", "--output_dir") if self.rank == 0 else nullcontext():
            self._start()
            try:
                if len(evaluator.data_loader.dataset):
                    evaluator.run()
            except BaseException:
                # Not by the log, which a command that is stopped silences
                done = f"{len(self._done())} of {len(self.images)} images are done, no table yet"
                print(f"{self.folder}: {done}", file=sys.stderr)
                raise
            self._wait()
            if self.rank == 0:
                self._write()

    def attach(self, engine: Engine) -> None:
        """Note after each batch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)

    def collect(self, engine: Engine) -> None:
        """Note a row for each image of the batch, whose mask is written by then."""
        rows = []
        for batch, output in zip(engine.state.batch, engine.state.output):
            item = {**batch, **output}
            name = image_name(item["image"].meta["filename_or_obj"], self.root)
            row = {"filename": name, "class": item["result"]["class"]}
            row |= {f"p_{entry['label']}": entry["score"] for entry in item["result"]["classification"]}
            row["lesion_area_px"] = int((item["pred"] > 0).sum())
            row |= {k: "yes" if item["result"][k] else "no" for k in ("suspicious", "unsure") if k in item["result"]}
            row["disagreement"] = item["result"].get("disagreement", "")
            mask = os.path.relpath(item["pred"].meta["saved_to"], self.folder)
            rows.append(row | {"version": self.versions[name], "mask": mask})
        self._append(rows)

    def refuse(self, image: str, reason: str) -> None:
        """Name an image that has no prediction, in the log and for the count at the end."""
        logger.error(f"{shown(image)}: no prediction, {reason}")
        self._append([{"filename": image_name(image, self.root), "refused": reason}])

    def _append(self, rows: list[dict]) -> None:
        append_csv(self._note(self.rank), rows, self._note_columns())

    def _start(self) -> None:
        """Forget other runs, once every process has asked for the images that are done."""
        self._wait()
        if self.rank == 0:
            notes = list(self.folder.glob(".predictions_*.csv"))
            kept = list(self._done().values()) if self.resume else []
            if notes and not kept:
                logger.warning(f"{self.folder}: an interrupted run is made anew; --resume True goes on with one")
            # Written anew, since the last line of a file may have been cut off.
            write_csv(self._note("done"), kept, self._note_columns())
            for file in notes:
                if file != self._note("done"):
                    file.unlink()
            self.path.unlink(missing_ok=True)  # its masks are about to change
        self._wait()

    def _write(self) -> None:
        """Write the table of all processes."""
        noted = self._noted()
        missing = [name for name in self.images if name not in noted]
        if missing:
            raise RuntimeError(
                f"{self.folder}: {len(missing)} of {len(self.images)} images have no prediction, {shown(missing[0])} "
                "among them; the same command with --resume True goes on"
            )
        rows = [noted[name] for name in sorted(noted) if not noted[name]["refused"]]
        refused = len(noted) - len(rows)
        if not rows:
            raise ValueError(f"{self.root}: none of {len(noted)} images can be read; pass another --dataset_dir")
        write_csv(self.path, rows, self.columns)
        for file in self.folder.glob(".predictions_*.csv"):
            file.unlink()
        named = f"; {refused} without prediction, named above" if refused else ""
        logger.info(f"{len(rows)} of {len(noted)} images: masks and {self.path.name} in {self.folder}{named}")
        masks = {self.folder / row["mask"] for row in rows}
        others = [f for d in {m.parent for m in masks} for f in d.iterdir() if names_a_picture(f) and f not in masks]
        if others:
            logger.warning(
                f"{self.folder}: {len(others)} more images there are not of this run: {shown(others[0].name)}..."
            )

    def _note(self, name: object) -> Path:
        return self.folder / f".predictions_{self.tag}_{name}.csv"

    def _note_columns(self) -> list[str]:
        return [*self.columns, "version", "mask", "refused"]

    def _noted(self) -> dict[str, dict[str, str]]:
        """The rows of all processes by name."""
        files = sorted(self.folder.glob(self._note("*").name))
        rows = [row for file in files for row in read_csv(file) if None not in row.values()]
        return {row["filename"]: row for row in rows if row["filename"] in self.images}

    def _done(self) -> dict[str, dict[str, str]]:
        """The rows whose image is the same file as then and whose mask is there."""
        return {
            name: row
            for name, row in self._noted().items()
            if row["version"] == self.versions[name] and (self.folder / (row["mask"] or "?")).is_file()
        }

    @staticmethod
    def _wait() -> None:
        if dist.is_initialized():
            dist.barrier()


def _version(file: str) -> str:
    """What shows whether a file is still the same: its path, size and time of change; empty where it is gone."""
    try:
        status = os.stat(file)
    except OSError:
        return ""
    return f"{os.path.abspath(file)} {status.st_size} {status.st_mtime_ns}"
