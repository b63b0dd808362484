"""Every number of the documents by [doit](https://pydoit.org): a task a step; what is up to date is skipped.

    doit -f study/dodo.py list
    doit -f study/dodo.py busi=Dataset_BUSI_with_GT evaluate_testing
    doit -f study/dodo.py busi=Dataset_BUSI_with_GT bus_bra=BUSBRA bus_uclm=BUS-UCLM external=BrEaST
    doit -f study/dodo.py busi=Dataset_BUSI_with_GT bus_bra=BUSBRA bus_uclm=BUS-UCLM external=BrEaST "*"

The third line makes all results that are not up to date, the last one also the trainings behind them, for many hours.
A step is `up to date` where its files are there and those that it was made from have the content that they had then;
`made_from.json` keeps their SHA-256, so a fresh clone knows. `cannot tell`: one that it was made from is not here, such
as the weights of a cross-validation; the step that makes it says how long that takes. `busi`, `bus_bra`, `bus_uclm` and
`external` name the folders of the data sets. Prepared folders and trainings lie in `runs` (`runs=DIR`: elsewhere) and
are used again; `weights=DIR` measures other weights than the released ones. `-c` goes on after a step that failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from pydoc import locate
from tempfile import TemporaryDirectory

from doit import get_initial_workdir, get_var
from doit.cmd_list import List
from doit.dependency import FileChangedChecker
from doit.exceptions import TaskFailed

STUDY = Path(__file__).resolve().parent
# The commands' tools, the packages study and, of the annotation server, lib
sys.path[:0] = [str(STUDY.parent / "scripts"), str(STUDY.parent), str(STUDY.parent / "label_app")]

import tools  # noqa: E402, F401  (puts the bundle's package on the path)

from study import (  # noqa: E402
    AWAY,
    EVALUATIONS,
    EVERYTHING,
    EXTERNAL,
    FEWER,
    LEFT_OUT,
    RESULTS,
    SITES,
    SMALL,
    SMALL_UNSEEN,
    SUBGROUP_COLUMNS,
    UNSEEN,
)

PROTOCOLS = ("clean", "grouped", "random")
# The recipe of weights with a site left out: a first training, two rounds from there, and the mean of all three. The
# released weights: from those without BUSI a round on all sites, and the mean of both. The folds likewise, so that
# BUSI's images are new to each of them.
FIRST = {"epochs": 30, "val_interval": 30, "train_split": "training+validation", "resume": True}
ROUND = {**FIRST, "epochs": 4, "val_interval": 4}
ROUNDS = (1, 2)  # their seeds
# Those of the left-out weights that lie in study/weights
KEPT = ("without_busi", "without_bus_uclm")
# Recipes of the second network that were compared: override configs behind train_pretrained.json
LEVERS = {
    "as train_pretrained.json": [],
    "learning rate of the encoder a tenth": [STUDY / "levers/encoder_rate.json"],
    "stronger augmentation": [STUDY / "levers/augmentation.json"],
}
TRIALS = [(lever, name, 8) for lever in LEVERS for name in KEPT]
TRIALS += [(lever, "without_bus_uclm", 20) for lever in LEVERS if "rate" not in lever]
SEEDS = (0, 1, 2)  # of the first training without BUS-UCLM
# First trainings from which rounds and their means are measured
STARTS = (("without_busi", 0), ("without_bus_uclm", 0), ("without_bus_uclm", SEEDS[-1]))  # weights, seed of these
EXPORTS = {
    "exports": {"pytorch": "", "onnx": "model.onnx"},
    "small": {"small_pytorch": "", "small_int8": "model_int8.onnx"},
}
CONFIGS = ("../bundle/configs/train.json", "../bundle/configs/evaluate.json")
CAMPAIGN = sorted(f"tests/campaign/{path.name}" for path in (STUDY / "tests" / "campaign").glob("*.py"))
List.STATUS_MAP = {
    "up-to-date": "up to date  ",
    "run": "to run      ",
    "error": "cannot tell ",
    "ignore": "ignored     ",
}


class Content(FileChangedChecker):
    """A file has changed where its SHA-256 has; doit's own checker also keeps times, which differ in each clone."""

    def check_modified(self, file_path: str, file_stat: object, state: str) -> bool:
        """Whether the file is another one than it was."""
        return self.get_state(file_path, None) != state

    def get_state(self, dep: str, current_state: str | None) -> str:
        """SHA-256 of the file; by hashlib, since the bundle's own function would import PyTorch."""
        with open(dep, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def place(name: str, default: str | None = None) -> Path:
    """A folder given as `NAME=DIR`, seen from where doit was called.

    Raises:
        ValueError: it was not given, and there is no default.
    """
    given = get_var(name, None)
    if given is None and default is None:
        raise ValueError(f"{name}=DIR is missing; give the folder of that data set")
    return Path(get_initial_workdir(), given).resolve() if given else (STUDY / default).resolve()


def runs(*parts: str) -> Path:
    """A path in the folder of prepared data and trainings."""
    return place("runs", "../runs").joinpath(*parts)


def weights() -> Path:
    """The folder of the weights that are measured."""
    return place("weights", "../bundle/models")


def call(name: str, *values: object, **options: object) -> Callable[[], None]:
    """An action that calls a function by its dotted name; it is imported then, since `list` should not wait for it."""

    def action() -> None:
        locate(name)(*values, **options)

    return action


def step(
    name: str,
    about: str,
    action: Callable[[], None],
    makes: Sequence[str | Path] = (),
    made_from: Sequence[str | Path] = (),
    needs: Sequence[str] = (),
) -> dict:
    """A task of doit.

    Args:
        name: what the command line takes.
        about: what it does, and how long that takes on two cores, for `list`.
        action: does it.
        makes: its files, from the folder of this file.
        made_from: the files whose change makes it stale; without any it is up to date where its own are there.
        needs: steps that run before it where it runs itself.
    """
    return {
        "basename": name,
        "doc": about,
        "actions": [partial(told, action)],
        # Spelled in two ways, absolute and relative, since doit would run what makes a file before what reads it: hours
        # of training must not begin because a result was asked for.
        "targets": [str(STUDY / file) for file in makes],
        "file_dep": [os.path.relpath(STUDY / file, STUDY) for file in made_from],
        "uptodate": [] if made_from or not makes else [True],
        "setup": list(needs),
        "verbosity": 2,
    }


def told(action: Callable[[], None]) -> TaskFailed | None:
    """Run an action; what a user can mend is one line, where doit would print a traceback."""
    try:
        action()
    except (OSError, ValueError, ImportError) as error:
        return TaskFailed(str(error))
    return None


def prepare(folder: Path, set_: str, layout: str, **options: object) -> None:
    """Convert a set."""
    from tools.cli import as_arguments, run_command

    shutil.rmtree(folder, ignore_errors=True)
    options = {"source": place(set_), "layout": layout, "output_dir": folder, **options}
    run_command(f"{folder.name}, conversion", "scripts/prepare.py", *as_arguments(options))


def prepare_busi(protocol: str) -> None:
    """Convert BUSI with one of its splits, and keep its summary, and the list of the default one."""
    folder = runs(protocol)
    prepare(folder, "busi", "busi", protocol=protocol)
    _copy(folder / "summary.json", RESULTS / "splits" / f"{protocol}.json")
    if protocol == "clean":
        _copy(folder / "datalist.json", RESULTS / "splits/clean_datalist.json")


def prepare_set(name: str, layout: str) -> None:
    """Convert another set, and keep which image is whose, and in which split."""
    own = (place(name) / "classes.csv").is_file()  # BrEaST may also come as images/, labels/ and this table
    prepare(runs(name), name, "breast" if own else layout, **({"testing_only": True} if name in EXTERNAL else {}))
    content = json.loads(runs(name, "datalist.json").read_text(encoding="utf-8"))
    keys = ("image", "class", "group", *SUBGROUP_COLUMNS)
    lists = {s: [{k: item[k] for k in keys if k in item} for item in content[s]] for s in EVERYTHING.split("+")}
    text = json.dumps(lists).replace("}, {", "},\n{") + "\n"  # a line an image
    (RESULTS / "splits" / f"{name}_datalist.json").write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def training(name: str, sites: Sequence[str], **options: object) -> None:
    """Train the second network on prepared sets, into a folder of `runs`."""
    from tools.cli import run_bundle

    folder, lists = runs(name), {str(runs(site, "datalist.json")): 1 for site in sites}
    configs = ["train", "train_pretrained"]
    run_bundle(name, "training", configs, ckpt_dir=folder, output_dir=folder, datalist=lists, **options)


def others(name: str) -> list[str]:
    """The sites that weights with one left out have seen."""
    return [site for site in SITES if site != LEFT_OUT[name]]


def first_training(name: str, seed: int = 0) -> Path:
    """The first training without a site, and its folder."""
    training(f"seeds/{name}_{seed}", others(name), seed=seed, **FIRST)
    return runs("seeds", f"{name}_{seed}")


def train_rounds(name: str, sites: Sequence[str], start: Path, seeds: Sequence[int] = ROUNDS) -> list[Path]:
    """Go on from weights on prepared sets, once by each seed; the folders."""
    for seed in seeds:
        training(f"rounds/{name}/{seed}", sites, seed=seed, pretrained=start / "model.pt", **ROUND)
    return [runs("rounds", name, str(seed)) for seed in seeds]


def average(folders: Sequence[Path], output: Path) -> None:
    """The mean of weights, in place of an earlier one."""
    from average_weights import average_weights

    (output / "model.pt").unlink(missing_ok=True)
    average_weights(tuple(folders), output)


def train_without(name: str) -> None:
    """The weights with a site left out."""
    start = first_training(name)
    average([start, *train_rounds(f"{name}_0", others(name), start)], left_out_weights(name))


def train() -> None:
    """The released weights."""
    start = left_out_weights("without_busi")
    average([start, *train_rounds("models", list(SITES), start, ROUNDS[:1])], runs("models"))


def calibrate() -> None:
    """One temperature and operating point from what weights say of the hospital that they have not seen."""
    from tools.cli import run_command

    found = str([str(RESULTS / "evaluations" / name) for name in UNSEEN])
    run_command("Calibration", "scripts/calibrate.py", "--left_out", found, "--ckpt_dir", weights())


def cross_validate() -> None:
    """Train every fold as the released weights were, test it, and keep the joined tables."""
    from tools.cli import as_arguments, run_command

    start, folds = left_out_weights("without_busi"), runs("rounds/folds")
    options = {"config": "train_pretrained", "pretrained": start / "model.pt", "seed": ROUNDS[0], **ROUND}
    options |= {"with_sets": {str(runs(site, "datalist.json")): 1 for site in others("without_busi")}}
    del options["resume"]  # it does so by itself
    means = {"mean_of": [str(start), str(folds)], "output_dir": runs("cross_validation")}
    for part in ({"output_dir": folds, **options}, means):
        arguments = as_arguments({"dataset_dir": runs("folds"), **part})
        run_command("Cross-validation", "scripts/cross_validate.py", *arguments)
    for name in ("images.csv", "metrics.json"):
        _copy(runs("cross_validation", name), RESULTS / "evaluations/cross_validation" / name)


def left_out_weights(name: str) -> Path:
    """The folder of weights that have not seen a hospital."""
    return STUDY / "weights" / name if name in KEPT else runs(name)


def options_of(name: str) -> dict[str, str]:
    """Options of an evaluation: weights and images, a testing split or all of a hospital that they have not seen."""
    if name in UNSEEN | FEWER | SMALL_UNSEEN:
        _, *left_out, site = (UNSEEN | FEWER | SMALL_UNSEEN)[name]
        folder, whole = left_out_weights(*left_out) if left_out else SMALL, site not in EXTERNAL
        return {"dataset_dir": str(runs(site)), "ckpt_dir": str(folder), **({"split": EVERYTHING} if whole else {})}
    return {"dataset_dir": str(runs({"testing": "clean"}.get(name, name))), "ckpt_dir": str(weights())}


def evaluate(name: str) -> None:
    """Evaluate on what `options_of` says."""
    from study.experiments import evaluated

    evaluated(f"Evaluation, {name}", RESULTS / "evaluations" / name, **options_of(name))


def sites() -> None:
    """Presence, class and mask at hospitals that the weights have not seen, by image and by patient."""
    from study.sites import score_site

    for name, site in LEFT_OUT.items():
        score_site(left_out_weights(name), runs(site), name)
    for name, folder in {"without_bus_uclm": left_out_weights("without_bus_uclm"), "released": weights()}.items():
        score_site(folder, runs("external"), name, split="testing")
    for _, site in SMALL_UNSEEN.values():
        score_site(SMALL, runs(site), "small")


def levers() -> None:
    """Train the second network by each of the recipes without a site, and test it there and on BrEaST."""
    from tools.cli import run_bundle

    from study.sites import score_site

    for lever, without, epochs in TRIALS:
        name, site = f"{lever}, {epochs} epochs, {without.replace('_', ' ')}", LEFT_OUT[without]
        folder = runs("levers", name.replace(", ", "-").replace(" ", "_"))
        lists = {str(runs(other, "datalist.json")): 1 for other in SITES if other != site}
        options = {
            "datalist": lists,
            "epochs": epochs,
            "val_interval": epochs,
            "train_split": "training+validation",
            "resume": True,
        }
        configs = ["train", "train_pretrained", *LEVERS[lever]]
        run_bundle(name, "training", configs, ckpt_dir=folder, output_dir=folder, **options)
        for tested in (site, "external"):
            score_site(folder, runs(tested), name, output=RESULTS / "levers.csv")


def seeds() -> None:
    """The first training without BUS-UCLM by several seeds, tested there and on BrEaST."""
    from study.sites import score_site

    name = "without_bus_uclm"
    for seed in SEEDS:
        folder = first_training(name, seed)
        for site, split in ((LEFT_OUT[name], EVERYTHING), ("external", "testing")):
            score_site(folder, runs(site), name, seed, split, RESULTS / "seeds.csv")


def rounds() -> None:
    """Test first trainings, the rounds that start from them and the means on the site left out and on BrEaST."""
    import pandas

    from study.sites import compare, score_site

    compared = []
    for name, seed in STARTS:
        start, folder = first_training(name, seed), f"{name}_{seed}"
        trained = train_rounds(folder, others(name), start)
        tried = {"first training": start, **{f"round {number}": each for number, each in zip(ROUNDS, trained)}}
        means = {"mean of the rounds": list(tried.values())[1:], "mean of all three": list(tried.values())}
        for title, members in means.items():
            tried[title] = runs("rounds", folder, title.replace(" ", "_"))
            average(members, tried[title])
        about = f"{name.replace('_', ' ')}, seed {seed}"
        for site in (LEFT_OUT[name], "external"):
            answers = {}
            for title, found in tried.items():
                called, output = f"{about}: {title}", RESULTS / "rounds.csv"
                answers[title] = score_site(found, runs(site), called, seed, output=output)
            for title in means:
                differences = compare(answers["first training"], answers[title])
                row = {"name": f"{about}: {title}", "site": site}
                compared += [{**row, "figure": figure, **found} for figure, found in differences.items()]
    pandas.DataFrame(compared).to_csv(RESULTS / "rounds_differences.csv", index=False)


def operating_points() -> None:
    """Lesions missed against normals with a mask, at home and on sets with normals that the weights have not seen."""
    from study.postprocessing import fold_options, operating_points

    home = fold_options(runs("folds"), runs("cross_validation"))
    away = {name: [options_of(name)] for name in AWAY if name != "bus_bra_unseen"}
    operating_points({"cross_validation": home, **away}, RESULTS / "operating_points.csv")


def evidence(output_dir: Path = RESULTS / "evidence", **options: object) -> None:
    """Metrics with intervals, subgroups, differences, failures and charts of all evaluations."""
    from study.report import report

    charted = {name: EVALUATIONS[name] for name in ("cross_validation", *AWAY)}
    folders = {name: RESULTS / "evaluations" / name for name in EVALUATIONS}
    lists = [RESULTS / "splits" / f"{name}_datalist.json" for name in (*SITES, *EXTERNAL)]
    report(folders, output_dir, lists, charted, **options)


def verify() -> None:
    """Recompute metrics, intervals, subgroups, differences, failures and tables from images.csv, and compare.

    Raises:
        ValueError: naming what differs.
    """
    from study.verification import differing

    draws = json.loads((RESULTS / "evidence/report.json").read_text(encoding="utf-8"))["bootstrap_draws"]
    with TemporaryDirectory() as folder:
        evidence(Path(folder), draws=draws)
        found = differing(Path(folder))
    if found:
        raise ValueError("; ".join(found))
    print("images.csv gives every metric, interval and table")


def exports() -> None:
    """Export both networks, and evaluate what is exported on the validation split."""
    from tools.cli import run_command

    from study.experiments import evaluated

    for network, ckpt_dir in {"exports": weights(), "small": SMALL}.items():
        folder, data = runs("exports", network), {"dataset_dir": runs("clean"), "ckpt_dir": ckpt_dir}
        options = ["--dataset_dir", data["dataset_dir"], "--ckpt_dir", ckpt_dir, "--output_dir", folder]
        run_command(f"Exports, {network}", "scripts/export.py", *options)
        for name, file in EXPORTS[network].items():
            onnx = {"onnx_file": folder / file, "last": ["inference_onnx"]} if file else {}
            evaluated(f"Validation, {name}", folder / name, split="validation", **data, **onnx)
            _copy(folder / name / "metrics.json", RESULTS / "exports" / f"validation_{name}.json")
        _copy(folder / "exports.json", RESULTS / "exports" / f"{network}.json")


def in_label_environment(*command: object) -> None:
    """Run a script in the environment of the annotation page.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the script failed, as it has said itself.
    """
    python = STUDY.parent / ".venv-label/bin/python"
    if not python.is_file():
        raise FileNotFoundError(f"{python}: missing; make label_environment")
    if subprocess.run([python, *map(str, command)], cwd=STUDY.parent).returncode:
        raise ValueError(f"{command[0]} failed")


def evaluations_of(*names: str) -> list[str]:
    """The files of evaluations."""
    return [f"results/evaluations/{name}/{file}" for name in names for file in ("images.csv", "metrics.json")]


def released() -> list[str | Path]:
    """What an evaluation of the measured weights depends on beside its images."""
    return [weights() / "model.pt", weights() / "calibration.json", *CONFIGS]


def data_steps() -> Iterator[dict]:
    """Converted sets; their lists are kept in results/."""
    for protocol in PROTOCOLS:
        makes = [runs(protocol, "datalist.json"), f"results/splits/{protocol}.json"]
        makes += ["results/splits/clean_datalist.json"] if protocol == "clean" else []
        yield step(f"busi_{protocol}", f"BUSI with the split {protocol}; 1 min", partial(prepare_busi, protocol), makes)
    action = partial(prepare, runs("folds"), "busi", "busi", folds=5)
    yield step("folds", "BUSI in five folds; 1 min", action, [runs("folds/datalist_fold_0.json")])
    for name, layout in {
        "bus_bra": "bus_bra",
        "bus_uclm": "bus_uclm",
        **{name: found["layout"] for name, found in EXTERNAL.items()},
    }.items():
        makes = [runs(name, "datalist.json"), f"results/splits/{name}_datalist.json"]
        yield step(f"prepare_{name}", f"{name}, conversion; 2 min", partial(prepare_set, name, layout), makes)


def training_steps() -> Iterator[dict]:
    """What takes hours."""
    everyone = ["busi_clean", "prepare_bus_bra", "prepare_bus_uclm"]
    for name, site in LEFT_OUT.items():
        action, makes = partial(train_without, name), [left_out_weights(name) / "model.pt"]
        yield step(f"train_{name}", f"{SITES[site]} left out; 1 h", action, makes, [], everyone)
    makes = [runs("models/model.pt")]
    yield step("train", "as the released weights were; 10 min", train, makes, [], [*everyone, "train_without_busi"])
    makes, needs = [runs("cross_validation/metrics.json"), *evaluations_of("cross_validation")], [
        "folds",
        *everyone[1:],
    ]
    yield step("cross_validation", "every fold; 1 h", cross_validate, makes, [], [*needs, "train_without_busi"])
    needs = [*everyone, "prepare_external"]
    yield step("seeds", "the first training three times; 2 h", seeds, ["results/seeds.csv"], [], needs)
    about = "short rounds of training, and the mean of their weights; 1 h behind seeds"
    makes = ["results/rounds.csv", "results/rounds_differences.csv"]
    yield step("rounds", about, rounds, makes, [], [*needs, "seeds"])
    yield step("levers", "recipes of the second network; 3 h", levers, ["results/levers.csv"], [], needs)
    makes = ["results/peers.csv", "results/peers_differences.csv"]
    action = call("study.peers.comparison.compare", runs(), *(STUDY / file for file in makes))
    about = "networks of other libraries, in shares: python -m study.peers --help; 1 h"
    yield step("peers", about, action, makes, [], needs)
    action = partial(prepare, runs("folds_random"), "busi", "busi", folds=5, protocol="random")
    makes = [runs("folds_random/datalist_fold_0.json")]
    yield step("folds_random", "BUSI in five folds that part scans; 1 min", action, makes)
    folds, makes = {"clean": runs("folds"), "random": runs("folds_random")}, ["results/random_protocol.csv"]
    paths = [folds, runs("random_protocol"), STUDY / makes[0]]
    action = call("study.random_protocol.random_protocol", *paths)
    about = "what a split that parts scans adds; 20 min"
    yield step("random_protocol", about, action, makes, [], ["folds", "folds_random"])


def evaluation_steps() -> Iterator[dict]:
    """The evaluations, and what is made of them."""
    lists = {name: f"results/splits/{name}_datalist.json" for name in (*SITES, *EXTERNAL)}
    preparing = {name: "busi_clean" if name == "clean" else f"prepare_{name}" for name in lists}
    left_out = {name: left_out_weights(name) / "model.pt" for name in LEFT_OUT}
    for name, (title, made, site) in (UNSEEN | FEWER).items():
        action, made_from = partial(evaluate, name), [left_out[made], *CONFIGS, lists[site]]
        yield step(f"evaluate_{name}", f"{title}; 3 min", action, evaluations_of(name), made_from, [preparing[site]])
    made_from = [weights() / "model.pt", *evaluations_of(*UNSEEN)]
    yield step("calibrate", "the released weights; 0 min", calibrate, [weights() / "calibration.json"], made_from)
    tested = {"testing": "clean", **{name: name for name in ("bus_bra", "bus_uclm", *EXTERNAL)}}
    for name, listed in tested.items():
        about, made_from = f"{EVALUATIONS[name]}; 2 min", [*released(), lists[listed]]
        action, makes = partial(evaluate, name), evaluations_of(name)
        yield step(f"evaluate_{name}", about, action, makes, made_from, [preparing[listed]])
    small = [SMALL / "model.pt", SMALL / "calibration.json", *CONFIGS]
    for name, (title, site) in SMALL_UNSEEN.items():
        action, made_from = partial(evaluate, name), [*small, lists[site]]
        yield step(f"evaluate_{name}", f"{title}; 2 min", action, evaluations_of(name), made_from, [preparing[site]])
    about, made_from = "hospitals not seen, by image and patient; 15 min", [*left_out.values(), *released(), *small[:2]]
    yield step("sites", about, sites, ["results/sites.csv"], made_from, list(preparing.values()))
    files = ("report.json", "subgroups.csv", "differences.csv", "failures.csv", "roc.png", "dice.png")
    makes, made_from = [f"results/evidence/{file}" for file in files], [*evaluations_of(*EVALUATIONS), *lists.values()]
    yield step("evidence", "intervals, subgroups, failures, charts; 10 min", evidence, makes, made_from)
    makes, others = ["results/search/calibration.csv"], {"cross_validation": "clean", **{n: n for n in EXTERNAL}}
    paths = [RESULTS / "evaluations", UNSEEN, others, STUDY / makes[0]]
    action = call("study.calibrations.compare_calibrations", *paths)
    made_from = evaluations_of(*UNSEEN, *others)
    yield step("calibrations", "ways to calibrate; 1 min", action, makes, made_from)
    joined, needs = runs("cross_validation/metrics.json"), ["folds", *preparing.values()]
    made_from, makes = [joined, *left_out.values(), *released()], ["results/operating_points.csv"]
    yield step("operating_points", "missed against false; 15 min", operating_points, makes, made_from, needs)
    makes = ["results/search/postprocessing.csv"]
    chosen_on = {name: options_of(name) for name in ("busi_unseen", "bus_uclm_unseen")}  # with normal images
    action = call("study.postprocessing.choose_postprocessing", chosen_on, STUDY / makes[0])
    made_from = [left_out[UNSEEN[name][1]] for name in chosen_on]
    yield step("postprocessing", "the mask's threshold and components; 10 min", action, makes, made_from, needs[1:])


def measurement_steps() -> Iterator[dict]:
    """What is measured beside the evaluations."""
    clean, model, external = runs("clean"), weights() / "model.pt", "results/splits/external_datalist.json"
    made_from, needs = [*released(), "results/splits/clean_datalist.json"], ["busi_clean"]
    action = call("study.robustness.measure_robustness", clean, weights(), runs("stress"), RESULTS / "robustness.csv")
    yield step("robustness", "altered images; 15 min", action, ["results/robustness.csv"], made_from, needs)
    names = [*EXPORTS, *(f"validation_{name}" for files in EXPORTS.values() for name in files)]
    about, makes = "TorchScript, ONNX, INT8; 5 min", [f"results/exports/{name}.json" for name in names]
    yield step("exports", about, exports, makes, [*made_from, SMALL / "model.pt"], needs)
    about, makes = "tools of the annotation page; 5 min", ["results/simulated_annotation.csv"]
    action = call("study.simulated_annotation.simulate_annotation", clean, weights(), STUDY / makes[0])
    yield step("simulated_annotation", about, action, makes, made_from, needs)
    about, makes = "readers with known errors, settled; 1 min", ["results/simulated_readers.csv"]
    options = ["--dataset_dir", clean, "--output", STUDY / makes[0]]
    action = partial(in_label_environment, "study/simulated_readers.py", *options)
    made_of = ["simulated_readers.py", "../label_app/lib/consensus.py", "results/splits/clean_datalist.json"]
    yield step("simulated_readers", about, action, makes, made_of, needs)
    about, makes = "encodings of DICOM against dcmtk; 1 min", ["results/dicom_encodings.csv"]
    action, reader = call("study.hospital.measure_encodings", STUDY / makes[0]), "../bundle/breast_ultrasound/dicom.py"
    yield step("dicom_encodings", about, action, makes, [reader, "../scripts/tools/dicom_files.py"])
    about, makes = "sizes of lesions against the drawn ones; 5 min", ["results/sizes.csv", "results/sizes.json"]
    action = call("study.hospital.measure_sizes", runs("external"), weights(), STUDY / makes[0])
    yield step("sizes", about, action, makes, [*released(), external], ["prepare_external"])
    about, makes = "objects a minute beside an Orthanc; 5 min of an idle machine", ["results/gateway.json"]
    action = call("study.hospital.measure_gateway", clean, weights(), STUDY / makes[0])
    yield step("gateway", about, action, makes, released(), ["busi_clean"])
    sets = {"busi": (clean, "testing"), "bus_bra": (runs("bus_bra"), "testing")}
    sets |= {"external": (runs("external"), "testing"), "bus_uclm": (runs("bus_uclm"), EVERYTHING)}
    kept, makes = STUDY / "weights/without_bus_uclm", ["results/input_check.csv"]
    action = call("study.input_check.measure_input_check", sets, kept, STUDY / makes[0])
    reader, needs_all = "../bundle/breast_ultrasound/input_check.py", [*needs, "prepare_bus_bra", "prepare_external"]
    made_from_all = [reader, "foreign.py", kept / "model.pt", kept / "input_check.pt"]
    about = "false alarms and catches of the input check; 1 min"
    yield step("input_check", about, action, makes, made_from_all, [*needs_all, "prepare_bus_uclm"])
    about, makes = "burned-in text, and marks in BUSI's images; 3 min", ["results/burned_in_text.csv"]
    lists = [runs("random"), RESULTS / "splits/clean_datalist.json"]
    action = call("study.burned_in_text.measure_burned_in_text", *lists, weights(), STUDY / makes[0])
    made_from_text = [*made_from, reader, "../scripts/preparation/burned_in.py", "../scripts/tools/phantoms.py"]
    yield step("burned_in_text", about, action, makes, made_from_text, ["busi_random"])
    tests = {"testing": {"dataset_dir": clean}, **{name: {"dataset_dir": runs(name)} for name in EXTERNAL}}
    action = call("study.experiments.quick_training", runs("quick"), clean, tests, RESULTS / "quick.csv")
    about, made_from = "training on BUSI in half an hour; 40 min", [
        *made_from[2:],
        "../bundle/configs/train_quick.json",
    ]
    yield step("quick", about, action, ["results/quick.csv"], made_from, [*needs, "prepare_external"])
    paths, makes = [runs("external"), weights(), runs("fine_tuning")], ["results/fine_tuning.csv"]
    action = call("study.experiments.fine_tuning", *paths, STUDY / makes[0])
    about, made_from = "a few images of another site; 20 min", [model, *CONFIGS, external]
    yield step("fine_tuning", about, action, makes, made_from, ["prepare_external"])
    about, makes = "speed of inference; 10 min of an idle machine", ["results/benchmark.json"]
    action = call("study.benchmark.benchmark", clean, runs("exports/exports"), weights(), STUDY / makes[0])
    yield step("benchmark", about, action, makes, [model], [*needs, "exports"])
    command = ("Faults", "study/tests/fault_campaign.py", "--output", RESULTS / "faults.json")
    about, made_from = "bad input, kills, full disks; 15 min", ["tests/fault_campaign.py", *CAMPAIGN, *CONFIGS]
    yield step("faults", about, call("tools.cli.run_command", *command), ["results/faults.json"], made_from)
    yield step("tables", "numbers of all documents; 0 min", call("study.tables.update_tables"))
    yield step("verify", "whether images.csv gives all that is published; 10 min", verify)


def task_study() -> Iterator[dict]:
    """All steps in order."""
    for steps in (data_steps, training_steps, evaluation_steps, measurement_steps):
        yield from steps()


DOIT_CONFIG = {
    "backend": "json",
    "dep_file": str(RESULTS / "made_from.json"),
    "check_file_uptodate": Content,
    "status": True,
    "sort": "definition",
    "default_tasks": [
        each["basename"] for each in (*evaluation_steps(), *measurement_steps()) if each["basename"] != "verify"
    ],
}
