"""Fine-tuning on the labels submitted so far, through the bundle's own train.json."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import monai.bundle
from monailabel.interfaces.tasks.train import TrainTask

from scripts.data import UNKNOWN_CLASS
from scripts.files import write_json

from .datastore import PictureDatastore
from .errors import RequestError
from .models import Models
from .split import hold_out

logger = logging.getLogger(__name__)
OPTIONS = {"max_epochs": 20, "val_split": 0.2, "learning_rate": 0.0005, "batch_size": 8, "pretrained": True}


class PictureTrain(TrainTask):
    """Trains from the weights that serve, compares both on labels held out, and lets the better one serve.

    The last epoch counts and nothing is chosen on the labels held out, which stay the same from training to training;
    a label that once trained serving weights is never held out. Options of a request are those of ``OPTIONS``.

    Args:
        models: the bundle, and where the new weights go.
    """

    def __init__(self, models: Models) -> None:
        super().__init__("Fine-tunes mask and class on the submitted labels")
        self.models = models

    def config(self) -> dict:
        """Options and their defaults, as a client shows them."""
        return dict(OPTIONS)

    def stats(self) -> dict:
        """The latest training's entry."""
        history = self.models.history()
        return history[-1] if history else {}

    def labels(self, datastore: PictureDatastore) -> Iterator[dict]:
        """Items ``{"id", "image", "label", "class"}`` of all usable labels, the class an index, -1 where unknown.

        Raises:
            RequestError: there is none.
        """
        found = False
        for name in datastore.get_labeled_images():
            problem = datastore.label_problem(datastore.get_label_uri(name, "final"))
            if problem:
                logger.error(f"left out: label of {name}: {problem}")
                continue
            found = True
            given = datastore.get_label_info(name, "final").get("class")
            index = self.models.class_names.index(given) if given in self.models.class_names else UNKNOWN_CLASS
            paths = {"image": datastore.get_image_uri(name), "label": datastore.get_label_uri(name, "final")}
            yield {"id": name, **paths, "class": index}
        if not found:
            raise RequestError(400, "no label to learn from; submit one or more with PUT /datastore/label")

    def __call__(self, request: dict, datastore: PictureDatastore) -> dict:
        """Train, compare, note, and return the entry of the history.

        Raises:
            RequestError: there is no label, an option is not valid, or the training diverged.
        """
        options = {name: request.get(name, default) for name, default in OPTIONS.items()}
        check_options(options)
        items = list(self.labels(datastore))
        held_out = hold_out([item["id"] for item in items], options["val_split"], self.models.history())
        parts = {
            "training": [item for item in items if item["id"] not in held_out],
            "held_out": [item for item in items if item["id"] in held_out],
        }
        known = sum(item["class"] != UNKNOWN_CLASS for item in parts["training"])
        logger.info(f"{len(parts['training'])} labels train ({known} with class), {len(held_out)} are held out")

        work = self.models.folder / ".training"
        shutil.rmtree(work, ignore_errors=True)  # of a training that was stopped
        # The trainer looks at the labels held out after the last epoch only; without any it needs some image.
        write_json(work / "train.json", {"training": parts["training"], "validation": parts["held_out"] or items})
        start = str(self.models.serving()) if options["pretrained"] else ""
        self._run(
            "training",
            ["train"],
            work,
            epochs=options["max_epochs"],
            val_interval=options["max_epochs"],
            learning_rate=options["learning_rate"],
            batch_size=options["batch_size"],
            pretrained=start,
        )
        new = work / "model.pt"
        if not new.is_file():  # no score is larger than one that is not a number
            raise RequestError(400, "the training diverged and left no weights; use a smaller learning_rate")
        entry = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            **options,
            "training": sorted(item["id"] for item in parts["training"]),
            "held_out": held_out,
            "score_before": None,
            "score_after": None,
            "promoted": False,
        }
        if held_out:
            entry["score_before"] = self._score(self.models.serving(), work)
            entry["score_after"] = self._score(new, work)
            entry["promoted"] = entry["score_after"] >= entry["score_before"]
        entry["outcome"] = outcome(entry)
        self.models.add(entry, new)
        shutil.rmtree(work)
        logger.info(entry["outcome"])
        return self.models.history()[-1]

    def _score(self, weights: Path, work: Path) -> float:
        """The bundle's score (mean of lesion Dice and macro F1) on the labels held out, by evaluate.json."""
        # With the calibration beside the weights, as they serve
        paths = {"weights": str(weights), "ckpt_dir": str(weights.parent)}
        self._run("evaluating", ["train", "evaluate"], work, part="validation", overwrite=True, **paths)
        return json.loads((work / "metrics.json").read_text(encoding="utf-8"))["score"]

    def _run(self, run_id: str, configs: list[str], work: Path, **overrides) -> None:
        folder = self.models.bundle / "configs"
        monai.bundle.run(
            run_id=run_id,
            config_file=[str(folder / f"{name}.json") for name in configs],
            bundle_root=str(self.models.bundle),
            datalist=str(work / "train.json"),
            class_names=self.models.class_names,
            output_dir=str(work),
            **{"ckpt_dir": str(work), **overrides},
        )


def check_options(options: dict) -> None:
    """Refuse values that would fail later.

    Raises:
        RequestError: naming the option and its range.
    """
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise RequestError(400, f"unknown option {', '.join(map(repr, unknown))}; use {', '.join(OPTIONS)}")
    for name, kind, valid, expected in (
        ("max_epochs", int, lambda v: 1 <= v <= 1000, "a whole number from 1 to 1000"),
        ("batch_size", int, lambda v: 1 <= v <= 64, "a whole number from 1 to 64"),
        ("val_split", (int, float), lambda v: 0 < v < 1, "a fraction between 0 and 1"),
        ("learning_rate", (int, float), lambda v: 0 < v < 1, "a number between 0 and 1"),
        ("pretrained", bool, lambda v: True, "true or false"),
    ):
        value = options[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not valid(value):
            raise RequestError(400, f"{name} is {value!r}; use {expected}")


def outcome(entry: dict) -> str:
    """One line that says what became of a training."""
    if not entry["held_out"]:
        return "not serving: no label to compare on; submit another label and train again"
    scores = f"score {entry['score_after']:.3f} against {entry['score_before']:.3f} on {len(entry['held_out'])} labels"
    return f"now serving: {scores}" if entry["promoted"] else f"not serving: {scores} held out; kept beside the other"
