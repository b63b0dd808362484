"""The bundle's commands as a user types them: training, evaluation and inference, their files, figures and errors."""

import io
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.transforms import LoadImaged, SaveImaged
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from breast_ultrasound.inferers import AutocastInferer
from breast_ultrasound.transforms import shape_at_area
from conftest import free_port, output_of, read_csv

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
REAL = ROOT.parent / "shared" / "data" / "Dataset_BUSI_with_GT"
CLASSES = ("normal", "benign", "malignant")
COLUMNS = ["filename", "class", "p_normal", "p_benign", "p_malignant", "lesion_area_px", "suspicious", "unsure"]
COLUMNS += ["disagreement", "check", "reason"]
EPOCHS = 30
SMALL = ["--image_size", "64", "--features", "[8,8,16,16,32,8]"]
# The masks of networks trained for seconds are doubtful everywhere, so that every part is kept.
KEEP_ALL = ["--mask_threshold", "0.5", "--smallest_fraction", "0", "--component_threshold", "0"]
TRAIN = [*SMALL, *KEEP_ALL, "--epochs", str(EPOCHS), "--batch_size", "4", "--learning_rate", "0.01"]
TRAIN_CONFIG = ["--config_file", "configs/train.json"]
EVALUATE_CONFIG = ["--config_file", "['configs/train.json','configs/evaluate.json']"]
# Images of one pixel's width are among them
INFERENCE_CONFIG = ["--config_file", "configs/inference.json", *KEEP_ALL, "--predict_refused", "True"]

# Equality to the last bit is promised on one machine's CPU; PYTHONPATH would hide a missing import path.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT.pop("PYTHONPATH", None)

pytestmark = pytest.mark.slow


def command(*arguments, launcher=()):
    return [sys.executable, *launcher, "-m", "monai.bundle", "run", *map(str, arguments)]


def run(*arguments, cwd=BUNDLE, launcher=(), code=0, **variables):
    """Run a command of the bundle and return its whole output, which a failure shows."""
    environment = {**ENVIRONMENT, **variables}
    return output_of(command(*arguments, launcher=launcher), code, cwd=cwd, env=environment)


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def load(path):
    return torch.load(path, weights_only=True)


def pixels(path):
    return np.asarray(Image.open(path))


def scalars(folder):
    """All curves of the newest TensorBoard file in a folder: {name: [(step, value), ...]}."""
    events = EventAccumulator(str(max(folder.glob("events.out.tfevents.*"), key=os.path.getmtime)))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def same(one, other):
    """Whether two checkpoints hold the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return one == other or (one != one and other != other)


def last_line(output):
    return [line for line in output.splitlines() if line.strip()][-1]


def dice(mask, label):
    mask, label = mask > 0, label > 0
    both, total = int((mask & label).sum()), int(mask.sum() + label.sum())
    return 2 * both / total if total else 1.0


def torchrun():
    return ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]


# The data, and one training that most tests share


@pytest.fixture(scope="module")
def data(tiny_prepared, tmp_path_factory):
    """Copy of the tiny folder under a name with spaces, with an odd number of images to test on."""
    folder = tmp_path_factory.mktemp("commands") / "prepared data (tiny)"
    shutil.copytree(tiny_prepared, folder)
    datalist = read_json(folder / "datalist.json")
    datalist["testing"].pop()
    (folder / "datalist.json").write_text(json.dumps(datalist), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A training that finds the rectangles, run with the id `training` inside bundle/."""
    folder = tmp_path_factory.mktemp("trained") / "a training"
    options = [*TRAIN, "--dataset_dir", data]
    paths = ["--ckpt_dir", folder / "my models", "--output_dir", folder / "my curves"]
    log = run("training", *TRAIN_CONFIG, *options, *paths)
    return SimpleNamespace(models=folder / "my models", output=folder / "my curves", log=log, options=options)


@pytest.fixture(scope="module")
def evaluated(data, trained, tmp_path_factory):
    """The trained network's evaluation of both parts: one inside bundle/, one from the repository's root."""
    folder = tmp_path_factory.mktemp("evaluated") / "an evaluation"
    options = [*SMALL, *KEEP_ALL, "--dataset_dir", data, "--ckpt_dir", trained.models, "--output_dir"]
    run("run", *EVALUATE_CONFIG, *options, folder / "validation", "--split", "validation")
    configs = "['bundle/configs/train.json','bundle/configs/evaluate.json']"
    root = ["--config_file", configs, "--bundle_root", "bundle"]
    run("evaluating", *root, *options, folder / "testing", "--save_masks", "True", cwd=ROOT)
    return folder


# Training


def test_training_leaves_weights_a_checkpoint_and_curves_and_nothing_else(trained):
    assert sorted(f.name for f in trained.models.iterdir()) == ["checkpoint.pt", "model.json", "model.pt"]
    weights, checkpoint = load(trained.models / "model.pt"), load(trained.models / "checkpoint.pt")
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    assert weights.keys() == checkpoint["network"].keys()
    names = sorted(f.name.split(".")[0] for f in trained.output.iterdir())
    assert names == ["events", "run", "training_curve"]


def test_a_training_says_one_line_an_epoch_and_keeps_what_it_was(trained, data):
    lines = [line for line in trained.log.splitlines() if "Epoch: " in line]
    rows = read_csv(trained.output / "training_curve.csv")
    for epoch, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
        # The table has six digits: what they stand for lies within half of the last one
        loss, score = ({f"{float(row[k]) + half:.3f}" for half in (-5e-7, 5e-7)} for k in ("loss", "score"))
        told = {f"Epoch: {epoch}/{EPOCHS}, loss {x}, validation score {y}" for x in loss for y in score}
        assert any(text in line for text in told), line
        assert line.endswith(" left" if epoch < EPOCHS else " in all"), line
    assert "Iter" not in trained.log and "it/s]Iteration" not in trained.log
    run = read_json(trained.output / "run.json")
    assert run["weights_sha256"] == read_json(trained.models / "model.json")["weights_sha256"]
    assert run["counts"] == {"training": 6, "validation": 6, "epochs": EPOCHS}
    assert run["options"]["learning_rate"] == 0.01 and run["options"]["class_names"] == list(CLASSES)
    assert run["options"]["dataset_dir"] == str(data) and run["threads"] == 1 and run["device"] == "cpu"
    assert run["bfloat16"] is AutocastInferer(run["options"]["amp"]).enabled("cpu")
    assert run["started"] <= run["finished"] and run["versions"]["torch"] == torch.__version__


