"""The warm-up: teacher, student, loss, and the command with what it leaves."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from scripts.command import load_pretrained
from scripts.networks import BasicUNetClassifier
from scripts.warm_up import EfficientNetLiteFeatures, FeatureLoss, FeatureStudent

NARROW = (4, 5, 6, 7, 8, 3)


@pytest.fixture(scope="module")
def teacher():
    return EfficientNetLiteFeatures()


def test_the_teacher_gives_maps_of_four_strides_and_never_learns(teacher):
    maps = teacher(torch.rand(2, 1, 128, 64))
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 16), (16, 8), (8, 4), (4, 2)]
    assert [m.shape[1] for m in maps] == teacher.channels
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.train().training


def test_the_teachers_last_map_is_its_own_head(teacher):
    picture = torch.rand(1, 1, 224, 224)
    with torch.no_grad():
        own = teacher.teacher.extract_features((picture.expand(-1, 3, -1, -1) - 0.449) / 0.226)
    assert torch.allclose(teacher(picture)[-1][:, -own.shape[1] :], own, atol=1e-5)


@pytest.mark.parametrize("factor, levels", [(1, 5), (2, 7), (4, 6)])
def test_every_level_predicts_the_map_of_its_stride(teacher, factor, levels):
    network = BasicUNetClassifier(features=NARROW, downscale_factor=factor)
    student = FeatureStudent(network, teacher)
    x = torch.rand(2, 1, 128, 128)
    outputs, maps = student(x), teacher(x)
    assert len(outputs) == levels
    for name, predicted in outputs.items():
        assert predicted.shape == maps[student.targets[name]].shape, name


def test_a_factor_without_common_stride_is_refused(teacher):
    with pytest.raises(ValueError, match="downscale_factor 3: the warm-up needs 1, 2 or 4"):
        FeatureStudent(BasicUNetClassifier(features=NARROW, downscale_factor=3), teacher)


@pytest.mark.parametrize("side", [64, 80])
def test_the_loss_is_one_for_zeros_and_falls_with_training(teacher, side):
    torch.manual_seed(0)
    student = FeatureStudent(BasicUNetClassifier(features=NARROW, downscale_factor=2, norm="batch"), teacher)
    loss, x = FeatureLoss(student, teacher), torch.rand(8, 1, side, side)
    zeros = {name: torch.zeros_like(value) for name, value in student(x).items()}
    loss(zeros, x)
    # Standardised targets have the variance one, or a little less where they are clipped or resized.
    assert all(0.3 < term < 1.01 for name, term in loss.last_terms().items() if name != "loss")
    weights = [0.5 if name.startswith("u") else 1 for name in zeros]
    terms = [loss.last_terms()[name] for name in zeros]
    assert loss.last_terms()["loss"] == pytest.approx(sum(w * t for w, t in zip(weights, terms)), rel=1e-4)
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(student(x), x)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]


def bundle(*options):
    """Run the bundle's command in bundle/; returns the log."""
    command = [sys.executable, "-m", "monai.bundle", "run", "training", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT / "bundle", capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_training_starts_from_the_warm_up(tiny_prepared, tmp_path):
    paths = ["--dataset_dir", tiny_prepared, "--ckpt_dir", tmp_path, "--output_dir", tmp_path / "out"]
    small = ["--image_size", 64, "--features", "[8,8,16,16,32,8]", "--batch_size", 3, "--epochs", 1]
    both = ["--config_file", "['configs/train.json','configs/warm_up.json']"]
    code, log = bundle(*both, *paths, *small)
    assert code == 0 and "warmed up for 1 epochs" in log, log[-2000:]
    warm = torch.load(tmp_path / "warm_up.pt", weights_only=True)
    assert warm and not any(name.startswith(("classifier", "final_conv", "heads")) for name in warm)
    code, log = bundle("--config_file", "configs/train.json", *paths, *small, "--pretrained", tmp_path / "warm_up.pt")
    assert code == 0 and f"{len(warm)} of " in log and (tmp_path / "model.pt").is_file(), log[-2000:]

    other = ["--config_file", "configs/train.json", *paths, *small[:2], "--ckpt_dir", tmp_path / "other"]
    code, log = bundle(*other, "--pretrained", tmp_path / "warm_up.pt")
    assert code != 0 and "does not fit; give the features" in log.strip().splitlines()[-1]
    code, log = bundle(*other, "--pretrained", "nowhere.pt")
    assert code != 0 and "nowhere.pt: missing; name weights with --pretrained" in log.strip().splitlines()[-1]


def test_layers_of_the_file_are_taken_over_and_others_stay(tmp_path):
    torch.manual_seed(0)
    one, other = BasicUNetClassifier(features=NARROW), BasicUNetClassifier(features=NARROW)
    kept = {name: value for name, value in one.state_dict().items() if not name.startswith("classifier")}
    torch.save(kept, tmp_path / "warm_up.pt")
    before = other.classifier[1].weight.clone()
    load_pretrained(other, "")
    assert not torch.equal(other.conv_0.conv_0.conv.weight, one.conv_0.conv_0.conv.weight)
    load_pretrained(other, str(tmp_path / "warm_up.pt"))
    assert torch.equal(other.conv_0.conv_0.conv.weight, one.conv_0.conv_0.conv.weight)
    assert torch.equal(other.classifier[1].weight, before)
