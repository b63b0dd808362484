"""Train and test the bundle on every fold of a prepared folder, through the bundle's own commands.

    python scripts/prepare_busi.py --source Dataset_BUSI_with_GT --output_dir runs/folds --folds 5
    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/cross_validation
        [--with_sets "{'runs/bus_bra/datalist.json': 1}"] [--only "[0,1]"] [--epochs 40 ...]

or with the recipe of the small network, models/small, in four commands:

    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/folds_first --config train_joint
        --with_sets "{'runs/bus_bra/datalist.json': 1}"
    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/folds_round_0 --config train_round
        --with_sets "{'runs/bus_bra/datalist.json': 1}" --after runs/folds_first --seed 0; the same with 1 for 0
    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/folds_mean
        --mean_of "['runs/folds_round_0','runs/folds_round_1']"

or as the published cross-validation of the released weights, from those that have not seen BUSI, in two commands:

    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/folds_round --config train_pretrained
        --with_sets "{'runs/bus_bra/datalist.json': 1, 'runs/bus_uclm/datalist.json': 1}"
        --pretrained study/weights/without_busi/model.pt --train_split training+validation --epochs 4 --val_interval 4
        --seed 1
    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/cross_validation
        --mean_of "['study/weights/without_busi','runs/folds_round']"

Out: in `fold_0`, `fold_1`, ... each fold's weights, training curve and evaluations; beside them `images.csv` (every
image once, by the network that has not seen it) and `metrics.json` (figures over all images and of each fold). Run
again after an interruption, it goes on where it stopped. With --only several processes share the folds; the one that
finds all of them finished joins them. Each fold's probabilities are calibrated with what the other folds' networks
answered about their own test images. With --with_sets, other prepared sets train beside each fold, as often as their
weights say. With --after each fold's training begins with the weights of that earlier cross-validation; with --mean_of
nothing is trained, each fold has the mean of the weights of several earlier ones; a folder of weights without folds
counts in each. --config names a further config of the bundle for the trainings; other options go to training and
evaluation as they are.
"""

from __future__ import annotations

import json
from pathlib import Path

from average_weights import average_weights
from calibrate import calibrate
from tools.cli import CONFIGS, as_arguments, as_ids, run, run_bundle


