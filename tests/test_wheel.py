"""The wheel holds the bundle whole, predicts with what it declares alone, and is what a checkout installs too."""

import json
import os
import re
import subprocess
import sys
import venv
import zipfile

import pytest

from breast_ultrasound.files import read_csv
from conftest import ROOT

VERSION = json.loads((ROOT / "bundle/configs/metadata.json").read_text(encoding="utf-8"))["version"]
BEYOND = (
    "scipy",
    "scikit-learn",
    "matplotlib",
    "pandas",
    "tensorboard",
    "onnx",
    "mlflow-skinny",
    "playwright",
    "black",
)
CARD = (ROOT / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
(LINES,) = re.findall(r"^## From Python\n.*?^```python\n(.*?)^```$", CARD, re.MULTILINE | re.DOTALL)
PREDICT = (
    "import json, sys\n"
    + LINES.replace('"image.png"', "sys.argv[1]").replace("Predictor()", "Predictor(predict_refused=True)")
    + "print(json.dumps([found.class_name, found.class_probabilities, int(found.mask.sum())]))"
)


def pip_wheel(folder):
    """The project's wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / f"breast_ultrasound-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel, built once."""
    return pip_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_holds_what_is_tracked_of_bundle_and_label_app(wheel, tmp_path):
    command = ["git", "ls-files", "bundle", "label_app"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    places = {"bundle/breast_ultrasound/": "", "bundle/": "bundle/", "label_app/": "label_app/"}
    expected = set()
    for name in listed:
        start = next(start for start in places if name.startswith(start))
        expected.add(f"breast_ultrasound/{places[start]}{name.removeprefix(start)}")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert (
            archive.read("breast_ultrasound/bundle/models/model.pt") == (ROOT / "bundle/models/model.pt").read_bytes()
        )
    assert names == expected - {"breast_ultrasound/bundle/LICENSE"}
    assert pip_wheel(tmp_path).read_bytes() == wheel.read_bytes()
    assert wheel.stat().st_size < 25e6


@pytest.mark.slow
def test_a_prediction_needs_the_wheel_and_what_it_declares(wheel, tiny_prepared, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python, console = (tmp_path / "venv" / "bin" / name for name in ("python", "breast-ultrasound"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    image = sorted((tiny_prepared / "images").glob("testing *.png"))[0]

    def run(*command, code=0):
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout if code == 0 else done.stderr

    own = subprocess.run([sys.executable, "-c", PREDICT, image], cwd=ROOT / "bundle", capture_output=True, text=True)
    label, probabilities, area = json.loads(own.stdout.splitlines()[-1])

    def answers_as_here():
        found = json.loads(run(python, "-c", PREDICT, image).splitlines()[-1])
        assert found == [label, pytest.approx(probabilities, abs=1e-5), pytest.approx(area, abs=2)]

    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--constraint", ROOT / "requirements.txt", wheel)
    installed = run(*pip, "list").lower()
    assert "torch" in installed and not [name for name in BEYOND if re.search(rf"^{name}\b", installed, re.MULTILINE)]
    answers_as_here()
    run(console, "predict", image, "--output_dir", "pre dictions", "--batch_size", "1", "--predict_refused", "True")
    (row,) = read_csv(tmp_path / "pre dictions" / "predictions.csv")
    assert row["class"] == label and abs(float(row["lesion_area_px"]) - area) <= 2
    assert "site-packages/breast_ultrasound/bundle" in run(console, "version")
    assert "unknown option --batchsize; did you mean --batch_size?" in run(
        console, "predict", image, "--output_dir", "x", "--batchsize", "1", code=1
    )
    training = ["train", "--dataset_dir", tiny_prepared, "--ckpt_dir", "models", "--output_dir", "curve"]
    assert "pip install 'breast-ultrasound[train]'" in run(console, *training, code=1)
    annotating = ["annotate", "--studies", tiny_prepared / "images"]
    assert "MONAI Label is missing; docs/annotate.md tells" in run(console, *annotating, code=1)

    run(*pip, "install", "--quiet", "--constraint", ROOT / "requirements.txt", f"{wheel}[train]")
    evaluation = ["evaluate", "--dataset_dir", tiny_prepared, "--output_dir", "evaluation"]
    run(console, *training, "--config", "train_quick", "--epochs", "1", "--val_interval", "1", "--image_size", "64")
    run(console, *evaluation, "--ckpt_dir", "models")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["images"] == 6

    run(*pip, "install", "--quiet", "--no-deps", "--force-reinstall", "--editable", ROOT)
    assert f"({ROOT / 'bundle'})" in run(console, "version")
    answers_as_here()


def test_requirements_are_those_of_pyproject(label_venv):
    for python, extra, file in (
        (sys.executable, "dev", "requirements.txt"),
        (label_venv / "bin" / "python", "label", "requirements-label.txt"),
    ):
        command = [str(python), "scripts/tools/pins.py", extra]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert made == (ROOT / file).read_text(encoding="utf-8"), f"{file}: make requirements"
