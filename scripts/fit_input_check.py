"""Fit the input check of trained weights: what their training images look like to them, and how far an image may be.

    python scripts/fit_input_check.py --datalists "['runs/busi/datalist.json','runs/bus_bra/datalist.json']"
        --ckpt_dir runs/models

Out: `input_check.pt` in --ckpt_dir: mean and covariance of the network's features at two depths, the distances beyond
which an image is to be looked at or refused, and a fingerprint (32 bytes, no image) of each image that trained.
Inference with these weights uses it from then on.
"""

from __future__ import annotations

from pathlib import Path

from tools.cli import run


def fit_input_check(
    datalists: tuple[Path, ...], ckpt_dir: Path, train_split: str = "training", images: int = 600
) -> dict:
    """Write `input_check.pt`.

    Args:
        datalists: those that the weights were trained with; the files of each lie beside it. The features are fitted on
            their training splits, the distances on their validation splits.
        ckpt_dir: folder of the weights, `model.pt`.
        train_split: the splits that trained, joined by +, of whose images fingerprints are kept.
        images: of a split, spread evenly over it, whose features are computed; the whole split where it has fewer.

    Returns:
        dict: number of images of each split whose features were computed, of fingerprints, and the distances.

    Raises:
        ValueError: a split has too few images.
        FileNotFoundError: a file is missing.
    """
    if images < 1:
        raise ValueError(f"--images {images}: pass a whole number of 1 or more")
    if missing := [file for file in (*datalists, ckpt_dir / "model.pt") if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: missing; name the datalists and the folder of the weights")
    from tools.input_check import fit, items_of

    from breast_ultrasound.files import write_checkpoint

    splits = {name: items_of(datalists, name) for name in {"training", "validation", *train_split.split("+")}}
    content, told = fit(ckpt_dir, splits, train_split.split("+"), images)
    target = ckpt_dir / "input_check.pt"
    write_checkpoint(target, content)
    counts = ", ".join(f"{count} {name}" for name, count in content["fitted_on"].items())
    print(f"{counts} images, {len(content['fingerprints'])} fingerprints: {target}")
    return told


if __name__ == "__main__":
    run(fit_input_check)
