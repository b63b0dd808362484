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
from pydantic import BaseModel, ConfigDict, Field

from breast_ultrasound.data import UNKNOWN_CLASS
from breast_ultrasound.files import write_json
from breast_ultrasound.weights import stored_settings

from .datastore import ImageDatastore
from .errors import RequestError
from .models import Models
from .problems import label_problem
from .split import hold_out

logger = logging.getLogger(__name__)


class TrainingOptions(BaseModel):
    """What a client may choose of a training."""

    model_config = ConfigDict(strict=True)

    max_epochs: int = Field(20, ge=1, le=1000)
    val_split: float = Field(0.2, gt=0, lt=1)
    learning_rate: float = Field(0.0001, gt=0, lt=1)
    batch_size: int = Field(8, ge=1, le=64)
    pretrained: bool = True


class ImageTrain(TrainTask):
    """Trains from the weights that serve, compares both on labels held out, and lets the better one serve.

    The last epoch counts and nothing is chosen on the labels held out, which stay the same from training to training;
    a label that once trained serving weights is never held out. Options of a request are those of ``TrainingOptions``.

    Args:
        models: the bundle, and where the new weights go.
    """

    def __init__(self, models: Models) -> None:
        super().__init__("Fine-tunes mask and class on the submitted labels")
        self.models = models

    def config(self) -> dict:
        """Options and their defaults, as a client shows them."""
        return TrainingOptions().model_dump()

    def stats(self) -> dict:
        """The latest training's entry."""
        history = self.models.history()
        return history[-1] if history else {}

    def labels(self, datastore: ImageDatastore) -> Iterator[dict]:
        """Items ``{"id", "image", "label", "class", "unaided"}`` of all usable labels.

        The class is an index, -1 where unknown; ``unaided`` says whether the reader saw no suggestion.

        Raises:
            RequestError: there is none.
        """
        found = False
        for name in datastore.get_labeled_images():
            problem = label_problem(datastore, datastore.get_label_uri(name, "final"))
            if problem:
                logger.error(f"left out: label of {name}: {problem}")
                continue
            found = True
            info = datastore.get_label_info(name, "final")
            given, unaided = info.get("class"), info.get("suggestion") in ("withheld", "none")
            index = self.models.class_names.index(given) if given in self.models.class_names else UNKNOWN_CLASS
            paths = {"image": datastore.get_image_uri(name), "label": datastore.get_label_uri(name, "final")}
            yield {"id": name, **paths, "class": index, "unaided": unaided}
        if not found:
            raise RequestError(400, "no label to learn from; submit one or more with PUT /datastore/label")

    def __call__(self, request: dict, datastore: ImageDatastore) -> dict:
        """Train, compare, note, and return the entry of the history.

        Raises:
            RequestError: there is no label, or the training diverged.
            ValidationError: an option is not valid.
        """
        options = TrainingOptions.model_validate(request).model_dump()
        items = list(self.labels(datastore))
        unaided = frozenset(item["id"] for item in items if item["unaided"])
        held_out = hold_out([item["id"] for item in items], options["val_split"], self.models.history(), unaided)
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
        size = {"image_size": stored_settings(start)["image_size"]} if start else {}
        self._run(
            "training",
            ["train"],
            work,
            epochs=options["max_epochs"],
            val_interval=options["max_epochs"],
            learning_rate=options["learning_rate"],
            batch_size=options["batch_size"],
            pretrained=start,
            **size,
        )
        new = work / "model.pt"
        if not new.is_file():  # no score is larger than one that is not a number
            raise RequestError(400, "the training diverged and left no weights; use a smaller learning_rate")
        entry = {
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            **options,
            "training": sorted(item["id"] for item in parts["training"]),
            "held_out": held_out,
            "held_out_unaided": len(unaided.intersection(held_out)),
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
        self._run("evaluating", ["train", "evaluate"], work, split="validation", overwrite=True, **paths)
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


def outcome(entry: dict) -> str:
    """One line that says what became of a training."""
    if not entry["held_out"]:
        return "not in use: no label to compare on; submit another label and train again"
    scores = f"score {entry['score_after']:.3f} against {entry['score_before']:.3f} on {len(entry['held_out'])} labels"
    scores += f" held out, {entry['held_out_unaided']} of them drawn without a suggestion"
    return f"now in use: {scores}" if entry["promoted"] else f"not in use: {scores}; kept beside the other"
