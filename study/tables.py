"""Write the tables of README, model card and docs, and the metadata's metrics, from the files in results/.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; everything between the two is replaced. Only what a
document argues from is a table; the rest of the results is linked. A test runs the same code and fails where a text
differs from its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas
from tools.cli import ROOT

from breast_ultrasound.files import sha256, write_whole
from study import AWAY, BRIEF, EVALUATIONS, EXTERNAL, HOME, LEFT_OUT, RESULTS, SITES, SMALL

TEXTS = ("README.md", "bundle/docs/README.md", "docs/evidence.md", "docs/evidence_tables.md")
TESTED = {**SITES, "external": "BrEaST"}
METADATA = "bundle/configs/metadata.json"
METRICS = ("lesion_dice", "lesion_iou", "missed_rate", "false_mask_rate", "accuracy", "macro_f1", "auroc_malignant")
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TITLES = {
    "lesion_dice": "lesion Dice",
    "lesion_iou": "lesion IoU",
    "dice_benign": "Dice, benign",
    "dice_malignant": "Dice, malignant",
    "missed_rate": "lesion missed (Dice < 0.1)",
    "false_mask_rate": "normal with a mask",
    "hd95": "HD95, fraction of the diagonal (median)",
    "nsd": "surface Dice at 2 % of the diagonal",
    "lesion_sensitivity": "lesions found, each on its own",
    "false_parts_per_image": "false parts per image",
    "area_ratio": "predicted over true area (median)",
    "dice_all_images": "Dice, all images",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "auroc_malignant": "AUROC, malignant against the rest",
    "auroc_macro": "AUROC, macro",
    "auroc_benign_malignant": "AUROC, malignant against benign",
    "sensitivity_at_90": "its sensitivity at 90 % specificity",
}
CALIBRATION = {
    **{
        f"{key}_{name}": f"p({name}), {title}"
        for name in ("malignant", "benign", "normal")
        for key, title in (
            ("excess", "mean minus frequency (0)"),
            ("intercept", "intercept (0)"),
            ("slope", "slope (1)"),
        )
    },
    "brier": "Brier score",
    "operating_point_sensitivity": "sensitivity for malignancy at the operating point",
    "operating_point_specificity": "specificity for malignancy at the operating point",
    "gain_0.05": "net benefit over all or none, acting from p(malignant) 0.05 on",
    "gain_0.1": "the same from 0.1 on",
    "gain_0.3": "the same from 0.3 on",
    "accuracy_at_90_coverage": "accuracy without the 10 % least sure images",
    "accuracy_at_80_coverage": "accuracy without the 20 % least sure images",
}
# What the model card shows
SHORT = {name: TITLES[name] for name in (*BRIEF[:4], "auroc_benign_malignant", "sensitivity_at_90")}
HOME_AND_AWAY = (*HOME, *AWAY)


def read_results(name: str, models: Path = ROOT / "bundle/models") -> dict | pandas.DataFrame:
    """A file of results/, of the released weights or those of another folder.

    Raises:
        ValueError: it was made from other weights than those that ship.
    """
    path, released = RESULTS / name, sha256(models / "model.pt")
    found = json.loads(path.read_text(encoding="utf-8")) if name.endswith(".json") else pandas.read_csv(path)
    if "testing" in found:  # the report, which holds evaluations of several weights
        made = {source["weights_sha256"] for name in ("testing", *EXTERNAL) for source in found[name]["source"]}
    else:
        made = set(pandas.Series(found["weights_sha256"] if "weights_sha256" in found else "unknown"))
    if made != {released}:
        raise ValueError(f"study/results/{name}: of other weights than those that ship; make it again by study/dodo.py")
    return found


def markdown(frame: pandas.DataFrame) -> str:
    """A table in Markdown; text as it is."""
    return frame.to_markdown(index=False, disable_numparse=True) + "\n"


def number(name: str, value: float | None) -> str:
    """A metric as texts show it; fractions of images in percent; empty where it cannot be had."""
    return "" if pandas.isna(value) else f"{100 * value:.0f} %" if name.endswith("_rate") else f"{value:.3f}"


def interval(name: str, evaluation: dict) -> str:
    """A metric of an evaluation with its 95 % interval, a rate with what was counted; empty where it cannot be had."""
    found = evaluation["figures"].get(name)
    if found is None:
        return ""
    counted = [f"{found['hits']} of {found['total']}"] if name.endswith("_rate") else []
    if found["low"] is not None:
        counted.append(" to ".join(number(name, found[key]).removesuffix(" %") for key in ("low", "high")))
    return number(name, found["value"]) + (f" ({'; '.join(counted)})" if counted else "")


def results() -> str:
    """At home and outside, in one row each, with short titles."""
    report, rows = read_results("evidence/report.json"), []
    titles = {
        "missed_rate": "lesion missed",
        "false_mask_rate": "normal with a mask",
        "auroc_benign_malignant": "AUROC",
    }
    for name in HOME_AND_AWAY:
        found = report[name]
        row = {"": EVALUATIONS[name], "images": found["images"]}
        for metric in (*BRIEF[:4], "auroc_benign_malignant"):
            figure = found["figures"][metric] or {}
            counted = f" ({figure['hits']} of {figure['total']})" if metric.endswith("_rate") and figure else ""
            row[titles.get(metric, TITLES[metric])] = number(metric, figure.get("value")) + counted
        rows.append(row)
    return markdown(pandas.DataFrame(rows))


def intervals(titles: dict[str, str], evaluations: Iterable[str]) -> str:
    """Metrics with intervals, a column for each evaluation."""
    report = read_results("evidence/report.json")
    columns = {"metric (95 % interval)": ["images / groups", *titles.values()]}
    for name in evaluations:
        counts = f"{report[name]['images']} / {report[name]['groups']}"
        columns[EVALUATIONS[name]] = [counts, *(interval(n, report[name]) for n in titles)]
    frame = pandas.DataFrame(columns)
    return markdown(frame[frame.iloc[:, 1:].any(axis=1)])  # without what no evaluation has


def sites() -> str:
    """Both networks at hospitals that they have not seen, in the figures of study/sites.py."""
    found, rows = pandas.read_csv(RESULTS / "sites.csv"), []
    for name, models in {"released": ROOT / "bundle/models", "small": SMALL}.items():
        if set(found[found["name"] == name].weights_sha256) != {sha256(models / "model.pt")}:
            raise ValueError("study/results/sites.csv: of other weights than those that ship; make it again")
    for _, row in found.iterrows():
        weights, site = row["name"], row.site
        shown = {"weights": f"`{weights}`", "trained on": trained_on(weights)}
        shown |= {"tested on": TESTED[site]}
        shown |= {"Dice": number("lesion_dice", row.lesion_dice), "missed": number("missed_rate", row.missed_rate)}
        normals = site in SITES and not pandas.isna(row.false_mask_rate)
        for key, title in (
            ("false_mask_rate", "normal with a mask"),
            ("missed_at_30_false", "missed at 30 % false"),
            ("presence", "AUROC, presence"),
        ):
            shown[title] = number("_rate" if key != "presence" else key, row[key]) if normals else ""
        shown["AUROC, malignant-benign"] = number("", row.malignant_benign)
        shown["by patient"] = number("", row.malignant_benign_by_group)
        rows.append(shown)
    return markdown(pandas.DataFrame(rows))


def trained_on(weights: str) -> str:
    """The hospitals of weights by their name in study/sites.csv."""
    if weights == "small":
        return "BUSI, BUS-BRA"
    return ", ".join(title for site, title in SITES.items() if LEFT_OUT.get(weights) != site)


def differences() -> str:
    """What a network has more, or less, than another, on the same images."""
    found, columns = pandas.read_csv(RESULTS / "evidence/differences.csv"), {}
    names = [name for name in TITLES if name in set(found.figure)]
    for (of, against), rows in found.groupby(["evaluation", "against"], sort=False):
        figures = rows.set_index("figure").replace({float("nan"): None}).to_dict("index")
        columns[f"{EVALUATIONS[of]}, over {EVALUATIONS[against].partition(', ')[2]}"] = [
            signed(name, figures.get(name)) for name in names
        ]
    return markdown(pandas.DataFrame({"difference (95 % interval)": [TITLES[n] for n in names], **columns}))


def signed(name: str, found: dict | None) -> str:
    """A difference with its interval; of rates in points of percent."""
    if found is None:
        return ""
    scale, digits = (100, 0) if name.endswith("_rate") else (1, 3)
    value, low, high = (
        None if v is None else f"{scale * v:+.{digits}f}" for v in (found[k] for k in ("value", "low", "high"))
    )
    return value if low is None else f"{value} ({low} to {high})"


def folds() -> str:
    """The cross-validation fold by fold."""
    found = read_results("evidence/report.json")["cross_validation"]["folds"]
    names = ("lesion_dice", "dice_malignant", "missed_rate", "false_mask_rate", "accuracy", "auroc_malignant")
    frame = pandas.DataFrame({TITLES[n]: [number(n, fold[n]) for fold in found.values()] for n in names})
    frame.insert(0, "fold", list(found))
    return markdown(frame)


def operating_points() -> str:
    """Dice, lesions missed and normals with a mask, a column for each evaluation."""
    found, names = pandas.read_csv(RESULTS / "operating_points.csv"), BRIEF[:3]
    found["cell"] = [" / ".join(filter(None, (number(n, row[n]) for n in names))) for _, row in found.iterrows()]
    table = found.pivot(index="component_threshold", columns="evaluation", values="cell")
    table = table[list(dict.fromkeys(found.evaluation))].rename(columns=EVALUATIONS)
    return markdown(table.rename_axis("`component_threshold`").reset_index())


def calibrations() -> str:
    """Ways to calibrate: log loss, how p(malignant) holds, the operating point; a column for each evaluation."""
    found = pandas.read_csv(RESULTS / "search/calibration.csv")
    told = zip(found.log_loss, found.excess_malignant, found.intercept_malignant, found.slope_malignant)
    found["cell"] = [f"{loss:.3f} / {excess:+.3f} / {i:+.2f} / {slope:.2f}" for loss, excess, i, slope in told]
    points = [f"; {se:.2f} / {sp:.2f}" if se == se else "" for se, sp in zip(found.sensitivity, found.specificity)]
    found["cell"] += points
    table = found.pivot(index="method", columns="evaluation", values="cell").fillna("")
    table = table.loc[list(dict.fromkeys(found.method)), list(dict.fromkeys(found.evaluation))]
    return markdown(table.rename(columns=EVALUATIONS).rename_axis("calibrated by").reset_index())


def robustness() -> str:
    """The testing split under alterations."""
    found = read_results("robustness.csv")
    columns = {TITLES[n]: [number(n, value) for value in found[n]] for n in BRIEF}
    return markdown(pandas.DataFrame({"condition": found.condition.str.replace("_", " "), **columns}))


def levers(file: str = "levers.csv") -> str:
    """Trainings of the second network, each tested on the site that it has not seen and on BrEaST."""
    found, rows = pandas.read_csv(RESULTS / file), []
    for name, pair in found.groupby("name", sort=False):
        away, breast = (pair[(pair.site == "external") == external].iloc[0] for external in (False, True))
        shown = {"recipe": name, "Dice": number("lesion_dice", away.lesion_dice)}
        shown["missed / false masks"] = f"{100 * away.missed_rate:.1f} / {100 * away.false_mask_rate:.1f} %"
        shown["missed at 30 % false"] = f"{100 * away.missed_at_30_false:.1f} %"
        shown["AUROC of presence"] = number("presence", away.presence)
        shown["AUROC malignant-benign"] = number("malignant_benign", away.malignant_benign)
        figures = f"{breast.lesion_dice:.3f} / {100 * breast.missed_rate:.1f} % / {breast.malignant_benign:.3f}"
        rows.append({**shown, "BrEaST: Dice / missed / AUROC": figures})
    return markdown(pandas.DataFrame(rows))


def seeds() -> str:
    """One training three times: each figure of study/sites.py by seed, their mean and standard deviation."""
    found, rows = pandas.read_csv(RESULTS / "seeds.csv"), []
    titles = {"lesion_dice": "Dice", "missed_rate": "missed", "malignant_benign": "AUROC, malignant-benign"}
    normals = {"false_mask_rate": "normal with a mask", "missed_at_30_false": "missed at 30 % false"}
    normals |= {"presence": "AUROC, presence"}
    for site, table in found.groupby("site", sort=False):
        for name, title in (titles | (normals if site in SITES else {})).items():
            values = table.set_index("seed")[name]
            shown = {f"seed {seed}": f"{value:.3f}" for seed, value in values.items()}
            row = {"tested on": TESTED[site], "": title, **shown}
            rows.append({**row, "mean ± SD": f"{values.mean():.3f} ± {values.std():.3f}"})
    return markdown(pandas.DataFrame(rows))


def peers() -> str:
    """Networks of other libraries beside ours, where none of them has been: paired intervals over images."""
    found = pandas.read_csv(RESULTS / "peers_differences.csv")
    names = {"smp": "U-Net of segmentation_models_pytorch", "nnunet": "DynUNet, nnU-Net's loss and optimizer"}
    columns = {"peer": found.peer.map(names), "tested on": found.site.map(TESTED)}
    columns["figure"] = found.figure.map({**TITLES, "malignant_benign": TITLES["auroc_benign_malignant"]})
    for key in ("ours", "of_peer"):
        columns[key.replace("_", " ")] = [number(n, v) for n, v in zip(found.figure, found[key])]
    rows = found.rename(columns={"difference": "value"}).replace({float("nan"): None}).to_dict("records")
    columns["ours minus peer (95 % interval)"] = [signed(row["figure"], row) for row in rows]
    return markdown(pandas.DataFrame(columns))


def random_protocol() -> str:
    """BUSI's folds by scan and image by image, on the images of both."""
    found = pandas.read_csv(RESULTS / "random_protocol.csv")
    names = list(found.figure)
    columns = {f"on {found.images[0]} images": [TITLES[n] for n in names]}
    for key in ("clean", "random"):
        columns[f"`{key}`"] = [number(n, value) for n, value in zip(names, found[key])]
    rows = found.rename(columns={"difference": "value"}).to_dict("records")
    columns["random over clean (95 % interval)"] = [signed(row["figure"], row) for row in rows]
    return markdown(pandas.DataFrame(columns))


