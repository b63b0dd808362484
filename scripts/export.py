"""Export trained weights as TorchScript, ONNX and INT8 ONNX, and compare the files with PyTorch on real images.

    python scripts/export.py [--dataset_dir runs/busi] [--ckpt_dir bundle/models] [--output_dir dist/exports]

Out: `model.ts` and `model.onnx` through MONAI's exporters; batch size, height and width are free, the latter in
multiples of 32, which inference pads to. `predictor.onnx` holds preprocessing and postprocessing too: it takes an image
of any size and gives its mask and its probabilities. Of a BasicUNet, such as bundle/models/small, with --dataset_dir
also `model_int8.onnx`, quantised by ONNX Runtime on training images, and `predictor_int8.onnx`. Each ONNX file says in
its metadata what it takes and gives. `exports.json` has the size of each file and, with --dataset_dir, its largest
difference from PyTorch, or from the bundle's inference, on validation images.
"""

from __future__ import annotations

from pathlib import Path

from tools.cli import BUNDLE, load_network, run


def export(
    dataset_dir: Path | None = None, ckpt_dir: Path = BUNDLE / "models", output_dir: Path = Path("dist/exports")
) -> dict:
    """Write the files and their comparison.

    Args:
        dataset_dir: prepared folder, whose training images quantise and whose validation images compare; without it
            the files that need none are written.
        ckpt_dir: folder of the weights, `model.pt`.
        output_dir: folder to write to.

    Returns:
        dict: the content of `exports.json`.

    Raises:
        FileNotFoundError: the weights or the datalist are missing.
    """
    if dataset_dir and not (dataset_dir / "datalist.json").is_file():
        raise FileNotFoundError(f"{dataset_dir / 'datalist.json'}: missing; prepare the folder first")
    from tools import exports

    from breast_ultrasound.files import NOTICE, sha256, write_json
    from breast_ultrasound.predictor import Predictor

    parser, weights = load_network(ckpt_dir, device="cpu"), ckpt_dir / "model.pt"
    training, validation = exports.split_images(dataset_dir) if dataset_dir else ([], [])
    networks = exports.write_networks(ckpt_dir, output_dir)
    settings = parser.get_parsed_content("settings")
    if training and settings["network"] == "BasicUNetClassifier":
        networks.append(exports.write_int8(output_dir, parser, training))
    predictors = [exports.write_whole_predictor(output_dir, name, parser) for name in networks if name.endswith("onnx")]
    content = {"notice": NOTICE, "weights_sha256": sha256(weights), "weights_bytes": weights.stat().st_size}
    content |= {"images": len(validation)}
    for kind, names in {"files": networks, "predictors": predictors}.items():
        content[kind] = {name: {"bytes": (output_dir / name).stat().st_size} for name in names}
    if validation:
        network, images = parser.get_parsed_content("network"), exports.prepared_images(parser, validation)
        for name, found in content["files"].items():
            found |= exports.compare(network, exports.load_export(output_dir / name), images)
        predictor = Predictor(ckpt_dir=str(ckpt_dir), device="cpu", amp=False, predict_refused=True)
        for name, found in content["predictors"].items():
            found |= exports.compare_predictor(output_dir / name, predictor, validation)
    write_json(output_dir / "exports.json", content)
    write_json(output_dir / "model.json", {"weights_sha256": content["weights_sha256"], **settings})
    print("\n".join(exports.told(content)))
    return content


if __name__ == "__main__":
    run(export, record=True)