def cross_validate(
    dataset_dir: Path,
    output_dir: Path,
    with_sets: dict | None = None,
    only: tuple[int, ...] = (),
    after: Path | None = None,
    mean_of: tuple[Path, ...] = (),
    config: str = "",
    **options: str,
) -> None:
    """Train and test fold by fold, then calibrate, test with the calibration, and join the tables.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py with --folds.
        output_dir: folder of all results.
        with_sets: `{datalist: weight}` of sets that train beside each fold, whose own weight is 1; none by default.
        only: numbers of the folds to train in this process; all by default.
        after: output folder of an earlier cross-validation, whose weights the folds start from; none by default.
        mean_of: output folders of earlier cross-validations, whose weights are averaged in place of a training; weights
            in one of these folders itself, `model.pt`, are those of every fold.
        config: a further config of the bundle over train.json, such as train_joint, whose sets give way to the folds.
        options: options of the bundle, such as epochs or image_size; the same ones on each run into one folder.

    Raises:
        ValueError: a folder is missing, the options differ from those of the folder's earlier run, or a fold failed.
    """
    from breast_ultrasound.command import check_overrides
    from breast_ultrasound.files import sha256, write_json

    with_sets = {str(Path(path).resolve()): weight for path, weight in (with_sets or {}).items()}
    dataset, output = dataset_dir.resolve(), output_dir.resolve()
    datalists = sorted(dataset.glob("datalist_fold_*.json"))
    if not datalists:
        raise ValueError(f"{dataset}: no datalist_fold_0.json; prepare the folder with --folds 5")
    only = list(only) or list(range(len(datalists)))
    if any(number not in range(len(datalists)) for number in only):
        raise ValueError(f"--only {only}: {dataset} has folds 0 to {len(datalists) - 1}")
    options_file = output / "options.json"
    configs = ["train", *filter(None, [config])]
    files = [str(CONFIGS / f"{name}.json") for name in configs]
    check_overrides(["run", "--config_file", str(files), *as_arguments(as_ids(options))])
    starts = {"after": str(after.resolve()) if after else "", "mean_of": [str(path.resolve()) for path in mean_of]}
    kept = options | {"with_sets": with_sets, "config": config, **starts}
    hashes = {"datalists_sha256": {path.name: sha256(path) for path in datalists} | {p: sha256(p) for p in with_sets}}
    kept |= hashes
    # An earlier version kept no hashes
    before = hashes | json.loads(options_file.read_text(encoding="utf-8")) if options_file.is_file() else kept
    other = [name for name in {**before, **kept} if before.get(name) != kept.get(name)]
    if other:
        told = "data (its folds were drawn anew)" if other == ["datalists_sha256"] else f"options ({other[0]})"
        raise ValueError(f"{options_file}: an earlier run had other {told}; use those or another --output_dir")
    write_json(options_file, kept)

    folders = [output / f"fold_{number}" for number in range(len(datalists))]
    paths_of = [{"dataset_dir": dataset, "datalist": datalist} for datalist in datalists]
    for number in only:
        folder = folders[number]
        if not (folder / "uncalibrated" / "metrics.json").is_file():
            if mean_of:
                folder.joinpath("model.pt").unlink(missing_ok=True)
                average_weights(tuple(_of_fold(path, folder.name) for path in mean_of), folder)
            else:
                lists = {str(datalists[number]): 1, **with_sets} if with_sets else datalists[number]
                start = {"pretrained": after.resolve() / folder.name / "model.pt"} if after else {}
                _train(number, folder, configs, dataset_dir=dataset, datalist=lists, **start, **options)
            _test(number, "uncalibrated", folder, **paths_of[number], **options)
    missing = [folder.name for folder in folders if not (folder / "uncalibrated" / "metrics.json").is_file()]
    if missing:
        print(f"finished but for {', '.join(missing)}; the tables are joined when those are done")
        return
    for number, folder in enumerate(folders):
        if not (folder / "testing" / "metrics.json").is_file():
            calibrate(ckpt_dir=folder, cross_validation=output, datalist=datalists[number])
            _test(number, "testing", folder, **paths_of[number], **options)
    _join(output, folders)


def _of_fold(path: Path, name: str) -> Path:
    """The folder of a fold's weights, or the one of weights that all folds share."""
    return path if (path / "model.pt").is_file() else path / name


def _train(number: int, folder: Path, configs: list[str], **options: object) -> None:
    where = {"ckpt_dir": folder, "output_dir": folder, "resume": True}
    run_bundle(f"fold {number}, training", "training", configs, **where, **options)


def _test(number: int, title: str, folder: Path, **options: object) -> None:
    where = {"ckpt_dir": folder, "output_dir": folder / title}
    run_bundle(f"fold {number}, {title}", "evaluating", ["train", "evaluate"], **where, **options)


def _join(output: Path, folders: list[Path]) -> None:
    """Write the tables of all folds together."""
    from breast_ultrasound.files import NOTICE, read_csv, write_csv, write_json
    from breast_ultrasound.metrics import Images, summarize

    rows, folds = [], []
    for number, folder in enumerate(folders):
        table = read_csv(folder / "testing" / "images.csv")
        names = [key.removeprefix("p_") for key in table[0] if key.startswith("p_")]
        rows += [{"fold": number, **row} for row in table]
        folds.append(json.loads((folder / "testing" / "metrics.json").read_text(encoding="utf-8")))
    write_csv(output / "images.csv", rows, list(rows[0]))
    write_json(output / "metrics.json", {"notice": NOTICE, **summarize(Images.from_rows(rows, names)), "folds": folds})
    print(f"{len(rows)} images of {len(folds)} folds: {output / 'metrics.json'}")


if __name__ == "__main__":
    run(cross_validate, record=True)
