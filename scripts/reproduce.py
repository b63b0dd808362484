"""Make every number of the documents anew: all steps in order, or some by name; what is up to date is skipped.

    python scripts/reproduce.py --list True
    python scripts/reproduce.py --source Dataset_BUSI_with_GT --bus_bra BUSBRA --external "{'external':'BrEaST'}"
    python scripts/reproduce.py --only "[evaluate_testing,tables]" --source Dataset_BUSI_with_GT

A step is up to date where its files are there and were made from the weights and results as they are now:
`results/made_from.json` keeps the SHA-256 of what each was made from. A step first runs those that it needs, where
their output is missing. What lies in --runs_dir (prepared folders, trainings) is used again; remove it to begin anew.
--weights_dir holds the weights to measure, by default the released ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from average_weights import average_weights
from command_line import BUNDLE, ROOT, as_arguments, run, run_bundle, run_command
from study import BRIEF, EVALUATIONS, EXTERNAL, UNSEEN

from scripts.files import sha256, write_csv, write_json

RESULTS = ROOT / "results"
MADE_FROM = RESULTS / "made_from.json"
WEIGHTS = ("weights/model.pt", "weights/calibration.json")
# The recipe of the released weights: two hospitals, all images outside the testing splits, the last epoch; then from
# there a short round for each seed, whose weights are averaged
WITHOUT_TESTING = {"train_split": "training+validation"}
FIRST, ROUND = {"epochs": 36, "val_interval": 36}, {"epochs": 3, "val_interval": 3}
# As many steps with one hospital alone, all of its images, tested on the other
ONE_SITE = {
    "clean": ({"epochs": 112, "val_interval": 112}, {"epochs": 11, "val_interval": 11}),
    "bus_bra": ({"epochs": 40, "val_interval": 40}, {"epochs": 4, "val_interval": 4}),
}
ROUNDS = {f"round_{seed}": {"learning_rate": 0.001, "seed": seed} for seed in (0, 1)}
EVERYTHING = {"train_split": "training+validation+testing"}
SPLITS = ("clean", "grouped", "random")
EXPORTS = {
    "pytorch": {},
    "onnx": {"onnx_file": "model.onnx"},
    "int8": {"onnx_file": "model_int8.onnx"},
}


@dataclass(frozen=True)
class Places:
    """Where a step finds and leaves things; `path` turns the names of steps into files."""

    runs: Path
    weights: Path
    source: Path | None
    external: dict[str, Path]
    bus_bra: Path | None = None

    def path(self, name: str) -> Path:
        """`results/...`, `runs/...` or `weights/...` as a file."""
        top, _, rest = name.partition("/")
        return {"results": RESULTS, "runs": self.runs, "weights": self.weights}[top] / rest

    def busi(self) -> Path:
        """The folder of BUSI.

        Raises:
            ValueError: it was not given.
        """
        if not self.source:
            raise ValueError("--source is missing; give the folder of BUSI, which holds normal, benign and malignant")
        return self.source


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        name: what --only takes.
        about: what it does, for --list.
        minutes: how long it takes on two cores, about.
        action: does it.
        makes: its files, the last one written last.
        inputs: files whose change makes it stale.
        needs: steps whose output it reads.
    """

    name: str
    about: str
    minutes: float
    action: Callable[[Places], object]
    makes: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    needs: tuple[str, ...] = field(default=())

    def state(self, places: Places, made_from: dict) -> str:
        """`missing`, `stale` (made from other weights or results than those that are here) or `up to date`."""
        if not all(places.path(name).exists() for name in self.makes):
            return "missing"
        kept = made_from.get(self.name, {})
        same = all(kept.get(name) == value for name, value in self.hashes(places).items())
        return "up to date" if same else "stale"

    def hashes(self, places: Places) -> dict[str, str]:
        """SHA-256 of the inputs that exist."""
        return {name: sha256(places.path(name)) for name in self.inputs if places.path(name).is_file()}


