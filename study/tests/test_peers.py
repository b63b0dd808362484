"""Networks of other libraries in the bundle's pipeline, and how they are compared with its own."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pandas
import pytest
import torch
from monai.losses import DiceCELoss

from breast_ultrasound.networks import build_network
from breast_ultrasound.pretrained import PretrainedUNetClassifier
from breast_ultrasound.pretrained import load_imagenet as load_our_encoder
from breast_ultrasound.weights import write_weights
from conftest import ROOT, read_csv
from study.peers import comparison
from study.peers.networks import DeepSupervision, NnUnet, NnUnetSGD, SmpUnet, load_imagenet

WIDTHS = (4, 4, 8, 8, 8, 8)
with_smp = pytest.mark.skipif(not find_spec("segmentation_models_pytorch"), reason="smp is not installed")


def test_nnunet_gives_three_maps_in_training_and_one_afterwards():
    network, images = NnUnet(widths=WIDTHS), torch.randn(2, 1, 96, 64)
    assert network(images)["pred"].shape == (2, 3, 2, 96, 64)
    found = network.eval()(images)
    assert found["pred"].shape == (2, 2, 96, 64) and found["class_logits"].tolist() == [[0, 0, 0]] * 2


def test_weights_tell_their_peer_and_are_read_back(tmp_path):
    network = NnUnet(widths=WIDTHS)
    write_weights(tmp_path / "model.pt", network.state_dict(), {"network": "NnUnet", "widths": WIDTHS})
    found = build_network(3, weights=str(tmp_path / "model.pt"), features=(8,) * 6)
    assert isinstance(found, NnUnet)
    found.load_state_dict(network.state_dict())


def test_deep_supervision_weighs_the_maps_by_halves():
    loss, label = DiceCELoss(softmax=True, to_onehot_y=True), (torch.rand(2, 1, 32, 32) > 0.5).float()
    maps = torch.randn(2, 3, 2, 32, 32)
    each = [loss(maps[:, k], label) for k in range(3)]
    assert torch.isclose(DeepSupervision(loss)(maps, label), (4 * each[0] + 2 * each[1] + each[2]) / 7)


def test_nnunet_s_optimizer_bounds_the_gradient():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 100.0)
    NnUnetSGD([parameter], lr=0.01).step()
    # Nesterov's first step is (1 + momentum) times the gradient
    assert torch.linalg.norm(parameter).item() == pytest.approx(0.01 * 1.99 * 12, rel=1e-3)


@with_smp
def test_smp_s_encoder_answers_as_the_bundle_s_from_the_same_imagenet_weights():
    ours, smp = PretrainedUNetClassifier().eval(), SmpUnet().eval()
    load_our_encoder(ours)
    load_imagenet(smp)
    images = torch.randn(2, 1, 160, 96)
    with torch.no_grad():
        for mine, its in zip(ours.encoder(images), smp.unet.encoder(images)[1:], strict=True):
            assert torch.allclose(mine, its, atol=1e-5)
        found = smp(images)
    assert found["pred"].shape == (2, 2, 160, 96) and found["class_logits"].shape == (2, 3)


@with_smp
def test_other_weights_are_told(tmp_path):
    torch.save({"_conv_stem.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: not the weights of"):
        load_imagenet(SmpUnet(), str(tmp_path / "other.pth"))


def note(runs, network, seed, site, shared):
    """Answers about twelve lesions of 100 pixels and four normals; of each lesion's mask `shared` pixels are right."""
    rows = []
    for number in range(16):
        lesion = number < 12
        kind = ("benign", "malignant")[number % 2] if lesion else "normal"
        p = {name: 0.8 if name == kind else 0.1 for name in ("normal", "benign", "malignant")}
        about = {"filename": f"{number}.png", "group": f"G{number // 2}", "true_class": kind}
        about |= {"true_area": 100 * lesion, **{f"p_{name}": value for name, value in p.items()}, "weights_sha256": "0"}
        for rule, gain, setting in (("bundle", 0, 0.65), ("0.5", 10, 0.5)):
            right = shared + gain + number % 3 if lesion else 0
            parts = [[0.9, 100, right]] if lesion or number == 12 else []
            settings = {"mask_threshold": 0.3, "smallest_fraction": 0, "component_threshold": setting}
            rows.append({**about, "rule": rule, "parts": parts, **settings})
    folder = runs / "peers" / f"{network}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_csv(folder / f"{site}.csv", index=False)


def test_a_peer_is_compared_by_the_better_of_its_rules_over_all_seeds(tmp_path):
    shared = {"ours": 80, "smp": 60, "nnunet": 40}
    for network, pixels in shared.items():
        for seed in (0, 1):
            for site in comparison.TESTED_ON:
                note(tmp_path, network, seed, site, pixels + 2 * seed)
    files = tmp_path / "peers.csv", tmp_path / "differences.csv"
    comparison.tabulate(tmp_path, *files, seeds=(0, 1), draws=50)
    table = pandas.read_csv(files[0], dtype={"rule": str})
    assert len(table) == 3 * 2 * 2 * 2 and not table.set_index(comparison_keys(table)).index.duplicated().any()
    of = table[(table.name == "nnunet") & (table.seed == 1) & (table.site == "external")].set_index("rule")
    assert of.lesion_dice["bundle"] == pytest.approx(0.43) and of.lesion_dice["0.5"] == pytest.approx(0.53)
    assert of.false_mask_rate["bundle"] == 0.25 and of.accuracy.isna().all()
    rows = {(row["peer"], row["site"], row["figure"]): row for row in read_csv(files[1])}
    found = rows["smp", "bus_uclm", "lesion_dice"]
    assert found["rule"] == "0.5" and float(found["ours"]) == pytest.approx(0.82)
    assert float(found["difference"]) == pytest.approx(0.82 - 0.72)
    assert ("smp", "external", "accuracy") in rows and ("nnunet", "external", "accuracy") not in rows


def comparison_keys(table):
    """The columns that tell a row of peers.csv."""
    return [table[name] for name in ("name", "seed", "site", "rule")]


def test_a_missing_training_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ours_0.*--network ours --seed 0 makes it"):
        comparison.tabulate(tmp_path, tmp_path / "a.csv", tmp_path / "b.csv")


@pytest.mark.slow
def test_a_peer_is_trained_and_scored_once(prepared, tmp_path, capfd):
    for name in (*comparison.TRAINED_ON, *comparison.TESTED_ON):
        os.symlink(prepared, tmp_path / name)
    comparison.train_and_score("nnunet", 3, tmp_path, epochs=1, image_size=64, batch_size=6)
    assert "== nnunet_3" in capfd.readouterr().out
    command = [sys.executable, "-m", "study.peers", "--network", "nnunet", "--seed", "3", "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "== nnunet_3" not in done.stdout, done.stdout + done.stderr
    for site in comparison.TESTED_ON:
        found = comparison.read_answers(tmp_path, "nnunet", 3, site)
        assert set(found) == {"bundle", "0.5"} and len(found["bundle"]) == len(list((prepared / "images").iterdir()))
        assert np.allclose(found["bundle"].p_malignant, 1 / 3, atol=1e-5)
