"""READMEs, configs, metadata and the files of results/ agree, and every command shown there can be typed."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from breast_ultrasound.calibration import MASK
from breast_ultrasound.cli import checked
from breast_ultrasound.command import check_overrides
from breast_ultrasound.weights import stored_settings
from conftest import CLASS_NAMES, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "bundle" / "docs" / "reference.md").read_text(encoding="utf-8")
ANNOTATE = (ROOT / "docs" / "annotate.md").read_text(encoding="utf-8")
METADATA = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
CONFIGS = {
    name: json.loads((ROOT / "bundle" / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("train", "evaluate", "inference")
}


def commands(text, start):
    """Lines of fenced blocks that begin with `start`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


@pytest.mark.parametrize(
    "text, folder",
    [(README, ROOT), (CARD, ROOT / "bundle"), (REFERENCE, ROOT / "bundle")],
    ids=["README", "model card", "reference"],
)
def test_options_of_bundle_commands_exist(text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = [line for line in text.splitlines() if "-m monai.bundle run" in line]
    assert len(found) >= 3
    for line in found:
        check_overrides(shlex.split(line.split("-m monai.bundle ")[1]))


def test_scripts_in_readme_and_docs_exist():
    lines = [line for text in (README, ANNOTATE) for line in commands(text, "python scripts/")]
    assert lines
    for line in lines:
        _, script, *options = shlex.split(line)
        function = getattr(importlib.import_module(Path(script).stem), Path(script).stem)
        given = dict(zip(options[::2], options[1::2]))
        assert len(options) % 2 == 0 and all(name.startswith("--") for name in given), line
        options = checked(function, (), {name[2:]: value for name, value in given.items()})
        assert len(options.get("ckpt_dirs", ["", ""])) == 2, line  # Fire divides unquoted paths


def test_plain_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace('"$(RUN)"', ".venv/bin/python")
    plain = commands(README, ".venv/bin/python ")
    assert len(plain) == 3
    for line in plain:
        assert f"\t{line}" in makefile
    for target in ("demo", "test"):
        assert f"\n{target}: " in makefile and commands(README, f"make {target}")


def test_the_table_of_options_names_every_option_and_its_default():
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (.+?) \| ", REFERENCE.split("| id | default |")[1].split("\n## ")[0], re.MULTILINE)
    )
    knobs = {}
    for config in reversed(CONFIGS.values()):
        for name, value in config.items():
            value = value.get("default", value) if isinstance(value, dict) else value
            values = value if isinstance(value, list) else [value]
            listed = isinstance(value, list)
            steps = [v for v in values if v and isinstance(v, dict) or listed and str(v).startswith("$")]
            if values and not steps and "#" not in name:
                knobs[name] = value
    for internal in ("is_not_rank0", "network", "network_of", "training", "evaluating", "handlers"):
        del knobs[internal]
    onnx = json.loads((ROOT / "bundle" / "configs" / "inference_onnx.json").read_text(encoding="utf-8"))
    knobs["onnx_file"] = onnx["onnx_file"]
    second = json.loads((ROOT / "bundle" / "configs" / "train_pretrained.json").read_text(encoding="utf-8"))
    knobs |= {name: second[name] for name in ("backbone", "imagenet")}
    dicom = json.loads((ROOT / "bundle" / "configs" / "inference_dicom.json").read_text(encoding="utf-8"))
    knobs |= {name: dicom[name] for name in ("frames", "objects")}
    assert set(rows) == set(knobs)
    for name, value in knobs.items():
        if name == "device":
            continue
        if isinstance(value, str):
            joined = re.fullmatch(r"\$@(\w+) \+ '(.+)'", value)
            value = f"<{joined[1]}>{joined[2]}" if joined else value.removeprefix("$") or '""'
            value = str(MASK.get(name, value))  # what weights without a calibration get
        elif not isinstance(value, bool):
            value = json.dumps(value)
        assert rows[name] == f"`{value}`", name


@pytest.mark.parametrize(
    "name",
    ["README.md", "CONTRIBUTING.md"]
    + [f.relative_to(ROOT).as_posix() for folder in ("bundle/docs", "docs") for f in (ROOT / folder).glob("*.md")],
)
def test_links_and_paths_of_a_text_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target, _, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)(#([^)]*))?\)", text):
        file = (ROOT / name).parent / target if target else ROOT / name
        assert file.exists(), target
        titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, f"{target}#{anchor}"
    for path in re.findall(r"`((?:bundle|scripts|label_app|study|docs|tests)/[\w./-]+)`", text):
        assert any((folder / path).exists() for folder in (ROOT, (ROOT / name).parents[1])), path


def test_classes_stand_in_one_order_everywhere():
    assert tuple(CONFIGS["train"]["class_names"]["default"]) == CLASS_NAMES
    assert tuple(stored_settings(ROOT / "bundle/models/model.pt")["class_names"]) == CLASS_NAMES
    listed = ", ".join(f"{index}: {name}" for index, name in enumerate(CLASS_NAMES))
    assert listed in METADATA["label_classes"] and listed in METADATA["pred_classes"]
    assert ", ".join(CLASS_NAMES) in CARD and f"({', '.join(CLASS_NAMES)})" in README


def test_everything_says_research_only():
    for text in (README, CARD, METADATA["description"], METADATA["intended_use"]):
        assert "not a medical device" in text


def test_nothing_tracked_names_an_absolute_path():
    files = [
        f
        for folder in ("bundle", "label_app", "scripts", "tests", "docs", "study", ".ci")
        for f in (ROOT / folder).rglob("*")
    ]
    for file in [*files, *ROOT.glob("*.md"), ROOT / "Makefile"]:
        if file.is_file() and file.suffix in (".py", ".json", ".md", ".txt", ".csv", "") and file.name != "LICENSE":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.:/*])/(home|work|tmp|Users|root)/", text), file