def exports() -> str:
    """Size of each exported file, its distance from PyTorch, and its metrics on validation."""
    names, rows = (*BRIEF[:3], "macro_f1", "auroc_malignant"), []
    networks = {
        "exports": ("", ROOT / "bundle/models", {"model.pt": "pytorch", "model.ts": None, "model.onnx": "onnx"}),
        "small": ("small/", SMALL, {"model.pt": "small_pytorch", "model_int8.onnx": "small_int8"}),
    }
    for network, (folder, models, files) in networks.items():
        found = read_results(f"exports/{network}.json", models)
        for file, evaluation in files.items():
            about = found["files"].get(file, {"bytes": found["weights_bytes"]})
            difference = about.get("largest_probability_difference")
            metrics = read_results(f"exports/validation_{evaluation}.json", models) if evaluation else {}
            rows.append(
                {
                    "file": f"`{folder}{file}`",
                    "size": f"{about['bytes'] / 1e6:.1f} MB",
                    "largest difference of a probability": "" if difference is None else f"{difference:.0e}",
                    **{TITLES[n]: number(n, metrics.get(n)) for n in names},
                }
            )
    return markdown(pandas.DataFrame(rows))


def speed() -> str:
    """Images a second and so on of each way to predict, and how much faster that is than MONAI's plain settings."""
    found, rows = read_results("benchmark.json"), []
    for name, told in found["settings"].items():
        faster = found["faster_than_plain"].get(name, {}).get("inference_s", {})
        row = {"way": f"`{name}`", "images a second": f"{found['images'] / told['inference_s']:.0f}"}
        row["times as fast as `plain` (range)"] = (
            "{:.1f} ({:.1f} to {:.1f})".format(faster["median"], *faster["range"]) if faster else ""
        )
        row["one image, ms"] = f"{1000 * told['latency_s']:.0f}"
        rows.append({**row, "peak memory, MB": f"{told['peak_memory_mb']:.0f}"})
    return markdown(pandas.DataFrame(rows))


