"""Two bundles in one process: those whose packages share a name get each other's code; ours goes with any other."""

import json
import shutil
import subprocess
import sys

import pytest
from label_server import SHIM, environment

from conftest import ROOT

# What MONAI does with a bundle's folder, one after the other in one process
LOAD = """
import json, sys
from monai.bundle import ConfigParser
found = []
for folder, target in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    config = ConfigParser({"step": {"_target_": target}})
    found.append(sys.modules[type(config.get_parsed_content("step")).__module__].__file__)
print(json.dumps(found))
"""

# The same by MONAI Label's own task, which also predicts
LABEL = """
import json, sys
from monailabel.tasks.infer.bundle import BundleInferTask
tasks = [BundleInferTask(folder, {}) for folder in sys.argv[2:]]
print(json.dumps([task({"image": sys.argv[1], "device": "cpu", "result_extension": ".png"})[1] for task in tasks * 2]))
"""


def toy_bundle(folder, package):
    """A bundle with one transform in a package of this name."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    (folder / package / "transforms.py").write_text("class Step:\n    pass\n")
    return folder


def loaded_from(*bundles):
    """The files that the transforms come from, of bundles (folder, name of a class) that are loaded in this order."""
    given = json.dumps([[str(folder), target] for folder, target in bundles])
    done = subprocess.run([sys.executable, "-c", LOAD, given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_package_name_that_two_bundles_share_gives_the_second_the_code_of_the_first(tmp_path):
    first, second = (toy_bundle(tmp_path / name, "scripts") for name in ("first", "second"))
    target = "scripts.transforms.Step"
    assert loaded_from((first, target), (second, target)) == [str(first / "scripts" / "transforms.py")] * 2


def test_this_bundle_goes_with_one_whose_package_is_called_scripts(tmp_path):
    other, own = toy_bundle(tmp_path / "other", "scripts"), ROOT / "bundle"
    bundles = [(other, "scripts.transforms.Step"), (own, "breast_ultrasound.transforms.SplitOutputsd")]
    files = [str(other / "scripts" / "transforms.py"), str(own / "breast_ultrasound" / "transforms.py")]
    assert loaded_from(*bundles) == files and loaded_from(*bundles[::-1]) == files[::-1]


@pytest.mark.slow
def test_monai_label_serves_both(label_venv, small_bundle, prepared, tmp_path):
    other = tmp_path / "other_segmentation"
    shutil.copytree(small_bundle, other, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "breast_ultrasound").rename(other / "scripts")
    for file in (other / "configs").glob("*.json"):
        file.write_text(file.read_text(encoding="utf-8").replace("breast_ultrasound.", "scripts."), encoding="utf-8")
    transforms = other / "scripts" / "transforms.py"
    text = transforms.read_text(encoding="utf-8")
    assert text.count('item["result"] = {\n') == 1
    transforms.write_text(text.replace('item["result"] = {\n', 'item["result"] = {\n"code": "of the other",\n'))
    image = next((prepared / "images").glob("malignant*.png"))
    command = [label_venv / "bin" / "python", "-c", LABEL, image, small_bundle, other]
    env = environment(label_venv, PYTHONPATH=str(SHIM))
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert [answer.get("code") for answer in answers] == [None, "of the other"] * 2
    assert answers[0]["classification"] == answers[1]["classification"] == answers[2]["classification"]
