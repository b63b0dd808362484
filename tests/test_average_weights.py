"""Weights of one network are averaged, those of another refused."""

import json

import pytest
import torch
from average_weights import average_weights

from scripts.files import sha256
from scripts.networks import write_weights


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
