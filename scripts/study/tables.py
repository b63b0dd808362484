"""Write the tables of README, model card and docs, and the metadata's metrics, from the files in results/.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; everything between the two is replaced. A test runs
the same code and fails where a text differs from its file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas
from command_line import ROOT
from study import BRIEF, EVALUATIONS, EXTERNAL

from scripts.files import read_csv, sha256, write_whole

TEXTS = ("README.md", "bundle/docs/README.md", "docs/evidence.md", "docs/annotate.md")
METADATA = "bundle/configs/metadata.json"
METRICS = ("lesion_dice", "lesion_iou", "false_mask_rate", "accuracy", "macro_f1", "auroc_malignant", "auroc_macro")
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ACTIVE = {"lesion Dice": "lesion_dice", "macro F1": "macro_f1"}
TITLES = {
    "lesion_dice": "lesion Dice",
    "lesion_iou": "lesion IoU",
    "dice_benign": "Dice, benign",
    "dice_malignant": "Dice, malignant",
    "missed_rate": "lesions missed (Dice below 0.1)",
    "false_mask_rate": "normals with a false mask",
    "dice_all_pictures": "Dice, all images",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auroc_malignant": "AUROC, malignant against the rest",
    "auroc_macro": "AUROC, macro",
    "auroc_benign_malignant": "AUROC, malignant against benign",
    "calibration_error_after": "calibration error after calibration",
}
SHORT = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy", "auroc_benign_malignant")
HOME_AND_AWAY = ("cross_validation", "testing", "bus_bra", *EXTERNAL)
EARLIER = {"4a15e132": "0.3.1", "f8fc0622": "0.4.0", "e12781c7": "0.4.0"}  # versions by the first digits of weights


def results(name: str) -> dict | list[dict]:
    """Content of a file of results/, rows where it is a table."""
    path = ROOT / "results" / name
    return json.loads(path.read_text(encoding="utf-8")) if name.endswith(".json") else read_csv(path)


def number(name: str, value: float | None) -> str:
    """A metric as texts show it; fractions of images in percent."""
    return "" if value is None else f"{100 * value:.0f} %" if name.endswith("_rate") else f"{value:.3f}"


def interval(name: str, found: dict | None) -> str:
    """A metric with its 95 % interval; empty where it cannot be had."""
    if found is None:
        return ""
    low, high = (number(name, found[key]).removesuffix(" %") for key in ("low", "high"))
    return f"{number(name, found['value'])} ({low} to {high})"


def table(head: list, rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def measured() -> dict[str, str]:
    """Titles of the evaluations that the report holds."""
    report = results("evidence/report.json")
    return {name: title for name, title in EVALUATIONS.items() if name in report}


def results_table() -> str:
    """At home and outside, in one row each."""
    report, shown = results("evidence/report.json"), measured()
    rows = []
    for name in (name for name in HOME_AND_AWAY if name in shown):
        found = report[name]["figures"]
        rows.append([shown[name], report[name]["pictures"], *(number(n, _value(found[n])) for n in SHORT)])
    return table(["", "images", *(TITLES[name] for name in SHORT)], rows) + _weights_of_evidence(report)


def _value(found: dict | None) -> float | None:
    return found and found["value"]


def evidence() -> str:
    """Metrics with intervals, one column for each evaluation."""
    return _intervals(TITLES, measured())


def outside() -> str:
    """The same for home and outside alone."""
    return _intervals(TITLES, {name: title for name, title in measured().items() if name in HOME_AND_AWAY})


def _intervals(titles: dict[str, str], shown: dict[str, str]) -> str:
    report = results("evidence/report.json")
    rows = [["images / groups", *(f"{report[e]['pictures']} / {report[e]['groups']}" for e in shown)]]
    rows += [[title, *(interval(n, report[e]["figures"].get(n)) for e in shown)] for n, title in titles.items()]
    return table(["metric (95 % interval)", *shown.values()], rows) + _weights_of_evidence(report)


def _weights_of_evidence(report: dict) -> str:
    """A line below a table of a report on other weights than the released ones."""
    (source,) = report["testing"]["source"]
    released = source["weights_sha256"] == sha256(ROOT / "bundle/models/model.pt")
    return "" if released else "\nNot of the released weights: run scripts/reproduce.py.\n"


def folds() -> str:
    """The cross-validation fold by fold."""
    found = results("evidence/report.json")["cross_validation"]["folds"]
    names = ("lesion_dice", "lesion_iou", "dice_malignant", "missed_rate", "false_mask_rate", "accuracy", "macro_f1")
    names += ("auroc_malignant", "auroc_macro", "calibration_error_after")
    rows = [[fold.removeprefix("fold_"), *(number(n, f[n]) for n in names)] for fold, f in found.items()]
    return table(["fold", *(TITLES[name] for name in names)], rows)


def subgroups() -> str:
    """At home and outside by subgroup."""
    names = ("lesion_dice", "missed_rate", "false_mask_rate", "accuracy")
    report = results("evidence/report.json")
    rows = [
        [EVALUATIONS[name], group, f["pictures"], *(interval(n, f[n]) for n in names)]
        for name in ("cross_validation", "bus_bra_unseen", *EXTERNAL)
        for group, f in report[name]["subgroups"].items()
    ]
    return table(["evaluation", "subgroup", "images", *(TITLES[name] for name in names)], rows)


def calibration() -> str:
    """Calibration and operating point by evaluation."""
    titles = {
        "calibration_error_before": "calibration error before",
        "calibration_error_after": "calibration error after",
        "brier_before": "Brier score before",
        "brier_after": "Brier score after",
        "operating_point_sensitivity": "sensitivity for malignancy at the operating point",
        "operating_point_specificity": "specificity for malignancy at the operating point",
        "accuracy_at_90_coverage": "accuracy of the surer 90 % of the images",
        "accuracy_at_80_coverage": "accuracy of the surer 80 % of the images",
    }
    return _intervals(titles, measured())


def limits() -> str:
    """What inference reads from the released weights' calibration."""
    found = json.loads((ROOT / "bundle/models/calibration.json").read_text(encoding="utf-8"))
    keys = ("temperature", "malignancy_threshold", "unsure_below")
    rows = [["weights_sha256", found["weights_sha256"]], *([key, f"{found[key]:.6f}"] for key in keys)]
    return table(["id", "value"], [[f"`{key}`", value] for key, value in rows])


