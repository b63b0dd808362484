"""Every result has a step that makes it; a fresh clone knows what is up to date, and says where it cannot tell."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from breast_ultrasound.weights import load_tensors, write_weights
from conftest import CLASS_NAMES, ROOT

RELEASED = ("evaluate_testing", "evaluate_bus_bra", "evaluate_external", "evaluate_busi_unseen", "evidence")


def doit(clone, *arguments):
    """Run doit in a folder; status and output."""
    command = [sys.executable, "-m", "doit", "-f", "study/dodo.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def states(clone, *arguments):
    """What `list` says, by step."""
    status, text = doit(clone, "list", *arguments)
    assert status == 0, text
    return {line[12:].split()[0]: line[:12].strip() for line in text.splitlines() if line}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What git has of the study and what it measures, without `runs`; the steps of `RELEASED` have just been made."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("study", "bundle", "scripts"):
        shutil.copytree(ROOT / name, folder / name, copy_function=shutil.copyfile)
    shutil.copyfile(ROOT / "requirements.txt", folder / "requirements.txt")
    (folder / "study/results/made_from.json").unlink(missing_ok=True)
    assert set(states(folder)[name] for name in RELEASED) == {"to run"}
    status, text = doit(folder, "reset-dep", *RELEASED)  # as after a run, whatever the repository's own state
    assert status == 0, text
    return folder


def test_a_fresh_clone_knows_what_is_up_to_date_and_where_it_cannot_tell(clone):
    found = states(clone)
    assert {found[name] for name in RELEASED} == {"up to date"}
    for name in ("evaluate_bus_bra_unseen", "operating_points"):
        assert found[name] == "cannot tell", name
    assert set(found.values()) == {"up to date", "to run", "cannot tell"}
    assert not (clone / "runs").exists()


def test_a_step_runs_where_weights_options_or_lists_changed_and_nothing_else_does(clone):
    for name, step in (
        ("bundle/models/model.pt", "evaluate_testing"),
        ("bundle/configs/evaluate.json", "evaluate_external"),
        ("study/results/splits/bus_bra_datalist.json", "evaluate_bus_bra"),
        ("study/results/evaluations/cross_validation/images.csv", "evidence"),
    ):
        file = clone / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        assert states(clone)[step] == "to run", name
        file.write_bytes(before)
        assert states(clone)[step] == "up to date", name


def test_what_cannot_be_told_is_not_made_in_silence_and_no_training_begins_by_itself(clone):
    status, text = doit(clone, "evaluate_bus_bra_unseen")
    assert status != 0 and "without_bus_bra/model.pt' does not exist" in text and "==" not in text


def test_a_step_that_lacks_its_data_says_what_to_give(clone):
    for step, message in (("busi_random", "busi=DIR is missing"), ("prepare_external", "external=DIR is missing")):
        status, text = doit(clone, step)
        assert status != 0 and text.strip().endswith(message + "; give the folder of that data set"), text
        assert "Traceback" not in text


def test_a_step_makes_its_files_and_is_up_to_date_afterwards(clone, tmp_path):
    phantoms = tmp_path / "phantoms"
    command = [sys.executable, "scripts/make_phantoms.py", "--output_dir", str(phantoms), "--count", "24"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    where = (f"busi={phantoms}", f"runs={tmp_path / 'runs'}")
    kept = {file: file.read_bytes() for file in (clone / "study/results").rglob("*") if file.is_file()}
    assert states(clone, *where)["busi_random"] == "to run"
    status, text = doit(clone, *where, "busi_random", "folds")
    assert status == 0 and (tmp_path / "runs/random/datalist.json").is_file(), text
    assert (tmp_path / "runs/folds/datalist_fold_4.json").is_file()
    assert json.loads((clone / "study/results/splits/random.json").read_text())["counts"]
    assert states(clone, *where)["busi_random"] == "up to date"
    for file, content in kept.items():
        file.write_bytes(content)


def test_every_file_of_the_results_is_made_by_a_step_and_every_step_has_a_line(clone):
    from study import dodo

    steps = list(dodo.task_study())
    assert list(states(clone)) == [step["basename"] for step in steps]
    made = {os.path.relpath(target, ROOT / "study") for step in steps for target in step["targets"]}
    files = {f.relative_to(ROOT / "study").as_posix() for f in (ROOT / "study/results").rglob("*") if f.is_file()}
    # doit's own note, and the log of the trials for weights to come
    assert files - made <= {"results/made_from.json"}
    names = [step["basename"] for step in steps]
    for number, step in enumerate(steps):
        assert all(need in names[:number] for need in step["setup"]), step["basename"]
        known = {os.path.relpath(target, ROOT / "study") for earlier in steps[:number] for target in earlier["targets"]}
        assert all((ROOT / "study" / Path(file)).exists() or file in known for file in step["file_dep"])


def test_weights_are_the_mean_of_a_start_and_its_rounds(tmp_path, monkeypatch):
    from study import dodo

    trained = {}

    def training(name, sites, seed, epochs, pretrained=None, **options):
        trained[name] = (tuple(sites), seed, epochs, Path(pretrained).parent.name if pretrained else None)
        tmp_path.joinpath(name).mkdir(parents=True)
        settings = {"class_names": list(CLASS_NAMES), "image_size": 64}
        write_weights(tmp_path / name / "model.pt", {"w": torch.tensor([float(len(trained))])}, settings)

    monkeypatch.setattr(dodo, "training", training)
    monkeypatch.setattr(dodo, "runs", tmp_path.joinpath)
    monkeypatch.setattr(dodo, "STUDY", tmp_path)
    dodo.train_without("without_busi")
    dodo.train()
    away, everyone = ("bus_bra", "bus_uclm"), ("clean", "bus_bra", "bus_uclm")
    assert trained == {
        "seeds/without_busi_0": (away, 0, 30, None),
        "rounds/without_busi_0/1": (away, 1, 4, "without_busi_0"),
        "rounds/without_busi_0/2": (away, 2, 4, "without_busi_0"),
        "rounds/models/1": (everyone, 1, 4, "without_busi"),
    }
    for folder, mean in (("weights/without_busi", (1 + 2 + 3) / 3), ("models", (2 + 4) / 2)):
        assert load_tensors(tmp_path / folder / "model.pt")["w"] == mean


def test_commands_of_the_documents_name_steps_and_data_sets():
    from study import dodo

    names = {step["basename"] for step in dodo.task_study()} | {"list", "*"}
    texts = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "study/dodo.py")] + list(
        (ROOT / "docs").glob("*.md")
    )
    lines = [line for file in texts for line in re.findall(r"doit -f study/dodo\.py (.*?)[`\n]", file.read_text())]
    assert len(lines) > 12
    sets = ("busi", "bus_bra", "bus_uclm", *dodo.EXTERNAL)
    for line in lines:
        for word in shlex.split(line):
            data, _, folder = word.partition("=")
            assert word in names or data in (*sets, "runs", "weights") and folder, line
