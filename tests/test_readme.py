"""READMEs, configs, metadata and the files of results/ agree, and every command shown there can be typed."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from command_line import checked
from conftest import CLASS_NAMES, ROOT
from reproduce import STEPS
from study import tables

from scripts.command import check_overrides
from scripts.files import sha256
from scripts.networks import stored_settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
EVIDENCE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "bundle" / "docs" / "reference.md").read_text(encoding="utf-8")
ANNOTATE = (ROOT / "docs" / "annotate.md").read_text(encoding="utf-8")
METADATA = json.loads((ROOT / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))
CONFIGS = {
    name: json.loads((ROOT / "bundle" / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    for name in ("train", "evaluate", "inference")
}


def commands(text, start):
    """Lines of fenced blocks that begin with `start`."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


def results(name):
    """A file of results/."""
    return json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("text, folder", [(README, ROOT), (CARD, ROOT / "bundle")], ids=["README", "model card"])
def test_options_of_bundle_commands_exist(text, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = [line for line in text.splitlines() if "-m monai.bundle run" in line]
    assert len(found) >= 3
    for line in found:
        check_overrides(shlex.split(line.split("-m monai.bundle ")[1]))


def test_scripts_in_readme_and_docs_exist():
    lines = [line for text in (README, EVIDENCE, ANNOTATE) for line in commands(text, "python scripts/")]
    assert len(lines) > 15
    for line in lines:
        _, script, *options = shlex.split(line)
        function = getattr(importlib.import_module(Path(script).stem), Path(script).stem)
        given = dict(zip(options[::2], options[1::2]))
        assert len(options) % 2 == 0 and all(name.startswith("--") for name in given), line
        options = checked(function, (), {name[2:]: value for name, value in given.items()})
        assert len(options.get("ckpt_dirs", ["", ""])) == 2, line  # Fire divides unquoted paths
        assert not script.endswith("reproduce.py") or set(options.get("only", ())) <= set(STEPS), line


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
            steps = [v for v in values if isinstance(v, dict) or isinstance(value, list) and str(v).startswith("$")]
            if values and not steps and "#" not in name:
                knobs[name] = value
    for internal in ("is_not_rank0", "network", "training", "evaluating", "calibration", "handlers"):
        del knobs[internal]
    onnx = json.loads((ROOT / "bundle" / "configs" / "inference_onnx.json").read_text(encoding="utf-8"))
    knobs["onnx_file"] = onnx["onnx_file"]
    assert set(rows) == set(knobs)
    for name, value in knobs.items():
        if name == "device":
            continue
        if isinstance(value, str):
            joined = re.fullmatch(r"\$@(\w+) \+ '(.+)'", value)
            value = f"<{joined[1]}>{joined[2]}" if joined else value.removeprefix("$") or '""'
        elif not isinstance(value, bool):
            value = json.dumps(value)
        assert rows[name] == f"`{value}`", name


def test_the_reference_names_every_figure_of_an_evaluation():
    table = REFERENCE.split("\n## Metrics of an evaluation")[1]
    for name in results("evaluations/testing/metrics.json"):
        if name not in ("notice", "part", "pictures", "pictures_by_class"):
            assert re.search(rf"`{name}`", table) or name.endswith("_by_class") and "`..._by_class`" in table, name


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
    for path in re.findall(r"`((?:bundle|scripts|label_app|results|docs|tests)/[\w./-]+)`", text):
        assert any((folder / path).exists() for folder in (ROOT, (ROOT / name).parents[1])), path


def test_readme_and_model_card_are_short():
    assert len(README.splitlines()) <= 150 and len(CARD.splitlines()) <= 220


def test_classes_stand_in_one_order_everywhere():
    assert tuple(CONFIGS["train"]["class_names"]["default"]) == CLASS_NAMES
    assert tuple(stored_settings(ROOT / "bundle/models/model.pt")["class_names"]) == CLASS_NAMES
    listed = ", ".join(f"{index}: {name}" for index, name in enumerate(CLASS_NAMES))
    assert listed in METADATA["label_classes"] and listed in METADATA["pred_classes"]
    assert ", ".join(CLASS_NAMES) in CARD and f"({', '.join(CLASS_NAMES)})" in README


def test_everything_says_research_only():
    for text in (README, CARD, METADATA["description"], METADATA["intended_use"]):
        assert "not a medical device" in text
    assert "not a medical device" in results("evaluations/testing/metrics.json")["notice"]


def test_the_tables_are_those_of_the_results():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in tables.TEXTS}
    for name, text in texts.items():
        assert tables.with_tables(text) == text, f"{name}: run python scripts/reproduce.py --only tables"
    text = (ROOT / tables.METADATA).read_text(encoding="utf-8")
    assert tables.with_metrics(text) == text and len(METADATA["eval_metrics"]) == len(tables.METRICS)
    marks = {mark[1] for mark in tables.MARKED.findall("".join(texts.values()))}
    assert marks == set(tables.TABLES) and "<!-- table results -->" in README
    with pytest.raises(ValueError, match="no table speed; there are results"):
        tables.with_tables("<!-- table speed -->\n<!-- end -->")


