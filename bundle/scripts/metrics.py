"""The figures of an evaluation, from one row a picture. README and metadata explain them in words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.metrics import Metric
from monai.utils import evenly_divisible_all_gather, string_list_all_gather
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from .files import NOTICE, write_csv, write_json

logger = logging.getLogger(__name__)
MISSED_BELOW = 0.1  # a lesion counts as missed where its Dice is under this value


def overlap(pred: torch.Tensor, label: torch.Tensor) -> tuple[int, int, int, int]:
    """Pixels of the predicted mask, the true one, both, and the picture; masks of any one shape, foreground > 0."""
    pred, label = pred > 0, label > 0
    return int(pred.sum()), int(label.sum()), int((pred & label).sum()), label.numel()


def picture_row(counts: Sequence[int], probabilities: Sequence[float], true_class: int, class_names) -> dict:
    """One picture's row: areas in pixels, Dice and IoU in [0, 1], classes by name; a class of -1 (unknown) is empty.

    Where both masks are empty, Dice and IoU are 1; where only one is, 0. MONAI's handlers drop such pictures instead.
    """
    predicted, true, both, picture = counts
    union = predicted + true - both
    return {
        "true_class": class_names[true_class] if true_class >= 0 else "",
        "predicted_class": class_names[int(np.argmax(probabilities))],
        **{f"p_{name}": float(p) for name, p in zip(class_names, probabilities)},
        "predicted_area_px": predicted,
        "true_area_px": true,
        "overlap_px": both,
        "picture_px": picture,
        "dice": 2 * both / (predicted + true) if union else 1.0,
        "iou": both / union if union else 1.0,
    }


def summarize(rows: Sequence[dict], class_names: Sequence[str]) -> dict:
    """Condense rows of ``picture_row`` to the figures of an evaluation.

    A "lesion picture" has a true mask that is not empty. Means are over pictures. A figure that the pictures cannot
    give (an AUROC without one of the classes, a mean over no picture) is None. Pictures of unknown class count for the
    mask alone.

    Returns:
        counts, ``lesion_dice``/``lesion_iou`` (mean and by class), ``dice_all_pictures``, ``false_mask_rate`` (share of
        pictures without lesion whose predicted mask is not empty), ``missed_rate`` (share of lesion pictures with Dice
        under 0.1), ``accuracy``, ``macro_f1``, ``by_class``, ``auroc_<class>`` (one against the rest), ``auroc_macro``,
        ``confusion_matrix`` (rows true, columns predicted, in the order of ``class_names``), and ``score``, the mean of
        lesion Dice (or Dice of all pictures where there is no lesion) and macro F1 (where a class is known).
    """
    class_names = list(class_names)
    lesions = [r for r in rows if r["true_area_px"] > 0]
    healthy = [r for r in rows if r["true_area_px"] == 0]
    lesion_dice, dice_all = _mean(lesions, "dice"), _mean(rows, "dice")
    mask_score = dice_all if lesion_dice is None else lesion_dice
    class_figures = _class_figures([r for r in rows if r["true_class"]], class_names)
    return {
        "pictures": len(rows),
        "pictures_by_class": {name: sum(r["true_class"] == name for r in rows) for name in class_names},
        "lesion_dice": lesion_dice,
        "lesion_iou": _mean(lesions, "iou"),
        "lesion_dice_by_class": {n: _mean([r for r in lesions if r["true_class"] == n], "dice") for n in class_names},
        "lesion_iou_by_class": {n: _mean([r for r in lesions if r["true_class"] == n], "iou") for n in class_names},
        "dice_all_pictures": dice_all,
        "iou_all_pictures": _mean(rows, "iou"),
        "false_mask_rate": float(np.mean([r["predicted_area_px"] > 0 for r in healthy])) if healthy else None,
        "missed_rate": float(np.mean([r["dice"] < MISSED_BELOW for r in lesions])) if lesions else None,
        **class_figures,
        "score": float(np.mean([v for v in (mask_score, class_figures["macro_f1"]) if v is not None])),
    }


def _class_figures(rows: Sequence[dict], class_names: list[str]) -> dict:
    """The figures of ``summarize`` that need the true class; all None without rows."""
    if not rows:
        auroc = [f"auroc_{name}" for name in (*class_names, "macro")]
        return dict.fromkeys(["accuracy", "macro_f1", "by_class", *auroc, "confusion_matrix"])
    true = [r["true_class"] for r in rows]
    predicted = [r["predicted_class"] for r in rows]
    probabilities = np.array([[r[f"p_{name}"] for name in class_names] for r in rows])
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=class_names, zero_division=0.0
    )
    auroc = [_auroc(np.array(true) == name, probabilities[:, index]) for index, name in enumerate(class_names)]
    return {
        "accuracy": float(np.mean(np.array(true) == np.array(predicted))),
        # Classes that these pictures do not hold would pull the average down to no purpose.
        "macro_f1": float(np.mean([f for f, s in zip(f1, support) if s])),
        "by_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "pictures": int(s)}
            for name, p, r, f, s in zip(class_names, precision, recall, f1, support)
        },
        **{f"auroc_{name}": value for name, value in zip(class_names, auroc)},
        "auroc_macro": None if None in auroc else float(np.mean(auroc)),
        "confusion_matrix": confusion_matrix(true, predicted, labels=class_names).tolist(),
    }


def _mean(rows: Sequence[dict], key: str) -> float | None:
    return float(np.mean([r[key] for r in rows])) if rows else None


def _auroc(positive: np.ndarray, scores: np.ndarray) -> float | None:
    return float(roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else None


class PictureMetrics(Metric):
    """Ignite metric over decollated items that hold ``pred`` and ``label`` masks, ``true_class`` and ``class_probs``.

    The result is the part of ``summarize`` that is single numbers (NaN for None); the engine's state shows each by its
    name. The class may be unknown (-1). Under ``torch.distributed`` the rows of all ranks are joined.

    Args:
        class_names: names in the order of the class indices.
        output_dir: where ``metrics.json`` and ``pictures.csv`` (one row a picture) are written; nowhere by default.
        source: what else ``metrics.json`` shall say of where the figures come from, such as the part of the data.
    """

    def __init__(self, class_names: Sequence[str], output_dir: str | None = None, source: dict | None = None) -> None:
        self.class_names = list(class_names)
        self.output_dir = output_dir
        self.source = source or {}
        super().__init__(output_transform=lambda output: output)

    def reset(self) -> None:
        """Forget all pictures."""
        self._names: list[str] = []
        self._values: list[torch.Tensor] = []

    def update(self, output: Sequence[dict]) -> None:
        """Take the items of one batch: masks (1, M, N), ``true_class`` an index, ``class_probs`` (classes,)."""
        for item in output:
            numbers = [*overlap(item["pred"], item["label"]), int(item["true_class"])]
            self._values.append(torch.cat([torch.tensor(numbers).double(), item["class_probs"].cpu().double()]))
            self._names.append(_file_name(item))

    def compute(self) -> dict[str, float]:
        """Return the single numbers, and write all figures on the first rank.

        Raises:
            ValueError: where no picture was seen.
        """
        values = torch.stack(self._values) if self._values else torch.zeros(0, 5 + len(self.class_names)).double()
        values = evenly_divisible_all_gather(values)
        names = string_list_all_gather(self._names)
        if len(values) == 0:
            raise ValueError("no picture to evaluate; this part of the datalist is empty")
        # Sorted, so that the order of the ranks leaves no trace.
        order = sorted(range(len(names)), key=lambda i: names[i])
        rows = []
        for i in order:
            *counts, true_class = [int(v) for v in values[i, :5]]
            row = picture_row(counts, values[i, 5:].tolist(), true_class, self.class_names)
            rows.append({"filename": names[i], **row})
        figures = summarize(rows, self.class_names)
        if self.output_dir and (not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0):
            write_csv(Path(self.output_dir) / "pictures.csv", rows, list(rows[0]))
            write_json(Path(self.output_dir) / "metrics.json", {"notice": NOTICE, **self.source, **figures})
            logger.info(f"{len(rows)} pictures: metrics.json and pictures.csv in {self.output_dir}")
        figures = {k: float("nan") if v is None else v for k, v in figures.items()}
        return {k: float(v) for k, v in figures.items() if isinstance(v, (int, float))}


def _file_name(item: dict) -> str:
    return Path(str(item["image"].meta["filename_or_obj"])).name
