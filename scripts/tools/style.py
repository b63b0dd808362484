"""One look for all charts, drawings and pages: the colours of the classes, the notice, and a page in one file."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path

import jinja2
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tools.cli import CONFIGS

from breast_ultrasound.files import NOTICE, write_whole

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = {"normal": "#009E73", "benign": "#0072B2", "malignant": "#D55E00"}
OTHER_COLOUR = "#C8C8C8"
MORE_COLOURS = ("#CC79A7", "#8A6D00", "#56B4E9", "#000000", "#E69F00")
TRUE_COLOUR = "#FFFFFF"  # outlines of true masks, on images
LINE_COLOURS = ("#333333", "#CC79A7", "#E69F00", "#56B4E9")  # of what is no class; from the same authors
pyplot.switch_backend("Agg")
pyplot.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "breast_ultrasound",  # ids of SVG files, random by default
}


def chart(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (5, 4.2), **options: object
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure and its axes in the style of the project, as `pyplot.subplots` gives them; size in inches."""
    return pyplot.subplots(rows, columns, figsize=size, dpi=110, **options)


def save_chart(figure: Figure, *paths: Path, dpi: float | str = "figure") -> None:
    """Write a figure as PNG or SVG, whole or not at all, with the notice in its footer; the figure is closed.

    Args:
        figure: of `chart`.
        paths: files to write, of either kind.
        dpi: pixels per inch of a PNG; those of the figure by default.
    """
    figure.get_layout_engine().set(rect=(0, 0.12 / figure.get_figheight(), 1, 1 - 0.12 / figure.get_figheight()))
    figure.text(0.99, 0.005, NOTICE, ha="right", va="bottom", fontsize=6, color="#555555")
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}  # the same bytes on every run
        write_whole(path, lambda p: figure.savefig(p, dpi=dpi, metadata=metadata))
    pyplot.close(figure)


def class_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each class, in the order of the names: its own, or one that no other of them has.

    After eight classes that have none of their own the colours begin again.
    """
    names = list(names)
    free = cycle([c for n, c in COLOURS.items() if n not in names] + list(MORE_COLOURS))
    return {name: COLOURS.get(name) or next(free) for name in names}


def bgr(colour: str) -> tuple[int, ...]:
    """A colour `#rrggbb` as OpenCV takes it."""
    return tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))


def embedded(path: Path) -> str:
    """A PNG or SVG file as the source of an `img`, so that the page needs no other file."""
    kind = {".png": "png", ".svg": "svg+xml"}[Path(path).suffix]
    return f"data:image/{kind};base64," + base64.b64encode(Path(path).read_bytes()).decode("ascii")


def class_names(datalist: Mapping[str, object]) -> list[str]:
    """The classes of a datalist in the order of their indices: its own `class_names`, or else those of the bundle."""
    return (
        datalist.get("class_names") or json.loads((CONFIGS / "train.json").read_text("utf-8"))["class_names"]["default"]
    )


def write_page(path: Path, template: str, **values: object) -> None:
    """Fill a template of this folder and write the page, whole or not at all; it loads nothing from the network.

    Args:
        path: HTML file to write.
        template: name of the template.
        values: what it shows, escaped where it is text; `title`, `sections` and `colours` in all of them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
    )
    environment.filters["embedded"] = embedded
    html = environment.get_template(template).render(notice=NOTICE.capitalize(), **values) + "\n"
    write_whole(path, lambda p: Path(p).write_text(html, encoding="utf-8", newline="\n"))