def test_a_table_shows_shares_in_percent_and_leaves_out_what_cannot_be_had():
    found = {"value": 0.051, "low": 0.02, "high": 0.09}
    assert tables.interval("missed_rate", found) == "5 % (2 to 9)"
    assert tables.interval("accuracy", found) == "0.051 (0.020 to 0.090)"
    assert tables.interval("accuracy", None) == ""


def test_the_evidence_is_that_of_the_weights_that_ship():
    found = results("evidence/report.json")
    weights = sha256(ROOT / "bundle/models/model.pt")
    calibration = json.loads((ROOT / "bundle/models/calibration.json").read_text(encoding="utf-8"))
    for name in ("testing", "external"):
        (source,) = found[name]["source"]
        assert source["weights_sha256"] == calibration["weights_sha256"] == weights
        assert source["part"] == "testing" and source["temperature"] == calibration["temperature"]
    assert weights in CARD


def test_the_exports_are_those_of_the_weights_that_ship_and_within_their_limits():
    weights = ROOT / "bundle/models/model.pt"
    found = results("exports/exports.json")
    figures = {name: results(f"exports/validation_{name}.json") for name in ("pytorch", "onnx", "int8")}
    assert found["weights_bytes"] == weights.stat().st_size
    assert {found["weights_sha256"], *(f["weights_sha256"] for f in figures.values())} == {sha256(weights)}
    for f in figures.values():
        assert f["part"] == "validation" and f["pictures"] == found["pictures"]
    for name in ("model.ts", "model.onnx"):
        assert found["files"][name]["largest_probability_difference"] < 1e-4
        assert found["files"][name]["differing_mask_pixels"] < 1e-4
    assert found["files"]["model_int8.onnx"]["bytes"] < 3e6
    assert found["predictors"]["predictor_int8.onnx"]["bytes"] < 3e6
    predictor = found["predictors"]["predictor.onnx"]
    for compared in (predictor, predictor["odd_sizes"]):
        assert compared["largest_class_probability_difference"] < 0.002 and compared["smallest_mask_iou"] > 0.999
    for name in ("lesion_dice", "auroc_macro", "auroc_malignant"):
        assert figures["int8"][name] > figures["pytorch"][name] - 0.005


def test_nothing_tracked_names_an_absolute_path():
    files = [
        f
        for folder in ("bundle", "label_app", "scripts", "tests", "docs", "results", ".ci")
        for f in (ROOT / folder).rglob("*")
    ]
    for file in [*files, *ROOT.glob("*.md"), ROOT / "Makefile"]:
        if file.is_file() and file.suffix in (".py", ".json", ".md", ".txt", ".csv", "") and file.name != "LICENSE":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.:/*])/(home|work|tmp|Users|root)/", text), file
