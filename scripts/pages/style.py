"""One look for all charts, drawings and pages: the colours of the classes, the notice, and a page in one file."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.files import NOTICE, write_whole

# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = {"normal": "#009E73", "benign": "#0072B2", "malignant": "#D55E00"}
CLASSES = list(COLOURS)
OTHER_COLOUR = "#C8C8C8"
MORE_COLOURS = ("#CC79A7", "#8A6D00", "#56B4E9", "#000000", "#E69F00")
TRUE_COLOUR = "#FFFFFF"  # outlines of true masks, on pictures
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
}


def chart(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (5, 4.2), **options: object
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure and its axes in the style of the project, as `pyplot.subplots` gives them; size in inches."""
    return pyplot.subplots(rows, columns, figsize=size, dpi=110, **options)


def save_chart(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, with the notice in its footer; the figure is closed."""
    figure.get_layout_engine().set(rect=(0, 0.12 / figure.get_figheight(), 1, 1 - 0.12 / figure.get_figheight()))
    figure.text(0.99, 0.005, NOTICE, ha="right", va="bottom", fontsize=6, color="#555555")
    write_whole(path, lambda p: figure.savefig(p, metadata={"Software": None}))
    pyplot.close(figure)


def bgr(colour: str) -> tuple[int, ...]:
    """A colour `#rrggbb` as OpenCV takes it."""
    return tuple(int(colour[i : i + 2], 16) for i in (5, 3, 1))


def embedded(path: Path) -> str:
    """A PNG file as the source of an `img`, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode("ascii")


def class_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each class, in the order of the names: its own, or one that no other of them has.

    After eight classes that have none of their own the colours begin again.
    """
    names = list(names)
    free = cycle([c for n, c in COLOURS.items() if n not in names] + list(MORE_COLOURS))
    return {name: COLOURS.get(name) or next(free) for name in names}


def class_mark(name: str, colour: str) -> str:
    """A class's name behind a dot of its colour, as HTML."""
    return f'<span class="mark" style="--c:{colour}">{escape(name)}</span>'


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; padding: 0 1rem 2rem;
  max-width: 76rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.2rem 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; padding-top: .6rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
a { color: #005a8f; }
:focus-visible { outline: 3px solid #005a8f; outline-offset: 2px; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: .6rem 0; }
figcaption, .small { font-size: .85rem; color: #444; overflow-wrap: anywhere; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
.mark::before { content: ""; display: inline-block; width: .75em; height: .75em; border-radius: 50%;
  background: var(--c); margin-right: .4em; }
.mark { white-space: nowrap; }
.grid { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-end; }
details { margin: .3rem 0; }
summary { cursor: pointer; padding: .2rem 0; }
footer { margin-top: 3rem; padding-top: .6rem; border-top: 1px solid #ddd; font-size: .85rem; color: #444; }
"""


def page(title: str, lead: str, sections: dict[str, str], css: str = "", script: str = "") -> str:
    """A whole HTML page with a table of contents and the notice; it loads nothing from the network.

    Args:
        title: heading, plain text.
        lead: what stands below the heading, HTML.
        sections: HTML by heading (plain text), in order.
        css: more rules than all pages have.
        script: JavaScript; none by default.
    """
    links = "".join(f'<li><a href="#part{i}">{escape(name)}</a></li>' for i, name in enumerate(sections))
    parts = "".join(
        f'<section aria-labelledby="part{i}"><h2 id="part{i}">{escape(name)}</h2>{html}</section>\n'
        for i, (name, html) in enumerate(sections.items())
    )
    notice = NOTICE.capitalize()
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{CSS}{css}</style></head>\n<body>\n<header><h1>{escape(title)}</h1>{lead}\n"
        f'<p class="small">{notice}: not for diagnosis or any clinical decision.</p></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>\n{parts}</main>\n<footer>{notice}.</footer>\n'
        + (f"<script>{script}</script>\n" if script else "")
        + "</body></html>\n"
    )


def write_page(path: Path, html: str) -> None:
    """Write a page, whole or not at all."""
    write_whole(path, lambda p: Path(p).write_text(html, encoding="utf-8", newline="\n"))
