"""One image of a data set, and the one rule by which its name, class and patient are compared with others."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CLASSES = ("normal", "benign", "malignant")  # the bundle's own, in the order of their indices
LESION_CLASSES = ("benign", "malignant")  # each of their images shows a lesion
UNKNOWN = {"", "na", "n/a", "nan", "none", "null", "unknown", "?", "-"}  # what cells say that say nothing


class Unusable(ValueError):
    """A single file that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Shape:
    """A drawn area: a polygon (N, 2) of x, y in pixels, or run lengths, background first, within a box."""

    polygon: np.ndarray | None = None
    runs: tuple[int, ...] = ()
    box: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, top, width, height in pixels, of the runs
    down: bool = False  # whether the runs go down the columns, as COCO's do, or along the rows


@dataclass(frozen=True)
class Outline:
    """What an annotation file says of one image: no shape means that the image was looked at and holds no lesion."""

    file: str  # that says it, relative to the source
    image: str  # as the file names it
    size: tuple[int, int]  # of that image, width and height in pixels
    labels: tuple[str, ...] = ()  # of the shapes and of the image itself, each once
    shapes: tuple[Shape, ...] = field(default=(), repr=False)
    problem: str = ""  # why it cannot be used


@dataclass(eq=False)
class Item:
    """One image of the source; paths are relative to the source and use `/`."""

    file: str
    class_name: str
    masks: list[str] = field(default_factory=list)
    name: str = ""  # of its two files in the output, without folder and suffix
    repairs: list[str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)  # width, height in pixels
    thumb: np.ndarray | None = None  # uint8 (48, 48)
    group: str = ""  # the patient or the scan: images of one group stay in one split
    fold: str = ""  # of the published cross-validation
    objection: str = ""
    burned_in_marks: str | None = None  # None: not in the published list
    columns: dict[str, str] = field(default_factory=dict)  # what else a table says of it
    outlines: list[Outline] = field(default_factory=list)  # of annotation files, in place of masks
    smooth: bool = False  # whether a mask has soft edges, which were cut in the middle
    left_out: str = ""  # the reason, empty for an image that is used

    def entry(self, set_name: str, class_names: Sequence[str]) -> dict:
        """The image's entry in `datalist.json`."""
        entry = {
            "image": f"images/{self.name}.png",
            "label": f"labels/{self.name}.png",
            "class": class_names.index(self.class_name),
            "class_name": self.class_name,
            "group": self.group,
            "source": set_name,
            "sources": [self.file, *self.masks, *dict.fromkeys(outline.file for outline in self.outlines)],
            **self.columns,
        }
        return entry if self.burned_in_marks is None else {**entry, "burned_in_marks": self.burned_in_marks}


def clean(text: str) -> str:
    """A name as it is shown: without spaces at its ends, repeated spaces, line ends and invisible characters, each
    letter in Unicode's composed spelling."""
    return " ".join("".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf").split())


def identity(text: str) -> str:
    """What is compared of a name: `clean`, upper and lower case alike."""
    return unicodedata.normalize("NFC", clean(text).casefold())


def patient_identity(text: str) -> str:
    """`identity` of a patient, without leading zeros and a spreadsheet's `.0`; empty where it is unknown."""
    known = re.sub(r"^(\d+)\.0+$", r"\1", identity(text))
    return "" if known in UNKNOWN else re.sub(r"(?<![\d.])0+(?=\d)", "", known)


def natural(text: str) -> tuple:
    """Sort key that puts `benign (2)` before `benign (10)`; the text itself settles ties such as 1 and 01."""
    words = re.split(r"([0-9]+)", text.casefold())
    return [int(word) if k % 2 else word for k, word in enumerate(words)], text


def some(names: Sequence[str], count: int = 8) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