def stress() -> str:
    """The testing split under alterations."""
    found = results("evidence/report.json").get("stress")
    if not found:
        return "Not measured with these weights; the steps `robustness`, `evidence` and `tables` do."
    order = sorted(found, key=lambda c: (c != "unaltered", not c[-1].isdigit(), c.rstrip("0123456789."), _strength(c)))
    rows = [[c.replace("_", " "), *(number(n, found[c][n]) for n in BRIEF)] for c in order]
    return table(["condition", *(TITLES[name] for name in BRIEF)], rows)


def _strength(condition: str) -> float:
    last = condition.rsplit("_", 1)[-1]
    return float(last) if last.replace(".", "").isdigit() else 0.0


def fine_tuning() -> str:
    """What some images of another hospital are worth, mean and range over the draws."""
    names = ("lesion_dice", "missed_rate", "accuracy", "auroc_malignant")
    rows = []
    for (images, start), found in pandas.read_csv(ROOT / "results/fine_tuning.csv").groupby(["images", "start"]):
        cells = [
            interval(n, {"value": v.mean(), "low": v.min(), "high": v.max()}) for n, v in found[list(names)].items()
        ]
        rows.append([images, start if images else "untouched", *cells])
    return table(["images", "training from", *(TITLES[name] for name in names)], rows) + _weights_of("fine_tuning")


