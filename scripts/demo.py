"""Run the whole way once, small: data, conversion, training, evaluation, prediction, drawings.

    python scripts/demo.py [--busi DIR] [--output runs/demo] [--epochs 15] [--image_size 128]

Without --busi it makes phantoms (scripts/make_phantoms.py); with it, it takes a folder in BUSI's layout. Each step is
a command that can be run alone; it is printed before it runs. Research software, not a medical device.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fire
from command_line import asked_for_help

ROOT = Path(__file__).resolve().parents[1]


def demo(busi="", output="runs/demo", epochs=15, image_size=128, *extra, **unknown):
    """Go from pictures to predictions and say where everything lies.

    Args:
        busi: folder in BUSI's layout; phantoms are made by default.
        output: folder of all results; a demo made there before is replaced.
        epochs: epochs of the training.
        image_size: side of the square that the network sees, in pixels.

    Raises:
        ValueError: an option is unknown, or the output folder holds something else.
        SystemExit: a step failed; its own message stands above.
    """
    if asked_for_help(demo, extra, unknown):
        return
    start = time.time()
    output = Path(str(output)).expanduser().resolve()
    source = Path(str(busi)).expanduser().resolve() if busi else output / "phantoms"
    if busi and not source.is_dir():
        raise ValueError(f"{source}: no such folder; give --busi the folder that holds normal, benign and malignant")
    if busi and (source == output or output in source.parents):
        raise ValueError(f"--output {output} holds the source and would be replaced; choose another folder")
    marker = output / "demo.txt"
    if output.is_dir() and any(output.iterdir()) and not marker.is_file():
        raise ValueError(f"{output} holds something else; give an empty or a new folder with --output")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    marker.write_text("Made by scripts/demo.py, which replaces this folder when it runs again.\n")

    prepared, models, new = output / "prepared", output / "models", output / "new_pictures"
    evaluation, predictions, drawings = output / "evaluation", output / "predictions", output / "drawings"
    if not busi:
        _step("Phantoms", "scripts/make_phantoms.py", "--output", source)
    _step("Conversion", "scripts/prepare_busi.py", "--source", source, "--output", prepared)

    bundle = ["-m", "monai.bundle", "run"]
    # Small batches: more steps for the optimizer where pictures are few
    common = ["--bundle_root", "bundle", "--ckpt_dir", models, "--image_size", image_size, "--batch_size", 8]
    train = "bundle/configs/train.json"
    evaluate = f'["{train}","bundle/configs/evaluate.json"]'
    run = [*common, "--dataset_dir", prepared, "--output_dir", evaluation]
    _step("Training", *bundle, "training", "--config_file", train, *run, "--epochs", epochs)
    _step("Evaluation on the testing part", *bundle, "evaluating", "--config_file", evaluate, *run)

    new.mkdir()
    testing = json.loads((prepared / "datalist.json").read_text(encoding="utf-8"))["testing"]
    for item in testing:  # the network has seen none of them
        shutil.copy(prepared / item["image"], new)
    inference = ["--config_file", "bundle/configs/inference.json", *common]
    _step("Prediction", *bundle, "run", *inference, "--dataset_dir", new, "--output_dir", predictions)
    labels = ["--labels", prepared / "labels", "--datalist", prepared / "datalist.json"]
    show = ["--predictions", predictions, "--images", new, "--output", drawings, *labels]
    _step("Drawings", "scripts/show_predictions.py", *show)

    figures = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    data = "the folder given" if busi else "synthetic phantoms: these figures say nothing about real pictures"
    print(f"\nDone in {time.time() - start:.0f} s, on {data}.")
    print(f"  {len(testing)} pictures of the testing part: ", end="")
    print(f"lesion Dice {_show(figures['lesion_dice'])}, accuracy {_show(figures['accuracy'])}")
    print(f"  tables    {evaluation / 'metrics.json'}")
    print(f"            {evaluation / 'pictures.csv'}")
    print(f"            {predictions / 'predictions.csv'}")
    print(f"  masks     {predictions}")
    print(f"  pictures  {drawings / 'index.html'}")
    tensorboard = Path(sys.executable).with_name("tensorboard")
    print(f"  curves    {shlex.join([str(tensorboard), '--logdir', str(evaluation)])}")
    print("Research software, not a medical device.")


def _show(value):
    return "not defined" if value is None else f"{value:.2f}"


def _step(title, *arguments):
    """Print a command as one would type it in the repository's root, and run it there."""
    arguments = [str(a) for a in arguments]
    print(f"\n== {title}\n$ python {shlex.join(arguments)}", flush=True)
    start = time.time()
    code = subprocess.call([sys.executable, *arguments], cwd=ROOT)
    if code:
        sys.exit(f"demo: the step '{title}' failed")
    print(f"== {title}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        fire.Fire(demo)
    except (OSError, ValueError) as error:
        sys.exit(f"demo: {error}")
