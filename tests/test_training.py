"""What surrounds the trainer: checked options, best weights, checkpoints, seeds, mixed precision."""

import csv
import hashlib
import json
import logging
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from breast_ultrasound.command import check_overrides, keep_freed_memory
from breast_ultrasound.handlers import KeepBest, SeedEachEpoch, StopDiverged, TrainingCheckpoint, TrainingCurve
from breast_ultrasound.inferers import AutocastInferer, fast_bfloat16
from breast_ultrasound.progress import EpochReport, ThreadTrial, duration
from conftest import ROOT

TRAIN = str(ROOT / "bundle" / "configs" / "train.json")
EVALUATE = str(ROOT / "bundle" / "configs" / "evaluate.json")


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "3", "--train#trainer#max_epochs=2"],
        ["--train::trainer::max_epochs", "2"],
        ["--batch-size", "4"],  # Fire turns hyphens into underscores
        ["--run_id", "training", "--meta_file", "x.json", "--logging_file", "y.conf"],
        ["--+imports", "[]"],
        ["--learning_rate", "-1"],  # a value that begins with one dash is none
    ],
)
def test_options_that_exist_are_accepted(options):
    check_overrides(["run", "--config_file", TRAIN, *options])


@pytest.mark.parametrize(
    "option, told",
    [
        ("--epoch", "; did you mean --epochs?"),
        ("-epoch", "; did you mean --epochs?"),
        ("--train#trainer#max_epoch", ""),
        ("--nought", ""),
        ("--part", "; it is called --split now"),
        ("--part_threshold", "; it is called --component_threshold now"),
        ("--early_stop_patience", "; it is gone, leave it out"),
    ],
)
def test_options_that_no_config_knows_are_refused(option, told):
    line = f"unknown option --{option.lstrip('-')}{told}; docs/reference.md of the bundle explains all options"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        check_overrides(["run", "--config_file", f"['{TRAIN}','{EVALUATE}']", option, "3"])


def test_a_config_file_with_a_hyphen_is_checked_too():
    with pytest.raises(ValueError, match="unknown option --epoch"):
        check_overrides(["run", "--config-file", TRAIN, "--epoch", "3"])


def test_options_of_several_configs_and_of_an_args_file(tmp_path):
    both = f"['{TRAIN}','{EVALUATE}']"
    check_overrides(["run", "--config_file", both, "--split", "validation"])
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file": TRAIN, "epoch": 3}))
    with pytest.raises(ValueError, match="unknown option --epoch"):
        check_overrides(["run", "--args_file", str(file)])


def test_other_programs_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--epoch", "3"])
    check_overrides()


def engine(epochs, *handlers):
    """Trainer stand-in of three steps an epoch with the handlers attached."""
    trainer = Engine(lambda _, batch: batch)
    trainer.state.max_epochs, trainer.state.rank, trainer.state.device = epochs, 0, "cpu"
    for handler in handlers:
        handler.attach(trainer)
    return trainer


def best_keeper(scores, path):
    """KeepBest on a one-weight network; the weight and the score of epoch k are k and scores[k - 1]."""
    network = nn.Linear(1, 1, bias=False)
    evaluator = SimpleNamespace(state=SimpleNamespace(metrics={}, key_metric_name="val_score"))
    keeper = KeepBest(network, evaluator, str(path))
    trainer = engine(len(scores))

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(trainer):
        nn.init.constant_(network.weight, trainer.state.epoch)
        evaluator.state.metrics["val_score"] = scores[trainer.state.epoch - 1]

    keeper.attach(trainer)
    return keeper, trainer


def test_the_best_weights_are_kept(tmp_path):
    keeper, trainer = best_keeper([0.1, 0.5, 0.3, 0.5], tmp_path / "model.pt")
    trainer.run([1, 2, 3])
    assert (keeper.best, keeper.best_epoch, trainer.state.epoch) == (0.5, 2, 4)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["weight"].item() == 2


def test_weights_of_another_training_are_set_aside_and_ones_own_are_replaced(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"the weights that the bundle came with")
    keeper, trainer = best_keeper([0.1, 0.5], path)
    trainer.run([1])
    kept = [f for f in tmp_path.glob("*.pt") if f != path]
    assert len(kept) == 1 and kept[0].read_bytes() == b"the weights that the bundle came with"
    assert kept[0].name == f"model_{hashlib.sha256(kept[0].read_bytes()).hexdigest()[:8]}.pt"
    resumed, trainer = best_keeper([0.7], path)
    resumed.load_state_dict(keeper.state_dict())
    trainer.run([1])
    assert resumed.best == 0.7 and len(list(tmp_path.glob("*.pt"))) == 2