def prepare(split: str, folds: int, places: Places) -> None:
    """Convert BUSI with one of its splits."""
    folder = places.runs / ("folds" if folds else split)
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--source", places.busi().resolve(), "--output_dir", folder, "--split", split, "--folds", folds]
    run_command(f"BUSI, {split}", "scripts/prepare_busi.py", *options)


def keep_splits(places: Places) -> None:
    """Copy the summaries of the splits, and the names in each part of the one that the weights were trained on."""
    for split in SPLITS:
        _copy(places.runs / split / "summary.json", RESULTS / "splits" / f"{split}.json")
    _copy(places.runs / "clean/datalist.json", RESULTS / "splits/clean_datalist.json")


def prepare_bus_bra(places: Places) -> None:
    """Convert BUS-BRA with its own split.

    Raises:
        ValueError: its folder was not given.
    """
    if not places.bus_bra:
        raise ValueError("--bus_bra is missing; give the folder of BUS-BRA, which holds Images, Masks and bus_data.csv")
    shutil.rmtree(places.runs / "bus_bra", ignore_errors=True)
    options = ["--source", places.bus_bra.resolve(), "--layout", "bus_bra", "--output_dir", places.runs / "bus_bra"]
    run_command("BUS-BRA, conversion", "scripts/prepare_dataset.py", *options)


def prepare_external(name: str, places: Places) -> None:
    """Convert an external set; all of it is for testing."""
    if name not in places.external:
        raise ValueError(f"--external is missing; give the folder of this set as \"{{'{name}': 'DIR'}}\"")
    shutil.rmtree(places.runs / name, ignore_errors=True)
    options = ["--source", Path(places.external[name]).resolve(), "--layout", EXTERNAL[name]["layout"]]
    options += ["--testing_only", True, "--output_dir", places.runs / name]
    run_command(f"{name}, conversion", "scripts/prepare_dataset.py", *options)


def joint(datalist: Path, places: Places) -> str:
    """BUS-BRA beside a datalist of BUSI, for `--datalist`."""
    return str({str(datalist): 1, str(places.runs / "bus_bra/datalist.json"): 1})


def train_in_parts(title: str, folder: Path, first: dict, rounds: dict, **data: object) -> None:
    """Train into `first` and into a folder for each round, all beside the folder, and put the mean into the folder."""
    start = folder.parent / "first" / folder.name
    where = {"ckpt_dir": start, "output_dir": start, "resume": True}
    run_bundle(f"{title}, first training", "training", "train", **where, **first, **data)
    folders = [folder.parent / name / folder.name for name in ROUNDS]
    for output, options in zip(folders, ROUNDS.values()):
        where = {"ckpt_dir": output, "output_dir": output, "resume": True, "pretrained": start / "model.pt"}
        run_bundle(f"{title}, {output.parent.name}", "training", "train", **where, **rounds, **options, **data)
    (folder / "model.pt").unlink(missing_ok=True)  # of a run that was cut off before its settings were written
    average_weights(tuple(folders), folder)


def train(places: Places) -> None:
    """Train as the released weights were; calibrated on out-of-fold predictions."""
    folder, datalist = places.runs / "models", places.runs / "clean/datalist.json"
    train_in_parts("Training", folder, FIRST, ROUND, datalist=joint(datalist, places), **WITHOUT_TESTING)
    options = ["--cross_validation", places.runs / "cross_validation", "--datalist", datalist, "--ckpt_dir", folder]
    run_command("Calibration", "scripts/calibrate.py", *options)


def train_one_site(site: str, places: Places) -> None:
    """Train on all images of one hospital."""
    folder = places.runs / f"models_only_{site}"
    train_in_parts(f"{site} alone", folder, *ONE_SITE[site], dataset_dir=places.runs / site, **EVERYTHING)


