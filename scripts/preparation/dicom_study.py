"""DICOM ultrasound as PNGs and a table that name no patient: what annotation and the layout `table` read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from preparation.burned_in import Blanks
from preparation.conversion import building, check_places
from pydicom import Dataset
from tqdm import tqdm

from breast_ultrasound.dicom import laterality, list_dicom, number_of_frames, read_header, tissue_region
from breast_ultrasound.files import shown, write_csv
from breast_ultrasound.images import FRAMES, check_contrast, open_image, split_frame, to_grey

COLUMNS = ["file", "class", "mask", "patient", "device", "laterality", "frame", "mm_per_pixel_x", "mm_per_pixel_y"]
COLUMNS += ["cropped", "blanked"]
KEY = ["file", "source", "sop_instance_uid", "refused"]


def prepare_dicom(
    source: Path, output_dir: Path, frames: str, strict: bool, blanks: Blanks | None = None
) -> dict[str, int]:
    """Write `images/image_0001.png`, ... and `table.csv`; what leads back to the patients goes beside the folder.

    The images are the regions of tissue, 8-bit grey, where the objects tell them and the pictures fit; else whole.
    Patients are numbered. `<output_dir>_key.csv` says which object each image comes from, and which were refused.

    Args:
        source: folder, DICOMDIR or one object.
        output_dir: folder to make; appears whole or not at all.
        frames: of a cine, as `breast_ultrasound.dicom.list_dicom` takes them.
        strict: stop when objects cannot be used.
        blanks: masks of what is to be blanked, before the pictures are cut.

    Returns:
        Number of images, of those that are whole, and of objects or frames refused.

    Raises:
        ValueError: an option is wrong, or nothing can be used, or something not although `strict`.
        OSError: the source cannot be read, or the output not be written.
    """
    if not FRAMES.fullmatch(frames):
        raise ValueError(f"--frames {frames}: pass all, middle, every10 (any number), or the number of a frame")
    check_places(source, output_dir)
    key = output_dir.with_name(f"{output_dir.name}_key.csv")
    if key.exists():
        raise FileExistsError(f"{key}: exists; remove it or choose another --output_dir")
    items = list_dicom(str(source), frames=frames)
    rows, keys, patients = [], [], {}
    with building(output_dir.resolve()) as folder:
        (folder / "labels").rmdir()
        for item in tqdm(items, desc="converting", unit="image", disable=None):
            name = f"image_{len(rows) + 1:04}.png"
            try:
                row, patient, uid = _convert(item["image"], folder / "images" / name, blanks)
            except (ValueError, OSError) as error:
                keys.append({"source": item["image"], "refused": getattr(error, "strerror", None) or str(error)})
                continue
            row |= {"file": f"images/{name}", "patient": f"P{patients.setdefault(patient, len(patients) + 1)}"}
            rows.append(row)
            keys.append({"file": row["file"], "source": item["image"], "sop_instance_uid": uid})
        refused = [f"{shown(row['source'])}: {row['refused']}" for row in keys if "refused" in row]
        if strict and refused or not rows:
            count = f"{len(refused)} of {len(items)} refused, nothing was written"
            raise ValueError("\n".join([f"{source}: {count}", *refused]))
        write_csv(folder / "table.csv", rows, COLUMNS)
        write_csv(key, keys, KEY)
    whole = sum((row["cropped"], row["blanked"]) == ("no", "no") for row in rows)
    print("\n".join([f"{len(rows)} images, patients: {len(patients)}: {output_dir}", *refused]))
    print(f"{key}: leads back to the patients; keep it where they are known")
    if blanks:
        print(*blanks.notes(), sep="\n")
    if whole:
        print(
            f"{whole} images are whole: what the scanner wrote into them, names perhaps, is still there; look at them"
        )
    return {"images": len(rows), "whole": whole, "refused": len(refused)}


def device_of(header: Dataset) -> str:
    """Manufacturer and model."""
    return " ".join(str(header.get(name) or "") for name in ("Manufacturer", "ManufacturerModelName")).strip()


def _convert(address: str, target: Path, blanks: Blanks | None) -> tuple[dict, str, str]:
    """Write one image; gives its row, and the patient and the object that it comes from."""
    file, frame = split_frame(address)
    image = open_image(address)
    header = read_header(file)
    region = tissue_region(header)
    left, top, width, height = region.box
    grey, device = to_grey(image), device_of(header)
    blank = blanks.of(address, grey, device) if blanks else None
    if blank is not None:
        grey = np.where(blank, np.uint8(0), grey)
    grey = check_contrast(grey[top : top + height, left : left + width])
    Image.fromarray(grey).save(target, compress_level=4)  # a new image: no text of the source travels along
    row = {
        "device": device,
        "laterality": laterality(header),
        "cropped": "no" if image.size == (width, height) else "yes",
        "blanked": "no" if blank is None else "yes",
    }
    row |= {"frame": frame if number_of_frames(header) > 1 else ""}
    if region.mm_per_pixel:
        row |= dict(zip(("mm_per_pixel_x", "mm_per_pixel_y"), region.mm_per_pixel))
    patient = str(header.get("PatientID") or header.get("StudyInstanceUID") or file)
    return row, patient, str(header.get("SOPInstanceUID") or "")
