"""Other versions of Python and packages than the pinned ones, each from phantoms to predictions of the released weights
in an environment of its own: `nox -f study/noxfile.py`. Interpreters come from the PATH (pyenv and uv install them);
half an hour, 20 GB of downloads. `--report FILE` writes as JSON which sessions worked."""

import csv
import os
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "versions"
SMALL = ["--image_size", "64", "--features", "[8,8,16,16,32,8]", "--epochs", "2", "--batch_size", "4"]
nox.options.error_on_missing_interpreters = True


def probabilities(session: str) -> list[float]:
    """What a session predicted for its phantoms."""
    with open(RUNS / session / "predictions/predictions.csv", newline="", encoding="utf-8") as file:
        return [float(row[key]) for row in csv.DictReader(file) for key in row if key.startswith("p_")]


def walk(session: nox.Session, first: str = "pinned-3.11") -> None:
    """From nothing to predictions, which must be those of the first session, where that has run, to five digits."""
    session.chdir(ROOT)
    session.env.update({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    here = Path(os.path.relpath(RUNS / session.name, ROOT))
    bundle, config = ["-m", "monai.bundle", "run"], ["--bundle_root", "bundle", "--config_file"]
    data = ["--dataset_dir", str(here / "data"), "--ckpt_dir", str(here / "models"), "--output_dir", str(here / "out")]
    images = ["--dataset_dir", str(here / "data/images"), "--output_dir", str(here / "predictions"), "--amp", "False"]
    evaluation = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
    for command in (
        ["scripts/make_phantoms.py", "--output_dir", str(here / "phantoms"), "--count", "12"],
        ["scripts/prepare_busi.py", "--source", str(here / "phantoms"), "--output_dir", str(here / "data")],
        [*bundle, "training", *config, "bundle/configs/train.json", *data, *SMALL],
        [*bundle, "evaluating", *config, evaluation, *data],
        [*bundle, *config, "bundle/configs/inference.json", *images],
    ):
        session.run("python", *command)
    if (RUNS / first / "predictions/predictions.csv").is_file():
        pairs = zip(probabilities(session.name), probabilities(first), strict=True)
        difference = max(abs(own - other) for own, other in pairs)
        session.log(f"largest difference of a probability from {first}: {difference:.0e}")
        if difference > 1e-5:
            session.error(f"probabilities differ from those of {first} by {difference:.0e}")


@nox.session(python=["3.11", "3.12", "3.13"])
def pinned(session: nox.Session) -> None:
    """What requirements.txt pins."""
    session.install("-r", "requirements.txt")
    walk(session)


@nox.session(python=["3.10", "3.13"])
def newest(session: nox.Session) -> None:
    """The newest that fit."""
    session.install(".[scripts]")
    walk(session)


@nox.session(python="3.10")
def oldest(session: nox.Session) -> None:
    """The oldest that pyproject.toml allows."""
    session.install(".[scripts]", "monai==1.6.0", "torch==2.4.1", "numpy==1.26.4")
    walk(session)
