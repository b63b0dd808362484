"""READMEs, configs, metadata and the files of results/ agree, and every command shown there can be typed."""

import csv
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import update_tables
from command_line import checked
from conftest import CLASS_NAMES, ROOT
from export import QUANTISATION_PICTURES

from scripts.command import check_overrides
from scripts.files import sha256

README = (ROOT / "README.md").read_text(encoding="utf-8")
CARD = (ROOT / "bundle" / "docs" / "README.md").read_text(encoding="utf-8")
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
    lines = commands(README, "python scripts/") + commands(ANNOTATE, "python scripts/")
    assert len(lines) > 10
    for line in lines:
        _, script, *options = shlex.split(line)
        function = getattr(importlib.import_module(Path(script).stem), Path(script).stem)
        given = dict(zip(options[::2], options[1::2]))
        assert len(options) % 2 == 0 and all(name.startswith("--") for name in given), line
        checked(function, (), {name[2:]: value for name, value in given.items()})


def test_plain_commands_are_those_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace('"$(RUN)"', ".venv/bin/python")
    plain = commands(README, ".venv/bin/python ")
    assert len(plain) == 3
    for line in plain:
        assert f"\t{line}" in makefile
    for target in ("demo", "test"):
        assert f"\n{target}: " in makefile and commands(README, f"make {target}")


def test_the_model_cards_table_names_every_option_and_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| ", CARD.split("| id | default |")[1], re.MULTILINE))
    knobs = {}
    for config in reversed(CONFIGS.values()):
        for name, value in config.items():
            values = value if isinstance(value, list) else [value]
            steps = [v for v in values if isinstance(v, dict) or isinstance(value, list) and str(v).startswith("$")]
            if values and not steps and "#" not in name:
                knobs[name] = value
    for internal in ("is_not_rank0", "network", "training", "evaluating"):
        del knobs[internal]
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


def test_the_model_card_names_every_figure_of_an_evaluation():
    table = CARD.split("\n### Figures of an evaluation")[1].split("\n## ")[0]
    for name in results("evaluations/testing/metrics.json"):
        if name not in ("notice", "part", "pictures", "pictures_by_class"):
            assert re.search(rf"`{name}`", table) or name.endswith("_by_class") and "`..._by_class`" in table, name


def test_changelog_and_metadata_say_the_same():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^## (\S+)\n\n(.+?)\n*(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert entries == METADATA["changelog"]
    assert METADATA["version"] in entries


def test_classes_stand_in_one_order_everywhere():
    for config in (CONFIGS["train"], CONFIGS["inference"]):
        assert tuple(config["class_names"]) == CLASS_NAMES
    listed = ", ".join(f"{index}: {name}" for index, name in enumerate(CLASS_NAMES))
    assert listed in METADATA["label_classes"] and listed in METADATA["pred_classes"]
    assert ", ".join(CLASS_NAMES) in CARD and f"({', '.join(CLASS_NAMES)})" in README


def test_everything_says_research_only():
    for text in (README, CARD, METADATA["description"], METADATA["intended_use"]):
        assert "not a medical device" in text
    assert "not a medical device" in results("evaluations/testing/metrics.json")["notice"]


def test_the_three_splits_are_those_of_the_summaries():
    for split in ("clean", "grouped", "random"):
        counts = results(f"splits/{split}.json")["counts"]
        total = {part: sum(counts[part].values()) for part in counts}
        classes = " / ".join(str(counts["used"][name]) for name in CLASS_NAMES)
        parts = ", ".join(str(total[part]) for part in ("training", "validation", "testing"))
        assert f"| `{split}` | {total['used']} | {classes} | {parts} |" in README
    counts = results("splits/clean.json")["counts"]
    assert ", ".join(str(sum(counts[p].values())) for p in ("training", "validation", "testing")) in CARD
    found = results("splits/random.json")
    for name in CLASS_NAMES:
        share = f"{found['shares_percent']['found'][name]:.1f} %"
        assert f"{found['counts']['found'][name]} {name} ({share})" in CARD
        assert f"{share} {name}" in README


def test_the_share_of_burned_in_marks_is_that_of_the_list():
    lines = (ROOT / "scripts" / "busi_groups.csv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    marked = [row for row in rows if row["burned_in_marks"]]
    shares = {n: sum(r["class"] == n for r in marked) / sum(r["class"] == n for r in rows) for n in CLASS_NAMES}
    text = f"Of the {len(rows)} pictures, {len(marked)} carry burned-in marks such as calipers and text ("
    text += ", ".join(f"{100 * shares[n]:.0f} % of the {n}" for n in ("benign", "malignant", "normal"))
    assert f"{text} ones)" in CARD


def test_the_tables_are_those_of_the_results():
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in update_tables.TEXTS}
    for name, text in texts.items():
        assert update_tables.with_tables(text) == text, f"{name}: run python scripts/update_tables.py"
    text = (ROOT / update_tables.METADATA).read_text(encoding="utf-8")
    assert update_tables.with_metrics(text) == text and len(METADATA["eval_metrics"]) == len(update_tables.METRICS)
    marks = {mark[1] for mark in update_tables.MARKED.findall("".join(texts.values()))}
    assert marks == set(update_tables.TABLES) and "<!-- table evidence -->" in README
    with pytest.raises(ValueError, match="no table speed; there are evidence"):
        update_tables.with_tables("<!-- table speed -->\n<!-- end -->")


def test_a_table_shows_shares_in_percent_and_leaves_out_what_cannot_be_had():
    found = {"value": 0.051, "low": 0.02, "high": 0.09}
    assert update_tables.interval("missed_rate", found) == "5 % (2 to 9)"
    assert update_tables.interval("accuracy", found) == "0.051 (0.020 to 0.090)"
    assert update_tables.interval("accuracy", None) == ""


