"""Suggest where a scanner writes names, dates and signs into its pictures: a mask for each size of image, to blank it.

    python scripts/find_text.py --source STUDY --output_dir MASKS
    python scripts/prepare.py --layout dicom --source STUDY --blank MASKS --output_dir PNGS

In:  a folder of images with any folders in it, or of DICOM ultrasound, of several patients; whole pictures, as the
     scanner stores them. A `table.csv` in it, with the columns file and device, tells which device made which.
Out: `blank_WIDTHxHEIGHT.png` for each size with enough images, white where prepare.py is to blank; where several
     devices share a size, `blank_WIDTHxHEIGHT_DEVICE.png` for each. Look at every mask beside some images and edit it
     in any paint program: black and white alone, the size unchanged. Masks hold nothing of a patient.

Found is what stands beside the tissue, also where it differs from patient to patient, and in the tissue what is equal
in nearly all images, such as a body mark. Not found is text in the tissue that differs or moves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tools.cli import run

if TYPE_CHECKING:
    import numpy as np


def find_text(source: Path, output_dir: Path, fewest: int = 20, most: float = 0.05) -> dict[str, int]:
    """Write a mask for each size of image, and device.

    Args:
        source: folder of images or of DICOM objects; never changed.
        output_dir: folder for the masks, outside the source; none of its files is replaced, since they may be edited.
        fewest: images of a size and device that a suggestion needs.
        most: share of the tissue, from 0 to 1, that a mask may cover; one that covers more is not written.

    Returns:
        Number of masks, and of sizes and devices without one.

    Raises:
        ValueError: an option is wrong, or no mask can be suggested.
        OSError: the source cannot be read, or a mask not be written.
    """
    from PIL import Image  # after the options are checked
    from preparation.burned_in import mask_name, suggest

    from breast_ultrasound.files import write_whole

    if fewest < 3 or not 0 <= most <= 1:
        raise ValueError("--fewest needs a whole number from 3 on, --most one from 0 to 1")
    if output_dir.resolve() == source.resolve() or source.resolve() in output_dir.resolve().parents:
        raise ValueError(f"{output_dir}: lies inside the source {source}; choose another --output_dir")
    groups, written, problems = _images(source), 0, []
    shared = Counter(size for size, _ in groups)
    for (size, device), (number, images) in sorted(groups.items()):
        title, target = "{}x{} {}".format(*size, device).strip(), output_dir / mask_name(
            size, device * (shared[size] > 1)
        )
        try:
            if number < fewest:
                raise ValueError(f"{number} images, fewer than {fewest}; give more, or draw the mask yourself")
            if target.exists():
                raise ValueError(f"{target} exists and may be edited; remove it or choose another --output_dir")
            suggestion = suggest(images)
            if suggestion.of_tissue > most:
                covered = f"{suggestion.of_tissue:.1%} of the tissue would be blanked, more than --most {most:g}"
                raise ValueError(f"{covered}; draw the mask yourself, or pass a larger one")
        except ValueError as error:
            problems.append(f"{title}: no mask, {error}")
            continue
        write_whole(target, Image.fromarray(suggestion.blank).save)
        written += 1
        shares = f"{suggestion.blank.mean():.1%} of the picture, {suggestion.of_tissue:.1%} of its tissue"
        print(f"{target}: {shares}, from {number} images; look at it")
    if not written:
        raise ValueError("; ".join(problems))
    print(*problems, sep="\n")
    return {"masks": written, "without": len(problems)}


def _images(source: Path) -> dict[tuple[tuple[int, int], str], tuple[int, list[np.ndarray]]]:
    """By size (width, height) and device: how many images there are, and some of them, uint8 (rows, columns).

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    from preparation.burned_in import MOST
    from tqdm import tqdm

    from breast_ultrasound.data import list_images
    from breast_ultrasound.files import read_csv, shown
    from breast_ultrasound.images import open_image, split_frame, to_grey

    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder; pass one of images as --source")
    table, header_of = source / "table.csv", None
    try:
        files = [item["image"] for item in list_images(str(source), recursive=True)]
    except FileNotFoundError:
        from preparation.dicom_study import device_of, list_dicom, read_header

        files, header_of = [item["image"] for item in list_dicom(str(source))], read_header
    rows = read_csv(table) if table.is_file() and not header_of else []
    devices = {str(source / row.get("file", "")): row.get("device", "") for row in rows}
    numbers, kept, steps = Counter(), defaultdict(list), defaultdict(lambda: 1)
    for file in tqdm(files, desc="reading", unit="image", disable=None):
        try:
            grey = to_grey(open_image(file))
            device = device_of(header_of(split_frame(file)[0])) if header_of else devices.get(file, "")
        except (ValueError, OSError) as error:
            print(f"{shown(file)}: left out, {getattr(error, 'strerror', None) or error}")
            continue
        key = (grey.shape[1], grey.shape[0]), device
        if numbers[key] % steps[key] == 0:
            kept[key].append(grey)
        numbers[key] += 1
        if len(kept[key]) == 2 * MOST:  # thousands do not fit into memory
            kept[key], steps[key] = kept[key][::2], 2 * steps[key]
    return {key: (numbers[key], images) for key, images in kept.items()}


if __name__ == "__main__":
    run(find_text)
