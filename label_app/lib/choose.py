"""Which image a person should label next."""

from __future__ import annotations

import json
import logging
import math
import os

import numpy as np
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.others.generic import name_to_device
from PIL import Image

from scripts.files import sha256, write_json
from scripts.uncertainty import picture_uncertainty

from .datastore import PictureDatastore, Unlabelled
from .errors import RequestError
from .infer import PictureInfer
from .labels import contradicts

logger = logging.getLogger(__name__)
AT_ONCE = 32  # images scored while a client waits, about a tenth of a second each; scoring/uncertainty does the rest


def named_problem(name: str, error: Exception) -> str:
    """A line, in the log as well, that says which image was passed by and why."""
    line = str(error) if isinstance(error, RequestError) else f"{name}: {type(error).__name__}: {error}"
    logger.error(f"left out: {line}", exc_info=not isinstance(error, RequestError))
    return line


class Readable(Strategy):
    """Another strategy that passes unreadable images by, and names them in ``left_out`` of its answer.

    Args:
        strategy: one that calls ``get_unlabeled_images``.
        description: one line for clients.
    """

    def __init__(self, strategy: Strategy, description: str) -> None:
        super().__init__(description)
        self.strategy = strategy

    def __call__(self, request: dict, datastore: PictureDatastore) -> dict | None:
        """Return ``{"id": ...}`` of an image without label, or None where there is none."""
        left_out: dict[str, str] = {}
        while True:
            readable = [name for name in datastore.get_unlabeled_images() if name not in left_out]
            answer = self.strategy(request, Unlabelled(datastore, readable))
            if not answer:
                if left_out:
                    names = "; ".join(left_out.values())
                    raise RequestError(422, f"no readable image without label is left: {names}")
                return None
            try:
                datastore.picture(answer["id"])
            except Exception as error:
                left_out[answer["id"]] = named_problem(answer["id"], error)
                continue
            return ({"left_out": list(left_out.values())} if left_out else {}) | answer


class Scores(Strategy, ScoringMethod):
    """The image with the highest score under the serving model comes first.

    As a scoring method it scores every image without label; as a strategy it scores a few more itself and takes the
    highest. Scores lie in ``<name>.json`` of the models' folder and belong to one file of weights.

    Args:
        infer: gives the network and the images as it sees them.
    """

    name = ""

    def __init__(self, infer: PictureInfer) -> None:
        super().__init__((type(self).__doc__ or "").partition(":")[0])
        self.infer = infer
        self.file = infer.models.folder / f"{self.name}.json"

    def value(self, path: str) -> float:
        """Score of an image's file; the higher, the sooner its turn."""
        raise NotImplementedError

    def scores(self) -> dict[str, float]:
        """Scores under the weights that serve, by id."""
        if not self.file.is_file():
            return {}
        content = json.loads(self.file.read_text(encoding="utf-8"))
        return content["scores"] if content["weights_sha256"] == sha256(self.infer.get_path()) else {}

    def missing(self, datastore: PictureDatastore) -> list[str]:
        """Ids of the images without label and score."""
        known = self.scores()
        return [name for name in datastore.get_unlabeled_images() if name not in known]

    def score(self, datastore: PictureDatastore, most: float = math.inf) -> list[str]:
        """Score images that have no score yet, and return a line for each that cannot be read."""
        scores, problems, added = self.scores(), [], 0
        weights = sha256(self.infer.get_path())
        for name in self.missing(datastore):
            if added == most:
                break
            try:
                scores[name] = round(self.value(datastore.picture(name)), 6)
            except Exception as error:  # whatever it is, the other images go on
                problems.append(named_problem(name, error))
                continue
            added += 1
            if added % AT_ONCE == 0:  # what an interruption leaves
                write_json(self.file, {"weights_sha256": weights, "scores": scores})
        if added % AT_ONCE:
            write_json(self.file, {"weights_sha256": weights, "scores": scores})
        return problems

    def __call__(self, request: dict, datastore: PictureDatastore) -> dict | None:
        """Score all images (a request with ``method``), or choose the next one."""
        if "method" in request:
            problems = self.score(datastore)
            return {"scored": len(self.scores()), "left_out": problems}
        names = datastore.get_unlabeled_images()
        if not names:
            return None
        problems = self.score(datastore, AT_ONCE)
        scores = self.scores()
        name = max((name for name in names if name in scores), key=scores.get, default=names[0])
        return {"id": name, self.name: scores.get(name)} | ({"left_out": problems} if problems else {})


class Uncertainty(Scores):
    """The image that the model finds hardest: ``scripts.uncertainty.picture_uncertainty``."""

    name = "uncertainty"

    def value(self, path: str) -> float:
        """In [0, 1]."""
        network, picture = self.infer.network_and_picture(path, name_to_device("cuda"))
        return float(picture_uncertainty(network, picture))


class Disagreement(Scores):
    """Images whose mask and class disagree: the surest class first, then the others, the least sure class first."""

    name = "disagreement"

    def value(self, path: str) -> float:
        """1 plus the class's probability where the two disagree, 1 less it elsewhere."""
        file, params = self.infer({"image": path, "device": name_to_device("cuda"), "logging": "WARNING"})
        with Image.open(file) as mask:
            disagree = params.get("disagreement", contradicts(params["class"], np.asarray(mask)))
        os.unlink(file)
        surest = max(entry["score"] for entry in params["classification"])
        return 1 + surest if disagree else 1 - surest


def strategies(uncertainty: Uncertainty, disagreement: Disagreement) -> dict[str, Strategy]:
    """The strategies by name."""
    return {
        "uncertainty": Readable(uncertainty, uncertainty.description),
        "random": Readable(Random(), "Any image without label"),
        "first": Readable(First(), "The first image without label, by name"),
        "disagreement": Readable(disagreement, disagreement.description),
    }
