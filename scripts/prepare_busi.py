"""Turn BUSI, or a folder of the same layout, into one folder that training, MONAI Label and every other command read.

In:  a folder with the class folders `normal`, `benign`, `malignant`; in each, images `NAME.png` beside their masks
     `NAME_mask.png`, `NAME_mask_1.png`, ... (BUSI as published: W. Al-Dhabyani, M. Gomaa, H. Khaled, A. Fahmy, "Dataset
     of breast ultrasound images", Data in Brief 28 (2020) 104863). The source is only read.
Out: `images/` (8-bit grey PNG, size unchanged), `labels/` (0/255 PNG, the union of an image's masks), `datalist.json`
     (MONAI's decathlon form; with `--folds` also `datalist_fold_0.json`, ...), `summary.json` and `summary.txt`.

    python scripts/prepare_busi.py --source Dataset_BUSI_with_GT --output_dir data/busi

The same as `scripts/prepare.py --layout busi`, which converts every other set too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tools.cli import run


def prepare_busi(
    source: Path,
    output_dir: Path,
    protocol: Literal["clean", "grouped", "random"] = "clean",
    folds: int = 0,
    seed: int = 0,
    strict: bool = False,
) -> dict[str, int]:
    """Convert a BUSI folder into images, labels, `datalist.json` and a summary.

    Args:
        source: folder that holds normal, benign and malignant; never changed.
        output_dir: folder to make; appears whole or not at all, and replaces nothing. Same input and options, same
            bytes.
        protocol: clean (default), grouped or random. clean leaves out scans that stand in several classes, axilla and
            needle images; grouped only the former; random splits image by image, so that copies of one scan cross.
        folds: 0 for training, validation and testing (70/15/15 %), or the number of folds, 2 or more.
        seed: whole number from 0 to 4294967295 that draws the splits.
        strict: stop when files cannot be used, in place of leaving them out by name.

    Returns:
        Number of images found, used, in each split, left out, and of files refused.

    Raises:
        ValueError: an option is wrong, or the source or its files cannot be used; the message names option or file.
        OSError: the source cannot be read, or the output not be written.
    """
    from preparation.pipeline import Options, prepare_set  # after the options are checked: it takes a second

    options = {"protocol": protocol, "folds": folds, "seed": seed, "strict": strict}
    return prepare_set(source, output_dir, Options("busi", **options))


if __name__ == "__main__":
    run(prepare_busi)
