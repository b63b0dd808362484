"""Weights of one network are averaged, those of another refused."""

import json

import pytest
import torch
from average_weights import average_weights

from breast_ultrasound.files import sha256
from breast_ultrasound.weights import write_weights


@pytest.fixture
def folders(tmp_path):
    """Three folders of weights 1, 2 and 6."""
    found = [tmp_path / str(value) for value in (1, 2, 6)]
    for folder in found:
        folder.mkdir()
        state = {"layer": torch.full((2, 3), float(folder.name)), "seen": torch.tensor(int(folder.name))}
        write_weights(folder / "model.pt", state, {"image_size": 64})
    return tuple(found)


def test_the_mean_is_written_with_the_settings(folders, tmp_path):
    average_weights(folders, tmp_path / "mean")
    state = torch.load(tmp_path / "mean" / "model.pt", weights_only=True)
    assert torch.equal(state["layer"], torch.full((2, 3), 3.0)) and state["seen"] == 3
    settings = json.loads((tmp_path / "mean" / "model.json").read_text())
    assert settings == {"weights_sha256": sha256(tmp_path / "mean" / "model.pt"), "image_size": 64}
    with pytest.raises(ValueError, match="model.pt exists; name another --output_dir"):
        average_weights(folders, tmp_path / "mean")


@pytest.mark.parametrize(
    "layer, message",
    [
        (torch.full((2, 3), torch.nan), "2/model.pt: layer holds NaN or infinite values"),
        (torch.full((2, 3), torch.inf), "2/model.pt: layer holds NaN or infinite values"),
        (torch.full((2, 3), 2, dtype=torch.int8), "2/model.pt: another network than that of"),
        (torch.full((2, 3), 2.0, dtype=torch.float64), "2/model.pt: another network than that of"),
        ("text", "2/model.pt: layer is no tensor"),
    ],
)
def test_weights_that_have_no_mean_are_refused(layer, message, folders, tmp_path):
    torch.save({"layer": layer, "seen": torch.tensor(2)}, folders[1] / "model.pt")
    (folders[1] / "model.json").unlink()
    (folders[0] / "model.json").unlink()
    with pytest.raises(ValueError, match=message):
        average_weights(folders[:2], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_whole_numbers_and_the_same_weights_twice_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="1/model.pt: the weights of .*1/model.pt a second time"):
        average_weights((*folders, folders[0]), tmp_path / "mean")
    for number, folder in enumerate(folders):
        write_weights(folder / "model.pt", {"layer": torch.full((2, 3), number)}, {"image_size": 64})
    with pytest.raises(ValueError, match="1/model.pt: layer holds whole numbers"):
        average_weights(folders, tmp_path / "mean")


@pytest.mark.parametrize("change", ["settings", "shape", "name"])
def test_other_networks_are_refused(change, folders, tmp_path):
    state = {
        "other" if change == "name" else "layer": torch.ones(2, 4 if change == "shape" else 3),
        "seen": torch.ones(()),
    }
    write_weights(folders[1] / "model.pt", state, {"image_size": 65 if change == "settings" else 64})
    with pytest.raises(ValueError, match="2/model.pt: another network than that of .*1/model.pt"):
        average_weights(folders, tmp_path / "mean")
    with pytest.raises(ValueError, match="two folders"):
        average_weights(folders[:1], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