def cross_validate(places: Places) -> None:
    """Train and test on every fold with the recipe of the released weights."""
    first, rounds = places.runs / "first/cross_validation", [places.runs / name / "cross_validation" for name in ROUNDS]
    shared = {"dataset_dir": places.runs / "folds", "with_sets": {str(places.runs / "bus_bra/datalist.json"): 1}}
    parts = {first: FIRST | WITHOUT_TESTING}
    for output, options in zip(rounds, ROUNDS.values()):
        parts[output] = {"after": first, **ROUND, **options, **WITHOUT_TESTING}
    parts[places.runs / "cross_validation"] = {"mean_of": [str(output) for output in rounds]}
    for output, options in parts.items():
        title = output.relative_to(places.runs).as_posix()
        arguments = as_arguments({**shared, "output_dir": output, **options})
        run_command(title, "scripts/cross_validate.py", *arguments)


def keep_cross_validation(places: Places) -> None:
    """Copy the joined tables."""
    for name in ("pictures.csv", "metrics.json"):
        _copy(places.runs / "cross_validation" / name, RESULTS / "evaluations/cross_validation" / name)


def evaluated(name: str, places: Places) -> dict[str, str]:
    """Options of an evaluation: weights and images, a testing split or all of a hospital that they have not seen."""
    if name not in UNSEEN:
        return {"dataset_dir": str(places.runs / {"testing": "clean"}.get(name, name)), "ckpt_dir": str(places.weights)}
    _, site, other = UNSEEN[name]
    weights, part = places.runs / f"models_only_{site}", "testing" if other in EXTERNAL else EVERYTHING["train_split"]
    return {"dataset_dir": str(places.runs / other), "ckpt_dir": str(weights), "part": part}


def evaluate(name: str, places: Places) -> None:
    """Evaluate on what `evaluated` says."""
    where = {"output_dir": RESULTS / "evaluations" / name, **evaluated(name, places)}
    run_bundle(f"Evaluation, {name}", "evaluating", ["train", "evaluate"], **where, overwrite=True)


def averaging(places: Places) -> None:
    """What the rounds and their mean bring, at home and at hospitals that the weights have not seen."""
    rows = []
    for name in ("cross_validation", "busi_unseen", "bus_bra_unseen"):
        first = places.runs / "first" / name
        if name in UNSEEN:
            where = evaluated(name, places)
            where |= {"ckpt_dir": places.runs / "first" / Path(where["ckpt_dir"]).name, "output_dir": first}
            run_bundle(f"{name}, first training", "evaluating", ["train", "evaluate"], **where, overwrite=True)
        for weights, folder in (("first training", first), ("averaged", RESULTS / "evaluations" / name)):
            found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            metrics = {metric: found[metric] for metric in ("pictures", *BRIEF)}
            rows.append({"weights": weights, "evaluation": name, **metrics})
    write_csv(RESULTS / "search/averaging.csv", rows, list(rows[0]))


def quick(places: Places) -> None:
    """Train on BUSI alone as train_quick.json has it, and evaluate on the testing split and the external set."""
    folder = places.runs / "quick"
    where = {"dataset_dir": places.runs / "clean", "ckpt_dir": folder, "output_dir": folder, "resume": True}
    run_bundle("Quick training", "training", ["train", "train_quick"], **where)
    for name, data in (("testing", "clean"), ("external", "external")):
        where = {"dataset_dir": places.runs / data, "ckpt_dir": folder, "output_dir": folder / name}
        run_bundle(f"Quick training, {name}", "evaluating", ["train", "evaluate"], **where, overwrite=True)
        _copy(folder / name / "metrics.json", RESULTS / "quick" / f"{name}.json")


def levers(places: Places) -> None:
    """Short trainings on BUSI, each with one thing of the recipe changed."""
    from study.levers import measure_levers

    folders = (places.runs / "clean", places.runs / "bus_bra", places.runs / "levers")
    measure_levers(*folders, RESULTS / "search/levers.csv")


