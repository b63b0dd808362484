"""The metrics of an evaluation, from areas and probabilities of its images."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from ignite.metrics import Metric
from monai.metrics.utils import get_edge_surface_distance
from monai.utils import evenly_divisible_all_gather, string_list_all_gather
from scipy.stats import rankdata

from .data import UNKNOWN_CLASS, image_name
from .files import NOTICE, write_csv, write_json

logger = logging.getLogger(__name__)
warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges")  # MONAI warns of its own call
MISSED_BELOW = 0.1  # a lesion counts as missed where its Dice is under this value
AREAS = ("predicted_area_px", "true_area_px", "overlap_px", "image_px")
COMPONENT = "component_probability"
TOLERANCE = 0.02  # of the boundary, as a fraction of the image's diagonal
BOUNDARY = ("hd95", "nsd")
LESIONS = ("lesions", "lesions_found", "false_parts")
LATER = ("hd95", "nsd", "lesion_sensitivity", "false_parts_per_image")  # what older evaluations lack


def overlap(pred: torch.Tensor, label: torch.Tensor) -> tuple[int, int, int, int]:
    """Pixels of the predicted mask, the true one, both, and the image; masks of any one shape, foreground > 0."""
    pred, label = pred > 0, label > 0
    return int(pred.sum()), int(label.sum()), int((pred & label).sum()), label.numel()


def boundary_agreement(pred: torch.Tensor, label: torch.Tensor) -> tuple[float, float]:
    """How near two masks' boundaries are, of one shape (M, N), foreground > 0.

    Returns:
        the 95th percentile of the Hausdorff distance as a fraction of the image's diagonal, and the normalised surface
        Dice at a tolerance of 2 % of it (Nikolov et al., J. Med. Internet Res. 23, 2021), as MONAI computes both from
        one pass over the distances. 1 and 0, the worst, where the mask is empty; NaN where there is no lesion.
    """
    pred, label = pred > 0, label > 0
    if not label.any():
        return float("nan"), float("nan")
    if not pred.any():
        return 1.0, 0.0
    _, distances, _ = get_edge_surface_distance(pred, label, symmetric=True)
    diagonal = float(np.hypot(*label.shape))
    farthest = max(float(torch.quantile(d, 0.95)) for d in distances)
    return farthest / diagonal, float((torch.cat(distances) <= TOLERANCE * diagonal).float().mean())


def match_parts(parts: np.ndarray, label: np.ndarray) -> tuple[int, list[int]]:
    """Which lesion each part of a mask finds: the one that it has the largest Dice with, where that is 0.1 or more.

    Args:
        parts: int (M, N), numbers of the parts from 1 on, 0 elsewhere.
        label: the true mask (M, N), foreground > 0; a lesion is what is connected in it (8 neighbours).

    Returns:
        the number of lesions, and for each part that of its lesion, from 1 on; 0 for a part that finds none.
    """
    count, lesions = cv2.connectedComponents((label > 0).astype(np.uint8), connectivity=8)
    size = int(parts.max(initial=0)) + 1
    common = np.bincount((parts.astype(np.int64) * count + lesions).ravel(), minlength=size * count)
    common = common.reshape(size, count)
    dice = 2 * common / np.maximum(common.sum(1, keepdims=True) + common.sum(0, keepdims=True), 1)
    dice[:, 0] = 0  # what is no lesion
    best = dice.argmax(1)
    return count - 1, np.where(dice.max(1) >= MISSED_BELOW, best, 0)[1:].tolist()


@dataclass(frozen=True, eq=False)
class Images:
    """What the metrics need of N images; a bootstrap draws from it with ``take``.

    Args:
        class_names: K names in the order of the probabilities.
        true_class: (N,) indices of names, -1 where the class is unknown.
        probabilities: (N, K).
        areas: (N, 4), the counts of ``overlap``.
        component: (N,) largest mean probability of a part of the mask, as ``transforms.LesionMaskd`` gives it; none
            where the evaluation is of an older version, and so for the next three.
        boundary: (N, 2), what ``boundary_agreement`` gives.
        lesions: (N, 3), the numbers of lesions, of those that a part of the mask finds (``match_parts``), and of parts
            that find none.
        parts: (N,) text: of each part that is large enough, whether ``component_threshold`` kept it or not, the mean
            probability and behind a colon the number of the lesion that it finds, or 0.
    """

    class_names: tuple[str, ...]
    true_class: np.ndarray
    probabilities: np.ndarray
    areas: np.ndarray
    component: np.ndarray | None = None
    boundary: np.ndarray | None = None
    lesions: np.ndarray | None = None
    parts: np.ndarray | None = None

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, object]], class_names: Sequence[str]) -> Images:
        """Read the rows of ``images.csv``, numbers or text.

        Raises:
            ValueError: a row has a true class that is none of the names.
        """
        index = {name: k for k, name in enumerate(class_names)} | {"": UNKNOWN_CLASS}
        foreign = next((row for row in rows if row["true_class"] not in index), None)
        if foreign:
            raise ValueError(f"true class {foreign['true_class']}: the classes are {', '.join(class_names)}")
        true = np.array([index[row["true_class"]] for row in rows], dtype=int)
        probabilities = np.array([[row[f"p_{name}"] for name in class_names] for row in rows], dtype=float)
        areas = np.array([[row[key] for key in AREAS] for row in rows], dtype=float).reshape(-1, len(AREAS))
        later = {}
        for name, columns in {"component": [COMPONENT], "boundary": BOUNDARY, "lesions": LESIONS}.items():
            if rows and all(column in row for row in rows for column in columns):
                values = [[float("nan") if row[key] in ("", None) else row[key] for key in columns] for row in rows]
                later[name] = np.array(values, dtype=float)
        if "component" in later:
            later["component"] = later["component"][:, 0]
        if all("parts" in row for row in rows):
            later["parts"] = np.array([row["parts"] for row in rows], dtype=object)
        return cls(tuple(class_names), true, probabilities.reshape(-1, len(class_names)), areas, **later)

    def __len__(self) -> int:
        return len(self.true_class)

    def take(self, index: np.ndarray) -> Images:
        """The images of an index or a mask (N,)."""
        taken = {name: values[index] for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        return replace(self, **taken)

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

    def malignant_against_benign(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An index (M,) of the images of these two classes, whether each is malignant (M,), and its score (M,): the
        share of malignant in the probability of both, in [0, 1].

        Raises:
            ValueError: the names lack one of the two.
        """
        benign, malignant = (self.class_names.index(name) for name in ("benign", "malignant"))
        pair = np.flatnonzero(np.isin(self.true_class, (benign, malignant)))
        p = self.probabilities[pair]
        scores = p[:, malignant] / np.maximum(p[:, benign] + p[:, malignant], 1e-12)
        return pair, self.true_class[pair] == malignant, scores

    def rows(self) -> list[dict]:
        """One dictionary an image: classes by name (empty: unknown), probabilities, areas, Dice, IoU, and what an
        evaluation of an older version lacks, where it is known."""
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
                **self._later(i),
            }
            for i, k in enumerate(self.predicted_class)
        ]

    def _later(self, i: int) -> dict:
        found = {} if self.component is None else {COMPONENT: float(self.component[i])}
        if self.boundary is not None:
            found |= {key: "" if np.isnan(value) else float(value) for key, value in zip(BOUNDARY, self.boundary[i])}
        if self.lesions is not None:
            found |= {key: int(value) for key, value in zip(LESIONS, self.lesions[i])}
        return found | ({} if self.parts is None else {"parts": self.parts[i]})


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
        ``area_ratio``, median of predicted over true area where a lesion is not missed;
        ``dice_all_images``, ``iou_all_images``; ``accuracy``; ``macro_f1`` and ``balanced_accuracy`` over the
        classes that are present; ``dice_``, ``iou_``, ``precision_``, ``sensitivity_``, ``f1_`` and ``auroc_`` (one
        against the rest) of each class; ``auroc_macro``; ``auroc_benign_malignant`` where there are such classes.
        Of an evaluation that has them, also ``hd95`` (median) and ``nsd`` (mean) of the lesion images,
        ``lesion_sensitivity``, the fraction of lesions that a part of a mask finds, and ``false_parts_per_image``.
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
        "lesion_dice": mean(dice[lesion]),
        "lesion_iou": mean(iou[lesion]),
        **{f"dice_{name}": mean(dice[lesion & images.of_class(name)]) for name in names},
        **{f"iou_{name}": mean(iou[lesion & images.of_class(name)]) for name in names},
        "missed_rate": mean(dice[lesion] < MISSED_BELOW),
        "false_mask_rate": mean(images.areas[~lesion, 0] > 0),
        "area_ratio": _area_ratio(images),
        "dice_all_images": mean(dice),
        "iou_all_images": mean(iou),
        "accuracy": hits.sum() / true.sum() if present.any() else float("nan"),
        # Classes that these images do not hold would pull the averages down to no purpose.
        "macro_f1": mean(f1[present]),
        "balanced_accuracy": mean(sensitivity[present]),
        **{f"precision_{name}": hits[k] / max(predicted[k], 1) for k, name in enumerate(names)},
        **{f"sensitivity_{name}": sensitivity[k] for k, name in enumerate(names)},
        **{f"f1_{name}": f1[k] for k, name in enumerate(names)},
        **{f"auroc_{name}": area for name, area in zip(names, areas_under)},
        "auroc_macro": float(np.mean(areas_under)),
    }
    if images.boundary is not None:
        hd95, nsd = images.boundary[lesion].T
        found |= {"hd95": float(np.median(hd95)) if len(hd95) else float("nan"), "nsd": mean(nsd)}
    if images.lesions is not None:
        total, hit, false = images.lesions.sum(axis=0)
        found |= {
            "lesion_sensitivity": hit / total if total else float("nan"),
            "false_parts_per_image": false / len(images),
        }
    if {"benign", "malignant"} <= set(names):
        found["auroc_benign_malignant"] = auroc(*images.malignant_against_benign()[1:])
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
    mask_score = single["dice_all_images"] if single["lesion_dice"] is None else single["lesion_dice"]
    scores = [value for value in (mask_score, single["macro_f1"]) if value is not None]
    return {
        "images": len(images),
        "images_by_class": {name: int(count) for name, count in zip(names, support)},
        "lesion_dice": single["lesion_dice"],
        "lesion_iou": single["lesion_iou"],
        "lesion_dice_by_class": {name: single[f"dice_{name}"] for name in names},
        "lesion_iou_by_class": {name: single[f"iou_{name}"] for name in names},
        **{key: single[key] for key in ("dice_all_images", "iou_all_images", "false_mask_rate", "missed_rate")},
        **{key: single[key] for key in LATER if key in single},
        "accuracy": single["accuracy"],
        "macro_f1": single["macro_f1"],
        "by_class": {name: _of_class(single, name, int(n)) for name, n in zip(names, support)} if known else None,
        **{f"auroc_{name}": single[f"auroc_{name}"] for name in (*names, "macro")},
        "confusion_matrix": matrix.tolist() if known else None,
        "score": float(np.mean(scores)),
    }


