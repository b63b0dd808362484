"""Which image a person should label next."""

from __future__ import annotations

import json
import logging
import os
import threading
import time

import numpy as np
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.random import Random

from breast_ultrasound.files import write_json

from .datastore import ONE_AT_A_TIME, ImageDatastore, Unlabelled, grey_of
from .errors import RequestError
from .models import Models

logger = logging.getLogger(__name__)
AT_ONCE = 32  # scores that are written together
QUIET_S = 1.0  # without a request, before images are scored behind
LOOK_S = 5.0  # between looks whether there is something to score
FIRST = "The first image without label"


def named_problem(name: str, error: Exception) -> str:
    """A line, in the log as well, that says which image was passed by and why."""
    line = str(error) if isinstance(error, RequestError) else f"{name}: {type(error).__name__}: {error}"
    logger.error(f"left out: {line}", exc_info=not isinstance(error, RequestError))
    return line


class SkipUnreadable(Strategy):
    """Another strategy that passes unreadable images by, and names them in ``left_out`` of its answer.

    Args:
        strategy: one that calls ``get_unlabeled_images``.
        description: one line for clients.
    """

    def __init__(self, strategy: Strategy, description: str) -> None:
        super().__init__(description)
        self.strategy = strategy

    def __call__(self, request: dict, datastore: ImageDatastore) -> dict | None:
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
                datastore.grey(answer["id"])
            except Exception as error:
                left_out[answer["id"]] = named_problem(answer["id"], error)
                continue
            return ({"left_out": list(left_out.values())} if left_out else {}) | answer


class First(Strategy):
    """The first image without label; MONAI Label's own sorts by name, which a study may hide."""

    def __call__(self, request: dict, datastore: ImageDatastore) -> dict | None:
        """Return ``{"id": ...}``, or None where there is none."""
        names = datastore.get_unlabeled_images()
        return {"id": names[0]} if names else None


class Scores(Strategy, ScoringMethod):
    """The image with the highest score under the serving model comes first.

    As a scoring method it scores every image without label; as a strategy it takes the highest of those that ``Behind``
    has scored so far, and lets nobody wait. Scores lie in ``<name>.json`` of the models' folder and belong to one file
    of weights.

    Args:
        models: the weights that serve.
    """

    name = ""

    def __init__(self, models: Models) -> None:
        super().__init__((type(self).__doc__ or "").partition(":")[0])
        self.models = models
        self.file = models.folder / f"{self.name}.json"

    def value(self, image: np.ndarray) -> float:
        """Score of an image, 8-bit grey (height, width); the higher, the sooner its turn."""
        raise NotImplementedError

    def scores(self) -> dict[str, float]:
        """Scores under the weights that serve, by id; none where the file is damaged, which is made anew."""
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            scores = {name: float(score) for name, score in content["scores"].items()}
            return scores if content["weights_sha256"] == self.models.digest() else {}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning(f"{self.file}: damaged ({type(error).__name__}), scores are made anew")
            return {}

    def missing(self, datastore: ImageDatastore) -> list[str]:
        """Ids of the images without score."""
        known = self.scores()
        return [name for name in datastore.list_images() if name not in known]

    def add(self, found: dict[str, float]) -> None:
        """Keep more scores of the weights that serve."""
        write_json(self.file, {"weights_sha256": self.models.digest(), "scores": {**self.scores(), **found}})

    def score(self, datastore: ImageDatastore) -> list[str]:
        """Score images that have no score yet, and return a line for each that cannot be read."""
        found, problems = {}, []
        for name in self.missing(datastore):
            try:
                found[name] = round(self.value(datastore.grey(name)), 6)
            except Exception as error:  # whatever it is, the other images go on
                problems.append(named_problem(name, error))
                continue
            if len(found) % AT_ONCE == 0:  # what an interruption leaves
                self.add(found)
        if found:
            self.add(found)
        return problems

    def __call__(self, request: dict, datastore: ImageDatastore) -> dict | None:
        """Score all images (a request with ``method``), or choose the next one."""
        if "method" in request:
            problems = self.score(datastore)
            return {"scored": len(self.scores()), "left_out": problems}
        names = datastore.get_unlabeled_images()
        if not names:
            return None
        scores = self.scores()
        name = max((name for name in names if name in scores), key=scores.get, default=names[0])
        return {"id": name, self.name: scores.get(name)}


class Uncertainty(Scores):
    """The image that the model finds hardest: ``Predictor.uncertainty``."""

    name = "uncertainty"

    def value(self, image: np.ndarray) -> float:
        """In [0, 1]."""
        return self.models.predictor().uncertainty(image)


class Disagreement(Scores):
    """Images whose mask and class disagree: the surest class first, then the others, the least sure class first."""

    name = "disagreement"

    def value(self, image: np.ndarray) -> float:
        """1 plus the class's probability where the two disagree, 1 less it elsewhere."""
        prediction = self.models.predictor()(image)
        surest = max(prediction.class_probabilities.values())
        return 1 + surest if prediction.disagreement else 1 - surest


def strategies(uncertainty: Uncertainty, disagreement: Disagreement) -> dict[str, Strategy]:
    """The strategies by name."""
    return {
        "uncertainty": SkipUnreadable(uncertainty, uncertainty.description),
        "random": SkipUnreadable(Random(), "Any image without label"),
        "first": SkipUnreadable(First(FIRST), FIRST),
        "disagreement": SkipUnreadable(disagreement, disagreement.description),
    }


class Behind(threading.Thread):
    """Scores images behind, one at a time and never while somebody works with the server.

    Args:
        methods: the scores to make, one after another.
        datastore: of the folder.
    """

    def __init__(self, methods: list[Scores], datastore: ImageDatastore) -> None:
        super().__init__(daemon=True)
        self.methods, self.datastore = methods, datastore
        self.asked = 0.0  # when somebody asked for something last
        self._failed: set[tuple] = set()

    def run(self) -> None:
        """Look for images without score, again and again: weights and folder change."""
        while True:
            for method in self.methods:
                try:
                    self.score(method)
                except Exception as error:  # a full disk, say; the scores are no more than a help
                    logger.error(f"{method.name}: no scores: {error}", exc_info=not isinstance(error, RequestError))
            time.sleep(LOOK_S)

    def score(self, method: Scores) -> None:
        """Score what has no score, until weights change."""
        weights, found = method.models.digest(), {}
        with ONE_AT_A_TIME:
            paths = {name: self.datastore.path(name) for name in method.missing(self.datastore)}
        for name, path in paths.items():
            while (wait := self.asked + QUIET_S - time.monotonic()) > 0:
                time.sleep(wait)
            try:
                key = weights, method.name, name, os.stat(path).st_mtime_ns
                if key not in self._failed:
                    found[name] = round(method.value(grey_of(path)), 6)
            except FileNotFoundError:  # removed meanwhile
                continue
            except Exception as error:  # whatever it is, the other images go on
                self._failed.add(key)
                named_problem(name, error)
            if method.models.digest() != weights:
                return
            if len(found) == AT_ONCE:
                method.add(found)
                found = {}
        if found:
            method.add(found)
