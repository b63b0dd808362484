"""Fine-tuning on a few images of a set: draws, what is tested, and that an interrupted run goes on."""

import json
from collections import defaultdict

import pytest
from conftest import SMALL
from study import fine_tuning

from scripts.files import read_csv, write_json


@pytest.fixture
def runs(monkeypatch):
    """The bundle's runs, which are noted in place of done; an evaluation leaves its metrics."""
    done = []

    def run_bundle(title, run_id, configs, **ids):
        done.append((title, run_id, ids))
        if run_id == "evaluating":
            found = dict.fromkeys(fine_tuning.METRICS, 0.5)
            tested = json.loads(ids["datalist"].read_text(encoding="utf-8"))["testing"]
            write_json(ids["output_dir"] / "metrics.json", found | {"pictures": len(tested), "weights_sha256": "0"})

    monkeypatch.setattr(fine_tuning, "run_bundle", run_bundle)
    return done


def measure(prepared, folder, **options):
    options = {"numbers": (4, 8), "draws": 2, "steps": 6, **options}
    fine_tuning.fine_tuning(prepared, folder / "weights", folder / "runs", folder / "table.csv", **options)
    return read_csv(folder / "table.csv")


def test_images_of_a_draw_train_in_growing_numbers_and_others_test(prepared, tmp_path, runs):
    rows = measure(prepared, tmp_path)
    starts = [(0, "released weights"), *((n, s) for n in (4, 8) for s in ("released weights", "nothing"))]
    assert [(int(row["images"]), row["start"]) for row in rows] == 2 * starts
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


def test_only_one_start_knows_the_released_weights_and_the_other_trains_longer(prepared, tmp_path, runs):
    measure(prepared, tmp_path)
    trained = [(title, ids) for title, run_id, ids in runs if run_id == "training"]
    assert len(trained) == 8
    for title, ids in trained:
        assert ("pretrained" in ids) == title.endswith("from released weights")
        assert ids["epochs"] == ids["val_interval"] == (18 if "nothing" in title else 6)  # a batch holds all images


def test_a_run_that_was_interrupted_goes_on(prepared, tmp_path, runs):
    first = measure(prepared, tmp_path)
    (tmp_path / "runs" / "draw_1" / "4_nothing" / "testing" / "metrics.json").unlink()
    runs.clear()
    assert measure(prepared, tmp_path) == first
    assert [title for title, _, _ in runs] == ["draw 1, 4 images, from nothing", "draw 1, 4 images, from nothing, test"]


def test_a_set_that_is_too_small_is_refused_before_any_run(prepared, tmp_path, runs):
    with pytest.raises(ValueError, match="leave none to test after 99"):
        measure(prepared, tmp_path, numbers=(99,))
    assert not runs


@pytest.mark.slow
def test_networks_are_trained_and_tested(prepared, small_bundle, tmp_path):
    (tmp_path / "weights").symlink_to(small_bundle / "models")
    rows = measure(prepared, tmp_path, numbers=(6,), draws=1, steps=1, **SMALL)
    assert len(rows) == 3 and len({row["weights_sha256"] for row in rows}) == 3
    assert all(0 <= float(row["lesion_dice"]) <= 1 for row in rows)