def fine_tuning(places: Places) -> None:
    """Fine-tune the released weights on a few images of the external set, against training from nothing."""
    from study.fine_tuning import fine_tuning

    fine_tuning(places.runs / "external", places.weights, places.runs / "fine_tuning", RESULTS / "fine_tuning.csv")


def robustness(places: Places) -> None:
    """Evaluate on altered images."""
    from study.robustness import measure_robustness

    measure_robustness(places.runs / "clean", places.weights, places.runs / "stress")


def evidence(places: Places) -> None:
    """Metrics with intervals, subgroups, failures and charts of all evaluations."""
    from study.report import report

    # Of the cross-validation the folds, each with its own calibration
    folders = {name: RESULTS / "evaluations" / name for name in EVALUATIONS}
    folders["cross_validation"] = places.runs / "cross_validation"
    lists = [places.runs / "clean/datalist.json", places.runs / "bus_bra/datalist.json"]
    lists += [places.runs / name / "datalist.json" for name in EXTERNAL]
    stress = places.runs / "stress"
    report(folders, RESULTS / "evidence", lists, stress if stress.is_dir() else None)


def postprocessing(places: Places) -> None:
    """Choose threshold and kept parts on the cross-validation."""
    from study.postprocessing import choose_postprocessing

    paths = (places.runs / "folds", places.runs / "cross_validation", places.runs / "clean/datalist.json")
    choose_postprocessing(*paths, RESULTS / "search/postprocessing.csv")


def operating_points(places: Places) -> None:
    """Lesions missed against normals with a false mask, at home and on sets that the weights have not seen."""
    from study.postprocessing import fold_options, operating_points

    home = fold_options(places.runs / "folds", places.runs / "cross_validation")
    away = {name: [evaluated(name, places)] for name in (*EXTERNAL, "busi_unseen", "bus_bra_unseen")}
    operating_points({"cross_validation": home, **away}, RESULTS / "operating_points.csv")


def active_learning(places: Places) -> None:
    """Labels in random order and in that of the network's uncertainty."""
    from study.active_learning import compare_active_learning

    compare_active_learning(places.runs / "clean", places.runs / "active_learning", seeds=(0, 1, 2, 3))
    _copy(places.runs / "active_learning/active_learning.csv", RESULTS / "active_learning.csv")


def exports(places: Places) -> None:
    """Export the weights, and evaluate each file on the validation split."""
    folder, data = places.runs / "exports", {"dataset_dir": places.runs / "clean", "ckpt_dir": places.weights}
    options = ["--dataset_dir", data["dataset_dir"], "--ckpt_dir", places.weights, "--output_dir", folder]
    run_command("Exports", "scripts/export.py", *options)
    for name, ids in EXPORTS.items():
        configs = ["train", "evaluate"]
        ids = {**ids, "part": "validation", "output_dir": folder / name, "overwrite": True}
        if "onnx_file" in ids:
            configs, ids = [*configs, "inference_onnx"], {**ids, "onnx_file": folder / ids["onnx_file"]}
        run_bundle(f"Validation, {name}", "evaluating", configs, **data, **ids)
        _copy(folder / name / "metrics.json", RESULTS / "exports" / f"validation_{name}.json")
    _copy(folder / "exports.json", RESULTS / "exports/exports.json")


def benchmark(output: str, options: dict, places: Places) -> None:
    """Measure speed; on a machine that is otherwise idle."""
    from study import benchmark

    if output == "benchmark_inference":
        options = {**options, "exports": places.runs / "exports", "ckpt_dir": places.weights}
    benchmark.benchmark(places.runs / "clean", output=RESULTS / f"{output}.json", **options)


def benchmark_folders(places: Places) -> None:
    """Measure the inference command on folders of 1,000 and 10,000 images."""
    from study.benchmark import benchmark_folders

    benchmark_folders(places.runs / "clean", ckpt_dir=places.weights, output=RESULTS / "benchmark_folders.json")


