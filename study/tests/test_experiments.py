"""Trainings and evaluations that are done once, and fine-tuning on a few images of a set."""

import json
from collections import defaultdict

import pytest

from breast_ultrasound.files import read_csv, write_json
from conftest import SMALL
from study import BRIEF, SIGNATURE, experiments


@pytest.fixture
def runs(monkeypatch):
    """The bundle's runs, which are noted in place of done; an evaluation leaves its metrics."""
    done = []

    def run_bundle(title, run_id, configs, **ids):
        done.append((title, run_id, configs, ids))
        if run_id == "evaluating":
            tested = 3
            if "datalist" in ids:
                tested = len(json.loads(ids["datalist"].read_text(encoding="utf-8"))["testing"])
            found = dict.fromkeys(BRIEF, 0.5) | {"images": tested, "weights_sha256": "0"}
            write_json(ids["output_dir"] / "metrics.json", found)

    monkeypatch.setattr(experiments, "run_bundle", run_bundle)
    return done


def measure(prepared, folder, **options):
    options = {"numbers": (4, 8), "draws": 2, "steps": 6, **options}
    experiments.fine_tuning(prepared, folder / "weights", folder / "runs", folder / "table.csv", **options)
    return read_csv(folder / "table.csv")


def test_a_training_comes_before_its_tests_and_neither_is_done_twice(tmp_path, runs):
    tests = {"home": {"dataset_dir": "a"}, "away": {"dataset_dir": "b", "ckpt_dir": "other"}}
    found = experiments.trained_and_tested(tmp_path / "x", {"dataset_dir": "a"}, tests, ["train_quick"], epochs=2)
    assert [run_id for _, run_id, _, _ in runs] == ["training", "evaluating", "evaluating"]
    assert [configs for _, _, configs, _ in runs] == [["train", "train_quick"]] + 2 * [
        ["train", "train_quick", "evaluate"]
    ]
    assert runs[0][3]["epochs"] == 2 and "epochs" not in runs[1][3]
    assert [ids["ckpt_dir"] for _, _, _, ids in runs] == [tmp_path / "x", tmp_path / "x", "other"]
    assert found["home"]["commit"] == experiments.commit() and len(found["home"]["commit"].rstrip("+")) in (0, 40)
    runs.clear()
    assert experiments.trained_and_tested(tmp_path / "x", {"dataset_dir": "a"}, tests) == found and not runs
    experiments.trained_and_tested(tmp_path / "y", None, {"home": tests["home"]})
    assert [run_id for _, run_id, _, _ in runs] == ["evaluating"]


def test_a_row_says_what_made_it():
    row = experiments.row({"images": 3, "lesion_dice": 0.5, "commit": "0", "unknown": 1}, draw=0)
    assert list(row) == ["draw", "images", *BRIEF, *SIGNATURE] and row["commit"] == "0" and row["accuracy"] is None


def test_images_of_a_draw_train_in_growing_numbers_and_others_test(prepared, tmp_path, runs):
    rows = measure(prepared, tmp_path)
    trainings = [(0, 0), *((n, rate) for n in (4, 8) for rate in (0.0005, 0.0001))]
    assert [(int(row["trained"]), float(row["learning_rate"] or 0)) for row in rows] == 2 * trainings
    of_draw = defaultdict(list)
    for path in sorted((tmp_path / "runs").glob("draw_*/*/datalist.json")):
        of_draw[path.parts[-3]].append(json.loads(path.read_text(encoding="utf-8")))
    orders = []
    for lists in of_draw.values():
        lists.sort(key=lambda each: len(each["training"]))
        trained = [[item["image"] for item in each["training"]] for each in lists]
        orders.append(trained[-1])
        assert [len(images) for images in trained] == [0, 4, 4, 8, 8]
        assert all(images == orders[-1][: len(images)] for images in trained)
        groups = {item["group"] for item in lists[-1]["training"]}
        assert all(each["testing"] == lists[0]["testing"] for each in lists)
        assert lists[0]["testing"] and not groups & {item["group"] for item in lists[0]["testing"]}
    assert orders[0] != orders[1]


def test_all_trainings_start_from_the_released_weights_and_have_as_many_steps(prepared, tmp_path, runs):
    measure(prepared, tmp_path)
    trained = [ids for _, run_id, _, ids in runs if run_id == "training"]
    assert len(trained) == 8
    for ids in trained:
        assert ids["pretrained"].parent.name == "weights"
        assert ids["epochs"] == ids["val_interval"] == 6  # a batch holds all images


def test_a_run_that_was_interrupted_goes_on(prepared, tmp_path, runs):
    first = measure(prepared, tmp_path)
    (tmp_path / "runs" / "draw_1" / "4_0.0001" / "testing" / "metrics.json").unlink()
    runs.clear()
    assert measure(prepared, tmp_path) == first
    assert [title for title, *_ in runs] == ["4_0.0001, training", "4_0.0001, testing"]


def test_a_set_that_is_too_small_is_refused_before_any_run(prepared, tmp_path, runs):
    with pytest.raises(ValueError, match="leave none to test after 99"):
        measure(prepared, tmp_path, numbers=(99,))
    assert not runs


@pytest.mark.slow
def test_networks_are_fine_tuned_and_tested(prepared, small_bundle, tmp_path):
    (tmp_path / "weights").symlink_to(small_bundle / "models")
    rows = measure(prepared, tmp_path, numbers=(6,), draws=1, steps=1, **SMALL)
    assert len(rows) == 3 and len({row["weights_sha256"] for row in rows}) == 3
    assert len({row["images_sha256"] for row in rows}) == 1 and all(row["image_size"] == "64" for row in rows)
    assert all(0 <= float(row["lesion_dice"]) <= 1 for row in rows)
