"""The metrics of an evaluation, from areas and probabilities of its images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather, string_list_all_gather
from scipy.stats import rankdata

from .data import UNKNOWN_CLASS, image_name
from .files import NOTICE, write_csv, write_json

logger = logging.getLogger(__name__)
MISSED_BELOW = 0.1  # a lesion counts as missed where its Dice is under this value
AREAS = ("predicted_area_px", "true_area_px", "overlap_px", "picture_px")


def overlap(pred: torch.Tensor, label: torch.Tensor) -> tuple[int, int, int, int]:
    """Pixels of the predicted mask, the true one, both, and the image; masks of any one shape, foreground > 0."""
    pred, label = pred > 0, label > 0
    return int(pred.sum()), int(label.sum()), int((pred & label).sum()), label.numel()


@dataclass(frozen=True, eq=False)
class Images:
    """What the metrics need of N images; a bootstrap draws from it with ``take``.

    Args:
        class_names: K names in the order of the probabilities.
        true_class: (N,) indices of names, -1 where the class is unknown.
        probabilities: (N, K).
        areas: (N, 4), the counts of ``overlap``.
    """

    class_names: tuple[str, ...]
    true_class: np.ndarray
    probabilities: np.ndarray
    areas: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, object]], class_names: Sequence[str]) -> Images:
        """Read the rows of ``pictures.csv``, numbers or text.

        Raises:
            ValueError: a row has a true class that is none of the names.
        """
        index = {name: k for k, name in enumerate(class_names)} | {"": UNKNOWN_CLASS}
        foreign = next((row for row in rows if row["true_class"] not in index), None)
        if foreign:
            raise ValueError(f"true class {foreign['true_class']}: the classes are {', '.join(class_names)}")
        true = np.array([index[row["true_class"]] for row in rows], dtype=int)
        probabilities = np.array([[row[f"p_{name}"] for name in class_names] for row in rows], dtype=float)
        areas = np.array([[row[key] for key in AREAS] for row in rows], dtype=float)
        return cls(tuple(class_names), true, probabilities.reshape(-1, len(class_names)), areas.reshape(-1, len(AREAS)))

    def __len__(self) -> int:
        return len(self.true_class)

    def take(self, index: np.ndarray) -> Images:
        """The images of an index or a mask (N,)."""
        return Images(self.class_names, self.true_class[index], self.probabilities[index], self.areas[index])

    @property
    def predicted_class(self) -> np.ndarray:
        """(N,) indices of the largest probability."""
        return self.probabilities.argmax(axis=1)

    @property
    def lesion(self) -> np.ndarray:
        """(N,) whether the true mask is not empty."""
        return self.areas[:, 1] > 0

    @property
    def dice(self) -> np.ndarray:
        """(N,) in [0, 1]; 1 where both masks are empty, 0 where only one is. MONAI's handlers drop such images."""
        predicted, true, both, _ = self.areas.T
        return np.where(predicted + true > 0, 2 * both / np.maximum(predicted + true, 1), 1.0)

    @property
    def iou(self) -> np.ndarray:
        """(N,) in [0, 1]; empty masks count as for ``dice``."""
        predicted, true, both, _ = self.areas.T
        return np.where(predicted + true > 0, both / np.maximum(predicted + true - both, 1), 1.0)

    def of_class(self, name: str) -> np.ndarray:
        """(N,) whether this is the true class."""
        return self.true_class == self.class_names.index(name)

    def rows(self) -> list[dict]:
        """One dictionary an image: classes by name (empty: unknown), probabilities, areas, Dice and IoU."""
        names = [*self.class_names, ""]  # -1 is the last
        dice, iou = self.dice, self.iou
        return [
            {
                "true_class": names[self.true_class[i]],
                "predicted_class": names[k],
                **{f"p_{name}": float(p) for name, p in zip(self.class_names, self.probabilities[i])},
                **{key: int(value) for key, value in zip(AREAS, self.areas[i])},
                "dice": float(dice[i]),
                "iou": float(iou[i]),
            }
            for i, k in enumerate(self.predicted_class)
        ]