def test_the_evidence_is_that_of_the_weights_that_ship():
    found = results("evidence/report.json")
    weights = sha256(ROOT / "bundle/models/model.pt")
    calibration = json.loads((ROOT / "bundle/models/calibration.json").read_text(encoding="utf-8"))
    for name in ("testing", "external"):
        (source,) = found[name]["source"]
        assert source["weights_sha256"] == calibration["weights_sha256"] == weights
        assert source["part"] == "testing" and source["temperature"] == calibration["temperature"]
    assert weights in CARD


def test_the_speeds_are_those_of_the_benchmark():
    for file, title in (("256", "256"), ("160", "160"), ("160_fp32", "160, fp32")):
        f = results(f"benchmark_{file}.json")
        assert file.startswith(str(f["image_size"])) and (f["amp"] is False) == file.endswith("fp32")
        assert f["native_bfloat16"]
        for name, setting in (("same", "same network"), ("bundle", "this bundle")):
            cells = [
                "{median:.1f} ({range[0]:.1f} to {range[1]:.1f})".format(**f["faster_than_plain"][name][what])
                for what in ("epoch_s", "step_s")
            ]
            share = f"{100 * f['settings'][name]['share_of_matrix_peak']:.0f} %"
            assert f"| {title} | {setting} | {' | '.join(cells)} | {share} |" in README


def test_inference_alone_was_measured_with_the_weights_that_ship_and_on_the_processor_that_the_text_names():
    found = results("benchmark_inference.json")
    assert not found["native_bfloat16"]
    assert "Measured on a processor without native bfloat16, the training table above on one with it." in README
    assert found["weights_sha256"] == sha256(ROOT / "bundle/models/model.pt")


def test_the_exports_are_those_of_the_weights_that_ship_and_within_their_limits():
    weights = ROOT / "bundle/models/model.pt"
    found = results("exports/exports.json")
    figures = {name: results(f"exports/validation_{name}.json") for name in ("pytorch", "once", "onnx", "int8")}
    assert found["weights_bytes"] == weights.stat().st_size
    assert {found["weights_sha256"], *(f["weights_sha256"] for f in figures.values())} == {sha256(weights)}
    for f in figures.values():
        assert f["part"] == "validation" and f["pictures"] == found["pictures"]
    for name in ("model.ts", "model.onnx"):
        assert found["files"][name]["largest_probability_difference"] < 1e-4
        assert found["files"][name]["differing_mask_pixels"] < 1e-4
    assert found["files"]["model_int8.onnx"]["bytes"] < 3e6
    for name in ("lesion_dice", "auroc_macro", "auroc_malignant"):
        assert figures["int8"][name] > figures["pytorch"][name] - 0.005
    assert f"INT8 was quantised on {QUANTISATION_PICTURES} training pictures." in CARD


def test_the_commands_of_the_exports_figures_differ_by_what_their_names_say():
    found = [line for line in commands(README, "python -m monai.bundle") if "--output_dir runs/exports/" in line]
    plain = {line.rsplit("/", 1)[1]: line.rsplit(" --output_dir ", 1)[0] for line in found}
    assert list(plain) == ["pytorch", "once", "onnx", "int8"] and "--part validation" in plain["pytorch"]
    assert plain["once"] == f"{plain['pytorch']} --test_time_flip False"
    onnx = plain["pytorch"].replace("evaluate.json'", "evaluate.json','bundle/configs/inference_onnx.json'")
    for name, file in (("onnx", "model.onnx"), ("int8", "model_int8.onnx")):
        assert plain[name] == f"{onnx} --onnx_file dist/exports/{file}"
    assert f"for name in {' '.join(plain)}; do" in README


def test_the_validation_part_is_harder_than_the_others():
    with open(ROOT / "results/evaluations/cross_validation/pictures.csv", newline="", encoding="utf-8") as file:
        rows = {row["filename"]: row for row in csv.DictReader(file)}
    figures = {}
    for part in ("training", "validation", "testing"):
        chosen = [rows[item["image"].split("/")[1]] for item in results("splits/clean_datalist.json")[part]]
        lesions = [float(row["dice"]) for row in chosen if row["true_class"] != "normal"]
        right = [row["predicted_class"] == row["true_class"] for row in chosen]
        figures[part] = (f"{sum(lesions) / len(lesions):.3f}", f"{sum(right) / len(right):.3f}")
    for one, others in zip(figures["validation"], zip(figures["training"], figures["testing"])):
        assert one < min(others)
    dice, accuracy = figures["validation"]
    text = f"had not seen these {len(results('splits/clean_datalist.json')['validation'])} pictures, "
    text += f"reach lesion Dice {dice} and accuracy {accuracy} on them, as against "
    text += "{} and {} on the training part and ".format(*figures["training"])
    text += "{} and {} on the test part.".format(*figures["testing"])
    assert text in " ".join(CARD.split())


def test_the_labelling_session_is_that_of_its_file():
    found, text = results("label_session.json"), " ".join(ANNOTATE.split())
    assert found["weights"] == "shipped" and not found["promoted"]
    assert f"an answer took {found['median_seconds_per_answer']:.2f} s (median), " in text
    first, before = found["lesion_dice_of_first_suggestions"], found["unseen_lesion_dice_before_training"]
    assert f"first suggestions had lesion Dice {first:.2f}, those for the other pictures {before:.3f}. " in text
    new = found["unseen_lesion_dice_of_the_new_weights"]
    assert f"After {found['max_epochs']} epochs on 16 labels the latter was {new:.3f}: " in text


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
