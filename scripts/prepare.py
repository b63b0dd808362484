"""Turn a set of images into one folder that training, MONAI Label and every other command read.

In:  a folder of images with, for each, its masks (any number) and a class. A layout says which file is what; the source
     is only read. The layouts of scripts/preparation/layouts are
         class_folders     `CLASS/NAME.png` beside `NAME_mask.png`, `NAME_mask_1.png`, ... (the default)
         table             a table (CSV or Excel) with the columns file, class and, where known, mask (several joined
                           by `;`) and patient; further columns are kept for subgroups. The default with --table
         coco, labelme, cvat
                           outlines that these programs export (CVAT for images), whose labels are the classes
         busi              BUSI as published: class folders, with a published list of scans
         bus_bra           BUS-BRA as published
         bus_uclm          BUS-UCLM as published
         breast_published  BrEaST as published; save its spreadsheet beside the images
         breast            BrEaST as `images/NAME.png`, `labels/NAME.png` and `classes.csv`; every image is for testing
         dicom             DICOM ultrasound of any folders, or a DICOMDIR, without classes yet: becomes `images/` and
                           `table.csv` without names, to annotate, or to fill in and prepare as a table
Out: `images/` (8-bit grey PNG, size unchanged), `labels/` (0/255 PNG, the union of an image's masks), `datalist.json`
     (MONAI's decathlon form, with the names of the classes; with folds also `datalist_fold_0.json`, ...),
     `summary.json` and `summary.txt`. The folder may be moved: its files are named relative to it.

    python scripts/prepare.py --source BUSBRA --layout bus_bra --output_dir data/bus_bra

Images of one patient stay in one split, and so do near-duplicates. Names of classes, patients and files are the same
where they differ only in case, spaces or Unicode's spelling of a letter; patients also where they differ in leading
zeros. An image of a class with lesions that has no mask is refused; so is a row of another length than the table's
head.

Another set is another JSON file. Its keys: `image` and `mask`, regular expressions of the files' paths below the source
without extension, in any case, where `(?P<key>...)` is what an image and its masks have in common and `(?P<class>...)`
and `(?P<group>...)` read class and patient; `ignore`, one of images of no interest; `annotations`, coco, labelme or
cvat; `table`, a file or a pattern such as `*.xlsx`; `columns`, the table's columns by what they hold: `image` (path,
file name, or file name without extension), `class`, `mask`, `group`, and others under the names that the datalist gives
them; `further_columns`, false where only these are kept; `classes`, names of classes by what stands in the source
(`{"M": "malignant"}`, `{"": "normal"}` for annotated images without an outline); `class_names`, in the order of the
class indices; `without_lesions`; `groups`, patients known by two names; `exclude`, reasons with regular expressions of
what columns, `key` or `file` say; `folds`, a table of published folds and its columns `image` and `fold`; `facts`, a
list such as busi_groups.csv; `any_colour`, true where every colour of a mask is lesion; `name` and `reference` of the
set; `testing_only`; `command`, what the datalist names as its maker.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tools.cli import run


def prepare(
    source: Path,
    output_dir: Path,
    layout: str | None = None,
    table: str | None = None,
    class_names: list[str] | None = None,
    without_lesions: list[str] | None = None,
    protocol: Literal["clean", "grouped", "random"] | None = None,
    folds: int | Literal["official"] = 0,
    testing_only: bool = False,
    compare_with: list[str] | None = None,
    seed: int = 0,
    strict: bool = False,
    frames: str = "middle",
    blank: Path | None = None,
) -> dict[str, int]:
    """Convert a set into images, labels, `datalist.json` and a summary.

    Args:
        source: folder of the set; never changed.
        output_dir: folder to make; appears whole or not at all, and replaces nothing. Same input and options, same
            bytes.
        layout: name of a layout, or a JSON file of one; class_folders, or table with --table.
        table: table below the source, in place of the layout's.
        class_names: names in the order of the class indices; by default those of the bundle where they cover all that
            are found, else those found, sorted.
        without_lesions: classes besides normal whose images show no lesion and need no mask.
        protocol: clean leaves out scans that stand in several classes, and of BUSI axilla and needle images (BUSI's
            default); grouped only the former (the default elsewhere, where no patients are named); random splits image
            by image.
        folds: 0 for training, validation and testing (70/15/15 %), the number of folds, 2 or more, or official: those
            that were published with the set (BUS-BRA), for testing; validation is drawn from the rest.
        testing_only: put every image into the testing split, as an external test set wants it.
        compare_with: prepared folders; images of theirs that show the same scan are told, which would be a leak where
            one set trains and the other tests.
        seed: whole number from 0 to 4294967295 that draws the splits.
        strict: stop when files cannot be used, in place of leaving them out by name.
        frames: with the layout dicom, of a cine: all, middle, every10 (any number), or the number of one frame.
        blank: folder of masks as scripts/find_text.py suggests them; what they show white becomes black in every image
            of their size, before it is cut.

    Returns:
        Number of images found, used, in each split or fold, left out, and of files refused.

    Raises:
        ValueError: an option or the layout is wrong, or the source or its files cannot be used.
        OSError: the source or the layout cannot be read, or the output not be written.
    """
    from preparation.pipeline import Options, prepare_set  # after the options are checked: it takes a second

    if layout == "dicom":
        others = [table, class_names, without_lesions, protocol, folds, testing_only, compare_with, seed]
        if any(others):
            raise ValueError("--layout dicom takes --source, --output_dir, --frames, --strict and --blank alone")
        from preparation.burned_in import Blanks
        from preparation.dicom_study import prepare_dicom

        return prepare_dicom(source, output_dir, frames, strict, Blanks(blank) if blank else None)
    if frames != "middle":
        raise ValueError(f"--frames {frames}: belongs to --layout dicom")
    options = Options(
        layout=layout or ("table" if table else "class_folders"),
        table=table,
        class_names=class_names or [],
        without_lesions=without_lesions or [],
        protocol=protocol,
        folds=folds,
        testing_only=testing_only,
        compare_with=compare_with or [],
        seed=seed,
        strict=strict,
        blank=blank,
    )
    return prepare_set(source, output_dir, options)


if __name__ == "__main__":
    run(prepare)