def _area_ratio(images: Images) -> float:
    found = images.areas[images.lesion & (images.dice >= MISSED_BELOW)]
    return float(np.median(found[:, 0] / found[:, 1])) if len(found) else float("nan")


def _of_class(single: Mapping[str, float | None], name: str, support: int) -> dict:
    recall = single[f"sensitivity_{name}"] or 0.0
    f1, precision = single[f"f1_{name}"], single[f"precision_{name}"]
    return {"precision": precision, "recall": recall, "f1": f1, "images": support}


def mean(values: np.ndarray) -> float:
    """Mean of some values (N,), NaN of none."""
    return float(values.mean()) if len(values) else float("nan")


def images_sha256(rows: Sequence[Mapping[str, object]]) -> str:
    """SHA-256 of what was evaluated: names, true classes and areas of the true masks, a line for each row of
    ``images.csv``, sorted. Two evaluations with the same one are of the same images and labels."""
    lines = sorted(f"{row['filename']},{row['true_class']},{row['true_area_px']}" for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _measured(item: Mapping[str, object]) -> tuple[list[float], str]:
    """``boundary`` and ``lesions`` of an image, and its ``parts``."""
    pred, label = (np.asarray(item[name][0].cpu()) > 0 for name in ("pred", "label"))
    numbered, probabilities = item["parts"]
    count, found = match_parts(numbered, label)
    hits = [found[k - 1] for k in np.unique(numbered[pred]) if k]
    boundary = boundary_agreement(torch.from_numpy(pred), torch.from_numpy(label))
    numbers = [*boundary, count, len(set(hits) - {0}), hits.count(0)]
    return numbers, " ".join(f"{p:.6f}:{k}" for p, k in zip(probabilities, found))


class ImageMetrics(Metric):
    """Ignite metric over decollated items that hold ``pred`` and ``label`` masks, ``true_class`` and ``class_probs``,
    and what ``transforms.LesionMaskd`` adds.

    The log counts the masks that ``component_threshold`` has erased, if any.

    The result is the part of ``summarize`` that is single numbers (NaN for None); the engine's state shows each by its
    name. The class may be unknown (-1). Under ``torch.distributed`` the rows of all ranks are joined.

    Args:
        class_names: names in the order of the class indices.
        output_dir: where ``metrics.json`` and ``images.csv`` (one row an image) are written; nowhere by default.
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
        self._names: list[str] = []  # and in a second line the parts; MONAI joins them by tabulators
        self._values: list[torch.Tensor] = []
        self._computed: dict[str, float] = {}

    def update(self, output: Sequence[dict]) -> None:
        """Take the items of one batch: masks (1, M, N), ``true_class`` an index, ``class_probs`` (classes,)."""
        self._computed = {}
        for item in output:
            numbers = [item["erased"], item[COMPONENT], *overlap(item["pred"], item["label"]), item["true_class"]]
            measured, parts = _measured(item) if self.output_dir else ([float("nan")] * 5, "")
            numbers += measured
            values = torch.tensor([float(number) for number in numbers], dtype=torch.double)
            self._values.append(torch.cat([values, item["class_probs"].cpu().double()]))
            file = item["image"].meta["filename_or_obj"]
            self._names.append(f"{image_name(file, self.root or Path(file).parent)}\n{parts}")

    def compute(self) -> dict[str, float]:
        """Return the single numbers, and write all metrics on the first rank, once however often it is asked.

        Raises:
            ValueError: where no image was seen.
        """
        if self._computed:  # ignite asks for the key metric apart from the others
            return self._computed
        values = torch.stack(self._values) if self._values else torch.zeros(0, 12 + len(self.class_names)).double()
        values = evenly_divisible_all_gather(values)
        names, _, parts = zip(*(text.rpartition("\n") for text in string_list_all_gather(self._names) or ["\n"]))
        if len(values) == 0:
            raise ValueError("no image to evaluate; this part of the datalist is empty")
        # Sorted, so that the order of the ranks leaves no trace.
        order = sorted(range(len(names)), key=lambda i: names[i])
        columns = values[order].numpy()
        erased, component, areas, classes, boundary, lesions, p = np.split(columns, [1, 2, 6, 7, 9, 12], axis=1)
        later = {"boundary": boundary, "lesions": lesions, "parts": np.array(parts, dtype=object)[order]}
        later = {"component": component[:, 0], **(later if self.output_dir else {})}
        images = Images(tuple(self.class_names), classes[:, 0].astype(int), p, areas, **later)
        metrics = summarize(images)
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if first and erased.any():
            logger.info(f"{int(erased.sum())} of {len(images)} masks erased: doubtful by component_threshold")
        if self.output_dir and first:
            rows = [{"filename": names[i], **row} for i, row in zip(order, images.rows())]
            write_csv(Path(self.output_dir) / "images.csv", rows, list(rows[0]))
            source = {**self.source, "images_sha256": images_sha256(rows)}
            write_json(Path(self.output_dir) / "metrics.json", {"notice": NOTICE, **source, **metrics})
            logger.info(f"{len(rows)} images: metrics.json and images.csv in {self.output_dir}")
        metrics = {k: float("nan") if v is None else v for k, v in metrics.items()}
        self._computed = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        return self._computed
