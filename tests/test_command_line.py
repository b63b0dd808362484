"""Every command takes its options strictly: one line for a mistake, before any work, and a help that says it all."""

import hashlib
import importlib
import inspect
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
from tools.cli import bundle_arguments, load_network, run

from breast_ultrasound.cli import PASSIVE, checked, converted
from conftest import ROOT

NAMES = [f.stem for f in sorted((ROOT / "scripts").glob("*.py")) if f"    run({f.stem}" in f.read_text("utf-8")]
EMPTY = inspect.Parameter.empty
# What takes long to import, and whose import has to wait until the options are read
HEAVY = {"torch", "monai", "numpy", "scipy", "sklearn", "cv2", "matplotlib", "pandas", "onnx", "ignite", "tqdm"}
CONSOLE = ["-m", "breast_ultrasound"]


def parameters(name):
    """A command's function and its parameters by the names of their options."""
    function = getattr(importlib.import_module(name), name)
    found = inspect.signature(function).parameters.values()
    return function, {p.name.rstrip("_"): p for p in found if p.kind != p.VAR_KEYWORD}


def refused(function, *typed):
    """The line that a command line ends with."""
    with pytest.raises(SystemExit) as stopped:
        run(function, list(typed))
    line = stopped.value.code
    assert line.startswith(f"{function.__name__}: ") and "\n" not in line
    return line


def test_the_users_commands_are_found():
    assert {"demo", "make_phantoms", "prepare_busi", "explore", "cross_validate", "calibrate"} < set(NAMES)
    sources = [f.read_text("utf-8") for f in (ROOT / "scripts").rglob("*.py")]
    assert sum(source.count("sys.path") for source in sources) == 1 and not any("noqa" in s for s in sources)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_option_names_the_nearest_one(name):
    function, options = parameters(name)
    if options:
        option = max(options, key=len)
        assert f"unknown option --{option[:-1]}x; did you mean --{option}?" in refused(
            function, f"--{option[:-1]}x", "1"
        )
    line = refused(function, "--nought")
    assert "unknown option --nought; " in line and all(f"--{option}" in line for option in options)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_option_and_a_value_without_a_name_are_named(name):
    function, options = parameters(name)
    required = [option for option, p in options.items() if p.default is EMPTY]
    if required:
        assert f"--{required[0]} is missing" in refused(function)
        assert f"--{required[0]} needs a value" in refused(function, f"--{required[0]}") or name == "report"
    assert "stray: each value needs its option before it" in refused(function, "stray")


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_type_is_refused(name):
    function, options = parameters(name)
    hints = get_type_hints(function)
    needed = [o for o, p in options.items() if p.default is EMPTY]
    given = [text for o in needed for text in (f"--{o}", "{}" if hints[options[o].name] is dict else "x")]
    for option, p in options.items():
        for kind, wrong in ((int, "2.5"), (float, "much"), (bool, "maybe"), (dict, "[1]")):
            if hints[p.name] is kind:
                line = refused(function, *given, f"--{option}", wrong)
                assert line.startswith(f"{name}: --{option} {wrong}: should be a valid ")


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_option(name, capsys):
    function, options = parameters(name)
    run(function, ["--help"])
    shown = capsys.readouterr().out
    assert f"scripts/{name}.py" in shown
    for option, p in options.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(f"  --{option}: ")]
        assert ("(required)" in line) == (p.default is EMPTY) and len(line) > len(option) + 30
    assert set(get_type_hints(function)) >= {p.name for p in options.values()} | {"return"}