def quick() -> str:
    """What the quick training gives up against the released weights."""
    rows = []
    for name in ("testing", "external"):
        for title, file in (("released", f"evaluations/{name}/metrics.json"), ("quick", f"quick/{name}.json")):
            found = results(file)
            rows.append([title, EVALUATIONS[name], found["pictures"], *(number(n, found[n]) for n in BRIEF)])
    return table(["weights", "tested on", "images", *(TITLES[n] for n in BRIEF)], rows)


def levers() -> str:
    """What each lever of the recipe is worth, seed by seed."""
    names = ("lesion_dice", "missed_rate", "false_mask_rate", "auroc_malignant")
    tested = {"validation": "BUSI validation", "outside": "BUS-BRA"}
    rows = [
        [r["lever"], tested[r["tested_on"]], r["images"], r["seed"], *(number(n, _or_none(r[n])) for n in names)]
        for r in sorted(results("search/levers.csv"), key=lambda r: r["tested_on"], reverse=True)
    ]
    return table(["lever", "tested on", "images", "seed", *(TITLES[n] for n in names)], rows)


def averaging() -> str:
    """What the mean of two rounds brings."""
    rows = [
        [EVALUATIONS[r["evaluation"]], r["weights"], r["pictures"], *(number(n, _or_none(r[n])) for n in BRIEF)]
        for r in results("search/averaging.csv")
    ]
    return table(["evaluation", "weights", "images", *(TITLES[n] for n in BRIEF)], rows)


def operating_points() -> str:
    """Lesions missed against normals with a false mask, a column for each evaluation."""
    rows: dict[str, dict[str, str]] = {}
    for r in results("operating_points.csv"):
        cells = [number(n, _or_none(r[n])) for n in ("lesion_dice", "missed_rate", "false_mask_rate")]
        rows.setdefault(f"{float(r['part_threshold']):g}", {})[EVALUATIONS[r["evaluation"]]] = " / ".join(
            filter(None, cells)
        )
    head = list(next(iter(rows.values())))
    return table(["`part_threshold`", *head], [[part, *(row[name] for name in head)] for part, row in rows.items()])


def _or_none(cell: str) -> float | None:
    return float(cell) if cell else None


def faults() -> str:
    """How each version took damaged and unusual input."""
    runs = results("faults.json")["runs"]
    outcomes = ("right", "named", "opaque", "silent")
    rows = [
        [kind, version, *(counts[outcome] for outcome in outcomes)]
        for kind in next(iter(runs.values()))
        for version, run in runs.items()
        for counts in [run[kind]]
    ]
    return table(["faults", "version", *outcomes], rows)


def postprocessing() -> str:
    """The chosen postprocessing beside none, out of fold."""
    found = results("search/postprocessing.csv")
    settings = {k: str(float(v)) for k, v in configured().items()}
    plain = {"mask_threshold": "0.5", "smallest_fraction": "0.0", "part_threshold": "0.0"}
    names = ("lesion_dice", "missed_rate", "false_mask_rate", "dice_all_pictures")
    rows = []
    alone = [{**plain, key: value} for key, value in settings.items() if value != plain[key]]
    for title, wanted in (("none", plain), *((_changed(a, plain), a) for a in alone), ("all, the default", settings)):
        row = next(r for r in found if all(float(r[key]) == float(value) for key, value in wanted.items()))
        rows.append([title, *(number(n, float(row[n])) for n in names)])
    worth = results("search/postprocessing.json")
    rows.append(["chosen on four folds, on the fifth", *(number(n, worth[n]) for n in names)])
    return table(["postprocessing", *(TITLES[name] for name in names)], rows)


def configured() -> dict[str, float]:
    """The postprocessing of the bundle's configs."""
    config = json.loads((ROOT / "bundle/configs/inference.json").read_text(encoding="utf-8"))
    return {key: config[key] for key in ("mask_threshold", "smallest_fraction", "part_threshold")}


def _changed(setting: dict, plain: dict) -> str:
    return ", ".join(f"`{key}` {value}" for key, value in setting.items() if value != plain[key])