def grad_cam(places: Places) -> None:
    """Draw and score Grad-CAM on the validation split."""
    data, masks = places.runs / "clean", places.runs / "looked_at"
    where = {"dataset_dir": data, "ckpt_dir": places.weights, "output_dir": masks}
    run_bundle("Masks", "evaluating", ["train", "evaluate"], **where, part="validation", save_masks=True)
    options = ["--predictions", masks, "--images", data / "images", "--labels", data / "labels"]
    options += ["--ckpt_dir", places.weights, "--output_dir", places.runs / "drawings", "--grad_cam", True]
    run_command("Grad-CAM", "scripts/show_predictions.py", *options)
    _copy(places.runs / "drawings/grad_cam.json", RESULTS / "grad_cam.json")


def label_session(places: Places) -> None:
    """A simulated session of the annotation server; its environment is that of `make label_environment`."""
    os.environ["LABEL_SESSION"] = str(RESULTS / "label_session.json")
    run_command("Labelling session", "-m", "pytest", "-n", 0, "tests/test_label_session.py")


def simulated_annotation(places: Places) -> None:
    """What the tools of the annotation page are worth to a simulated reader."""
    from study.simulated_annotation import simulate_annotation

    simulate_annotation(places.runs / "clean", places.weights, RESULTS / "simulated_annotation.csv")


def versions(places: Places) -> None:
    """Try other versions of Python and of the packages, each in an environment of its own."""
    from study.versions import try_versions

    try_versions(places.runs / "versions", RESULTS / "versions.json")


def tables(places: Places) -> None:
    """Copy the numbers into README, model card, docs and metadata."""
    from study.tables import update_tables

    update_tables()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _evaluations(name: str) -> tuple[str, ...]:
    return tuple(f"results/evaluations/{name}/{file}" for file in ("pictures.csv", "metrics.json"))


