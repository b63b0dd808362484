"""Leave one site out: what weights answer about a hospital that they have not seen, in the figures of one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import torch
from tools.statistics import DRAWS, difference
from tqdm import tqdm

from breast_ultrasound.files import sha256
from breast_ultrasound.images import NORMAL, open_image, to_mask
from breast_ultrasound.metrics import MISSED_BELOW, auroc
from breast_ultrasound.transforms import LesionMaskd
from study import EVERYTHING, RESULTS
from study.experiments import commit
from study.postprocessing import evaluation

FALSE_MASKS = 0.3  # share of normal images with a mask, at which lesions missed are compared
KEYS = ["name", "seed", "site"]


def components(probability: np.ndarray, truth: np.ndarray, rule: dict[str, float]) -> np.ndarray:
    """The parts of a mask that are large enough, the surest first.

    Args:
        probability: of lesion, (H, W) in [0, 1].
        truth: the true mask, (H, W), bool.
        rule: `mask_threshold` and `smallest_fraction` of the bundle.

    Returns:
        (P, 3): mean probability, area, and pixels shared with the true mask of each.
    """
    to_parts = LesionMaskd(rule["mask_threshold"], rule["smallest_fraction"])
    numbers, means = to_parts({"pred": torch.from_numpy(probability)[None]})["parts"]
    areas, shared = (np.bincount(numbers.ravel(), values, len(means) + 1)[1:] for values in (None, truth.ravel()))
    found = np.column_stack([means, areas, shared])
    return found[np.argsort(-found[:, 0])]


def dice_at(parts: Sequence[np.ndarray], true_area: np.ndarray, threshold: float) -> np.ndarray:
    """(N,) Dice of the masks of all parts at or above a mean probability; 0 where an image has none of them."""
    kept = [found[found[:, 0] >= threshold, 1:].sum(axis=0) for found in parts]
    area, shared = np.array(kept).reshape(-1, 2).T
    return 2 * shared / np.maximum(area + true_area, 1)


def figures(table: pandas.DataFrame, parts: Sequence[np.ndarray], threshold: float) -> dict[str, float]:
    """The row of a site.

    Args:
        table: N rows with `true_class`, `true_area`, `group` and the probabilities `p_normal` and so on.
        parts: of each image, as `components` has them.
        threshold: `component_threshold` of the bundle.

    Returns:
        Dice of lesions, lesions missed and normals with a mask at this threshold; lesions missed where a mask lies on
        30 % of the normals; AUROC of "there is a lesion" by the best part, by p(normal) and by their sum; AUROC of
        malignant against benign among lesions, by image and by the largest of a group's images.
    """
    lesion = table.true_area.to_numpy() > 0
    best = np.array([found[0, 0] if len(found) else 0.0 for found in parts])
    lesions = [found for found, is_lesion in zip(parts, lesion) if is_lesion]
    areas = table.true_area.to_numpy()[lesion]
    dice = dice_at(lesions, areas, threshold)
    found = {
        "images": len(table),
        "lesion_dice": dice.mean(),
        "missed_rate": (dice < MISSED_BELOW).mean(),
    }
    classes = table[[c for c in table if c.startswith("p_")]].to_numpy()
    names = [c.removeprefix("p_") for c in table if c.startswith("p_")]
    found["accuracy"] = (np.array(names)[classes.argmax(1)] == table.true_class).mean()
    if not lesion.all():
        limit = np.quantile(best[~lesion], 1 - FALSE_MASKS, method="higher")
        found |= {
            "false_mask_rate": (best[~lesion] >= threshold).mean(),
            "missed_at_30_false": (dice_at(lesions, areas, limit) < MISSED_BELOW).mean(),
            "presence_mask": auroc(lesion, best),
            "presence_class": auroc(lesion, 1 - table[f"p_{NORMAL}"].to_numpy()),
            "presence": auroc(lesion, best + 1 - table[f"p_{NORMAL}"].to_numpy()),
        }
    pair = table[table.true_class.isin(["benign", "malignant"])]
    pair = pair.assign(score=pair.p_malignant / (pair.p_benign + pair.p_malignant))
    found["malignant_benign"] = auroc((pair.true_class == "malignant").to_numpy(), pair.score.to_numpy())
    groups = pair.groupby(["group", "true_class"]).score.max().reset_index()
    found["malignant_benign_by_group"] = auroc((groups.true_class == "malignant").to_numpy(), groups.score.to_numpy())
    return found


@dataclass(frozen=True, eq=False)
class Answered:
    """What weights say of N images of a site.

    Args:
        table: as `figures` takes it.
        parts: as `figures` takes them.
        threshold: `component_threshold` of the bundle.
    """

    table: pandas.DataFrame
    parts: Sequence[np.ndarray]
    threshold: float

    def take(self, index: np.ndarray) -> Answered:
        """The images of an index (M,)."""
        return Answered(self.table.iloc[index], [self.parts[i] for i in index], self.threshold)

    def figures(self) -> dict[str, float]:
        """As the function of that name."""
        return figures(self.table, self.parts, self.threshold)


def answered(options: dict[str, str]) -> tuple[dict[str, object], Answered]:
    """What made a row, and the answers, for the options of an evaluation of the bundle."""
    predictor, items = evaluation(options)
    rows, parts = [], []
    for item in tqdm(items, desc=options["dataset_dir"]):
        answer = predictor(item["image"])
        truth = to_mask(open_image(item["label"])) > 0
        parts.append(components(answer.lesion_probability, truth, predictor.mask_rule))
        about = {"true_class": predictor.class_names[item["class"]], "true_area": int(truth.sum())}
        rows.append(
            {**about, "group": item.get("group"), **{f"p_{k}": v for k, v in answer.class_probabilities.items()}}
        )
    rule = predictor.mask_rule
    made = {"image_size": predictor.config.get_parsed_content("image_size")}
    made["weights_sha256"] = sha256(Path(options["ckpt_dir"]) / "model.pt")
    return {**rule, **made}, Answered(pandas.DataFrame(rows), parts, rule["component_threshold"])


def score_site(
    ckpt_dir: Path,
    dataset_dir: Path,
    name: str,
    seed: int = 0,
    split: str = EVERYTHING,
    output: Path = RESULTS / "sites.csv",
    **options: object,
) -> Answered:
    """Add a row to a table, in place of an earlier one of that name, seed and site, and return the answers behind it.

    Args:
        ckpt_dir: folder of the weights.
        dataset_dir: prepared set of the site.
        name: of the weights, or of the trial.
        seed: of their training.
        split: whose images are asked about.
        output: CSV file.
        options: of the bundle.
    """
    where = {"ckpt_dir": str(ckpt_dir), "dataset_dir": str(dataset_dir), "split": split}
    made, answers = answered({**where, **{key: str(value) for key, value in options.items()}})
    row = {"name": name, "seed": seed, "site": Path(dataset_dir).name}
    row |= {k: round(v, 4) for k, v in answers.figures().items()}
    table = pandas.read_csv(output) if Path(output).is_file() else pandas.DataFrame()
    if len(table):
        table = table[(table[KEYS].astype(str) != pandas.Series(row)[KEYS].astype(str)).any(axis=1)]
    table = pandas.concat([table, pandas.DataFrame([row | made | {"commit": commit()}])])
    table.to_csv(output, index=False)
    print(pandas.DataFrame([row]).to_string(index=False))
    return answers


def compare(first: Answered, second: Answered, draws: int = DRAWS) -> dict[str, dict[str, float]]:
    """How much more of each figure the second answers have, with the paired interval over groups of images.

    Args:
        first: answers about a site.
        second: others about the same images.
        draws: of the bootstrap.

    Returns:
        `difference`, `low` and `high` by figure.
    """
    groups = first.table.group.astype(str).to_numpy()
    found = difference(Answered.figures, first, second, groups, draws, "difference")
    return {
        name: {"difference": round(each.value, 4), "low": round(each.low, 4), "high": round(each.high, 4)}
        for name, each in found.items()
        if name != "images"
    }
