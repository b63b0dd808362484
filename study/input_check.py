"""The input check measured: false alarms on breast ultrasound, and what it catches of other images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from preparation.split import read_facts
from tqdm import tqdm

from breast_ultrasound import Predictor
from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import sha256, write_csv
from breast_ultrasound.images import open_image, to_grey
from breast_ultrasound.input_check import REFUSED
from study.experiments import commit
from study.foreign import foreign_images

MARKS = "text or marks in the picture"
COLUMNS = ["images", "name", "number", "refused", "look", "marks_alone", "share", "weights_sha256", "commit"]


def measure_input_check(
    sets: Mapping[str, tuple[Path, str]], ckpt_dir: Path, output: Path, most: int = 1000, of_a_kind: int = 20
) -> None:
    """Write a row for each set and each kind of other images: how many are refused, or to be looked at, and why.

    `share` is that of the images with an alarm: refused, or to be looked at for another reason than marks, which is
    what BUSI's images show; these have rows of their own. BUSI's testing images are altered for the kinds that need
    ultrasound.

    Args:
        sets: prepared folder and splits, joined by +, by name; `busi` among them.
        ckpt_dir: folder of the weights, with `input_check.pt`.
        output: the table.
        most: images of a set, spread evenly over it.
        of_a_kind: other images of each kind.
    """
    predictor = Predictor(ckpt_dir=str(ckpt_dir), predict_refused=True)
    if predictor.config.get_parsed_content("input_check").reference is None:
        raise FileNotFoundError(f"{ckpt_dir / 'input_check.pt'}: missing; run scripts/fit_input_check.py")
    made_by = {"weights_sha256": sha256(ckpt_dir / "model.pt"), "commit": commit()}
    marked = {name: fact["burned_in_marks"] for (_, name), fact in read_facts("busi_groups.csv").items()}
    rows, ultrasound = [], []
    for name, (folder, splits) in sets.items():
        items = [item for split in splits.split("+") for item in read_datalist(folder / "datalist.json")[split]]
        files = [folder / item["image"] for item in items[:: -(-len(items) // most)]]
        found = {file: answer(predictor, file) for file in tqdm(files, desc=name, unit="image", disable=None)}
        rows.append({"images": "breast ultrasound", "name": name, **counts(found.values())})
        if name == "busi":
            ultrasound = [to_grey(open_image(file)) for file in files[:of_a_kind]]
            for title, wanted in (("busi, marks are listed", True), ("busi, no marks are listed", False)):
                part = [told for file, told in found.items() if bool(marked[file.name]) == wanted]
                rows.append({"images": "breast ultrasound", "name": title, **counts(part)})
    kinds: dict[str, list[tuple[str, str]]] = {}
    for kind, image in tqdm(foreign_images(of_a_kind, ultrasound), desc="other images", disable=None):
        kinds.setdefault(kind, []).append(answer(predictor, image))
    rows += [{"images": "other", "name": kind, **counts(found)} for kind, found in kinds.items()]
    rows.append({"images": "other", "name": "all", **counts(told for found in kinds.values() for told in found)})
    write_csv(output, [row | made_by for row in rows], COLUMNS)
    print(f"{len(rows)} rows: {output}")


def answer(predictor: Predictor, image: Path | Image.Image) -> tuple[str, str]:
    """Result and reason of an image; one that cannot be read is refused."""
    try:
        found = predictor(image)
    except ValueError as error:
        return REFUSED, str(error)
    return found.check, found.reason


def counts(found: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Numbers of images by result, and the share of those with an alarm."""
    found = list(found)
    results = Counter(result for result, _ in found)
    marks = sum(reason == MARKS for _, reason in found)
    row = {"number": len(found), "refused": results["refused"], "look": results["look"], "marks_alone": marks}
    return row | {"share": (row["refused"] + row["look"] - marks) / max(1, len(found))}