def test_tensorboard_holds_the_terms_of_the_loss_the_metrics_and_images(trained, data):
    curves = scalars(trained.output)
    steps = EPOCHS * 2  # six images in batches of four
    for name in ("loss", "segmentation_loss", "classification_loss"):
        assert [step for step, _ in curves[name]] == list(range(1, steps + 1))
    terms = [curves[f"{name}loss"] for name in ("", "segmentation_", "classification_")]
    for (_, whole), (_, mask), (_, classes) in zip(*terms):
        assert whole == pytest.approx(mask + 0.5 * classes, rel=1e-5)
    for name in ("val_score", "score", "lesion_dice", "false_mask_rate", "accuracy", "macro_f1", "auroc_macro"):
        assert [step for step, _ in curves[name]] == list(range(1, EPOCHS + 1))
    events = EventAccumulator(str(next(trained.output.glob("events*"))))
    events.Reload()
    images = events.Tags()["images"]
    assert len(images) == 3 and all(events.Images(tag) for tag in images)  # image, label, prediction
    # The last image, upright, with the border that fills it up to multiples of 32; its masks in their own size
    item = read_json(data / "datalist.json")["validation"][-1]
    for tag, key in (("input_0", "image"), ("input_1", "label")):
        (tag,) = [name for name in images if name.startswith(tag)]
        shown = np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)).convert("L"))
        true = Image.open(data / item[key])
        rows, columns = shape_at_area(true.size[::-1], int(SMALL[1])) if key == "image" else true.size[::-1]
        top, left = (shown.shape[0] - rows) // 2, (shown.shape[1] - columns) // 2
        inside = shown[top : top + rows, left : left + columns]
        assert inside.shape == (rows, columns) and (key == "label" or inside.shape != shown.shape)
        likeness = [
            np.corrcoef(inside.ravel(), np.asarray(p.resize((columns, rows))).ravel())[0, 1]
            for p in (true, true.transpose(Image.Transpose.TRANSPOSE))
        ]
        assert likeness[0] > 0.9 and likeness[0] > likeness[1] + 0.05, (tag, likeness)


def test_the_table_of_the_training_agrees_with_tensorboard(trained):
    rows, curves = read_csv(trained.output / "training_curve.csv"), scalars(trained.output)
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    for name in ("lesion_dice", "macro_f1", "score"):
        assert [float(row[name]) for row in rows] == pytest.approx([v for _, v in curves[name]], abs=2e-6)
    losses = [value for _, value in curves["loss"]]
    assert [float(row["loss"]) for row in rows] == pytest.approx(np.reshape(losses, (-1, 2)).mean(1), abs=2e-6)


def test_model_pt_holds_the_epoch_with_the_best_score(data, trained, tmp_path):
    scores = [value for _, value in scalars(trained.output)["val_score"]]
    best = scores.index(max(scores))
    assert f"{max(scores):.4f} in epoch {best + 1}, weights in {trained.models / 'model.pt'}" in trained.log
    assert load(trained.models / "checkpoint.pt")["keep_best"]["best_epoch"] == best + 1
    options = ["--dataset_dir", data, "--ckpt_dir", trained.models, "--output_dir", tmp_path, "--split", "validation"]
    run("evaluating", *EVALUATE_CONFIG, *SMALL, *KEEP_ALL, *options)
    row, metrics = read_csv(trained.output / "training_curve.csv")[best], read_json(tmp_path / "metrics.json")
    compared = set(row) & set(metrics)
    assert compared > {"score", "lesion_dice", "false_mask_rate", "dice_all_images", "accuracy", "auroc_macro"}
    for name in compared:
        assert float(row[name]) == pytest.approx(metrics[name], abs=1e-6), name


def test_the_same_training_again_gives_the_same_curves_and_weights(trained, tmp_path):
    config = ["--config_file", "bundle/configs/train.json", "--bundle_root", "bundle"]
    models, output = tmp_path / "models again", tmp_path / "curves again"
    run("run", *config, *trained.options, "--ckpt_dir", models, "--output_dir", output, cwd=ROOT)
    assert scalars(output) == scalars(trained.output)
    for name in ("model.pt", "checkpoint.pt"):
        assert same(load(models / name), load(trained.models / name)), name


def test_a_killed_training_resumes_to_the_weights_of_an_uninterrupted_one(trained, tmp_path):
    models, output = tmp_path / "models", tmp_path / "curves"
    arguments = [*TRAIN_CONFIG, *trained.options, "--ckpt_dir", models, "--output_dir", output, "--resume", "True"]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command("run", *arguments), cwd=BUNDLE, env=ENVIRONMENT, stdout=log, stderr=log)
        try:
            limit = time.time() + 300
            while not (models / "checkpoint.pt").is_file() and process.poll() is None and time.time() < limit:
                time.sleep(0.02)
            time.sleep(1)  # a few epochs more
        finally:
            process.kill()
            process.wait()
    text = (tmp_path / "log.txt").read_text()
    assert process.returncode == -signal.SIGKILL, text
    assert "nothing to resume, the training starts anew" in text
    state = load(models / "checkpoint.pt")["trainer"]
    done = state["iteration"] // state["epoch_length"]
    assert 1 <= done < EPOCHS

    text = run("run", *arguments)
    assert f"resumed after epoch {done}" in text and f"Epoch: {done}/{EPOCHS}" not in text
    for name in ("model.pt", "checkpoint.pt"):
        assert same(load(models / name), load(trained.models / name)), name
    assert (output / "training_curve.csv").read_bytes() == (trained.output / "training_curve.csv").read_bytes()


