"""Make a small, seeded set of ultrasound-like breast phantoms in the folder layout of the BUSI data set.

    python scripts/make_phantoms.py --output_dir DIR [--count 90] [--seed 0] [--overwrite]

The images are synthetic and show nobody. They stand in for BUSI in examples and tests: three class folders, files
`benign (1).png`, `benign (1)_mask.png`, `benign (4)_mask_1.png`, and the oddities of real exports at fixed numbers:

    benign (1)       one tilted lesion in the upper left of a wide image: any flip or turn shows
    benign (2)       the mask is missing
    benign (3)       colour Doppler box with yellow marks; so is malignant (3)
    benign (4), (5)  two and three lesions, one mask each; the last mask of each is RGBA; malignant (2) has two masks
    benign (6)       upright image, far narrower than the others
    every class      numbers 3, 6, 9.. carry burned-in text, 2, 6, 10.. caliper crosses, 1, 6, 11.. a body pictogram

Images and the (empty) masks of normals are 8-bit RGB, masks of lesions 1-bit. What is imitated, and from where:
- speckle: magnitude of many random scatterers, Rayleigh distributed (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404);
- grey values: log compression of 60 dB; what attenuation the depth gain leaves darkens the deeper layers;
- shape, margin, echo pattern and posterior features of benign and malignant masses: ACR BI-RADS Atlas, 5th ed. (2013),
  ultrasound lexicon. Both classes overlap in each feature, and burned-in marks say nothing about the class;
- layout, file modes and oddities: Al-Dhabyani et al. 2020, doi 10.1016/j.dib.2019.104863.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.cli import run


def make_phantoms(output_dir: Path, count: int = 90, seed: int = 0, overwrite: bool = False) -> dict[str, int]:
    """Write `count` phantoms and their masks below `output_dir`, in the three folders benign, malignant and normal.

    The folder appears when it is complete, or not at all. The same options give the same bytes, and an image depends
    on its seed, class and number alone: a larger count adds images and changes none.

    Args:
        output_dir: folder to make; its parents are made too.
        count: number of images, 12 or more (56 % benign, 27 % malignant, 17 % normal); masks come on top.
        seed: whole number from 0 up.
        overwrite: replace `output_dir` if it exists. Only an empty folder or one that holds nothing but this command's
            own files is ever replaced.

    Returns:
        dict of int: number of images per class, and of `masks` (files).

    Raises:
        ValueError: an option is out of range. Nothing has been written.
        FileExistsError: `output_dir` exists and may not be replaced, or another run is building it.
        OSError: the folder cannot be written.
    """
    from tools.phantoms import MIN_COUNT, is_ours, numbers_of, swap, write_phantom

    if count < MIN_COUNT:
        raise ValueError(f"--count must be a whole number from {MIN_COUNT} up, not {count}")
    if seed < 0:
        raise ValueError(f"--seed must be a whole number from 0 up, not {seed}")
    output = Path(os.path.abspath(output_dir))
    if os.path.lexists(output):
        if not overwrite:
            raise FileExistsError(f"{output} exists; give --overwrite to replace it")
        if not is_ours(output):
            raise FileExistsError(f"{output} holds more than this command's phantoms and is not replaced")

    numbers = numbers_of(count)
    partial = output.with_name(f".{output.name}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()
    except FileExistsError:
        raise FileExistsError(f"{partial} exists: another run builds it, or a killed one left it; remove it") from None
    try:
        masks = 0
        for label, total in numbers.items():
            (partial / "new" / label).mkdir(parents=True)
            for number in range(1, total + 1):
                masks += write_phantom(partial / "new" / label, label, number, seed)
        swap(partial / "new", output, partial / "old")
    finally:
        shutil.rmtree(partial)
    print(", ".join(f"{number} {name}" for name, number in numbers.items()), f"images, {masks} masks: {output_dir}")
    return {**numbers, "masks": masks}


if __name__ == "__main__":
    run(make_phantoms)
