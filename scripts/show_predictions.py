"""Show predictions: the outlines on each image, and a page to sort, filter and look at the failures.

    python scripts/show_predictions.py --predictions DIR --images DIR --output_dir DIR [--labels DIR] [--datalist FILE]
        [--grad_cam True] [--probability_map True] [--ckpt_dir DIR] [--image_size 128 ...]

PREDICTIONS is the output folder of the bundle's inference, or of its evaluation with --save_masks True. OUTPUT_DIR gets
a PNG for each image and `index.html`, which shows them; copy the folder as a whole. With --labels (true masks) and,
for inference, --datalist (true classes) the page lists the worst masks, every missed malignant image and false masks.

--grad_cam shows where the class comes from, scored against the true masks in `grad_cam.json`; --probability_map the
mask's probabilities. Both run the network of --ckpt_dir; options of the bundle that belong to the weights are given
as for its inference.
"""

from __future__ import annotations

from pathlib import Path

from tools.cli import BUNDLE, run


def show_predictions(
    predictions: Path,
    images: Path,
    output_dir: Path,
    labels: Path | None = None,
    datalist: Path | None = None,
    grad_cam: bool = False,
    probability_map: bool = False,
    ckpt_dir: Path = BUNDLE / "models",
    **options: str,
) -> dict[str, int]:
    """Write one PNG an image, the predicted outline in its class's colour, the true one in white, and `index.html`.

    Args:
        predictions: folder with masks and `predictions.csv` (inference) or `images.csv` (evaluation).
        images: folder of the images.
        output_dir: folder for the drawings; made if missing.
        labels: folder of true masks (0 and 255) named like the images; none by default.
        datalist: datalist of a prepared folder, for the true classes; an evaluation knows them.
        grad_cam: whether to draw and score Grad-CAM of the predicted class.
        probability_map: whether to draw the mask's probabilities.
        ckpt_dir: folder of the weights, for the maps.
        options: ids of the bundle's inference with other values, for the maps.

    Returns:
        dict: number of images drawn and of those that could not be drawn (each is named).

    Raises:
        ValueError: an option is wrong.
        FileNotFoundError: there is no table of predictions, or a file that an option names.
    """
    if output_dir.resolve() in [folder.resolve() for folder in (predictions, images, labels) if folder]:
        raise ValueError(
            f"--output_dir {output_dir}: the drawings would replace what lies there; choose another folder"
        )
    if labels and not labels.is_dir():
        raise FileNotFoundError(f"{labels}: no such folder; give --labels the folder of the true masks")
    from tools import drawings, style
    from tqdm import tqdm

    rows, limits = drawings.read_rows(predictions, datalist)
    colours = style.class_colours(list(rows[0]["probabilities"]) if rows else [])
    folders = drawings.Folders(predictions, images, labels, output_dir)
    maps = drawings.Maps(folders, ckpt_dir, options, grad_cam, probability_map) if grad_cam or probability_map else None
    output_dir.mkdir(parents=True, exist_ok=True)
    shown, left_out = [], []
    for row in tqdm(rows, desc="Drawing", disable=not rows):
        try:
            found = drawings.read_images(row, folders)
        except ValueError as error:
            left_out.append(str(error))
            tqdm.write(left_out[-1])
            continue
        drawings.draw_outlines(row, found, folders, colours)
        if maps:
            maps.draw(row, found)
        shown.append(row)
    summary = drawings.write_scores(output_dir, maps.scores, maps.explainer.layer) if maps and maps.scores else None
    values = drawings.page_values(shown, left_out, summary)
    values |= {"colours": colours, "limits": limits, "labels": labels is not None}
    style.write_page(output_dir / "index.html", "predictions.html", **values)
    print(f"{len(shown)} drawn, {len(left_out)} left out: {output_dir / 'index.html'}")
    return {"drawn": len(shown), "left_out": len(left_out)}


if __name__ == "__main__":
    run(show_predictions, record=True)
