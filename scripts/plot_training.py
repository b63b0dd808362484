"""Draw a training's curves from the table that it leaves, without TensorBoard.

    python scripts/plot_training.py TRAINING --output FILE.png

TRAINING is the output folder of a training, with `training_curve.csv`. The chart shows the terms of the loss, the
figures of the masks and of the classes on the validation part, and the learning rate; a line marks the epoch whose
weights were kept. Research software, not a medical device.
"""

import csv
import sys
from pathlib import Path

import fire
import style
from command_line import asked_for_help
from style import COLOURS, LINE_COLOURS

# By panel: title, label of the axis, columns of the table with their names
PANELS = (
    (
        "loss, training part",
        "mean over the epoch",
        {"loss": "whole", "segmentation_loss": "mask", "classification_loss": "class"},
    ),
    (
        "mask, validation part",
        "figure (0 to 1)",
        {
            "lesion_dice": "Dice of lesions",
            "lesion_iou": "IoU of lesions",
            "missed_rate": "missed lesions",
            "false_mask_rate": "false masks",
        },
    ),
    (
        "class, validation part",
        "figure (0 to 1)",
        {
            "accuracy": "accuracy",
            "macro_f1": "macro F1",
            **{f"auroc_{name}": f"AUROC {name}" for name in COLOURS},
        },
    ),
    ("learning rate", "at the end of the epoch", {"learning_rate": ""}),
)
DASHES = ("-", "--", "-.", ":")


@fire.decorators.SetParseFn(str, "training", "output")  # as typed: Fire would turn `2024` into a number
def plot_training(training="", output="", *extra, **unknown):
    """Write the chart of a training.

    Args:
        training: folder with `training_curve.csv`, or that file.
        output: the PNG to write.

    Raises:
        ValueError: an option is unknown or missing, or the table is none of a training.
        FileNotFoundError: there is no table.
    """
    if asked_for_help(plot_training, extra, unknown):
        return
    if training in ("", "True") or not output.endswith(".png"):
        raise ValueError("give TRAINING, a training's output folder, and --output FILE.png")
    table = Path(training) / "training_curve.csv" if Path(training).is_dir() else Path(training)
    if not table.is_file():
        raise FileNotFoundError(f"{table}: missing; name the --output_dir of a training")
    with open(table, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"epoch", "score", "loss", "learning_rate"} <= set(rows[0]):
        raise ValueError(f"{table}: not the table of a training; name the training_curve.csv that a training wrote")
    epochs = [int(row["epoch"]) for row in rows]
    best = max(rows, key=lambda row: float(row["score"]))
    figure, grid = style.chart(2, 2, (9, 6.4), sharex=True)
    for axes, (title, label, columns) in zip(grid.flat, PANELS):
        other = iter(zip(LINE_COLOURS, DASHES))
        for column, name in columns.items():
            if column not in rows[0]:
                continue
            colour = COLOURS.get(column.removeprefix("auroc_"))
            colour, dashes = (colour, "-") if colour else next(other)
            values = [float(row[column]) for row in rows]
            marker = "o" if len(rows) < 15 else None  # a single validation is a point
            axes.plot(epochs, values, dashes, marker=marker, markersize=3.5, color=colour, label=name)
        axes.axvline(int(best["epoch"]), color="#888888", linewidth=1, zorder=0)
        axes.set(title=title, ylabel=label)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    for axes in grid[0, 1], grid[1, 0]:
        axes.set_ylim(-0.02, 1.02)
    grid[0, 0].set_ylim(0, None)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
    figure.suptitle(f"Best score {float(best['score']):.3f} in epoch {best['epoch']} (grey line)", fontsize=11)
    style.save_chart(figure, output)
    print(f"{len(rows)} validations: {output}")


if __name__ == "__main__":
    try:
        fire.Fire(plot_training)
    except (OSError, ValueError) as error:
        sys.exit(f"plot_training: {error}")
