"""Every result has a step that makes it, steps run in order, and what is up to date is not made again."""

from pathlib import Path

import pytest
import reproduce
from conftest import ROOT
from reproduce import STEPS, Places, Step


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty folders for everything."""
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduce, "MADE_FROM", tmp_path / "results" / "made_from.json")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.pt").write_text("weights")
    return Places(tmp_path / "runs", tmp_path / "weights", None, {})


def writing(made, name):
    """A step's action that notes itself and writes its file."""

    def action(places):
        made.append(name)
        path = places.path(f"results/{name}.txt")
        path.parent.mkdir(exist_ok=True)
        path.write_text(name + (places.weights / "model.pt").read_text())

    return action


def test_steps_run_after_what_they_need_and_only_where_something_changed(places, monkeypatch):
    made = []
    first = Step("first", "", 0, writing(made, "first"), ("results/first.txt",), ("weights/model.pt",))
    second = Step("second", "", 0, writing(made, "second"), ("results/second.txt",), ("results/first.txt",), ("first",))
    monkeypatch.setattr(reproduce, "STEPS", {"first": first, "second": second})
    monkeypatch.setattr(reproduce, "tables", lambda places: None)

    def run(*only, **more):
        made.clear()
        reproduce.reproduce(only=only, runs_dir=places.runs, weights_dir=places.weights, **more)
        return list(made)

    assert run("second") == ["first", "second"] and run() == []
    (places.weights / "model.pt").write_text("other weights")
    assert run() == ["first", "second"]
    places.path("results/second.txt").unlink()
    assert run("first") == [] and run("second") == ["second"]
    assert run("second", force=True) == ["second"]
    with pytest.raises(ValueError, match="no step or set third; the steps are first, second"):
        run("third")
    lazy = Step("lazy", "", 0, lambda places: None, ("results/lazy.txt",))
    monkeypatch.setattr(reproduce, "STEPS", {"lazy": lazy})
    with pytest.raises(ValueError, match="lazy: did not make results/lazy.txt"):
        run("lazy")


def test_a_list_shows_every_step_and_runs_none(places, capsys):
    reproduce.reproduce(list_=True, runs_dir=places.runs, weights_dir=places.weights)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(STEPS) and not places.runs.exists()


def test_a_step_that_lacks_its_data_says_what_to_give(places):
    for name, message in (("splits", "--source is missing"), ("prepare_external", "--external is missing")):
        with pytest.raises(ValueError, match=message):
            reproduce.reproduce(only=(name,), runs_dir=places.runs, weights_dir=places.weights)


def test_every_file_of_the_results_is_made_by_a_step():
    made = [name for step in STEPS.values() for name in step.makes]
    files = [f.relative_to(ROOT).as_posix() for f in (ROOT / "results").rglob("*") if f.is_file()]
    # The steps' own note; the fault campaign, a command of its own
    given = {"results/made_from.json", "results/faults.json"}
    charts = [file for file in files if file.startswith("results/evidence/") and file.endswith(".png")]
    assert set(files) - given - set(charts) <= set(made)
    names = tuple(reproduce.EVALUATIONS)
    assert charts and all(Path(chart).name.startswith(names) for chart in charts)


def test_needs_name_steps_before_their_user():
    names = list(STEPS)
    for number, step in enumerate(STEPS.values()):
        assert all(names.index(need) < number for need in step.needs), step.name
        assert set(step.inputs) <= {*reproduce.WEIGHTS, *_made(names[:number])}, step.name


def _made(names):
    return [made for name in names for made in STEPS[name].makes]
