"""Run the whole way once, small: data, conversion, training, evaluation, prediction, drawings.

    python scripts/demo.py [--source DIR] [--output_dir runs/demo] [--epochs 40] [--image_size 128]

Without --source it makes phantoms (scripts/make_phantoms.py); with it, it takes a folder in BUSI's layout. Each step is
a command that can be run alone; it is printed before it runs.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path

from tools.cli import run, run_bundle, run_command


def demo(
    source: Path | None = None, output_dir: Path = Path("runs/demo"), epochs: int = 40, image_size: int = 128
) -> None:
    """Go from images to predictions and say where everything lies.

    Args:
        source: folder in BUSI's layout; phantoms are made by default.
        output_dir: folder of all results; a demo made there before is replaced.
        epochs: epochs of the training.
        image_size: side of the square that the network sees, in pixels.

    Raises:
        ValueError: the output folder holds something else, or a step failed; its own message stands above.
    """
    start = time.time()
    output, given = output_dir.resolve(), source is not None
    source = source.resolve() if given else output / "phantoms"
    if given and not source.is_dir():
        raise ValueError(f"{source}: no such folder; give --source the folder that holds normal, benign and malignant")
    if given and (source == output or output in source.parents):
        raise ValueError(f"--output_dir {output} holds the source and would be replaced; choose another folder")
    marker = output / "demo.txt"
    if output.is_dir() and any(output.iterdir()) and not marker.is_file():
        raise ValueError(f"{output} holds something else; give an empty or a new folder with --output_dir")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    marker.write_text("Made by scripts/demo.py, which replaces this folder when it runs again.\n")

    prepared, models, new = output / "prepared", output / "models", output / "new_images"
    evaluation, predictions, drawings = output / "evaluation", output / "predictions", output / "drawings"
    if not given:
        run_command("Phantoms", "scripts/make_phantoms.py", "--output_dir", source)
    run_command("Conversion", "scripts/prepare_busi.py", "--source", source, "--output_dir", prepared)

    # Small batches: more steps for the optimizer where images are few
    common = {"ckpt_dir": models, "image_size": image_size, "batch_size": 8}
    data = {"dataset_dir": prepared, "output_dir": evaluation}
    run_bundle("Training", "training", "train", **common, **data, epochs=epochs)
    run_bundle("Evaluation on the testing split", "evaluating", ["train", "evaluate"], **common, **data)

    new.mkdir()
    testing = json.loads((prepared / "datalist.json").read_text(encoding="utf-8"))["testing"]
    for item in testing:  # the network has seen none of them
        shutil.copy(prepared / item["image"], new)
    run_bundle("Prediction", "run", "inference", **common, dataset_dir=new, output_dir=predictions)
    labels = ["--labels", prepared / "labels", "--datalist", prepared / "datalist.json"]
    show = ["--predictions", predictions, "--images", new, "--output_dir", drawings, *labels]
    run_command("Drawings", "scripts/show_predictions.py", *show)

    figures = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    data = "the folder given" if given else "synthetic phantoms: these figures say nothing about real images"
    print(f"\nDone in {time.time() - start:.0f} s, on {data}.")
    print(f"  {len(testing)} images of the testing split: ", end="")
    print(f"lesion Dice {_show(figures['lesion_dice'])}, accuracy {_show(figures['accuracy'])}")
    print(f"  tables    {evaluation / 'metrics.json'}")
    print(f"            {evaluation / 'images.csv'}")
    print(f"            {predictions / 'predictions.csv'}")
    print(f"  masks     {predictions}")
    print(f"  images    {drawings / 'index.html'}")
    tensorboard = Path(sys.executable).with_name("tensorboard")
    print(f"  curves    {shlex.join([str(tensorboard), '--logdir', str(evaluation)])}")
    print("Research software, not a medical device.")


def _show(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    run(demo)