def test_values_become_what_the_annotations_say():
    seen = {}

    def command(
        output_dir: Path,
        name: str = "",
        count: int = 1,
        only: tuple[int, ...] = (),
        words: tuple[str, ...] = (),
        rate: float | None = None,
        class_: str | None = None,
        overwrite: bool = False,
        amp: Literal["auto", True, False] = "auto",
        more: dict | None = None,
        names: list[str] | None = None,
        folds: int | Literal["official"] = 0,
    ) -> None:
        seen.update(locals())

    run(command, ["--output_dir", "2024", "--name=1e3", "--count", "-3", "--class", "benign", "--overwrite"])
    assert seen["output_dir"] == Path("2024") and (seen["name"], seen["count"], seen["class_"]) == ("1e3", -3, "benign")
    assert seen["overwrite"] is True and seen["rate"] is None
    run(command, ["--output-dir", "x", "--only", "2", "--words", "[a,7]", "--amp", "False", "--more", "{'a': 1}"])
    assert (seen["only"], seen["words"], seen["amp"], seen["more"]) == ((2,), ("a", "7"), False, {"a": 1})
    run(command, ["--output_dir", "x", "--nooverwrite", "--only", "[1,2]", "--rate", "0.5"])
    assert (seen["overwrite"], seen["only"], seen["rate"]) == (False, (1, 2), 0.5)
    for typed, expected in (("[a,7]", ["a", "7"]), ("a, b", ["a, b"]), ("['a, b','c']", ["a, b", "c"])):
        run(command, ["--output_dir", "x", "--names", typed])
        assert seen["names"] == expected
    for typed, expected in (("5", 5), ("official", "official")):
        run(command, ["--output_dir", "x", "--folds", typed])
        assert seen["folds"] == expected
    for wrong in ("[a]", "a", "[1,2.5]"):
        line = refused(command, "--output_dir", "x", "--only", wrong)
        assert line.startswith(f"command: --only {wrong}: should be a valid integer") and 'several as "[...]"' in line
    assert "--amp slow: should be 'auto', True or False" in refused(command, "--output_dir", "x", "--amp", "slow")
    with pytest.raises(ValueError, match="--output_dir needs a value"):
        converted("output_dir", "", Path)


def test_a_path_is_a_path_whatever_is_in_it(monkeypatch):
    monkeypatch.setenv("HOME", "/someone")

    def command(output_dir: Path, folders: tuple[Path, ...] = (), word: str = "") -> None:
        """Nothing."""

    for name in ("a,b", "a [1] #2", "[1]", "2024", "it's 50 %", "a@b=c", "(x)", "{y}", "None", "-"):
        found = checked(
            command, (), {"output_dir": name, "word": name, "folders": f"['{name}']" if "'" not in name else name}
        )
        assert found == {"output_dir": Path(name), "word": name, "folders": (Path(name),)}
    for name in ("a,b", "a [1] #2", "2024", "x@[1,2]"):
        assert checked(command, (), {"output_dir": "~/x", "folders": name})["folders"] == (Path(name),)
    assert checked(command, (), {"output_dir": "~/x"}) == {"output_dir": Path("/someone/x")}


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("prepare_busi", "split", "protocol"),
        ("cross_validate", "part_threshold", "component_threshold"),
        ("cross_validate", "part", "split"),
    ],
)
def test_the_new_name_of_an_old_option_is_told(name, old, new):
    function, _ = parameters(name)
    assert f"unknown option --{old}; it is called --{new} now" in refused(function, f"--{old}", "x")