def _steps() -> Iterable[Step]:
    """All steps in order."""
    for split in SPLITS:
        about = f"BUSI with the split {split}"
        yield Step(f"busi_{split}", about, 1, partial(prepare, split, 0), (f"runs/{split}/datalist.json",))
    yield Step("folds", "BUSI in five folds", 1, partial(prepare, "clean", 5), ("runs/folds/datalist.json",))
    every = tuple(f"busi_{split}" for split in SPLITS)
    kept = (*(f"results/splits/{split}.json" for split in SPLITS), "results/splits/clean_datalist.json")
    yield Step("splits", "summaries of the splits", 0, keep_splits, kept, needs=every)
    yield Step("bus_bra", "BUS-BRA, conversion", 2, prepare_bus_bra, ("runs/bus_bra/datalist.json",))
    joined = ("runs/cross_validation/metrics.json",)
    yield Step(
        "cross_validation", "train and test on every fold", 300, cross_validate, joined, (), ("folds", "bus_bra")
    )
    keep = _evaluations("cross_validation")
    yield Step("evaluate_cross_validation", "its tables", 0, keep_cross_validation, keep, joined, ("cross_validation",))
    for name, found in EXTERNAL.items():
        action, made = partial(prepare_external, name), (f"runs/{name}/datalist.json",)
        yield Step(f"prepare_{name}", f"{found['title']}, conversion", 0.5, action, made)
        action, made = partial(evaluate, name), _evaluations(name)
        yield Step(f"evaluate_{name}", found["title"], 1, action, made, WEIGHTS, (f"prepare_{name}",))
    made = _evaluations("testing")
    yield Step("evaluate_testing", "testing split", 1, partial(evaluate, "testing"), made, WEIGHTS, ("busi_clean",))
    made = _evaluations("bus_bra")
    yield Step("evaluate_bus_bra", "BUS-BRA's", 3, partial(evaluate, "bus_bra"), made, WEIGHTS, ("bus_bra",))
    made, needs = ("runs/models/model.pt", "runs/models/calibration.json"), (
        "busi_clean",
        "bus_bra",
        "cross_validation",
    )
    yield Step("train", "as the released weights were", 60, train, made, (), needs)
    alone = {site: f"runs/models_only_{site}/model.pt" for site in ONE_SITE}
    for site, made in alone.items():
        needs = ("busi_clean", "bus_bra")
        yield Step(f"train_only_{site}", f"{site} alone", 60, partial(train_one_site, site), (made,), (), needs)
    for name, (title, site, other) in UNSEEN.items():
        needs = (f"train_only_{site}", "busi_clean", "bus_bra", *(f"prepare_{n}" for n in EXTERNAL if n == other))
        action = partial(evaluate, name)
        yield Step(f"evaluate_{name}", title, 3, action, _evaluations(name), (alone[site],), needs)
    made, needs = ("results/search/averaging.csv",), ("evaluate_cross_validation",)
    needs += tuple(f"evaluate_{name}" for name in ("busi_unseen", "bus_bra_unseen"))
    inputs = tuple(file for name in needs for file in _evaluations(name.removeprefix("evaluate_"))[1:])
    yield Step("averaging", "rounds with averaged weights", 5, averaging, made, inputs, needs)
    made, inputs = ("results/operating_points.csv",), (*joined, *WEIGHTS, *alone.values())
    needs = ("cross_validation", "busi_clean", "bus_bra", *(f"train_only_{site}" for site in ONE_SITE))
    needs += tuple(f"prepare_{name}" for name in EXTERNAL)
    yield Step("operating_points", "missed against false", 10, operating_points, made, inputs, needs)
    made, needs = ("results/search/postprocessing.csv", "results/search/postprocessing.json"), (
        "cross_validation",
        "busi_clean",
    )
    yield Step("postprocessing", "threshold, parts that are kept", 10, postprocessing, made, joined, needs)
    made = ("results/active_learning.csv",)
    yield Step("active_learning", "order of labels", 120, active_learning, made, (), ("busi_clean",))
    made, needs = ("results/quick/testing.json", "results/quick/external.json"), ("busi_clean", "prepare_external")
    yield Step("quick", "training on BUSI in half an hour", 40, quick, made, (), needs)
    made, needs = ("results/search/levers.csv",), ("busi_clean", "bus_bra")
    yield Step("levers", "short trainings with one thing changed", 40, levers, made, (), needs)
    made, needs = ("results/fine_tuning.csv",), ("prepare_external",)
    yield Step("fine_tuning", "a few images of another site", 120, fine_tuning, made, WEIGHTS[:1], needs)
    made = ("runs/stress/marks_erased/metrics.json",)
    yield Step("robustness", "altered images", 15, robustness, made, WEIGHTS, ("busi_clean",))
    tables_of = tuple(_evaluations(name)[0] for name in EVALUATIONS)
    needs = ("cross_validation", "bus_bra", *(f"prepare_{name}" for name in EXTERNAL))
    yield Step(
        "evidence",
        "intervals, subgroups, charts",
        5,
        evidence,
        ("results/evidence/report.json",),
        (*WEIGHTS, *tables_of),
        needs,
    )
    made = (*(f"results/exports/validation_{name}.json" for name in EXPORTS), "results/exports/exports.json")
    yield Step("exports", "TorchScript, ONNX, INT8", 5, exports, made, WEIGHTS, ("busi_clean",))
    for name, options, minutes in (
        ("benchmark_256", {"image_size": 256, "rounds": 4}, 30),
        ("benchmark_160", {"image_size": 160}, 15),
        ("benchmark_160_fp32", {"image_size": 160, "amp": False}, 20),
        ("benchmark_inference", {"pictures": 60, "rounds": 3}, 10),
    ):
        inference = name == "benchmark_inference"
        needs, inputs = ("busi_clean", *(["exports"] * inference)), WEIGHTS[:1] * inference
        action = partial(benchmark, name, options)
        yield Step(name, "speed; needs an idle machine", minutes, action, (f"results/{name}.json",), inputs, needs)
    made, needs = ("results/benchmark_folders.json",), ("busi_clean",)
    yield Step(
        "benchmark_folders", "folders of two sizes; idle machine", 10, benchmark_folders, made, WEIGHTS[:1], needs
    )
    yield Step("grad_cam", "where the class looks", 3, grad_cam, ("results/grad_cam.json",), WEIGHTS[:1], needs)
    yield Step("label_session", "annotation server", 10, label_session, ("results/label_session.json",), WEIGHTS[:1])
    action, made = simulated_annotation, ("results/simulated_annotation.csv",)
    yield Step("simulated_annotation", "tools of the annotation page", 10, action, made, WEIGHTS[:1], ("busi_clean",))
    yield Step("versions", "Python and packages; downloads 20 GB", 30, versions, ("results/versions.json",))
    yield Step("tables", "numbers of all documents", 0, tables, (), ())


