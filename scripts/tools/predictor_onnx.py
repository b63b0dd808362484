"""Preprocessing and postprocessing of bundle/configs/inference.json as ONNX graphs around an exported network.

The file takes a decoded image and gives mask and probabilities in ONNX Runtime alone, from any language. Every constant
comes from the parsed config; the bundle itself does not need this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
from monai.bundle import ConfigParser
from onnx import TensorProto, compose, helper, inliner
from onnxscript import BOOL, DOUBLE, FLOAT, INT32, INT64, UINT8, OnnxFunction
from onnxscript import opset20 as op  # that of MONAI's exporter
from onnxscript import script
from tqdm import tqdm

from breast_ultrasound.calibration import MASK, offsets
from breast_ultrasound.files import NOTICE
from breast_ultrasound.networks import onnx_session
from breast_ultrasound.predictor import Predictor

ROWS, COLUMNS, WIDTH, HEIGHT, CLASSES, TAPS = "rows", "columns", "width", "height", "classes", "taps"  # free
BARE = {
    "input": "image: float32 (batch, 1, width, height), transposed against rows and columns as MONAI loads images;"
    " resized, standardised and padded as in the model card; both sides multiples of 32",
    "output": "pred: logits (batch, 2, width, height) of background and lesion; class_logits: (batch, classes), not yet"
    " divided by the temperature nor shifted by class_offsets",
    "not_in_the_graph": "preprocessing and postprocessing; predictor.onnx has both",
}
WHOLE = {
    "input": "image: uint8 (rows, columns), grey, upright (turned as EXIF says), any size",
    "output": "mask: uint8 (rows, columns), 0 or 255; lesion_probability: float32 (rows, columns);"
    " class_probabilities: float32 (classes), calibrated by temperature and class_offsets;"
    " probabilities of an image of one grey alone are NaN",
    "not_in_the_graph": "decoding, EXIF orientation, grey from colour or from more than 8 bits;"
    " suspicious (probability of suspicious_classes at or above malignancy_threshold), unsure (largest probability"
    " below unsure_below), disagreement of mask and class",
}


def metadata(parser: ConfigParser, whole: bool) -> dict[str, str]:
    """The metadata of an exported file, from the config of inference.

    Args:
        parser: of bundle/configs/inference.json, with weights.
        whole: whether the file holds preprocessing and postprocessing.

    Returns:
        texts by name, for ``metadata_props``; what is no text in the config as JSON.
    """
    values = parser.get_parsed_content("calibration")
    values |= {name: parser.get_parsed_content(name) for name in ("class_names", "image_size", *MASK)}
    values["standardising"] = "mean 0 and standard deviation 1 over the resized image; then zeros around it"
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {"notice": NOTICE, **(WHOLE if whole else BARE), **texts}


def write_predictor(network: str | Path, target: str | Path, parser: ConfigParser) -> None:
    """Write a file of preprocessing, network and postprocessing.

    Args:
        network: ONNX file of the bare network, float32 or INT8.
        target: file to write.
        parser: of bundle/configs/inference.json, with the weights of the network.
    """
    bare = compose.add_prefix(onnx.load(network), "network/")
    before, after = (_as_model(f(parser), bare.ir_version) for f in (_preprocessing, _postprocessing))
    model = compose.merge_models(before, bare, [("network_input", "network/image")])
    links = [("network/pred", "pred"), ("network/class_logits", "class_logits")]
    links += [(name, name) for name in ("image_shape", "resized_shape", "padded_before", "no_contrast")]
    model = compose.merge_models(model, after, links)
    helper.set_model_props(model, metadata(parser, whole=True))
    onnx.save(model, target)


def compare_with_bundle(
    file: str | Path, predictor: Predictor, images: Sequence[Path | np.ndarray]
) -> dict[str, float]:
    """Compare a file of ``write_predictor`` with the bundle's own inference.

    Args:
        file: to compare.
        predictor: the bundle with the same weights, without mixed precision.
        images: files, which OpenCV reads for the ONNX file, or uint8 arrays (rows, columns).

    Returns:
        the largest differences of a class's and of a pixel's probability, and of the masks the smallest and the mean
        IoU, which is 1 where both are empty.
    """
    session = onnx_session(str(file))
    differences = {"class": [], "lesion": []}
    ious = []
    for image in tqdm(images, desc=Path(file).name, leave=False):
        pixels = image if isinstance(image, np.ndarray) else cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
        mask, lesion, classes = session.run(["mask", "lesion_probability", "class_probabilities"], {"image": pixels})
        expected = predictor(image)
        differences["class"].append(np.abs(classes - [*expected.class_probabilities.values()]).max())
        differences["lesion"].append(np.abs(lesion - expected.lesion_probability).max())
        union = np.count_nonzero((mask > 0) | expected.mask)
        ious.append(np.count_nonzero((mask > 0) & expected.mask) / union if union else 1.0)
    largest = {f"largest_{name}_probability_difference": float(max(found)) for name, found in differences.items()}
    return {**largest, "smallest_mask_iou": min(ious), "mean_mask_iou": float(np.mean(ious))}


def _as_model(function: OnnxFunction, ir_version: int) -> onnx.ModelProto:
    """A model of one graph, whose inner names begin with that of the function."""
    model = inliner.inline_local_functions(function.to_model_proto(ir_version=ir_version))
    return compose.add_prefix(model, f"{function.name}/", rename_inputs=False, rename_outputs=False)


@script(default_opset=op)
def _gaussian(sigma: FLOAT) -> FLOAT[TAPS]:
    """MONAI's gaussian_1d: the Gaussian's integral over each pixel, cut off at 4 standard deviations."""
    tail = op.Floor(op.Max(4.0 * sigma, 0.5) + 0.5)
    x = op.Range(-tail, tail + 1.0, 1.0)
    t = 0.70710678 / sigma
    return 0.5 * (op.Erf(t * (x + 0.5)) - op.Erf(t * (x - 0.5)))


def _preprocessing(parser: ConfigParser) -> OnnxFunction:
    side, multiple = parser.get_parsed_content("image_size"), parser.get_parsed_content("pad").padder.k

    @script(default_opset=op)
    def preprocessing(
        image: UINT8[ROWS, COLUMNS],
    ) -> tuple[FLOAT[1, 1, WIDTH, HEIGHT], INT64[2], INT64[2], INT64[2], FLOAT]:
        # ResizeToAread: the area of a square of image_size, shape kept
        image_shape = op.Shape(image)
        size = op.Cast(image_shape, to=DOUBLE.dtype)
        resized = op.Max(op.Round(size * (side / op.Sqrt(op.ReduceProd(size, keepdims=0)))), 1.0)
        resized_shape = op.Cast(resized, to=INT64.dtype)
        # What shrinks is smoothed along each side before, with zeros outside
        sigma = op.Cast(op.Max((size / resized - 1.0) / 2.0, 0.0), to=FLOAT.dtype)
        along_rows, along_columns = op.Split(sigma, num_outputs=2)
        pixels = op.Cast(op.Unsqueeze(image, [0, 1]), to=FLOAT.dtype)
        # The bundle refuses an image of one grey alone. A graph cannot: this is added to the probabilities, 0 or NaN
        no_contrast = 0.0 / op.Cast(op.ReduceMax(pixels, keepdims=0) > op.ReduceMin(pixels, keepdims=0), to=FLOAT.dtype)
        pixels = op.Conv(pixels, op.Reshape(_gaussian(op.Squeeze(along_rows)), [1, 1, -1, 1]), auto_pad="SAME_UPPER")
        pixels = op.Conv(pixels, op.Reshape(_gaussian(op.Squeeze(along_columns)), [1, 1, 1, -1]), auto_pad="SAME_UPPER")
        pixels = op.Resize(pixels, None, None, op.Concat([1, 1], resized_shape, axis=0), mode="linear")
        # NormalizeIntensityd, which leaves no trace of the scaling to [0, 1]. In double, as it sums the images
        exact = op.Cast(pixels, to=DOUBLE.dtype)
        centred = exact - op.ReduceMean(exact)
        deviation = op.Sqrt(op.ReduceMean(centred * centred))
        standardised = op.Cast(centred / op.Where(deviation > 0.0, deviation, 1.0), to=FLOAT.dtype)
        # DivisiblePadd: zeros on both sides, the odd one behind; then (W, H), as MONAI loads images
        padding = (multiple - resized_shape % multiple) % multiple
        padded_before = padding / 2
        pads = op.Concat([0, 0], padded_before, [0, 0], padding - padded_before, axis=0)
        network_input = op.Transpose(op.Pad(standardised, pads), perm=[0, 1, 3, 2])
        return network_input, image_shape, resized_shape, padded_before, no_contrast

    return preprocessing


def _postprocessing(parser: ConfigParser) -> OnnxFunction:
    calibration, names = parser.get_parsed_content("calibration"), parser.get_parsed_content("class_names")
    temperature = calibration["temperature"]
    shift = helper.make_tensor("shift", TensorProto.FLOAT, [len(names)], offsets(calibration, names))
    threshold = parser.get_parsed_content("mask_threshold")
    # In double, as the bundle compares areas and means with them
    smallest, doubtful = (
        helper.make_tensor(name, TensorProto.DOUBLE, [], [parser.get_parsed_content(name)])
        for name in ("smallest_fraction", "component_threshold")
    )

    @script(default_opset=op)
    def postprocessing(
        pred: FLOAT[1, 2, WIDTH, HEIGHT],
        class_logits: FLOAT[1, CLASSES],
        image_shape: INT64[2],
        resized_shape: INT64[2],
        padded_before: INT64[2],
        no_contrast: FLOAT,
    ) -> tuple[UINT8[ROWS, COLUMNS], FLOAT[ROWS, COLUMNS], FLOAT[CLASSES]]:
        # ClassResultd
        probabilities = op.Softmax(class_logits / temperature + op.Constant(value=shift))
        class_probabilities = op.Squeeze(probabilities, [0]) + no_contrast  # an output has its first name
        # Softmax of two channels is the sigmoid of their difference; upright, without padding, in the image's size
        background, lesion = op.Split(op.Transpose(pred, perm=[0, 1, 3, 2]), axis=1, num_outputs=2)
        lesion = op.Slice(op.Sigmoid(lesion - background), padded_before, padded_before + resized_shape, [2, 3])
        lesion = op.Resize(lesion, None, None, op.Concat([1, 1], image_shape, axis=0), mode="linear")
        lesion_probability = op.Squeeze(lesion, [0, 1]) + no_contrast

        # LesionMaskd. The rest works in the box around the mask
        found = op.Cast(lesion_probability >= threshold, to=UINT8.dtype)
        rows, columns = op.ReduceMax(found, [1], keepdims=0), op.ReduceMax(found, [0], keepdims=0)
        box = op.Concat(op.ArgMax(rows), op.ArgMax(columns), axis=0)
        box_end = op.Concat(op.ArgMax(rows, select_last_index=1), op.ArgMax(columns, select_last_index=1), axis=0) + 1
        # Its rows, a zero behind each, in one line, where the mask consists of runs
        wide = op.Pad(op.Slice(lesion_probability, box, box_end), [0, 0, 0, 1])
        width = op.Shape(wide, start=1)
        line = op.Reshape(wide, [-1])
        inside = op.Cast(line >= threshold, to=INT32.dtype)
        previous = op.Pad(inside, [1, -1])
        begins = inside > previous
        starts, ends = op.Squeeze(op.NonZero(begins), [0]), op.Squeeze(op.NonZero(inside < previous), [0])
        # Runs of two rows touch, corners too, where they share columns once each is longer by one: at the first of them
        longer = op.Cast(inside + previous, to=BOOL.dtype)
        shared = op.And(op.Slice(longer, [0], -width), op.Slice(longer, width, op.Shape(line)))
        first = op.Or(op.Slice(begins, [0], -width), op.Slice(begins, width, op.Shape(line)))
        touching = op.Squeeze(op.NonZero(op.And(shared, first)), [0])
        run = op.CumSum(op.Cast(begins, to=INT64.dtype), 0) - 1
        upper, lower = op.Gather(run, touching), op.Gather(run, touching + width)
        both = op.Concat(upper, lower, axis=0)
        # Connected parts: a run takes the largest number among those it touches, then the number which that run has,
        # so that the reach doubles from round to round, until nothing changes
        part = op.Range(0, op.Size(starts), 1)
        changed = op.Size(starts) > 0
        while changed:
            largest = op.Max(op.Gather(part, upper), op.Gather(part, lower))
            taken = op.ScatterElements(part, both, op.Concat(largest, largest, axis=0), reduction="max")
            followed = op.Gather(taken, taken)
            changed = op.ReduceSum(followed - part, keepdims=0) > 0
            part = op.Identity(followed)
        # Area and summed probability of each part; small and doubtful ones are erased
        areas = op.Cast(ends - starts, to=DOUBLE.dtype)
        summed = op.CumSum(op.Cast(line, to=DOUBLE.dtype), 0, exclusive=1)
        sums = op.Gather(summed, ends) - op.Gather(summed, starts)
        area = op.ScatterElements(0.0 * areas, part, areas, reduction="add")
        total = op.ScatterElements(0.0 * areas, part, sums, reduction="add")
        large = area >= op.Constant(value=smallest) * op.Cast(op.Size(found), to=DOUBLE.dtype)
        kept = op.Gather(op.And(large, total >= op.Constant(value=doubtful) * area), part)
        # The runs that stay, painted white
        white = 255 * op.Cast(kept, to=INT32.dtype)
        steps = op.ScatterElements(0 * inside, op.Concat(starts, ends, axis=0), op.Concat(white, -white, axis=0))
        painted = op.Cast(op.Reshape(op.CumSum(steps, 0), op.Shape(wide)), to=UINT8.dtype)
        mask = op.Pad(painted, op.Concat(box, image_shape - box_end - [0, 1], axis=0))
        return mask, lesion_probability, class_probabilities

    return postprocessing
