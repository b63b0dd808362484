"""The bundle's network against those of other libraries: trained and tested on the same images by the same pipeline.

Trained on BUSI and BUS-BRA (training and validation splits), tested on all of BUS-UCLM and of BrEaST. Each map becomes
a mask by the bundle's rule and, beside it, wherever it reaches 0.5; of a peer the differences take the rule by which
its Dice is the better one at that site.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from tools.cli import run_bundle
from tools.statistics import DRAWS, difference
from tqdm import tqdm

from breast_ultrasound.files import sha256, write_csv
from breast_ultrasound.images import open_image, to_mask
from breast_ultrasound.metrics import MISSED_BELOW, auroc, mean
from study import EVERYTHING
from study.experiments import commit
from study.peers import networks  # noqa: F401  (so that the bundle knows the networks of their weights)
from study.postprocessing import evaluation
from study.sites import components, dice_at, figures

FOLDER = Path(__file__).resolve().parent
OURS = "ours"
CONFIGS = {OURS: "train_pretrained", "smp": FOLDER / "smp.json", "nnunet": FOLDER / "nnunet.json"}
MASK_ONLY = ("nnunet",)
SEEDS = (0,)
EPOCHS = 6
TRAINED_ON = ("clean", "bus_bra")
TESTED_ON = ("bus_uclm", "external")
BUNDLE_RULE, PLAIN_RULE = "bundle", "0.5"
# Every part has a mean of 0.5 or more then: none is erased
PLAIN = {"mask_threshold": 0.5, "smallest_fraction": 0.0, "component_threshold": 0.5}
OF_CLASS = ("accuracy", "presence_class", "presence", "malignant_benign", "malignant_benign_by_group")
SETTINGS = ("mask_threshold", "smallest_fraction", "component_threshold", "weights_sha256")


def train_and_score(network: str, seed: int, runs: Path, **options: object) -> None:
    """Train a network with a seed, unless its weights are there, and note its answers at each site, unless they are.

    Args:
        network: name in `CONFIGS`.
        seed: of the training.
        runs: folder of the prepared sets; `peers/NETWORK_SEED` in it gets the weights and a table a site.
        options: of the bundle, for the training.

    Raises:
        ValueError: there is no such network, or the training failed.
    """
    if network not in CONFIGS:
        raise ValueError(f"--network {network}: none of {', '.join(CONFIGS)}")
    folder = runs / "peers" / f"{network}_{seed}"
    if not (folder / "model.pt").is_file():
        where = {"ckpt_dir": folder, "output_dir": folder, "resume": True, "seed": seed}
        data = {"datalist": {str(runs / name / "datalist.json"): 1 for name in TRAINED_ON}}
        data |= {"train_split": "training+validation"}
        length = {"epochs": EPOCHS, "val_interval": options.get("epochs", EPOCHS)}
        run_bundle(folder.name, "training", ["train", CONFIGS[network]], **where, **data, **length | options)
    for site in TESTED_ON:
        if not (folder / f"{site}.csv").is_file():
            rows = answers(folder, runs / site)
            write_csv(folder / f"{site}.csv", rows, list(rows[0]))


def answers(ckpt_dir: Path, dataset_dir: Path) -> list[dict]:
    """What weights say of each image of a prepared set: a row for each rule, with the parts of its mask."""
    where = {"ckpt_dir": str(ckpt_dir), "dataset_dir": str(dataset_dir), "split": EVERYTHING}
    predictor, items = evaluation(where)
    digest, rows = sha256(ckpt_dir / "model.pt"), []
    for item in tqdm(items, desc=f"{ckpt_dir.name}, {dataset_dir.name}", disable=None):
        answer = predictor(item["image"])
        truth = to_mask(open_image(item["label"])) > 0
        about = {"filename": Path(item["image"]).name, "group": item["group"]}
        about |= {"true_class": predictor.class_names[item["class"]], "true_area": int(truth.sum())}
        about |= {f"p_{name}": round(p, 6) for name, p in answer.class_probabilities.items()}
        for name, rule in {BUNDLE_RULE: predictor.mask_rule, PLAIN_RULE: PLAIN}.items():
            parts = components(answer.lesion_probability, truth, rule).round(6).tolist()
            rows.append(about | {"rule": name, "parts": json.dumps(parts), **rule, "weights_sha256": digest})
    return rows


def read_answers(runs: Path, network: str, seed: int, site: str) -> dict[str, pandas.DataFrame]:
    """The rows of `answers` by rule, `parts` as arrays (P, 3).

    Raises:
        FileNotFoundError: they are not there.
    """
    file = runs / "peers" / f"{network}_{seed}" / f"{site}.csv"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; python -m study.peers --network {network} --seed {seed} makes it")
    table = pandas.read_csv(file, dtype={"rule": str, "group": str})
    table["parts"] = [np.array(json.loads(text)).reshape(-1, 3) for text in table.parts]
    return {rule: found.reset_index(drop=True) for rule, found in table.groupby("rule")}


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network of S seeds says of N images.

    Args:
        true_class: (N,) names.
        lesion: (N,) whether there is one.
        dice: (N, S), 0 without a mask.
        masked: (N, S) whether there is a mask.
        hit: (N, S) whether the class is right.
        malignancy: (N, S) p(malignant) of that of both kinds of lesions.
    """

    true_class: np.ndarray
    lesion: np.ndarray
    dice: np.ndarray
    masked: np.ndarray
    hit: np.ndarray
    malignancy: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[pandas.DataFrame]) -> Answers:
        """From a table for each seed, of one rule."""
        first, threshold = tables[0], tables[0].component_threshold[0]
        areas = first.true_area.to_numpy()
        p = np.stack([t[[f"p_{name}" for name in ("normal", "benign", "malignant")]].to_numpy() for t in tables], 1)
        names = np.array(["normal", "benign", "malignant"])
        return cls(
            first.true_class.to_numpy(dtype=str),
            areas > 0,
            np.stack([dice_at(t.parts, areas, threshold) for t in tables], 1),
            np.stack([[(found[:, 0] >= threshold).any() for found in t.parts] for t in tables], 1),
            names[p.argmax(2)] == first.true_class.to_numpy(dtype=str)[:, None],
            p[..., 2] / np.maximum(p[..., 1] + p[..., 2], 1e-9),
        )

    def take(self, index: np.ndarray) -> Answers:
        """The images of an index (M,)."""
        return Answers(*(values[index] for values in vars(self).values()))


