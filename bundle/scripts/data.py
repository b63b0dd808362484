"""From files to batches: which pictures there are, how they become grey, how often each is drawn."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from .loss import UNKNOWN_CLASS

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
logger = logging.getLogger(__name__)


def to_grey(picture: Image.Image) -> Image.Image:
    """Turn a picture of any mode into 8-bit grey: a ``converter`` for MONAI's ``PILReader``.

    Colour is weighted as in ITU-R BT.601 (Pillow's ``L``) and alpha is ignored. 16-bit and float pictures, which
    Pillow would clip at 255, are scaled by their own largest value when that is above 255.
    """
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0).clip(min=0)
        largest = values.max(initial=0)
        return Image.fromarray((values * (255 / largest if largest > 255 else 1)).round().astype(np.uint8))
    if picture.mode in ("P", "PA"):
        picture = picture.convert("RGB")
    return picture.convert("L")


def to_mask(picture: Image.Image) -> Image.Image:
    """Turn a mask of any mode into 0 and 255 with the threshold in the middle, for MONAI's ``PILReader``."""
    return to_grey(picture).point(lambda value: 255 if value > 127 else 0)


def list_pictures(folder: str, output_dir: str | None = None) -> list[dict[str, str]]:
    """Return ``[{"image": path}, ...]`` for every readable picture that lies directly in a folder, sorted by name.

    Files that cannot be read are named, counted in the log and left out. Files of other types are ignored.

    Raises:
        FileNotFoundError: where there is no such folder, or no readable picture in it.
        ValueError: where the masks would go to the same folder and be taken for pictures the next time.
    """
    if output_dir is not None and Path(folder).resolve() == Path(output_dir).resolve():
        raise ValueError(f"{folder}: holds the pictures and would get the masks; pass another --output_dir")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass --dataset_dir with a folder of pictures")
    files = sorted(f for f in Path(folder).iterdir() if f.is_file() and f.suffix.lower() in EXTENSIONS)
    problems = {f: problem for f in files if (problem := _problem(f))}
    for file, problem in problems.items():
        logger.error(f"{file}: left out, not a readable picture ({problem}); replace the file")
    if problems:
        logger.error(f"{len(problems)} of {len(files)} pictures left out")
    if len(problems) == len(files):
        raise FileNotFoundError(f"{folder}: no readable picture ({', '.join(EXTENSIONS)}) directly in this folder")
    return [{"image": str(f)} for f in files if f not in problems]


def _problem(file: Path) -> str:
    try:
        with Image.open(file) as picture:
            # A PNG carries checksums, so that it need not be decoded to be trusted.
            picture.verify() if picture.format == "PNG" else picture.load()
    except Exception as error:  # Pillow raises half a dozen types, SyntaxError among them
        return str(error) or type(error).__name__
    return ""


def sampling_weights(items: Sequence[dict]) -> torch.Tensor:
    """Weight of each item, shape (len(items),), with which every class is drawn equally often.

    Items whose class is missing or unknown count as a class of their own.
    """
    classes = [item.get("class", UNKNOWN_CLASS) for item in items]
    counts = Counter(classes)
    return torch.tensor([1 / counts[c] for c in classes], dtype=torch.double)


def prepare_batch(batch: dict, device: torch.device | str, non_blocking: bool = False, **kwargs) -> tuple:
    """Split a batch into pictures (B, 1, M, N) and targets: ``label`` (B, 1, M, N) and ``class`` (B,), long.

    MONAI Label sends no class; it becomes -1 (unknown) then.
    """
    image = batch["image"].to(device, non_blocking=non_blocking, **kwargs)
    label = batch["label"].to(device, non_blocking=non_blocking, **kwargs)
    classes = torch.as_tensor(batch.get("class", [UNKNOWN_CLASS] * len(image)))
    return image, {"label": label, "class": classes.to(device, non_blocking=non_blocking)}


class PasteLesions:
    """``prepare_batch`` of the training that pastes lesions of the batch into other pictures of the batch.

    The network then sees lesions before tissue that it knew as healthy. After Yang et al., "TumorCP" (MICCAI 2021), and
    Ghiasi et al., "Simple Copy-Paste" (CVPR 2021). A lesion comes with a soft rim, at its own depth, shifted sideways.
    The class of a pasted picture counts as unknown, so that it teaches the mask alone.

    Args:
        normal_prob: probability that a picture without lesion gets one.
        lesion_prob: probability that a picture with a lesion gets another one.
    """

    LARGEST = 0.5  # share of the picture; larger lesions are not pasted
    RIM = 1 / 32  # of the picture's side

    def __init__(self, normal_prob: float = 0.4, lesion_prob: float = 0.2) -> None:
        self.normal_prob = normal_prob
        self.lesion_prob = lesion_prob

    def __call__(self, batch: dict, device: torch.device | str, non_blocking: bool = False, **kwargs) -> tuple:
        """As ``scripts.data.prepare_batch``; pictures (B, 1, W, H) as MONAI loads them."""
        image, targets = prepare_batch(batch, device, non_blocking, **kwargs)
        sources, labels = image.clone(), targets["label"].clone()
        share = labels.flatten(1).mean(1)
        lesions = torch.nonzero((share > 0) & (share <= self.LARGEST)).flatten().tolist()
        for i in range(len(image)):
            wanted = torch.rand(()) < (self.lesion_prob if share[i] > 0 else self.normal_prob)
            others = [j for j in lesions if j != i]
            if not wanted or not others:
                continue
            j = others[int(torch.randint(len(others), ()))]
            columns = torch.nonzero(labels[j, 0].amax(1)).flatten()
            shift = int(torch.randint(-int(columns[0]), labels.shape[2] - int(columns[-1]), ()))
            lesion, label = (torch.roll(t[j], shift, 1) for t in (sources, labels))
            width = 2 * int(labels.shape[2] * self.RIM) + 1
            rim = F.max_pool2d(label, width, 1, width // 2)
            rim = F.avg_pool2d(rim, width, 1, width // 2)
            image[i] = image[i] * (1 - rim) + lesion * rim
            targets["label"][i] = torch.maximum(targets["label"][i] * (rim < 0.5), label)
            targets["class"][i] = UNKNOWN_CLASS
        return image, targets