def simulated_annotation() -> str:
    """What the tools of the annotation page are worth to a reader who knows the true masks."""
    found = read_results("simulated_annotation.csv")
    titles = {"box_error": "box off by", "dice_from_0_9": "Dice 0.9 or more", "dice_below_0_5": "Dice below 0.5"}
    columns = {title: [number("_rate", value) for value in found[name]] for name, title in titles.items()}
    frame = pandas.DataFrame({"tool": found.tool, **columns})
    frame.insert(2, "mean Dice", found.dice.map("{:.3f}".format))
    frame["seconds, modelled"] = [f"{modelled_seconds(tool):.1f}" for tool in found.tool]
    return markdown(frame)


def modelled_seconds(tool: str) -> float:
    """Seconds that an image takes with a tool of the annotation page, the class and Enter included, by the
    keystroke-level model (Card, Moran and Newell, Communications of the ACM 23, 1980)."""
    think, key, point, answer = 1.35, 0.28, 1.1, 0.3  # a button of the mouse is a key; the server answers within 0.3 s
    seconds = 2 * (think + key)
    if "click" in tool:
        clicks = int(tool.split()[0])
        seconds += key + clicks * (think + point + key + answer)
    elif tool.startswith("box"):
        seconds += think + key + 2 * (point + key) + answer
    elif tool.startswith("ellipse"):  # in place of the suggestion, which is cleared
        seconds += think + 2 * key + 2 * (point + key)
    return seconds + (think + 4 * key if "slider" in tool else 0)