STEPS = {step.name: step for step in _steps()}


def reproduce(
    source: Path | None = None,
    external: dict | None = None,
    bus_bra: Path | None = None,
    only: tuple[str, ...] = (),
    list_: bool = False,
    force: bool = False,
    runs_dir: Path = Path("runs"),
    weights_dir: Path = BUNDLE / "models",
) -> None:
    """Run what is missing or stale, or say what is.

    Args:
        source: folder of BUSI, for the steps that need it.
        external: folder of each external test set by the name of its results, such as {'external': 'BrEaST'}.
        bus_bra: folder of BUS-BRA, for the steps that need it.
        only: names of the steps to run; all that are not up to date by default.
        list_: whether to show the steps with their state and about how long they take, and do nothing.
        force: whether to run the steps named in --only even where they are up to date.
        runs_dir: folder of prepared data and trainings.
        weights_dir: folder of the weights that are measured, `model.pt` and `calibration.json`.

    Raises:
        ValueError: a step is unknown, lacks an option or failed.
    """
    unknown = [name for name in [*only, *(external or {})] if name not in (*STEPS, *EXTERNAL)]
    if unknown:
        raise ValueError(
            f"no step or set {unknown[0]}; the steps are {', '.join(STEPS)}; the sets {', '.join(EXTERNAL)}"
        )
    places = Places(runs_dir.resolve(), weights_dir.resolve(), source, external or {}, bus_bra)
    made_from = _made_from()
    if list_:
        for step in STEPS.values():
            print(f"{step.name:32}{step.state(places, made_from):12}{step.minutes:6g} min  {step.about}")
        return
    for name in only or [name for name in STEPS if any(made.startswith("results/") for made in STEPS[name].makes)]:
        _bring_up(STEPS[name], places, made_from, force and name in only)
    if not only:
        tables(places)


def _made_from() -> dict:
    return json.loads(MADE_FROM.read_text(encoding="utf-8")) if MADE_FROM.is_file() else {}


def _bring_up(step: Step, places: Places, made_from: dict, force: bool = False) -> None:
    """Run a step where it is not up to date, after those that it needs where their output is missing or stale."""
    if step.state(places, made_from) == "up to date" and step.makes and not force:
        print(f"{step.name}: up to date", flush=True)
        return
    for name in step.needs:
        _bring_up(STEPS[name], places, made_from)
    print(f"\n==== {step.name}: {step.about}, about {step.minutes:g} minutes", flush=True)
    step.action(places)
    missing = [name for name in step.makes if not places.path(name).exists()]
    if missing:
        raise ValueError(f"{step.name}: did not make {missing[0]}; see above")
    made_from |= _made_from() | {step.name: step.hashes(places)}  # another process may have run steps meanwhile
    write_json(MADE_FROM, {name: made_from[name] for name in STEPS if made_from.get(name)})


if __name__ == "__main__":
    run(reproduce)