def test_the_table_has_the_means_of_each_epoch_and_keeps_its_rows(tmp_path):
    values = iter([1.0, 3.0, 5.0, 7.0])
    loss = SimpleNamespace(last_terms=lambda: {"loss": next(values)})
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    evaluator = SimpleNamespace(state=SimpleNamespace(metrics={"val_score": 0.25}))
    curve = TrainingCurve(loss, optimizer, evaluator, str(tmp_path / "curve.csv"))
    curve.load_state_dict({"rows": [{"epoch": 0, "learning_rate": 1.0, "loss": 9.0, "val_score": 0.0}]})
    engine(2, curve).run([1, 2])
    with open(tmp_path / "curve.csv", newline="") as file:
        rows = [[float(value) for value in row.values()] for row in csv.DictReader(file)]
    assert rows == [[0, 1, 9, 0], [1, 0.5, 2, 0.25], [2, 0.5, 6, 0.25]]


def test_a_training_that_would_keep_no_weights_is_refused(tmp_path):
    keeper, trainer = best_keeper([0.5], tmp_path / "model.pt")
    keeper.interval = 5
    with pytest.raises(ValueError, match="val_interval 5 is larger than epochs 1: no weights would be kept"):
        trainer.run([1])


def test_a_checkpoint_brings_back_engine_and_objects(tmp_path):
    network, path = nn.Linear(2, 1), tmp_path / "models" / "checkpoint.pt"
    checkpoint = TrainingCheckpoint(str(path), {"network": network})
    engine(3, checkpoint).run([1, 2, 3])
    kept = network.weight.detach().clone()
    nn.init.zeros_(network.weight)
    again = engine(3)
    again.state.epoch_length = 3
    checkpoint.resume(again)
    assert again.state.epoch == 3 and torch.equal(network.weight, kept)


def test_a_checkpoint_of_another_length_is_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint = TrainingCheckpoint(str(path), {})
    engine(3, checkpoint).run([1, 2, 3])
    longer = engine(5)
    longer.state.epoch_length = 3
    with pytest.raises(ValueError, match=f"{path}: saved with max_epochs 3, now 5; resume with the options"):
        checkpoint.resume(longer)


def test_a_checkpoint_of_other_conditions_is_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.pt"
    engine(3, TrainingCheckpoint(str(path), {}, {"seed": 0, "data_sha256": "1" * 64})).run([1, 2, 3])
    for conditions, told in (
        ({"seed": 1}, "seed 0, now 1"),
        ({"data_sha256": "2"}, "other data"),
        ({"x": 1}, "x unkn"),
    ):
        again = engine(3)
        again.state.epoch_length = 3
        with pytest.raises(ValueError, match=f"{path}: saved with {told}.*; resume with the options"):
            TrainingCheckpoint(str(path), {}, conditions).resume(again)


def test_each_epoch_is_told_in_one_line_with_the_time_left(caplog):
    caplog.set_level(logging.INFO)
    curve = SimpleNamespace(means=lambda: {"loss": 0.5})
    evaluator = Engine(lambda *_: None)
    evaluator.state.metrics = {"score": 0.25, "lesion_dice": 0.125, "missed_rate": 1.0}
    engine(4, EpochReport(curve, evaluator, interval=2)).run([1, 2])
    lines = [record.message for record in caplog.records]
    assert lines[0] == "Epoch: 1/4, loss 0.500, 0 s left" and len(lines) == 4
    assert lines[1] == "Epoch: 2/4, loss 0.500, validation score 0.250, lesion Dice 0.125, missed 1.000, 0 s left"
    assert lines[3].endswith("0 s in all")
    assert [duration(seconds) for seconds in (9.6, 600, 9000)] == ["10 s", "10 min", "2 h 30 min"]


class Slow(nn.Module):
    """A network that takes long with one of two numbers of threads."""

    def __init__(self, slow):
        super().__init__()
        self.layer, self.slow = nn.Conv2d(1, 1, 1), slow

    def forward(self, x):
        time.sleep(0.1 * (torch.get_num_threads() == self.slow))
        return torch.nn.functional.dropout(self.layer(x))


@pytest.fixture
def two_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


def trial(slow):
    network = Slow(slow)
    return ThreadTrial(network, lambda x, n: n(x), lambda found, _: found.mean(), (2, 1, 8, 8), "cpu"), network


