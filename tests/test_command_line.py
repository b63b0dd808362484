"""Every command takes its options strictly: one line for a mistake, before any work, and a help that says it all."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_type_hints

import pytest
from command_line import bundle_arguments, converted, load_network, run
from conftest import ROOT

NAMES = [f.stem for f in sorted((ROOT / "scripts").glob("*.py")) if f"    run({f.stem})\n" in f.read_text("utf-8")]
EMPTY = inspect.Parameter.empty


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
    given = [text for o, p in options.items() if p.default is EMPTY for text in (f"--{o}", "{}")]
    for option, p in options.items():
        for kind, wrong in ((int, "2.5"), (float, "much"), (bool, "maybe"), (dict, "[1]")):
            if hints[p.name] is kind:
                assert f"--{option} {wrong}: pass " in refused(function, *given, f"--{option}", wrong)


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
    ) -> None:
        seen.update(locals())

    run(command, ["--output_dir", "2024", "--name=1e3", "--count", "-3", "--class", "benign", "--overwrite"])
    assert seen["output_dir"] == Path("2024") and (seen["name"], seen["count"], seen["class_"]) == ("1e3", -3, "benign")
    assert seen["overwrite"] is True and seen["rate"] is None
    run(command, ["--output-dir", "x", "--only", "2", "--words", "[a,7]", "--amp", "False", "--more", "{'a': 1}"])
    assert (seen["only"], seen["words"], seen["amp"], seen["more"]) == ((2,), ("a", "7"), False, {"a": 1})
    run(command, ["--output_dir", "x", "--nooverwrite", "--only", "[1,2]", "--rate", "0.5"])
    assert (seen["overwrite"], seen["only"], seen["rate"]) == (False, (1, 2), 0.5)
    assert "--only [a]: pass a whole number, or several" in refused(command, "--output_dir", "x", "--only", "[a]")
    assert "--amp slow: pass one of auto, True, False" in refused(command, "--output_dir", "x", "--amp", "slow")
    with pytest.raises(ValueError, match="--output_dir needs a value"):
        converted("output_dir", "", Path)


def test_options_of_the_bundle_pass_as_text_and_others_do_not():
    seen = {}

    def command(output_dir: Path, **options: str) -> None:
        seen.update(options)

    run(command, ["--output_dir", "x", "--image_size", "64", "--train#trainer#max_epochs", "2"])
    assert seen == {"image_size": "64", "train#trainer#max_epochs": "2"}
    assert "unknown option --imagesize; did you mean --image_size?" in refused(
        command, "--output_dir", "x", "--imagesize=3"
    )


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
        load_network(ROOT / "bundle/models", features=[4, 4, 8, 8, 16, 4])
    with pytest.raises(ValueError, match="imagesize: no id of .*inference.json"):
        load_network(ROOT / "bundle/models", imagesize=64)
