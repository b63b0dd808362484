"""The network: shapes, widths, its likeness to MONAI's BasicUNet, and tracing."""

import onnx
import pytest
import torch
from monai.networks.nets import BasicUNet
from onnx.reference import ReferenceEvaluator

from breast_ultrasound.networks import BasicUNetClassifier

NARROW = (4, 4, 8, 8, 16, 4)


def network(**options):
    """Narrow network with fixed weights, in evaluation mode."""
    torch.manual_seed(0)
    return BasicUNetClassifier(features=NARROW, **options).eval()


@pytest.mark.parametrize("size", [(96, 96), (97, 131), (160, 160), (255, 96)])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_mask_logits_have_the_images_size(size, factor):
    output = network(downscale_factor=factor)(torch.rand(1, 1, *size))
    assert list(output) == ["pred", "class_logits"]  # the mask first
    assert output["class_logits"].shape == (1, 3)
    assert output["pred"].shape == (1, 2, *size)


@pytest.mark.parametrize("factor", [1, 2])
def test_the_smallest_image_and_one_below(factor):
    net, side = network(downscale_factor=factor), 16 * factor
    assert net(torch.rand(1, 1, side, 2 * side))["pred"].shape == (1, 2, side, 2 * side)
    for shape in ((side - 1, 2 * side), (2 * side - 1, side)):
        with pytest.raises(ValueError, match=f"pixels is too small; use an image_size of {2 * side} or more"):
            net(torch.rand(1, 1, *shape))


def test_width_classes_and_channels_are_arguments():
    wide = BasicUNetClassifier(in_channels=3, out_channels=4, num_classes=5, features=(8, 8, 8, 8, 8, 8))
    output = wide(torch.rand(2, 3, 64, 64))
    assert output["pred"].shape == (2, 4, 64, 64) and output["class_logits"].shape == (2, 5)


def test_without_folding_the_mask_is_that_of_basic_unet():
    ours = network()
    unet = BasicUNet(2, 1, 2, NARROW).eval()
    unet.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("classifier")})
    image = torch.rand(2, 1, 96, 80)
    assert torch.equal(ours(image)["pred"], unet(image))


@pytest.mark.parametrize("factor", [1, 2])
def test_feature_maps_have_the_sides_of_their_levels(factor):
    maps = network(downscale_factor=factor).feature_maps(torch.rand(1, 1, 64 * factor, 96 * factor))
    for level in range(5):
        assert maps[f"x{level}"].shape == (1, NARROW[level], 64 // 2**level, 96 // 2**level)
    for level in range(1, 5):
        assert maps[f"u{level}"].shape[2:] == maps[f"x{level - 1}"].shape[2:]


def test_the_class_teaches_the_encoder_and_not_the_decoder():
    net = network()
    net(torch.rand(2, 1, 64, 64))["class_logits"].sum().backward()
    assert net.conv_0.conv_0.conv.weight.grad.abs().sum() > 0
    assert net.final_conv.weight.grad is None


@pytest.mark.parametrize("factor", [1, 2])
def test_tracing_keeps_the_answers(factor):
    net = network(downscale_factor=factor)
    traced = torch.jit.trace(net, torch.rand(1, 1, 64, 64), strict=False)  # a dictionary comes out
    image = torch.rand(3, 1, 64, 64)
    for name, value in net(image).items():
        assert torch.allclose(traced(image)[name], value, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2])
def test_onnx_keeps_the_answers(factor, tmp_path):
    net, image = network(downscale_factor=factor), torch.rand(1, 1, 64, 64)
    names = ["pred", "class_logits"]
    torch.onnx.export(net, (image,), tmp_path / "net.onnx", input_names=["image"], output_names=names, verbose=False)
    found = ReferenceEvaluator(onnx.load(tmp_path / "net.onnx")).run(names, {"image": image.numpy()})
    for value, expected in zip(found, net(image).values()):
        assert torch.allclose(torch.from_numpy(value), expected, atol=1e-4)


def test_dropout_belongs_to_training_alone():
    net, image = network(class_dropout=0.5), torch.rand(1, 1, 64, 64)
    scores = [net(image)["class_logits"] for _ in range(2)]
    assert torch.equal(*scores)
    net.train()
    assert not torch.equal(net(image)["class_logits"], net(image)["class_logits"])
