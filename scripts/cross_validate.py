"""Train and test the bundle on every fold of a prepared folder, through the bundle's own commands.

    python scripts/prepare_busi.py --source Dataset_BUSI_with_GT --output runs/folds --folds 5
    python scripts/cross_validate.py --dataset_dir runs/folds --output_dir runs/cross_validation
        [--warm_up_epochs 20] [--finish "{'image_size':256,'epochs':16}"] [--only "[0,1]"] [--epochs 40 ...]

Out: in `fold_0`, `fold_1`, ... each fold's weights, training curve and evaluations; beside them `pictures.csv` (every
picture once, by the network that has not seen it) and `metrics.json` (figures over all pictures and of each fold). Run
again after an interruption, it goes on where it stopped. With --only several processes share the folds; the one that
finds all of them finished joins them. Each fold's probabilities are calibrated with what the other folds' networks
answered about their own test pictures. With --finish, a second training with the options named there starts from the
weights of the first, which stay in `fold_0/start`. Other options go to training and evaluation as they are. Research
software, not a medical device.
"""

import json
import sys
from pathlib import Path

import fire
from calibrate import calibrate
from command_line import as_arguments, run_bundle

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bundle"))

from scripts.command import check_overrides  # noqa: E402
from scripts.files import read_csv, write_csv, write_json  # noqa: E402
from scripts.metrics import summarize  # noqa: E402

CONFIGS = "bundle/configs"


def cross_validate(dataset_dir="", output_dir="", *extra, warm_up_epochs=0, finish=None, only=(), **options):
    """Train and test fold by fold, then calibrate, test with the calibration, and join the tables.

    Args:
        dataset_dir: folder made by scripts/prepare_busi.py with --folds.
        output_dir: folder of all results.
        warm_up_epochs: epochs of the warm-up on each fold's training pictures; 0 for none.
        finish: options of a second training, such as image_size, epochs and learning_rate; none by default.
        only: numbers of the folds to train in this process; all by default.
        options: options of the bundle, such as epochs or image_size; the same ones on each run into one folder.

    Raises:
        ValueError: a folder is missing, the options differ from those of the folder's earlier run, or a fold failed.
    """
    if options.pop("help", None):
        print(__doc__)
        return
    if extra or dataset_dir in ("", True) or output_dir in ("", True):
        raise ValueError("give --dataset_dir, --output_dir and options of the bundle, each with a value")
    dataset, output = Path(str(dataset_dir)).resolve(), Path(str(output_dir)).resolve()
    datalists = sorted(dataset.glob("datalist_fold_*.json"))
    if not datalists:
        raise ValueError(f"{dataset}: no datalist_fold_0.json; prepare the folder with --folds 5")
    only = [only] if isinstance(only, int) else list(only) or list(range(len(datalists)))
    if any(number not in range(len(datalists)) for number in only):
        raise ValueError(f"--only {only}: {dataset} has folds 0 to {len(datalists) - 1}")
    options_file = output / "options.json"
    options = {name: str(value) for name, value in options.items()}
    warmed = {name: value for name, value in options.items() if name not in ("epochs", "learning_rate")}
    warmed |= {"epochs": str(warm_up_epochs)}
    given = as_arguments(options)
    # The last training's options are those of the evaluation too, of which it takes the image size.
    last = as_arguments(options | (finish or {}))
    check_overrides(["run", "--config_file", str(ROOT / CONFIGS / "train.json"), *last])
    options |= {"warm_up_epochs": warm_up_epochs, "finish": finish}
    if options_file.is_file() and json.loads(options_file.read_text(encoding="utf-8")) != options:
        raise ValueError(f"{options_file}: an earlier run had other options; use those or another --output_dir")
    write_json(options_file, options)

    names = json.loads((ROOT / CONFIGS / "train.json").read_text(encoding="utf-8"))["class_names"]
    folders = [output / f"fold_{number}" for number in range(len(datalists))]
    paths_of = [["--bundle_root", "bundle", "--dataset_dir", dataset, "--datalist", datalist] for datalist in datalists]
    for number in only:
        folder, paths = folders[number], paths_of[number]
        if not (folder / "uncalibrated" / "metrics.json").is_file():
            train = ["training", "--config_file", f"{CONFIGS}/train.json", "--resume", "True", *paths]
            start, pretrained = folder / "start" if finish else folder, []
            if warm_up_epochs:
                both = f"['{CONFIGS}/train.json','{CONFIGS}/warm_up.json']"
                warm = ["training", "--config_file", both, "--output_dir", folder / "warm_up", "--resume", "True"]
                run_bundle(f"fold {number}, warm-up", *warm, *as_arguments(warmed), *paths, "--ckpt_dir", folder)
                pretrained = ["--pretrained", folder / "warm_up.pt"]
            first = [*train, "--ckpt_dir", start, "--output_dir", start, *pretrained, *given]
            run_bundle(f"fold {number}, training", *first)
            if finish:
                second = [*train, "--ckpt_dir", folder, "--output_dir", folder, "--pretrained", start / "model.pt"]
                run_bundle(f"fold {number}, second training", *second, *last)
            _test(number, "uncalibrated", folder, [*paths, *last])
    missing = [folder.name for folder in folders if not (folder / "uncalibrated" / "metrics.json").is_file()]
    if missing:
        print(f"finished but for {', '.join(missing)}; the tables are joined when those are done")
        return
    for number, folder in enumerate(folders):
        if not (folder / "testing" / "metrics.json").is_file():
            calibrate(ckpt_dir=folder, cross_validation=output, datalist=datalists[number])
            _test(number, "testing", folder, [*paths_of[number], *last])
    rows, folds = [], []
    for number, folder in enumerate(folders):
        table = read_csv(folder / "testing" / "pictures.csv")
        found = [{key: _number(value) for key, value in row.items()} for row in table]
        rows += [{"fold": number, **row} for row in found]
        folds.append(summarize(found, names))
    write_csv(output / "pictures.csv", rows, list(rows[0]))
    notice = "research software, not a medical device"
    write_json(output / "metrics.json", {"notice": notice, **summarize(rows, names), "folds": folds})
    print(f"{len(rows)} pictures of {len(folds)} folds: {output / 'metrics.json'}")


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def _test(number, title, folder, options):
    both = f"['{CONFIGS}/train.json','{CONFIGS}/evaluate.json']"
    where = ["--ckpt_dir", folder, "--output_dir", folder / title]
    run_bundle(f"fold {number}, {title}", "evaluating", "--config_file", both, *where, *options)


if __name__ == "__main__":
    try:
        fire.Fire(cross_validate)
    except (OSError, ValueError) as error:
        sys.exit(f"cross_validate: {error}")