def simulated_readers() -> str:
    """What becomes of the labels of readers with known errors."""
    found = pandas.read_csv(RESULTS / "simulated_readers.csv")  # of no weights
    titles = {"class_right": "class right", "no_class": "no class leads", "differing": "readers differ"}
    columns = {title: [number("_rate", value) for value in found[name]] for name, title in titles.items()}
    frame = pandas.DataFrame({"label": found.label, "of": found.readers, **columns})
    frame.insert(2, "mean Dice", found.dice.map("{:.3f}".format))
    return markdown(frame)


def limits() -> str:
    """What inference reads from the released weights' calibration."""
    found = json.loads((ROOT / "bundle/models/calibration.json").read_text(encoding="utf-8"))
    shown = {f"`{key}`": value for key, value in found.items() if isinstance(value, float) or key == "weights_sha256"}
    shown |= {
        "`class_offsets`": ", ".join(f"{k} {v:+.4f}" for k, v in found.get("class_offsets", {}).items()) or "none"
    }
    cells = [f"{value:.6f}".rstrip("0") if isinstance(value, float) else value for value in shown.values()]
    return markdown(pandas.DataFrame({"id": list(shown), "value": cells}))


TABLES = {
    "evidence": lambda: intervals(TITLES, EVALUATIONS),
    "outside": lambda: intervals(SHORT, HOME_AND_AWAY),
    "calibration": lambda: intervals(CALIBRATION, ("cross_validation", *AWAY)),
    "rounds": lambda: levers("rounds.csv"),
    **{
        f.__name__: f
        for f in (
            results,
            sites,
            differences,
            folds,
            calibrations,
            operating_points,
            robustness,
            levers,
            seeds,
            peers,
            random_protocol,
            exports,
            speed,
            simulated_annotation,
            simulated_readers,
            limits,
        )
    },
}


def with_metrics(text: str) -> str:
    """The metadata's text with `eval_metrics` of the cross-validation."""
    found = read_results("evidence/report.json")["cross_validation"]
    content = {"evaluation": f"BUSI, {len(found['folds'])}-fold cross-validation", "images": found["images"]}
    for name in METRICS:
        value, low, high = (round(found["figures"][name][key], 3) for key in ("value", "low", "high"))
        content |= {name: value, f"{name}_95": f"{low} to {high}"}
    lines = json.dumps(content, indent=4).replace("\n", "\n    ")
    return re.sub(r'"eval_metrics": {[^}]*}', lambda _: f'"eval_metrics": {lines}', text)


def with_tables(text: str) -> str:
    """The text with every marked table written anew.

    Raises:
        ValueError: a mark names no table, or a result is of other weights than those that ship.
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
        ValueError: as of `with_tables`.
    """
    for name, change in {**dict.fromkeys(TEXTS, with_tables), METADATA: with_metrics}.items():
        text = change((ROOT / name).read_text(encoding="utf-8"))
        write_whole(ROOT / name, lambda path, text=text: Path(path).write_text(text, encoding="utf-8"))
        print(f"{name}: {len(MARKED.findall(text))} tables")