def failures() -> str:
    """Worst masks and missed malignant images of the testing split, by file name."""
    found = results("evidence/report.json")["testing"]["failures"]
    kinds = {"worst_masks": "mask among the ten worst", "malignant_missed": "malignant, missed"}
    kinds |= {"false_masks": "mask on a normal image"}
    pictures = {}
    for kind, title in kinds.items():
        for picture in found[kind]:
            pictures.setdefault(picture["filename"], (picture, []))[1].append(title)
    rows = [
        [name, "; ".join(titles), p["predicted_class"], f"{p['probability']:.2f}", f"{p['dice']:.2f}"]
        for name, (p, titles) in pictures.items()
    ]
    return table(["image", "what went wrong", "class predicted", "its probability", "Dice"], rows)


def exports() -> str:
    """Size of each exported file, its distance from PyTorch, and its metrics on validation."""
    found = results("exports/exports.json")
    figures = {name: results(f"exports/validation_{name}.json") for name in ("pytorch", "onnx", "int8")}
    names = ("lesion_dice", "false_mask_rate", "macro_f1", "auroc_macro", "auroc_malignant")
    size = [f"{found['weights_bytes'] / 1e6:.1f} MB", "", ""]
    rows = [["`model.pt`", *size, *(number(n, figures["pytorch"][n]) for n in names)]]
    for file, evaluation in (("model.ts", None), ("model.onnx", "onnx"), ("model_int8.onnx", "int8")):
        f = found["files"][file]
        cells = [f"{f['bytes'] / 1e6:.1f} MB", f"{f['largest_probability_difference']:.0e}"]
        cells.append(f"{100 * f['differing_mask_pixels']:.3f} %")
        measured = [number(n, figures[evaluation][n]) for n in names] if evaluation else [""] * len(names)
        rows.append([f"`{file}`", *cells, *measured])
    head = ["file", "size", "largest difference of a probability", "mask pixels that differ"]
    return table([*head, *(TITLES[n] for n in names)], rows) + _weights_of("exports")


def predictors() -> str:
    """How far the ONNX files with preprocessing and postprocessing are from the bundle's inference in float32."""
    found = results("exports/exports.json")
    measured = ("largest_class_probability_difference", "largest_lesion_probability_difference")
    rows = []
    for file, f in found["predictors"].items():
        for images, compared in ((f"{found['pictures']} of validation", f), ("odd sizes", f["odd_sizes"])):
            ious = [f"{compared[name]:.5f}" for name in ("smallest_mask_iou", "mean_mask_iou")]
            size = f"{f['bytes'] / 1e6:.1f} MB"
            rows.append([f"`{file}`", size, images, *(f"{compared[name]:.0e}" for name in measured), *ious])
    head = ["file", "size", "images", "largest difference of a class's probability", "of a pixel's probability"]
    return table([*head, "smallest IoU of the masks", "mean IoU of the masks"], rows) + _weights_of("exports")


def _weights_of(step: str) -> str:
    """A line below a table that a step of scripts/reproduce.py made from other weights than the released ones."""
    made_from = results("made_from.json").get(step, {}).get("weights/model.pt", "unknown")
    released = made_from == sha256(ROOT / "bundle/models/model.pt")
    return "" if released else f"\nMeasured with the weights of {EARLIER.get(made_from[:8], made_from)}.\n"