def measures(found: Answers) -> dict[str, float]:
    """Figures, each the mean over the seeds; NaN where the images cannot give it."""
    pair = np.isin(found.true_class, ("benign", "malignant"))
    malignant = found.true_class[pair] == "malignant"
    return {
        "lesion_dice": mean(found.dice[found.lesion].ravel()),
        "missed_rate": mean((found.dice[found.lesion] < MISSED_BELOW).ravel()),
        "false_mask_rate": mean(found.masked[~found.lesion].ravel()),
        "accuracy": mean(found.hit.ravel()),
        "malignant_benign": mean(np.array([auroc(malignant, p) for p in found.malignancy[pair].T])),
    }


def tabulate(runs: Path, output: Path, differences: Path, seeds: Sequence[int] = SEEDS, draws: int = DRAWS) -> None:
    """Write both tables from the answers that `train_and_score` noted.

    Args:
        runs: as there.
        output: CSV file, a row for each network, seed, site and rule.
        differences: CSV file, ours minus the peer's, means over the seeds with paired intervals over groups of images.
        seeds: of the trainings.
        draws: of the bootstrap.

    Raises:
        FileNotFoundError: a training is missing.
    """
    rows, compared = [], []
    for site in TESTED_ON:
        found = {}
        for network in CONFIGS:
            tables = [read_answers(runs, network, seed, site) for seed in seeds]
            for rule in (BUNDLE_RULE, PLAIN_RULE):
                found[network, rule] = Answers.of([table[rule] for table in tables])
                rows += [_row(table[rule], network, seed, site, rule) for seed, table in zip(seeds, tables)]
        groups = tables[0][BUNDLE_RULE].group.to_numpy()
        ours = found[OURS, BUNDLE_RULE]
        for peer in CONFIGS:
            if peer != OURS:
                values = {rule: measures(found[peer, rule]) for rule in (BUNDLE_RULE, PLAIN_RULE)}
                rule = max(values, key=lambda name: values[name]["lesion_dice"])
                title = f"{peer}, {site}"
                for name, each in difference(measures, found[peer, rule], ours, groups, draws, title).items():
                    if np.isnan(each.value) or (peer in MASK_ONLY and name in OF_CLASS):
                        continue
                    row = {"peer": peer, "site": site, "rule": rule, "figure": name, "ours": measures(ours)[name]}
                    row |= {"of_peer": values[rule][name], "difference": each.value, "low": each.low, "high": each.high}
                    compared.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    pandas.DataFrame(rows).to_csv(output, index=False)
    pandas.DataFrame(compared).to_csv(differences, index=False)
    print(pandas.DataFrame(compared).to_string(index=False))


def _row(table: pandas.DataFrame, network: str, seed: int, site: str, rule: str) -> dict:
    about = table.drop(columns=["parts"])
    found = figures(about, table.parts, table.component_threshold[0])
    found = {name: value for name, value in found.items() if network not in MASK_ONLY or name not in OF_CLASS}
    made = {name: table[name][0] for name in SETTINGS}
    row = {"name": network, "seed": seed, "site": site, "rule": rule, **{k: round(v, 4) for k, v in found.items()}}
    return {**row, **made, "epochs": EPOCHS, "commit": commit()}


def compare(runs: Path, output: Path, differences: Path) -> None:
    """Train, score and tabulate, whatever is not there yet."""
    for network in CONFIGS:
        for seed in SEEDS:
            train_and_score(network, seed, runs)
    tabulate(runs, output, differences)