def told(*arguments):
    """Standard output and error of a command, and what it imported of what takes long."""
    code = """
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *sys.modules))
if sys.argv[1] == "-m":
    name = sys.argv[2]
    sys.argv[:3] = ["-m"]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
else:
    sys.argv.pop(0)
    sys.path.insert(0, sys.argv[0].rpartition("/")[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bundle")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    text, _, modules = done.stdout.rpartition("imported:")
    return text, done.stderr, HEAVY & set(modules.split())


@pytest.mark.parametrize("script", [*(f"scripts/{name}.py" for name in NAMES), "label_app/start.py"])
def test_help_and_a_mistyped_option_import_nothing_heavy(script):
    text, error, imported = told(script, "--help")
    assert script in text and not error and not imported
    text, error, imported = told(script, "--nought", "1")
    assert "unknown option --nought" in error and error.count("\n") == 1 and not imported


@pytest.mark.parametrize("name", ["predict", "train", "evaluate"])
def test_the_console_command_answers_at_once_too(name):
    text, error, imported = told(*CONSOLE, name, "--help")
    assert "breast-ultrasound predict IMAGES" in text and "--dataset_dir: " in text and not error and not imported
    _, error, imported = told(*CONSOLE, name, "IMAGES" if name == "predict" else "--batchsize", "--batchsize", "1")
    assert error.startswith(f"{name}: unknown option --batchsize; did you mean --batch_size?") and not imported


def test_the_console_command_names_what_there_is():
    text, error, imported = told(*CONSOLE)
    assert text.strip().startswith("The bundle from anywhere") and not error and not imported
    text, _, imported = told(*CONSOLE, "version")
    assert text.startswith("breast-ultrasound ") and str(ROOT / "bundle") in text and not imported
    text, error, imported = told(*CONSOLE, "predict", "NOWHERE", "--output_dir", "OUT")
    assert error == "predict: NOWHERE: no such folder or image; give one as IMAGES\n" and not text and not imported
    assert "no command predictt; there are predict, train, evaluate" in told(*CONSOLE, "predictt")[1]
    assert "python label_app/start.py --studies DIR" in told(*CONSOLE, "annotate", "--help")[0]


def test_help_costs_a_fraction_of_the_work():
    def seconds(*command):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert seconds("scripts/explore.py", "--help") < 0.3 * seconds("-c", "import torch, monai.bundle")


def test_a_set_is_prepared_without_pytorch():
    code = "import tools, preparation.pipeline, sys; assert not {'torch', 'monai'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True)


def test_waiting_threads_sleep_unless_the_user_says_otherwise(tmp_path):
    (tmp_path / "show.py").write_text(
        "import os, subprocess, sys\n"
        "def show() -> None:\n"
        "    assert 'torch' not in sys.modules\n"
        "    subprocess.run([sys.executable, '-c', 'import os; print(dict(os.environ))'])\n"
        "from breast_ultrasound.cli import run\n"
        "run(show)\n"
    )
    free = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    for given in ({}, {"OMP_WAIT_POLICY": "ACTIVE"}):
        environment = {**free, "PYTHONPATH": str(ROOT / "bundle"), **given}
        done = subprocess.run([sys.executable, tmp_path / "show.py"], capture_output=True, text=True, env=environment)
        seen = eval(done.stdout)
        assert {name: seen[name] for name in PASSIVE} == PASSIVE | given


def test_options_of_the_bundle_pass_as_text_and_others_do_not():
    seen = {}

    def command(output_dir: Path, **options: str) -> None:
        seen.update(options)

    run(command, ["--output_dir", "x", "--image_size", "64", "--train#trainer#max_epochs", "2"])
    assert seen == {"image_size": "64", "train#trainer#max_epochs": "2"}
    assert "unknown option --imagesize; did you mean --image_size?" in refused(
        command, "--output_dir", "x", "--imagesize=3"
    )


def test_the_record_of_a_command_tells_what_it_read_and_what_it_was_asked(tmp_path):
    def count(images: Path, output_dir: Path, folders: tuple[Path, ...] = (), least: float = 0.5) -> dict:
        """Count."""
        output_dir.mkdir()
        return {"counted": 3, "names": ["a"]}

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes(b"weights")
    (tmp_path / "list.csv").write_bytes(b"list")
    typed = ["--images", str(tmp_path / "list.csv"), "--output_dir", str(tmp_path / "out")]
    run(count, [*typed, "--folders", f"['{tmp_path / 'models'}']"], record=True)
    told = json.loads((tmp_path / "out" / "run.json").read_text())
    assert told["images_sha256"] == {str(tmp_path / "list.csv"): hashlib.sha256(b"list").hexdigest()}
    assert told["folders_sha256"] == {str(tmp_path / "models/model.pt"): hashlib.sha256(b"weights").hexdigest()}
    assert (told["counts"], told["options"]["least"]) == ({"counted": 3}, 0.5)
    assert set(told["versions"]) == {"bundle", "monai", "torch", "numpy"} and told["started"] <= told["finished"]
    assert "not a medical device" in told["notice"] and told["command"] == "count"


def test_an_error_of_the_work_itself_is_one_line_too():
    def command() -> None:
        raise FileNotFoundError("x: missing; make it")

    assert refused(command) == "command: x: missing; make it"


def test_a_real_command_line_ends_with_one_line_and_status_1(tmp_path):
    command = [sys.executable, "scripts/demo.py", "--output_dir", str(tmp_path / "demo"), "--epoch", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "") and not (tmp_path / "demo").exists()
    assert (
        done.stderr.startswith("demo: unknown option --epoch; did you mean --epochs?") and done.stderr.count("\n") == 1
    )


def test_a_bundle_command_is_spelt_as_the_readme_spells_it():
    found = bundle_arguments("evaluating", ["train", "evaluate"], dataset_dir="a b", image_size=64)
    configs = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
    options = ["--bundle_root", "bundle", "--dataset_dir", "a b", "--image_size", "64"]
    assert found == ["-m", "monai.bundle", "run", "evaluating", "--config_file", configs, *options]
    assert bundle_arguments("run", "inference")[4:6] == ["--config_file", "bundle/configs/inference.json"]


def test_the_network_is_loaded_or_the_reason_named(tmp_path):
    network = load_network(ROOT / "bundle/models").get_parsed_content("network")
    assert not network.training
    with pytest.raises(FileNotFoundError, match="model.pt: missing; name weights with --weights, or their folder"):
        load_network(tmp_path)
    with pytest.raises(ValueError, match="leave --features out"):
        load_network(ROOT / "bundle/models/small", features=[4, 4, 8, 8, 16, 4])
    with pytest.raises(ValueError, match="imagesize: no id of .*inference.json"):
        load_network(ROOT / "bundle/models", imagesize=64)