@pytest.mark.parametrize("file, words", [(None, "with --resume True goes on"), ("none.pt", "starts anew")])
def test_a_stop_that_python_drops_in_a_callback_is_made_again(file, words):
    program = (
        "import os, signal, sys, time\n"
        "from breast_ultrasound import command\n"
        "command.STOP_AGAIN, sys.argv[0] = 0.1, 'bundle/__main__.py'\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"command.name_cause_last(checkpoint={file!r})\n"
        "os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))\n"
        "os.fork() or os._exit(0)\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=BUNDLE, capture_output=True, text=True, timeout=50)
    assert done.returncode == -signal.SIGINT, done.stderr
    assert done.stderr.strip() == f"stopped; the same command {words}"


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_command_that_is_stopped_by_ctrl_c_says_how_to_go_on_and_nothing_else(kind, trained, data, tmp_path):
    many = ["--split", "+".join(["testing"] * 500), "--dataset_dir", data, "--ckpt_dir", trained.models]
    options, going, advice = {
        "training": (["training", *TRAIN_CONFIG, *trained.options, "--ckpt_dir", tmp_path], "best so far", "goes on"),
        "evaluation": (["evaluating", *EVALUATE_CONFIG, *SMALL, *many], "weights loaded", "starts anew"),
    }[kind]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A CI job in the background of a shell passes on that Ctrl-C is ignored.
    streams["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = command(*options, "--epochs", 500, "--num_workers", 1, "--output_dir", tmp_path)
    with subprocess.Popen(arguments, cwd=BUNDLE, env=ENVIRONMENT, start_new_session=True, **streams) as process:
        before = next((line for line in process.stdout if going in line), "")
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        text = before + process.communicate()[0]
    assert process.returncode == -signal.SIGINT, text  # 130 in a shell
    assert last_line(text).startswith("stopped; the same command") and last_line(text).endswith(advice), text
    assert "Traceback" not in text and "exception" not in text.lower()


def test_an_earlier_training_is_not_replaced_by_accident(trained, data, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(trained.models, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    options = ["--dataset_dir", data, "--ckpt_dir", folder, "--output_dir", tmp_path]
    text = run("training", *TRAIN_CONFIG, *TRAIN, *options, code=1)
    assert "checkpoint.pt: an earlier training would be replaced; pass --resume True" in text.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_resuming_a_finished_training_ends_at_once_and_changes_nothing(trained, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(trained.models, models)
    before = {f.name: f.read_bytes() for f in models.iterdir()}
    options = [*trained.options, "--ckpt_dir", models, "--output_dir", tmp_path / "curves", "--resume", "True"]
    text = run("run", *TRAIN_CONFIG, *options)
    assert "Epoch: " not in text and "finished after epoch" in text
    assert {f.name: f.read_bytes() for f in models.iterdir()} == before


@pytest.mark.parametrize(
    "options, told",
    [
        (["--learning_rate", "0.02"], "learning_rate 0.01, now 0.02"),
        (["--class_names", "['benign','normal','malignant']"], "class_names ['normal', 'benign', 'malignant'], now ["),
        (["--dataset_dir", "emptied"], "saved with other data"),
        (["--pretrained", "weights"], "saved with other pretrained"),
    ],
    ids=["learning rate", "classes", "data", "pretrained"],
)
def test_a_training_is_gone_on_with_under_its_own_conditions_alone(options, told, trained, data, tmp_path):
    models = shutil.copytree(trained.models, tmp_path / "models")
    emptied = shutil.copytree(data, tmp_path / "emptied")
    label = emptied / read_json(data / "datalist.json")["training"][-1]["label"]
    Image.fromarray(np.zeros_like(pixels(label))).save(label)
    there = {"emptied": emptied, "weights": models / "model.pt"}
    paths = ["--ckpt_dir", models, "--output_dir", tmp_path, "--resume", "True"]
    text = run("run", *TRAIN_CONFIG, *trained.options, *paths, *(there.get(o, o) for o in options), code=1)
    assert told in last_line(text) and "checkpoint.pt" in last_line(text), text


def test_an_override_inside_a_component_works(trained, tmp_path):
    paths = ["--ckpt_dir", tmp_path / "m", "--output_dir", tmp_path / "o"]
    run("run", *TRAIN_CONFIG, *trained.options, *paths, "--train#trainer#max_epochs", "1")
    assert len(scalars(tmp_path / "o")["val_score"]) == 1
    checkpoint = load(tmp_path / "m" / "checkpoint.pt")
    assert checkpoint["trainer"]["max_epochs"] == 1
    assert checkpoint["lr_scheduler"]["total_steps"] == 2  # the schedule follows


# Errors


@pytest.mark.parametrize("config", [TRAIN_CONFIG, INFERENCE_CONFIG], ids=["training", "inference"])
def test_a_misspelt_option_is_refused_before_any_work(config, tmp_path):
    paths = ["--dataset_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "o", "--ckpt_dir", tmp_path / "m"]
    text = run("run", *config, *paths, "--batchsize", "3", code=1)
    # The folder that does not exist was not even looked for.
    assert "--batchsize" in last_line(text) and "batch_size" in last_line(text), text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config, missing",
    [
        (TRAIN_CONFIG, "datalist.json"),
        (EVALUATE_CONFIG, "model.pt"),
        (INFERENCE_CONFIG, "model.pt"),
        (INFERENCE_CONFIG, "no such folder"),
    ],
    ids=["training without data", "evaluation without weights", "inference without weights", "inference without data"],
)
def test_the_last_line_of_an_error_names_what_is_missing(config, missing, data, tmp_path):
    folder = data / "images" if config == INFERENCE_CONFIG else data
    folder = folder if missing == "model.pt" else tmp_path / "nowhere"
    paths = ["--dataset_dir", folder, "--output_dir", tmp_path / "o", "--ckpt_dir", tmp_path / "m"]
    text = run("run", *config, *SMALL, *paths, code=1)
    named = tmp_path / "m" / "model.pt" if missing == "model.pt" else folder
    assert str(named) in text and missing in text, text
    assert str(named) in last_line(text) and missing in last_line(text), text


def test_an_error_in_the_middle_of_a_run_is_one_line_and_a_programming_error_keeps_its_traceback(data, tmp_path):
    paths = ["--dataset_dir", data, "--output_dir", tmp_path / "o", "--ckpt_dir", tmp_path / "m"]
    text = run("training", *TRAIN_CONFIG, *TRAIN, *paths, "--learning_rate", "1e30", code=1)
    assert last_line(text).startswith("ValueError: ") and "smaller --learning_rate" in last_line(text)
    assert "Traceback" not in text and "exception" not in text.lower(), text
    assert not (tmp_path / "o" / "run.json").exists()
    text = run("training", *TRAIN_CONFIG, *TRAIN, *paths, "--loss", "$1 / 0", code=1)
    assert "Traceback" in text and last_line(text) == "ZeroDivisionError: division by zero"


# Evaluation


def recomputed(rows):
    """The figures of metrics.json, by their definitions, from the rows of images.csv."""
    rows = [{k: float(v) if k.endswith("_px") or k.startswith("p_") else v for k, v in row.items()} for row in rows]
    for row in rows:
        union = row["predicted_area_px"] + row["true_area_px"] - row["overlap_px"]
        row["iou"] = row["overlap_px"] / union if union else 1.0
        row["dice"] = 2 * row["overlap_px"] / (union + row["overlap_px"]) if union else 1.0

    def mean(values):
        values = list(values)
        return sum(values) / len(values) if values else None

    def count(true, predicted):
        return sum(r["true_class"] == true and r["predicted_class"] == predicted for r in rows)

    def auroc(name):
        yes = [r[f"p_{name}"] for r in rows if r["true_class"] == name]
        no = [r[f"p_{name}"] for r in rows if r["true_class"] != name]
        return mean((a > b) + 0.5 * (a == b) for a in yes for b in no)

    matrix = [[count(true, predicted) for predicted in CLASSES] for true in CLASSES]
    f1 = [2 * matrix[i][i] / (sum(matrix[i]) + sum(row[i] for row in matrix)) for i in range(len(CLASSES))]
    lesions = [r for r in rows if r["true_area_px"]]
    figures = {
        "images": len(rows),
        "lesion_dice": mean(r["dice"] for r in lesions),
        "lesion_iou": mean(r["iou"] for r in lesions),
        "dice_all_images": mean(r["dice"] for r in rows),
        "iou_all_images": mean(r["iou"] for r in rows),
        "false_mask_rate": mean(r["predicted_area_px"] > 0 for r in rows if not r["true_area_px"]),
        "missed_rate": mean(r["dice"] < 0.1 for r in lesions),
        "accuracy": mean(r["true_class"] == r["predicted_class"] for r in rows),
        "macro_f1": mean(f1),
        **{f"auroc_{name}": auroc(name) for name in CLASSES},
        "auroc_macro": mean(auroc(name) for name in CLASSES),
    }
    figures["score"] = (figures["lesion_dice"] + figures["macro_f1"]) / 2
    return figures, matrix


@pytest.mark.parametrize("split", ["validation", "testing"])
def test_the_figures_of_an_evaluation_follow_from_its_table(split, data, evaluated):
    items = read_json(data / "datalist.json")[split]
    rows, metrics = read_csv(evaluated / split / "images.csv"), read_json(evaluated / split / "metrics.json")
    assert metrics["split"] == split and "not a medical device" in metrics["notice"]
    assert {r["filename"]: r["true_class"] for r in rows} == {Path(i["image"]).name: CLASSES[i["class"]] for i in items}
    assert len(rows) == len(items)
    figures, matrix = recomputed(rows)
    assert {name: metrics[name] for name in figures} == pytest.approx(figures, abs=1e-9)
    assert metrics["confusion_matrix"] == matrix
    assert metrics["images_by_class"] == {name: sum(r["true_class"] == name for r in rows) for name in CLASSES}
    for row in rows:
        probabilities = [float(row[f"p_{name}"]) for name in CLASSES]
        assert sum(probabilities) == pytest.approx(1, abs=3e-6)
        assert row["predicted_class"] == CLASSES[int(np.argmax(probabilities))]


def test_the_trained_network_finds_the_rectangles_of_images_it_has_not_seen(evaluated):
    assert read_json(evaluated / "testing" / "metrics.json")["lesion_dice"] > 0.7


def test_evaluation_changes_no_weights_and_leaves_two_tables_and_masks_on_request(evaluated):
    tables = {"metrics.json", "images.csv", "run.json"}
    masks = {f"{Path(row['filename']).stem}_seg.png" for row in read_csv(evaluated / "testing" / "images.csv")}
    for part, expected in (("validation", tables), ("testing", tables | masks)):
        assert {f.name for f in (evaluated / part).iterdir() if not f.name.startswith("events")} == expected
        record = read_json(evaluated / part / "run.json")
        assert record["counts"]["images"] == len(read_csv(evaluated / part / "images.csv"))
        assert record["options"]["split"] == part
        assert record["weights_sha256"] == read_json(evaluated / part / "metrics.json")["weights_sha256"]


def test_masks_of_inference_have_the_dice_and_the_classes_that_evaluation_reports(data, trained, evaluated, tmp_path):
    paths = ["--dataset_dir", data / "images", "--ckpt_dir", trained.models, "--output_dir", tmp_path]
    run(*INFERENCE_CONFIG, *SMALL, *paths)
    predictions = {row["filename"]: row for row in predicted(tmp_path / "predictions.csv")}
    for part in ("validation", "testing"):
        for row in read_csv(evaluated / part / "images.csv"):
            name = row["filename"]
            mask, label = pixels(tmp_path / f"{Path(name).stem}_seg.png"), pixels(data / "labels" / name)
            assert mask.shape == label.shape
            if part == "testing":
                assert np.array_equal(pixels(evaluated / part / f"{Path(name).stem}_seg.png"), mask)
            assert dice(mask, label) == pytest.approx(float(row["dice"]), abs=1e-6)
            assert int((mask > 0).sum()) == int(row["predicted_area_px"]) == int(predictions[name]["lesion_area_px"])
            assert predictions[name]["class"] == row["predicted_class"]
            for column in COLUMNS[2:5]:
                assert float(predictions[name][column]) == pytest.approx(float(row[column]), abs=2e-6)


# Inference


def predicted(table):
    """The rows of a table of inference that have an answer."""
    return [row for row in read_csv(table) if row["class"]]


def make_odd_folder(folder, source):
    """Images of every readable kind. The ones called `same ...` hold the same grey values in other files."""
    grey = np.array(pixels(source))
    grey[0, 0] = 255  # so that 16 bits, scaled by their largest value, give the same grey
    height, width = grey.shape
    folder.mkdir()
    image, noise = Image.fromarray(grey), np.random.default_rng(0)
    for name in ("first.png", "PNG.PNG", "bmp.bmp", "tif.tif", "TIFF.TIFF"):
        image.save(folder / f"same {name}")
    pages = [image.rotate(180), image]
    image.save(folder / "same three pages.tif", save_all=True, append_images=pages)
    image.convert("RGB").save(folder / "same colour.png")
    image.convert("RGB").save(folder / "same colour bmp.BMP")
    rgba = np.dstack([grey, grey, grey, noise.integers(0, 256, grey.shape)]).astype(np.uint8)
    Image.fromarray(rgba).save(folder / "same with alpha.png")
    Image.fromarray(rgba[..., 2:]).save(folder / "same grey with alpha.png")
    image.convert("P").save(folder / "same palette.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "same 16 bits.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "same 16 bits tif.tif")
    Image.fromarray(grey.astype(np.float32)).save(folder / "same float.tiff")
    image.save(folder / "same tiff in truth.jpg", format="TIFF")
    for name in ("first.jpg", "second.JPEG", "third.Jpg"):
        image.save(folder / f"close {name}", quality=95)
    image.convert("RGB").convert("CMYK").save(folder / "four inks.jpg")
    image.convert("1").save(folder / "one bit.png")
    image.save(folder / "größe, #1 $x @y.v2.png")
    for size in ((40, 1), (1, 40), (20, 30), (63, 65), (3, 700), (700, 3), (301, 199)):
        image.resize(size).save(folder / f"size {size[0]}x{size[1]}.png")
    image.resize((90, 50)).save(folder / "x.png")
    image.resize((70, 110)).save(folder / "x.jpg")
    good = [f.name for f in folder.iterdir()]

    (folder / "text.png").write_text("no image")
    image.resize((1, 1)).save(folder / "size 1x1.png")  # one grey alone
    (folder / "empty.jpg").touch()
    whole = (folder / "same first.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    whole = (folder / "close first.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    bad = sorted({f.name for f in folder.iterdir()} - set(good))
    (folder / "._same first.png").write_bytes(b"\0\5\26\7")  # as macOS leaves on foreign disks

    (folder / "notes.txt").write_text("read me")
    (folder / "folder.png").mkdir()
    image.save(folder / "folder.png" / "inner.png")
    return good, bad


@pytest.fixture(scope="module")
def odd(data, trained, tmp_path_factory):
    """Inference on a folder of images of every kind, all in batches of eight and then one by one."""
    folder = tmp_path_factory.mktemp("odd") / "my images"
    good, bad = make_odd_folder(folder, data / read_json(data / "datalist.json")["testing"][-1]["image"])
    options = [*INFERENCE_CONFIG, *SMALL, "--dataset_dir", folder, "--ckpt_dir", trained.models, "--output_dir"]
    log = run("run", *options, folder.parent / "my masks")
    run(*options, folder.parent / "one by one", "--batch_size", "1")
    return SimpleNamespace(folder=folder, good=good, bad=bad, log=log, masks=folder.parent / "my masks")


def mask_of(odd, name):
    return odd.masks / f"{name if name in ('x.png', 'x.jpg') else Path(name).stem}_seg.png"


def test_inference_writes_one_row_and_one_mask_for_each_readable_image(odd):
    rows = predicted(odd.masks / "predictions.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["filename"] for row in rows] == sorted(odd.good)
    about = [odd.masks / f"predictions.{kind}" for kind in ("csv", "json")]
    assert sorted(odd.masks.iterdir()) == sorted([*about, *(mask_of(odd, n) for n in odd.good)])
    for row in rows:
        probabilities = [float(row[column]) for column in COLUMNS[2:5]]
        assert sum(probabilities) == pytest.approx(1, abs=3e-6)
        assert row["class"] == CLASSES[int(np.argmax(probabilities))]
        with Image.open(odd.folder / row["filename"]) as image, Image.open(mask_of(odd, row["filename"])) as mask:
            assert (mask.size, mask.mode) == (image.size, "L"), row
            assert set(np.unique(np.asarray(mask))) <= {0, 255}, row
            assert int((np.asarray(mask) > 0).sum()) == int(row["lesion_area_px"]), row


def test_inference_names_the_images_it_cannot_read_and_counts_what_it_ignores(odd):
    rows = {row["filename"]: row for row in read_csv(odd.masks / "predictions.csv")}
    assert sorted(rows) == sorted([*odd.good, *odd.bad])
    for name in odd.bad:
        assert f"{odd.folder / name}: no prediction, {rows[name]['reason']}" in odd.log
        assert (rows[name]["check"], rows[name]["class"], rows[name]["p_benign"]) == ("refused", "", "")
    assert f"{len(odd.good)} of {len(odd.good) + len(odd.bad)} images: masks and predictions.csv" in odd.log
    assert f"{len(odd.bad)} without prediction, named above" in odd.log
    assert "same three pages.tif: first of 3 frames used" in odd.log
    assert "images of several frames (pages), of which the first counts: 1\n" in odd.log
    assert "ignored: 1 folder, 1 hidden file, 1 other file; --recursive True searches folders" in odd.log


def test_the_same_grey_values_give_the_same_answer_in_every_kind_of_file(odd):
    rows = [row for row in predicted(odd.masks / "predictions.csv") if row["filename"].startswith("same ")]
    assert len(rows) == 15 and int(rows[0]["lesion_area_px"]) > 0
    for row in rows:
        assert np.array_equal(pixels(mask_of(odd, row["filename"])), pixels(mask_of(odd, rows[0]["filename"]))), row
        for column in COLUMNS[2:5]:
            assert float(row[column]) == pytest.approx(float(rows[0][column]), abs=2e-6), row
    for row in predicted(odd.masks / "predictions.csv"):
        if row["filename"].startswith("close "):
            assert dice(pixels(mask_of(odd, row["filename"])), pixels(mask_of(odd, "same first.png"))) > 0.9


def test_images_give_the_same_one_by_one_as_in_batches(odd):
    single = odd.masks.with_name("one by one")
    for row, other in zip(predicted(odd.masks / "predictions.csv"), predicted(single / "predictions.csv"), strict=True):
        assert np.array_equal(
            pixels(mask_of(odd, row["filename"])), pixels(single / mask_of(odd, row["filename"]).name)
        )
        assert {k: row[k] for k in ("filename", "class", "lesion_area_px")}.items() <= other.items()
        for column in COLUMNS[2:5]:
            assert float(row[column]) == pytest.approx(float(other[column]), abs=2e-6)


def test_a_bright_rectangle_comes_back_in_its_place(tmp_path):
    """A network that marks what is brighter than the mean stands in, so that only the way there and back counts."""
    (tmp_path / "bright.py").write_text(
        "import torch\n"
        "class Bright(torch.nn.Module):\n"
        "    def __init__(self, norm):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return {'pred': torch.cat([-x, x], 1), 'class_logits': torch.eye(3)[[1] * len(x)]}\n"
    )
    (tmp_path / "bright.json").write_text(json.dumps({"network_def": {"_target_": "bright.Bright", "norm": "batch"}}))
    images = tmp_path / "images"
    images.mkdir()
    boxes = {  # (height, width): (top, left, bottom, right), none of them symmetric
        (90, 150): (10, 20, 40, 90),
        (150, 90): (100, 50, 140, 85),
        (61, 47): (3, 5, 33, 20),
        (40, 320): (8, 200, 30, 310),
    }
    for (height, width), (top, left, bottom, right) in boxes.items():
        grey = np.full((height, width), 30, np.uint8)
        grey[top:bottom, left:right] = 220
        Image.fromarray(grey).save(images / f"{height} {width}.png")
    config = ["--config_file", f"['configs/inference.json','{tmp_path / 'bright.json'}']", "--load_pretrain", "False"]
    paths = ["--dataset_dir", images, "--output_dir", tmp_path / "masks", "--image_size", "64"]
    paths += ["--mask_threshold", "0.5", "--smallest_fraction", "0", "--component_threshold", "0"]
    run(*config, *paths, PYTHONPATH=str(tmp_path))
    for (height, width), (top, left, bottom, right) in boxes.items():
        truth = np.zeros((height, width), bool)
        truth[top:bottom, left:right] = True
        mask = pixels(tmp_path / "masks" / f"{height} {width}_seg.png") > 0
        assert mask.shape == truth.shape
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9, (height, width)
    assert {row["class"] for row in predicted(tmp_path / "masks" / "predictions.csv")} == {"benign"}


def test_folders_are_searched_on_request_and_each_image_gets_its_mask_in_the_same_tree(data, trained, tmp_path):
    source = data / read_json(data / "datalist.json")["testing"][-1]["image"]
    (tmp_path / "in" / "a" / "b").mkdir(parents=True)
    for name in ("x.png", "a/x.png", "a/b/x.png"):
        shutil.copy(source, tmp_path / "in" / name)
    common = [*INFERENCE_CONFIG, *SMALL, "--ckpt_dir", trained.models]
    run(*common, "--dataset_dir", tmp_path / "in", "--output_dir", tmp_path / "in" / "out", "--recursive", "True")
    rows = predicted(tmp_path / "in" / "out" / "predictions.csv")
    assert [row["filename"] for row in rows] == ["a/b/x.png", "a/x.png", "x.png"]
    masks = sorted(str(f.relative_to(tmp_path / "in" / "out")) for f in (tmp_path / "in" / "out").rglob("*.png"))
    assert masks == ["a/b/x_seg.png", "a/x_seg.png", "x_seg.png"]
    run(*common, "--dataset_dir", tmp_path / "in" / "a" / "x.png", "--output_dir", tmp_path / "one")
    assert [row["filename"] for row in predicted(tmp_path / "one" / "predictions.csv")] == ["x.png"]
    assert [f.name for f in (tmp_path / "one").glob("*.png")] == ["x_seg.png"]


def test_a_datalist_that_was_written_on_windows_is_read_here(data, trained, evaluated, tmp_path):
    items = read_json(data / "datalist.json")["testing"]
    items = [item | {key: item[key].replace("/", "\\") for key in ("image", "label")} for item in items]
    assert items[0]["image"] == "images\\testing normal (1).png"
    (tmp_path / "windows.json").write_text(json.dumps({"testing": items}))
    options = [*SMALL, *KEEP_ALL, "--dataset_dir", data, "--ckpt_dir", trained.models, "--output_dir", tmp_path / "out"]
    run("evaluating", *EVALUATE_CONFIG, *options, "--datalist", tmp_path / "windows.json")
    assert read_csv(tmp_path / "out" / "images.csv") == read_csv(evaluated / "testing" / "images.csv")


def test_an_evaluation_tells_files_of_one_name_apart_and_replaces_another_with_a_word_only(data, trained, tmp_path):
    datalist = read_json(data / "datalist.json")
    for item, folder in zip(datalist["testing"][-2:], "ab"):
        for key in ("image", "label"):
            (tmp_path / "set" / key / folder).mkdir(parents=True)
            shutil.copy(data / item[key], tmp_path / "set" / key / folder / "x.png")
    items = [{"image": f"image/{f}/x.png", "label": f"label/{f}/x.png", "class": 1} for f in "ab"]
    (tmp_path / "set" / "datalist.json").write_text(json.dumps({"testing": items}))
    options = [
        *SMALL,
        "--dataset_dir",
        tmp_path / "set",
        "--ckpt_dir",
        trained.models,
        "--output_dir",
        tmp_path / "out",
    ]
    run("evaluating", *EVALUATE_CONFIG, *options, "--save_masks", "True")
    rows = read_csv(tmp_path / "out" / "images.csv")
    assert [row["filename"] for row in rows] == ["a/x.png", "b/x.png"]
    for row in rows:
        mask = pixels(tmp_path / "out" / row["filename"].replace(".png", "_seg.png"))
        assert int((mask > 0).sum()) == int(row["predicted_area_px"])
    text = run("evaluating", *EVALUATE_CONFIG, *options, code=1)
    assert "metrics.json: of an earlier evaluation; pass --overwrite True" in last_line(text)
    run("evaluating", *EVALUATE_CONFIG, *options, "--overwrite", "True")


def test_experiments_are_tracked_by_mlflow(data, trained, tmp_path):
    pytest.importorskip("mlflow")
    paths = ["--ckpt_dir", tmp_path / "m", "--output_dir", tmp_path / "o", "--bundle_root", BUNDLE, "--epochs", "1"]
    config = ["--config_file", BUNDLE / "configs" / "train.json"]
    run("training", *config, *trained.options, *paths, "--tracking", "mlflow", cwd=tmp_path)
    with closing(sqlite3.connect(tmp_path / "o" / "mlruns.db")) as database:
        metrics = {key for key, in database.execute("select distinct key from metrics")}
    assert {"val_score", "lesion_dice"} <= metrics and any("loss" in key for key in metrics), metrics


# Two processes


def test_workers_that_are_spawned_as_on_windows_and_macos_give_the_same(data, trained, odd, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing; multiprocessing.set_start_method('spawn')")
    spawn, workers = {"PYTHONPATH": str(tmp_path)}, [*SMALL, "--num_workers", 2]
    for name, variables in (("default", {}), ("spawned", spawn)):
        places = ["--dataset_dir", data, "--ckpt_dir", tmp_path / name, "--output_dir", tmp_path / name]
        run("training", *TRAIN_CONFIG, *workers, "--epochs", 1, "--batch_size", 4, *places, **variables)
    assert same(load(tmp_path / "spawned" / "checkpoint.pt"), load(tmp_path / "default" / "checkpoint.pt"))
    places = ["--dataset_dir", odd.folder, "--ckpt_dir", trained.models, "--output_dir", tmp_path / "out"]
    run("run", *INFERENCE_CONFIG, *workers, *places, **spawn)
    assert predicted(tmp_path / "out" / "predictions.csv") == predicted(odd.masks / "predictions.csv")


def test_two_processes_train_one_network(data, trained, tmp_path):
    datalist = read_json(data / "datalist.json")
    odd_lists = {"training": datalist["training"][:5], "validation": datalist["validation"][1:4]}
    (tmp_path / "odd.json").write_text(json.dumps(odd_lists))
    paths = ["--datalist", tmp_path / "odd.json", "--ckpt_dir", tmp_path / "m", "--output_dir", tmp_path / "o"]
    config = ["--config_file", "['configs/train.json','configs/multi_gpu_train.json']"]
    text = run("training", *config, *trained.options, *paths, "--epochs", "2", launcher=torchrun())
    assert text.count("Epoch: 2/2") == 1  # three images each make one batch; one process speaks
    weights = load(tmp_path / "m" / "model.pt")
    assert weights.keys() == load(trained.models / "model.pt").keys()  # without the wrapper's prefix
    assert load(tmp_path / "m" / "checkpoint.pt")["network"].keys() == weights.keys()
    assert len(list((tmp_path / "o").glob("events*"))) == 1
    rows = read_csv(tmp_path / "o" / "training_curve.csv")
    assert [(row["epoch"], float(row["images"])) for row in rows] == [("1", 3), ("2", 3)]


def test_two_processes_evaluate_to_the_same_figures_as_one(data, trained, evaluated, tmp_path):
    configs = [f"configs/{name}.json" for name in ("train", "evaluate", "multi_gpu_evaluate")]
    options = [*SMALL, *KEEP_ALL, "--dataset_dir", data, "--ckpt_dir", trained.models, "--output_dir", tmp_path]
    run("evaluating", "--config_file", str(configs), *options, launcher=torchrun())
    assert len(read_csv(tmp_path / "images.csv")) % 2 == 1
    for name in ("metrics.json", "images.csv"):
        assert (tmp_path / name).read_bytes() == (evaluated / "testing" / name).read_bytes()


def test_inference_is_shared_by_two_processes_and_goes_on_where_one_crashed(odd, trained, tmp_path):
    (tmp_path / "crash.py").write_text(
        "import os\n"
        "from breast_ultrasound import networks\n"
        "class BasicUNetClassifier(networks.BasicUNetClassifier):  # of the same name, so that the run can go on\n"
        "    left = 6\n"
        "    def forward(self, x):\n"
        "        self.left -= 1\n"
        "        if self.left < 0 and os.environ['RANK'] == '1':\n"
        "            os._exit(3)\n"
        "        return super().forward(x)\n"
    )
    network = {"_target_": "crash.BasicUNetClassifier", "features": "@features", "norm": "$@stored['norm']"}
    network["downscale_factor"] = "@downscale_factor"
    (tmp_path / "crash.json").write_text(json.dumps({"network_def": network}))
    configs = ["configs/inference.json", "configs/multi_gpu_inference.json"]
    paths = ["--dataset_dir", odd.folder, "--ckpt_dir", trained.models, "--output_dir", tmp_path / "masks"]
    options = [*SMALL, *KEEP_ALL, *paths, "--batch_size", "2", "--predict_refused", "True"]
    crashed = ["--config_file", str([*configs, str(tmp_path / "crash.json")])]
    run(*crashed, *options, launcher=torchrun(), code=1, PYTHONPATH=f"{tmp_path}:{BUNDLE}")
    assert not (tmp_path / "masks" / "predictions.csv").exists()
    done = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "masks").glob("*_seg.png")}
    assert 6 <= len(done) < len(odd.good)
    with open(next((tmp_path / "masks").glob(".predictions_*_1.csv")), "a") as file:
        file.write("cut off in the mid")

    log = run("--config_file", str(configs), *options, "--resume", "True", launcher=torchrun())
    assert "images are done" in log
    whole = {row["filename"]: row for row in predicted(odd.masks / "predictions.csv")}
    rows = predicted(tmp_path / "masks" / "predictions.csv")
    assert [row["filename"] for row in rows] == sorted(odd.good)
    for row in rows:
        assert row["lesion_area_px"] == whole[row["filename"]]["lesion_area_px"]
    for file in odd.masks.glob("*.png"):
        assert (tmp_path / "masks" / file.name).read_bytes() == file.read_bytes()
    again = [name for name, time in done.items() if (tmp_path / "masks" / name).stat().st_mtime_ns != time]
    assert len(again) <= 2  # a batch whose masks were written and whose rows were not
    assert not list((tmp_path / "masks").glob(".*"))


def test_inference_that_is_asked_to_end_says_what_is_missing(odd, trained, tmp_path):
    options = [*INFERENCE_CONFIG, *SMALL, "--dataset_dir", odd.folder, "--ckpt_dir", trained.models]
    arguments = command(*options, "--output_dir", tmp_path, "--batch_size", 1)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(arguments, cwd=BUNDLE, env=ENVIRONMENT, **streams) as process:
        while not list(tmp_path.glob("*_seg.png")) and process.poll() is None:
            time.sleep(0.005)
        process.terminate()
        text = process.communicate()[0]
    assert process.returncode, text
    assert re.search(rf"\d+ of {len(odd.good) + len(odd.bad)} images are done, no table yet", text), text
    assert last_line(text) == "stopped; the same command with --resume True goes on"
    assert "Traceback" not in text and not (tmp_path / "predictions.csv").exists()


def test_inference_is_shared_by_two_launchers_as_on_two_machines(odd, trained, tmp_path):
    shown = "`--nnodes 2 --node_rank 0` (on the other `1`) `--master_addr HOST --master_port 29500`"
    assert shown in " ".join((BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split())
    nodes = ["--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--nproc_per_node", "1"]
    configs = "['configs/inference.json','configs/multi_gpu_inference.json']"
    paths = ["--dataset_dir", odd.folder, "--ckpt_dir", trained.models, "--output_dir", tmp_path / "masks"]
    launched = []
    for rank in ("0", "1"):
        launcher = ["-m", "torch.distributed.run", *nodes, "--node_rank", rank]
        words = command(*INFERENCE_CONFIG[2:], "--config_file", configs, *SMALL, *paths, launcher=launcher)
        with open(tmp_path / f"{rank}.txt", "w") as log:
            launched.append(subprocess.Popen(words, cwd=BUNDLE, env=ENVIRONMENT, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=300) for process in launched]
    finally:
        for process in launched:
            process.terminate()  # a launcher ends its process with itself
    assert codes == [0, 0], "".join((tmp_path / f"{rank}.txt").read_text() for rank in ("0", "1"))
    whole, rows = (predicted(folder / "predictions.csv") for folder in (odd.masks, tmp_path / "masks"))
    for row, other in zip(rows, whole, strict=True):
        assert all(row[column] == other[column] for column in ("filename", "class", "lesion_area_px"))
        for column in COLUMNS[2:5]:
            assert float(row[column]) == pytest.approx(float(other[column]), abs=2e-6)
    assert sorted(f.name for f in (tmp_path / "masks").iterdir()) == sorted(f.name for f in odd.masks.iterdir())
    for file in odd.masks.glob("*.png"):
        assert (tmp_path / "masks" / file.name).read_bytes() == file.read_bytes()


def test_a_finished_inference_and_one_with_other_settings_start_anew(odd, trained):
    options = [*INFERENCE_CONFIG, *SMALL, "--ckpt_dir", trained.models, "--dataset_dir", odd.folder]
    masks = odd.masks.with_name("resumed")
    options += ["--output_dir", masks, "--resume", "True"]
    assert "nothing to resume" in run(*options)
    first = (masks / "predictions.csv").read_bytes()
    assert first == (odd.masks / "predictions.csv").read_bytes()
    (masks / ".predictions_0_0.csv").write_bytes(first)  # of a run with other settings
    assert "nothing to resume" in run(*options)
    assert sorted(f.name for f in masks.iterdir()) == sorted(f.name for f in odd.masks.iterdir())


# MONAI Label: its stock app `monaibundle` (0.8.5) reads train.json or inference.json alone, as below


@pytest.fixture
def label_bundle(tiny_prepared, tmp_path):
    """A copy of the bundle with untrained weights of the full size, and data where the bundle looks by default."""
    folder = tmp_path / "model of the app" / "breast_ultrasound"
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("models", "__pycache__", "data", "eval"))
    shutil.copytree(tiny_prepared, folder / "data")
    (folder / "models").mkdir()
    torch.manual_seed(0)
    network = read_config(folder, "inference").get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def read_config(folder, name):
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / f"{name}.json"))
    parser.config.update({"bundle_root": str(folder), "device": "cpu"})
    return parser


def answer(folder, image):
    """What the app makes of one image."""
    parser = read_config(folder, "inference")
    network = parser.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    data = {"image": str(image), "image_path": str(image), "model": folder.name, "device": "cpu"}
    for transform in parser.get_parsed_content("preprocessing", instantiate=True).transforms:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = False
        data = transform(data)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data["pred"] = decollate_batch(inferer(data["image"][None], network.eval()))[0]
    for transform in parser.get_parsed_content("postprocessing", instantiate=True).transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    return data


def test_monai_label_gets_the_mask_and_the_class_of_the_inference_command(label_bundle):
    metadata = read_json(label_bundle / "configs" / "metadata.json")["network_data_format"]
    assert [next(iter(metadata[side])) for side in ("inputs", "outputs")] == ["image", "pred"]  # the first ones count

    run(*INFERENCE_CONFIG[:2], cwd=label_bundle)  # no options at all: every default path
    rows = {row["filename"]: row for row in predicted(label_bundle / "predictions" / "predictions.csv")}
    images = sorted((label_bundle / "data" / "images").iterdir())
    assert sorted(rows) == [image.name for image in images]
    for image in images[:3]:
        data, row = answer(label_bundle, image), rows[image.name]
        mask = data["pred"].array
        assert mask.dtype == np.uint8 and mask.shape == Image.open(image).size  # (W, H): anything else comes out wrong
        # `Restored`, which the app adds, must find nothing to do.
        assert mask.shape[1:] == tuple(data["image"].meta["spatial_shape"])[-1:]
        assert np.array_equal(mask.T * 255, pixels(label_bundle / "predictions" / f"{image.stem}_seg.png"))
        result = json.loads(json.dumps(data["result"]))
        assert "prediction" not in result  # CVAT would drop the outline
        assert result["class"] == row["class"]
        scores = {f"p_{entry['label']}": entry["score"] for entry in result["classification"]}
        # In batches and alone, bfloat16 sums in another order.
        assert scores == pytest.approx({column: float(row[column]) for column in COLUMNS[2:5]}, abs=2e-3)


@pytest.mark.parametrize("pretrained", [False, True], ids=["from nothing", "from weights"])
def test_monai_label_trains_without_classes(pretrained, label_bundle):
    weights = label_bundle / "models" / "model.pt"
    before = load(weights)
    handlers = read_config(label_bundle, "train").get("train#handlers")
    if not pretrained:
        weights.unlink()
    elif not [handler for handler in handlers if handler.get("_target_") == "CheckpointLoader"]:
        load_dict = {"model": "$@network"}
        loader = {"_target_": "CheckpointLoader", "load_path": str(weights), "load_dict": load_dict, "strict": False}
        handlers.insert(0, loader)
    datalist = read_json(label_bundle / "data" / "datalist.json")
    items = {
        part: [{key: str(label_bundle / "data" / item[key]) for key in ("image", "label")} for item in datalist[part]]
        for part in ("training", "validation")
    }
    overrides = {
        "bundle_root": str(label_bundle),
        "train#trainer#max_epochs": 1,
        "train#dataset#data": items["training"],
        "device": "cpu",
        "train#handlers": handlers,
        "validate#dataset#data": items["validation"],
    }
    program = (
        "import json, sys, monai.bundle\n"
        "folder = sys.argv[1]\n"
        "sys.path.insert(0, folder)\n"
        "files = {'meta_file': folder + '/configs/metadata.json', 'config_file': folder + '/configs/train.json'}\n"
        "monai.bundle.run(run_id='run', init_id=None, final_id=None, **files, **json.loads(sys.argv[2]))\n"
    )
    arguments = [sys.executable, "-c", program, str(label_bundle), json.dumps(overrides)]
    done = subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert ("Restored all variables" in text) == pretrained
    after = load(weights)
    assert after.keys() == before.keys() and not same(after, before)
    assert all(torch.isfinite(value).all() for value in after.values())


# The real images, where they are


@pytest.mark.skipif(not REAL.is_dir(), reason="BUSI does not lie in ../shared/data")
def test_the_whole_way_on_the_real_set(tmp_path):
    prepared = tmp_path / "busi"
    convert = [sys.executable, "scripts/prepare_busi.py", "--source", REAL, "--output_dir", prepared]
    done = subprocess.run(convert, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lists = read_json(prepared / "datalist.json")
    common = [*SMALL, "--ckpt_dir", tmp_path / "models"]
    paths = [*common, "--dataset_dir", prepared, "--output_dir", tmp_path / "eval"]
    text = run("training", *TRAIN_CONFIG, *paths, "--epochs", "1")
    assert "Epoch: 1/" in text

    run("evaluating", *EVALUATE_CONFIG, *paths, "--split", "validation")
    rows, metrics = read_csv(tmp_path / "eval" / "images.csv"), read_json(tmp_path / "eval" / "metrics.json")
    assert [row["filename"] for row in rows] == sorted(Path(item["image"]).name for item in lists["validation"])
    assert metrics["images_by_class"] == Counter(CLASSES[item["class"]] for item in lists["validation"])

    chosen = random.Random(0).sample(lists["testing"], 12)
    (tmp_path / "new").mkdir()
    for item in chosen:
        name = Path(item["image"]).name
        shutil.copy(REAL / name.split()[0] / name, tmp_path / "new")  # as published, not as converted
    run(*INFERENCE_CONFIG, *common, "--dataset_dir", tmp_path / "new", "--output_dir", tmp_path / "masks")
    rows = predicted(tmp_path / "masks" / "predictions.csv")
    assert [row["filename"] for row in rows] == sorted(Path(item["image"]).name for item in chosen)
    for row in rows:
        mask = pixels(tmp_path / "masks" / f"{Path(row['filename']).stem}_seg.png")
        assert mask.shape == pixels(prepared / "labels" / row["filename"]).shape
        assert int((mask > 0).sum()) == int(row["lesion_area_px"])
