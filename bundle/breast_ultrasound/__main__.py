"""The bundle from anywhere: `breast-ultrasound COMMAND ...`, or `python -m breast_ultrasound COMMAND ...`.

    breast-ultrasound predict IMAGES --output_dir OUT
    breast-ultrasound train --dataset_dir PREPARED --ckpt_dir MODELS --output_dir OUT
    breast-ultrasound evaluate --dataset_dir PREPARED --ckpt_dir MODELS --output_dir OUT
    breast-ultrasound annotate --studies IMAGES
    breast-ultrasound version

Each of the first three runs the bundle's configs and takes the ids of these as further options, such as --image_size
or --batch_size; docs/reference.md of the bundle explains them. COMMAND --help tells the rest. Research software, not a
medical device.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
import warnings
from pathlib import Path

from . import BUNDLE, bundle_version
from .cli import bundle_arguments, run


def predict(dataset_dir: str, output_dir: str, dicom: bool = False, **options: str) -> None:
    """Outline the lesion and name the class of each image: masks and predictions.csv.

    Args:
        dataset_dir: folder of images, or one image; `--dataset_dir` itself may be left out.
        output_dir: folder to write to.
        dicom: read DICOM ultrasound, and write DICOM objects beside the masks.
        options: ids of inference.json (and inference_dicom.json) with other values.

    Raises:
        FileNotFoundError: there is no such folder or file.
    """
    if not Path(dataset_dir).expanduser().exists():
        raise FileNotFoundError(f"{dataset_dir}: no such folder or image; give one as IMAGES")
    _run("run", ["inference", *["inference_dicom"] * dicom], dataset_dir=dataset_dir, output_dir=output_dir, **options)


def train(dataset_dir: str, ckpt_dir: str, output_dir: str, config: str = "", **options: str) -> None:
    """Train the network on a prepared folder.

    Args:
        dataset_dir: prepared folder, with datalist.json.
        ckpt_dir: folder for the weights.
        output_dir: folder for the training curve.
        config: a further config over train.json: one of the bundle by name, such as train_quick, or a file.
        options: ids of train.json with other values.
    """
    _need("tensorboard", "scipy")
    paths = {"dataset_dir": dataset_dir, "ckpt_dir": ckpt_dir, "output_dir": output_dir}
    _run("training", ["train", *filter(None, [config])], **paths, **options)


def evaluate(dataset_dir: str, output_dir: str, **options: str) -> None:
    """Evaluate weights on a split of a prepared folder: metrics.json and images.csv.

    Args:
        dataset_dir: prepared folder, with datalist.json.
        output_dir: folder to write to.
        options: ids of train.json and evaluate.json with other values; without `--ckpt_dir`, the released weights.
    """
    _need("scipy")
    _run("evaluating", ["train", "evaluate"], dataset_dir=dataset_dir, output_dir=output_dir, **options)


def annotate(arguments: list[str]) -> None:
    """Become the annotation server, whose own --help explains its options."""
    start = BUNDLE.parent / "label_app" / "start.py"
    if not start.is_file():
        sys.exit(f"annotate: {start}: missing; use the project's checkout or its wheel")
    sys.argv = [str(start), *arguments]
    runpy.run_path(str(start), run_name="__main__")


def version() -> None:
    """Print the versions of the bundle and of what predictions come from."""
    print(f"breast-ultrasound {bundle_version()} ({BUNDLE})")


def _need(*packages: str) -> None:
    """Refuse what the packages of a prediction do not suffice for.

    Raises:
        ValueError: naming a package that is missing.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"the package {name} is missing; pip install 'breast-ultrasound[train]'")


def _run(run_id: str, configs: list[str], **ids: str) -> None:
    """Become MONAI's own command, in this process."""
    arguments = bundle_arguments(run_id, configs, BUNDLE, **ids)
    sys.argv = arguments[1:]
    warnings.filterwarnings("ignore", "parsing config_file")  # whose sources MONAI asks to trust: our own
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


COMMANDS = {"predict": predict, "train": train, "evaluate": evaluate, "version": version}


def main() -> None:
    """Run the command that the command line names."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "predict" and rest and not rest[0].startswith("-"):
        rest.insert(0, "--dataset_dir")
    if name == "annotate":
        annotate(rest)
    elif name in COMMANDS:
        run(COMMANDS[name], rest)
    elif name in ("-h", "--help", "help"):
        print(__doc__.strip())
    else:
        sys.exit(f"breast-ultrasound: no command {name}; there are {', '.join(COMMANDS)} and annotate")


if __name__ == "__main__":
    main()
