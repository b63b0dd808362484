"""From files to batches: which pictures there are, how often each is drawn."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from .files import EXTENSIONS, names_a_picture
from .transforms import open_image, to_grey

UNKNOWN_CLASS = -1
logger = logging.getLogger(__name__)


def list_pictures(folder: str, output_dir: str | None = None, done: Collection[str] = ()) -> list[dict[str, str]]:
    """Return ``[{"image": path}, ...]`` for every readable picture that lies directly in a folder, sorted by name.

    Files that cannot be read are named, counted in the log and left out. Files of other types are ignored, and so are
    those whose names are ``done``.

    Raises:
        FileNotFoundError: where there is no such folder, or no readable picture in it.
        ValueError: where the masks would go to the same folder and be taken for pictures the next time.
    """
    if output_dir is not None and Path(folder).resolve() == Path(output_dir).resolve():
        raise ValueError(f"{folder}: holds the pictures and would get the masks; pass another --output_dir")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass --dataset_dir with a folder of pictures")
    files = sorted(f for f in Path(folder).iterdir() if f.is_file() and names_a_picture(f))
    problems = {f: problem for f in files if (problem := picture_problem(f))}
    for file, problem in problems.items():
        logger.error(f"{file}: left out, not a readable picture ({problem}); replace the file")
    if problems:
        logger.error(f"{len(problems)} of {len(files)} pictures left out")
    if len(problems) == len(files):
        raise FileNotFoundError(f"{folder}: no readable picture ({', '.join(EXTENSIONS)}) directly in this folder")
    return [{"image": str(f)} for f in files if f not in problems and f.name not in done]


def picture_problem(file: str | Path) -> str:
    """Why a picture cannot be read; empty where it can."""
    try:
        to_grey(open_image(file))
    except (ValueError, OSError) as error:
        return getattr(error, "strerror", None) or str(error)
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