def inference_speed() -> str:
    """Inference from files to files: the bundle and ONNX Runtime against MONAI's plain settings."""
    found = results("benchmark_inference.json")
    titles = {"plain": "plain", "stock": "plain settings, this network", "bundle": "this bundle"}
    titles |= {"onnx": "ONNX Runtime", "int8": "ONNX Runtime, INT8"}
    titles |= {"predictor": "`Predictor`", "predictor onnx": "`Predictor`, ONNX Runtime"}
    titles |= {f"{name}.onnx": f"`{name}.onnx`" for name in ("predictor", "predictor_int8")}
    titles |= {f"2 x {name}": f"two processes of {titles[name]}" for name in ("bundle", "onnx", "int8")}
    rows = []
    for name, title in titles.items():
        s, ratios = found["settings"][name], found["faster_than_plain"].get(name, {})
        cells = [_ratio(ratios[key]) if key in ratios else "" for key in ("inference_s", "latency_s")]
        cells = ["1", "1"] if name == "plain" else cells
        rate = found["pictures"] / s["inference_s"]
        latency = f"{1000 * s['latency_s']:.0f} ms" if "latency_s" in s else ""
        rows.append([title, f"{rate:.1f}", latency, *cells, f"{s['peak_memory_mb']:.0f} MB"])
    head = ["setting", "images a second", "one image", "times as fast as plain", "the same for one image"]
    return table([*head, "peak memory"], rows) + _weights_of("benchmark_inference")


def predictor_time() -> str:
    """Where the time of `Predictor` goes."""
    found = results("benchmark_inference.json")["stages_ms"]
    titles = {"predictor": "PyTorch", "predictor onnx": "ONNX Runtime"}
    rows = [[titles[name], *(f"{value:.1f}" for value in parts.values())] for name, parts in found.items()]
    return table(["milliseconds", *next(iter(found.values()))], rows) + _weights_of("benchmark_inference")


def folder_sizes() -> str:
    """Inference on folders of several sizes."""
    found = results("benchmark_folders.json")
    rows = [[n, f"{f['pictures_a_second']:.1f}", f"{f['peak_memory_mb']} MB"] for n, f in found.items()]
    return table(["images in the folder", "images a second", "peak memory"], rows) + _weights_of("benchmark_folders")


def active_learning() -> str:
    """What a small network learns from labels in random order and in order of its uncertainty."""
    found = pandas.read_csv(ROOT / "results/active_learning.csv").groupby(["labels", "strategy"])
    columns = [(title, name, order) for title, name in ACTIVE.items() for order in ("random", "uncertainty")]
    spread = found[list(ACTIVE.values())].agg(["mean", "min", "max"])
    rows = []
    for labels in dict.fromkeys(spread.index.get_level_values("labels")):
        cells = [spread.loc[(labels, order)][name] for _, name, order in columns]
        rows.append([labels, *(f"{c['mean']:.3f} ({c['min']:.3f} to {c['max']:.3f})" for c in cells)])
    return table(["labels", *(f"{title}, {order}" for title, _, order in columns)], rows)


def label_session() -> str:
    """What a simulated session of the annotation server gave."""
    found = results("label_session.json")
    titles = {
        "median_seconds_per_answer": "seconds until a suggestion, median",
        "lesion_dice_of_first_suggestions": "lesion Dice of the suggestions",
        "unseen_lesion_dice_before_training": "lesion Dice on the other images, before the training",
        "unseen_lesion_dice_of_the_new_weights": "lesion Dice on the other images, new weights",
        "training_seconds": "seconds of training",
        "score_before": "score on the labels held out, weights that serve",
        "score_after": "score on the labels held out, new weights",
    }
    rows = [[title, f"{found[name]:.3g}"] for name, title in titles.items()]
    rows.append(["new weights serve", "yes" if found["promoted"] else "no"])
    return table(["metric", "value"], rows) + _weights_of("label_session")


def versions() -> str:
    """With which versions the bundle was tried."""
    names = ("name", "python", "monai", "torch", "numpy", "pytorch-ignite")
    rows = []
    for found in results("versions.json"):
        error = found["error"].replace("|", "/")
        outcome = found["outcome"] + (f": `{error}`" if error else "")
        difference = found["largest_probability_difference"]
        shown = "" if difference is None else f"{difference:.0e}" if difference else "0"
        rows.append([*(found.get(name, "") for name in names), outcome, shown, found["date"]])
    return table(["versions", *names[1:], "outcome", "largest difference of a probability", "tried on"], rows)


