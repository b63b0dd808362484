"""What a study with several readers is told in ``study.json`` beside its images: who reads what, and what is asked."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Container
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import in_one_line

STUDY_FILE = "study.json"
READER, ADJUDICATOR = "reader", "adjudicator"
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,40}")  # a name that can be that of a folder
LONGEST = 80  # signs of a name


class Study(BaseModel):
    """``study.json``; all of it is optional."""

    model_config = ConfigDict(strict=True, extra="forbid")

    readers: dict[str, Literal["reader", "adjudicator"]] = {}  # by name; without any, everybody may do everything
    # Fraction of the images that all readers read, beside those with a gold label; each other has one reader.
    overlap: float = Field(1.0, ge=0, le=1)
    fields: dict[str, list[str]] = {}  # asked of each image in the page, such as BI-RADS, with their choices
    hide_names: bool = False  # of the image files, which may tell the diagnosis

    def role(self, name: str) -> str | None:
        """What a reader may do; None where she is not in the list."""
        return self.readers.get(name) if self.readers else ADJUDICATOR

    def assigned(self, name: str, images: list[str], gold: Container[str] = ()) -> list[str]:
        """Those of some images, sorted, that a reader is to read, one after another; all readers read ``gold`` ones.

        Where names are hidden they come in an order of no meaning: sorted, all of one diagnosis would come together.
        """
        names, own = self.reading(), images
        if name in names:
            order, shared = ranked("assigned", images), round(self.overlap * len(images))
            turns = [i < shared or i % len(names) == names.index(name) for i in range(len(order))]
            own = sorted(image for image, turn in zip(order, turns) if turn or image in gold)
        return ranked("order", own) if self.hide_names else own

    def reading(self) -> list[str]:
        """Names of those who read and do not adjudicate; none where nobody is listed."""
        return [name for name, role in self.readers.items() if role == READER]

    def withheld(self, name: str, image: str, images: list[str], fraction: float) -> bool:
        """Whether a reader sees an image without suggestion.

        Of all images it is this fraction for each reader, to less than one image. Where readers are listed, each of
        n begins 1/n of the images after the one before, so that an image is read with and without suggestion.
        """
        order, names = ranked("suggestion", images), list(self.readers)
        begin = names.index(name) / len(names) if name in names else hash_fraction("suggestion", name)
        return ((order.index(image) + 0.5) / len(order) + begin) % 1 < fraction


def read_study(folder: str | Path) -> Study:
    """The study of a folder of images.

    Raises:
        ValueError: its file is not valid, saying where.
    """
    file = Path(folder) / STUDY_FILE
    if not file.is_file():
        return Study()
    try:
        study = Study.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{file}: {in_one_line(error.errors())}; docs/annotate.md tells what goes in") from None
    folders = {}
    for name in study.readers:
        if problem := name_problem(name):
            raise ValueError(f"{file}: readers: {problem}")
        if (same := folders.setdefault(slug(name).lower(), name)) != name:
            raise ValueError(f"{file}: readers {same!r} and {name!r} are too much alike; change one")
    return study


def name_problem(name: str) -> str:
    """Why a text cannot be the name of a reader; empty where it can."""
    if not name or name != " ".join(name.split()) or len(name) > LONGEST or not name.isprintable():
        return f"{name!r} is no name; use 1 to {LONGEST} signs, without spaces around"
    return ""


def slug(name: str) -> str:
    """A name as that of a folder: itself, or its letters without accents and a few digits that tell it from others."""
    if PLAIN.fullmatch(name):
        return name
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = "-".join(re.findall(r"[A-Za-z0-9]+", plain))[:30]
    return f"{words or 'reader'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def hash_fraction(*parts: str) -> float:
    """A number in [0, 1) that is always the same for the same parts, and nobody can foretell from the image."""
    return int(hashlib.sha256("/".join(parts).encode()).hexdigest()[:8], 16) / 2**32


def ranked(what: str, images: list[str]) -> list[str]:
    """Images in an order that depends on their names alone, another one for each purpose."""
    return sorted(images, key=lambda image: hash_fraction(what, image))