def auroc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve from ranks (Hanley and McNeil, Radiology 143, 1982), which a bootstrap can afford.

    Args:
        positive: (N,), bool.
        scores: (N,), higher for positive.

    Returns:
        the area in [0, 1]; NaN where one of the two kinds is missing.
    """
    n = int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def confusion_matrix(images: Images) -> np.ndarray:
    """Counts (K, K) of the images of known class; rows true, columns predicted."""
    size, known = len(images.class_names), images.true_class != UNKNOWN_CLASS
    cells = images.true_class[known] * size + images.predicted_class[known]
    return np.bincount(cells, minlength=size**2).reshape(size, size)


def single_metrics(images: Images) -> dict[str, float]:
    """Every metric that is one number, NaN where the images cannot give it (a mean over none, an AUROC of one class).

    A "lesion image" has a true mask that is not empty. Images of unknown class count for the mask alone.

    Returns:
        ``lesion_dice``, ``lesion_iou``, ``missed_rate`` (fraction of lesion images with Dice under 0.1);
        ``false_mask_rate`` (fraction of images without lesion whose predicted mask is not empty);
        ``dice_all_pictures``, ``iou_all_pictures``; ``accuracy``; ``macro_f1`` and ``balanced_accuracy`` over the
        classes that are present; ``dice_``, ``iou_``, ``precision_``, ``sensitivity_``, ``f1_`` and ``auroc_`` (one
        against the rest) of each class; ``auroc_macro``; ``auroc_benign_malignant`` where there are such classes.
    """
    names, lesion, dice, iou = images.class_names, images.lesion, images.dice, images.iou
    matrix = confusion_matrix(images)
    hits, true, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    present = true > 0
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    sensitivity = np.where(present, hits / np.maximum(true, 1), np.nan)
    known = images.true_class != UNKNOWN_CLASS
    classes, p = images.true_class[known], images.probabilities[known]
    areas_under = [auroc(classes == k, p[:, k]) for k in range(len(names))]
    found = {
        "lesion_dice": _mean(dice[lesion]),
        "lesion_iou": _mean(iou[lesion]),
        **{f"dice_{name}": _mean(dice[lesion & images.of_class(name)]) for name in names},
        **{f"iou_{name}": _mean(iou[lesion & images.of_class(name)]) for name in names},
        "missed_rate": _mean(dice[lesion] < MISSED_BELOW),
        "false_mask_rate": _mean(images.areas[~lesion, 0] > 0),
        "dice_all_pictures": _mean(dice),
        "iou_all_pictures": _mean(iou),
        "accuracy": hits.sum() / true.sum() if present.any() else float("nan"),
        # Classes that these images do not hold would pull the averages down to no purpose.
        "macro_f1": _mean(f1[present]),
        "balanced_accuracy": _mean(sensitivity[present]),
        **{f"precision_{name}": hits[k] / max(predicted[k], 1) for k, name in enumerate(names)},
        **{f"sensitivity_{name}": sensitivity[k] for k, name in enumerate(names)},
        **{f"f1_{name}": f1[k] for k, name in enumerate(names)},
        **{f"auroc_{name}": area for name, area in zip(names, areas_under)},
        "auroc_macro": float(np.mean(areas_under)),
    }
    if {"benign", "malignant"} <= set(names):
        benign, malignant = names.index("benign"), names.index("malignant")
        pair = np.isin(classes, (benign, malignant))
        scores = p[pair, malignant] / np.maximum(p[pair][:, [benign, malignant]].sum(axis=1), 1e-12)
        found["auroc_benign_malignant"] = auroc(classes[pair] == malignant, scores)
    return {name: float(value) for name, value in found.items()}


def summarize(images: Images) -> dict:
    """The content of ``metrics.json``: ``single_metrics`` with None for NaN, by class where there is one a class.

    Beside them the counts, the ``confusion_matrix`` (rows true, columns predicted, in the order of the names; None
    where no class is known), and ``score``, by which training keeps the best weights: the mean of lesion Dice (or Dice
    of all images where there is no lesion) and macro F1 (where a class is known).
    """
    single = {name: None if np.isnan(value) else value for name, value in single_metrics(images).items()}
    names, matrix = images.class_names, confusion_matrix(images)
    known = bool(matrix.any())
    support = matrix.sum(axis=1)
    mask_score = single["dice_all_pictures"] if single["lesion_dice"] is None else single["lesion_dice"]
    scores = [value for value in (mask_score, single["macro_f1"]) if value is not None]
    return {
        "pictures": len(images),
        "pictures_by_class": {name: int(count) for name, count in zip(names, support)},
        "lesion_dice": single["lesion_dice"],
        "lesion_iou": single["lesion_iou"],
        "lesion_dice_by_class": {name: single[f"dice_{name}"] for name in names},
        "lesion_iou_by_class": {name: single[f"iou_{name}"] for name in names},
        **{key: single[key] for key in ("dice_all_pictures", "iou_all_pictures", "false_mask_rate", "missed_rate")},
        "accuracy": single["accuracy"],
        "macro_f1": single["macro_f1"],
        "by_class": {name: _of_class(single, name, int(n)) for name, n in zip(names, support)} if known else None,
        **{f"auroc_{name}": single[f"auroc_{name}"] for name in (*names, "macro")},
        "confusion_matrix": matrix.tolist() if known else None,
        "score": float(np.mean(scores)),
    }


def _of_class(single: Mapping[str, float | None], name: str, support: int) -> dict:
    recall = single[f"sensitivity_{name}"] or 0.0
    f1, precision = single[f"f1_{name}"], single[f"precision_{name}"]
    return {"precision": precision, "recall": recall, "f1": f1, "pictures": support}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


class PictureMetrics(Metric):
    """Ignite metric over decollated items that hold ``pred`` and ``label`` masks, ``true_class`` and ``class_probs``.

    The result is the part of ``summarize`` that is single numbers (NaN for None); the engine's state shows each by its
    name. The class may be unknown (-1). Under ``torch.distributed`` the rows of all ranks are joined.

    Args:
        class_names: names in the order of the class indices.
        output_dir: where ``metrics.json`` and ``pictures.csv`` (one row an image) are written; nowhere by default.
        source: what else ``metrics.json`` shall say of where the metrics come from, such as the split.
        root: folder that the names of images are relative to; by default the names are those of the files alone.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        output_dir: str | None = None,
        source: dict | None = None,
        root: str | None = None,
    ) -> None:
        self.class_names = list(class_names)
        self.root = root
        self.output_dir = output_dir
        self.source = source or {}
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forget all images."""
        self._names: list[str] = []
        self._values: list[torch.Tensor] = []
        self._computed: dict[str, float] = {}

    def update(self, output: Sequence[dict]) -> None:
        """Take the items of one batch: masks (1, M, N), ``true_class`` an index, ``class_probs`` (classes,)."""
        self._computed = {}
        for item in output:
            numbers = [*overlap(item["pred"], item["label"]), int(item["true_class"])]
            self._values.append(torch.cat([torch.tensor(numbers).double(), item["class_probs"].cpu().double()]))
            file = item["image"].meta["filename_or_obj"]
            self._names.append(image_name(file, self.root or Path(file).parent))

    def compute(self) -> dict[str, float]:
        """Return the single numbers, and write all metrics on the first rank, once however often it is asked.

        Raises:
            ValueError: where no image was seen.
        """
        if self._computed:  # ignite asks for the key metric apart from the others
            return self._computed
        values = torch.stack(self._values) if self._values else torch.zeros(0, 5 + len(self.class_names)).double()
        values = evenly_divisible_all_gather(values)
        names = string_list_all_gather(self._names)
        if len(values) == 0:
            raise ValueError("no image to evaluate; this part of the datalist is empty")
        # Sorted, so that the order of the ranks leaves no trace.
        order = sorted(range(len(names)), key=lambda i: names[i])
        columns = values[order].numpy()
        images = Images(tuple(self.class_names), columns[:, 4].astype(int), columns[:, 5:], columns[:, :4])
        metrics = summarize(images)
        if self.output_dir and (not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0):
            rows = [{"filename": names[i], **row} for i, row in zip(order, images.rows())]
            write_csv(Path(self.output_dir) / "pictures.csv", rows, list(rows[0]))
            write_json(Path(self.output_dir) / "metrics.json", {"notice": NOTICE, **self.source, **metrics})
            logger.info(f"{len(rows)} images: metrics.json and pictures.csv in {self.output_dir}")
        metrics = {k: float("nan") if v is None else v for k, v in metrics.items()}
        self._computed = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        return self._computed