def percent(value: float) -> str:
    """A fraction as a percentage; empty where there is none."""
    return "" if pandas.isna(value) else f"{100 * value:.0f} %"


def simulated_annotation() -> str:
    """What the tools of the annotation page are worth to a reader who knows the true masks."""
    found = pandas.read_csv(ROOT / "results/simulated_annotation.csv")
    rows = [
        [r.tool, percent(r.box_error), f"{r.dice:.3f}", percent(r.dice_from_0_9), percent(r.dice_below_0_5)]
        for r in found.itertuples()
    ]
    head = ["tool", "box off by", "mean Dice", "Dice 0.9 or more", "Dice below 0.5"]
    return table(head, rows) + _weights_of("simulated_annotation")


def _ratio(found: dict) -> str:
    return f"{found['median']:.1f} ({found['range'][0]:.1f} to {found['range'][1]:.1f})"


def splits() -> str:
    """The three splits of BUSI: images, classes, sizes."""
    rows = []
    for split in ("clean", "grouped", "random"):
        counts = results(f"splits/{split}.json")["counts"]
        parts = ", ".join(str(sum(counts[part].values())) for part in ("training", "validation", "testing"))
        used = counts["used"]
        rows.append([f"`{split}`", sum(used.values()), " / ".join(map(str, used.values())), parts])
    return table(["`--split`", "images", "normal / benign / malignant", "training, validation, testing"], rows)


def training_speed() -> str:
    """Training against MONAI's plain settings, at each size and precision."""
    rows = []
    for file, title in (("256", "256"), ("160", "160"), ("160_fp32", "160, fp32")):
        found = results(f"benchmark_{file}.json")
        for name, setting in (("same", "same network"), ("bundle", "this bundle")):
            ratios = [_ratio(found["faster_than_plain"][name][what]) for what in ("epoch_s", "step_s")]
            rows.append([title, setting, *ratios, f"{100 * found['settings'][name]['share_of_matrix_peak']:.0f} %"])
    return table(["pixels", "setting", "training epoch", "network step", "step against matrix product"], rows)


FUNCTIONS = (
    evidence,
    outside,
    limits,
    splits,
    training_speed,
    folds,
    subgroups,
    calibration,
    operating_points,
    stress,
    fine_tuning,
    quick,
    levers,
    averaging,
    postprocessing,
    failures,
    exports,
    predictors,
    inference_speed,
    predictor_time,
    folder_sizes,
    faults,
    versions,
    active_learning,
    label_session,
    simulated_annotation,
)
TABLES = {"results": results_table, **{f.__name__: f for f in FUNCTIONS}}


def with_metrics(text: str) -> str:
    """The metadata's text with `eval_metrics` of the testing split."""
    figures = results("evidence/report.json")["testing"]["figures"]
    lines = ",\n".join(f'        "{name}": {figures[name]["value"]:.3f}' for name in METRICS)
    return re.sub(r'"eval_metrics": {[^}]*}', f'"eval_metrics": {{\n{lines}\n    }}', text)


def with_tables(text: str) -> str:
    """The text with every marked table written anew.

    Raises:
        ValueError: a mark names no table.
    """

    def replace(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"no table {match[2]}; there are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]]()}{match[3]}"

    return MARKED.sub(replace, text)


def update_tables() -> None:
    """Write the tables of all texts and the metrics of the metadata.

    Raises:
        FileNotFoundError: a file of results/ is missing.
    """
    for name in TEXTS:
        text = with_tables((ROOT / name).read_text(encoding="utf-8"))
        write_whole(ROOT / name, lambda path, text=text: Path(path).write_text(text, encoding="utf-8"))
        print(f"{name}: {len(MARKED.findall(text))} tables")
    text = with_metrics((ROOT / METADATA).read_text(encoding="utf-8"))
    write_whole(ROOT / METADATA, lambda path: Path(path).write_text(text, encoding="utf-8"))