@pytest.mark.parametrize("slow, chosen", [(2, 1), (1, 2)])
def test_the_quicker_number_of_threads_is_taken_and_nothing_else_changes(slow, chosen, two_threads, caplog):
    caplog.set_level(logging.INFO)
    tried, network = trial(slow)
    weight, state = network.layer.weight.clone(), torch.get_rng_state()
    engine(1, tried).run([1])
    assert torch.get_num_threads() == chosen and f"threads: {chosen} (" in caplog.text
    assert torch.equal(network.layer.weight, weight) and network.layer.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert tried.state_dict() == {"threads": chosen}
    # A resumed training takes the same number, whatever is quicker by now
    again, _ = trial(chosen)
    again.load_state_dict(tried.state_dict())
    torch.set_num_threads(2)
    engine(1, again).run([1])
    assert torch.get_num_threads() == chosen


def test_a_number_of_threads_in_the_environment_holds(two_threads, monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    caplog.set_level(logging.INFO)
    engine(1, trial(2)[0]).run([1])
    assert torch.get_num_threads() == 2 and "threads" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, {"a": 1}, {"trainer": {}}, [1]])
def test_a_damaged_or_foreign_checkpoint_is_refused_by_name(content, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=f"{path}: "):
        TrainingCheckpoint(str(path), {"network": nn.Linear(2, 1)}).resume(engine(3))


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    path = tmp_path / "checkpoint.pt"
    engine(3, TrainingCheckpoint(str(path), {"network": nn.Linear(2, 1)})).run([1, 2, 3])
    again = engine(3)
    again.state.epoch_length = 3
    with pytest.raises(ValueError, match=f"{path}: network does not fit .*; resume with the options"):
        TrainingCheckpoint(str(path), {"network": nn.Linear(3, 1)}).resume(again)


@pytest.mark.parametrize("what, message", [("loss", "the loss is nan in epoch 2"), ("weight", "a weight is no number")])
def test_a_training_that_diverges_stops_and_keeps_what_was_saved(what, message, tmp_path):
    network, path = nn.Linear(1, 1, bias=False), tmp_path / "checkpoint.pt"

    def step(trainer, batch):
        spoilt = trainer.state.epoch == 2 and batch == 3
        if spoilt and what == "weight":
            nn.init.constant_(network.weight, float("inf"))
        return {"loss": float("nan") if spoilt and what == "loss" else 1.0}

    trainer = Engine(step)
    trainer.state.max_epochs, trainer.state.rank = 4, 0
    for handler in (StopDiverged(network), TrainingCheckpoint(str(path), {"network": network})):
        handler.attach(trainer)
    with pytest.raises(ValueError, match=f"{message}.*diverged.*smaller --learning_rate"):
        trainer.run([1, 2, 3])
    state = torch.load(path, weights_only=True)
    assert state["trainer"]["iteration"] == 3 and torch.isfinite(state["network"]["weight"]).all()


def test_without_a_checkpoint_a_training_starts_anew(tmp_path, caplog):
    with caplog.at_level("INFO"):
        TrainingCheckpoint(str(tmp_path / "checkpoint.pt"), {}).resume(engine(3))
    assert "nothing to resume, the training starts anew" in caplog.text


def test_an_epochs_draws_depend_on_seed_and_epoch_alone():
    def draws(seed, epochs, start=0):
        found, seeded = {}, []
        transform = SimpleNamespace(set_random_state=seeded.append)
        trainer = engine(epochs, SeedEachEpoch(seed, SimpleNamespace(transform=transform)))
        trainer.state.epoch = start
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda e: found.setdefault(e.state.epoch, (torch.rand(1).item(), seeded[-1]))
        )
        trainer.run([1], max_epochs=epochs)
        return found

    whole = draws(0, 3)
    torch.rand(7)  # whatever was drawn before
    assert draws(0, 3) == whole and len(set(whole.values())) == 3
    assert draws(1, 3)[1] != whole[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_glibc_takes_the_request_to_keep_memory():
    assert keep_freed_memory()


@pytest.mark.parametrize("amp, kind", [(True, torch.bfloat16), (False, torch.float32), ("auto", None)])
def test_mixed_precision_where_asked_for_and_float32_outside(amp, kind):
    inside = []

    def network(x):
        inside.append((x @ x).dtype)
        return {"pred": x @ x}

    output = AutocastInferer(amp)(torch.rand(4, 4), network)
    assert inside == [kind or (torch.bfloat16 if fast_bfloat16("cpu") else torch.float32)]
    assert output["pred"].dtype == torch.float32


def test_a_wrong_precision_is_an_error():
    with pytest.raises(ValueError, match="amp is 'yes'; use true, false or auto"):
        AutocastInferer("yes")
