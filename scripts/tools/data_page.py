"""The sections of scripts/explore.py's page; each takes a table of the images and returns what the page shows."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pandas
from matplotlib.figure import Figure
from PIL import Image
from tools import style
from tqdm import tqdm

from breast_ultrasound.data import read_datalist
from breast_ultrasound.files import write_whole
from breast_ultrasound.images import open_image, to_grey, to_mask

Colours = dict[str, str]  # of the classes, by name
THUMB = 100  # height of a thumbnail in pixels


def read_lists(prepared: Path) -> tuple[list[dict], list[str], dict]:
    """The datalist's items, each with `split` and `class_name`, the classes' names, and `summary.json` if any."""
    file = prepared / "datalist.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; name a prepared folder")
    content = read_datalist(file)
    splits = {k: v for k, v in content.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    summary = prepared / "summary.json"
    names = style.class_names(content)
    items = [{**i, "split": split, "class_name": names[i["class"]]} for split, found in splits.items() for i in found]
    return items, names, json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}


def read_images(prepared: Path, items: list[dict]) -> tuple[pandas.DataFrame, list[str]]:
    """What the page needs of each image, and a line on each that cannot be read.

    Returns:
        the items with `name`, `width`, `height` (pixels), `thumb` (uint8 grey, `THUMB` high), `area` (percent of the
        image that is lesion) and `components` (connected ones of the mask).
    """
    images, problems = [], []
    for item in tqdm(items, desc="Reading", unit="image", disable=None):
        try:
            image, mask = _read(prepared, item)
        except (OSError, ValueError) as error:
            problems.append(f"{item['image']}: left out, it or its label cannot be read ({error})")
            continue
        if image.shape != mask.shape:
            problems.append(f"{item['image']}: left out, its label has another size")
            continue
        (height, width), lesion = image.shape, mask > 0
        thumb = cv2.resize(image, (max(1, round(width * THUMB / height)), THUMB), interpolation=cv2.INTER_AREA)
        components = cv2.connectedComponents(lesion.astype(np.uint8), connectivity=8)[0] - 1
        found = {"name": Path(item["image"]).name, "width": width, "height": height, "thumb": thumb}
        images.append({**item, **found, "area": 100 * lesion.mean(), "components": components})
    for problem in problems:
        print(problem, file=sys.stderr)
    if not images:
        raise FileNotFoundError(f"{prepared}: none of the {len(items)} images of datalist.json can be read")
    return pandas.DataFrame(images), problems


def _read(prepared: Path, item: dict | pandas.Series) -> tuple[np.ndarray, np.ndarray]:
    return to_grey(open_image(prepared / item["image"])), to_mask(open_image(prepared / item["label"]))


def _figure(figure: Figure, path: Path, alt: str) -> dict:
    """Save a chart and return what the page shows of it."""
    style.save_chart(figure, path)
    return {"path": path, "alt": alt}


def _bars(counts: pandas.DataFrame, colours: Colours, axes: object, **labels: object) -> None:
    """Bars of a table of counts, a group a row, in the classes' colours."""
    counts.plot.bar(ax=axes, color=[colours[name] for name in counts], width=0.8, rot=0, **labels)
    for drawn in axes.containers:
        axes.bar_label(drawn, fontsize=8, padding=1)
    axes.legend()


def classes(images: pandas.DataFrame, colours: Colours, output: Path) -> list[dict]:
    """Number of images of each class in each split."""
    counts = pandas.crosstab(images["split"], images["class_name"])
    counts = counts.reindex(index=images["split"].unique(), columns=list(colours), fill_value=0)
    figure, axes = style.chart(size=(max(6.5, 1.6 * len(counts)), 3.4))
    _bars(counts, colours, axes, xlabel="", ylabel="images")
    counts.loc["all"] = counts.sum()
    rows = [(split, *row, sum(row)) for split, row in zip(counts.index, counts.values.tolist())]
    alt = f"Bar chart of the images of each class in {', '.join(counts.index[:-1])}"
    return [_figure(figure, output / "classes.png", alt), {"head": ("Split", *colours, "all"), "rows": rows}]


def sizes(images: pandas.DataFrame, colours: Colours, output: Path) -> list[dict]:
    """Width and height of each image."""
    figure, axes = style.chart(size=(6.5, 3.8))
    for name, colour in colours.items():
        found = images[images["class_name"] == name]
        axes.scatter(found["width"], found["height"], s=14, alpha=0.5, linewidths=0, color=colour, label=name)
    axes.set(xlabel="width (pixels)", ylabel="height (pixels)", xlim=(0, None), ylim=(0, None))
    axes.legend()
    (w0, w1, w2), (h0, h1, h2) = (images[side].agg(["min", "max", "median"]) for side in ("width", "height"))
    text = f"Widths {w0:.0f} to {w1:.0f} (median {w2:.0f}), heights {h0:.0f} to {h1:.0f} (median {h2:.0f}) pixels."
    alt = "Scatter plot of width and height in pixels by class"
    return [{"text": text}, _figure(figure, output / "image_sizes.png", alt)]


def lesions(images: pandas.DataFrame, colours: Colours, output: Path) -> list[dict]:
    """Area of the lesion, and number of components of its mask."""
    found = images[images["area"] > 0]
    if not len(found):
        return [{"text": "No image has a lesion."}]
    named = {name: colour for name, colour in colours.items() if name in set(found["class_name"])}
    figure, (area, number) = style.chart(1, 2, (8.5, 3.6), width_ratios=(3, 2))
    bins = np.geomspace(found["area"].min(), 1.001 * found["area"].max(), 25)
    for name, colour in named.items():
        percent = found.loc[found["class_name"] == name, "area"]
        label = f"{name}: median {percent.median():.1f} %"
        area.hist(percent, bins, color=colour, alpha=0.5, histtype="stepfilled", edgecolor=colour, label=label)
    area.set(xscale="log", xlabel="lesion area (% of the image)", ylabel="images")
    area.xaxis.set_major_formatter("{x:g}")
    area.set_ylim(0, 1.25 * area.get_ylim()[1])  # room for the legend
    area.legend(loc="upper left")
    counts = pandas.crosstab(found["components"], found["class_name"])[list(named)]
    _bars(counts, colours, number, xlabel="components of the mask", ylabel="images")
    alt = "Histogram of lesion areas and bars of the masks' components, by class"
    return [_figure(figure, output / "lesion_area.png", alt)]


def marks(images: pandas.DataFrame, colours: Colours) -> list[dict]:
    """Images with burned-in marks, by class and kind, where the published list of BUSI knows them."""
    if "burned_in_marks" not in images:
        return []
    known = images.dropna(subset="burned_in_marks")
    kinds = known["burned_in_marks"].str.get_dummies("&").drop(columns="", errors="ignore")
    kinds.insert(0, "any", (known["burned_in_marks"] != "").astype(int))
    counts = kinds.groupby(known["class_name"]).sum().reindex(list(colours), fill_value=0)
    totals = known["class_name"].value_counts().reindex(list(colours), fill_value=0)
    rows = [
        (kind, *(f"{n} ({100 * n / max(1, total):.0f} %)" for n, total in zip(counts[kind], totals))) for kind in counts
    ]
    text = f"Known for {len(known)} of {len(images)} images, from the published list. "
    text += "An image may have several kinds."
    return [{"text": text}, {"head": ("Kind", *colours), "rows": rows}]


def samples(
    images: pandas.DataFrame, colours: Colours, prepared: Path, output: Path, count: int, seed: int
) -> list[dict]:
    """Random images of each class: image, mask, and the mask's outline on the image."""
    random = np.random.default_rng(seed)
    blocks = [{"text": "Drawn at random; from top to bottom image, mask, and the mask's outline on the image."}]
    for name, colour in colours.items():
        found = images[images["class_name"] == name]
        if not len(found):
            blocks.append({"text": f"No image of class {name}."})
            continue
        drawn = found.iloc[random.choice(len(found), min(count, len(found)), replace=False)]
        columns = min(4, len(drawn))
        rows = -(-len(drawn) // columns)
        figure, grid = style.chart(3 * rows, columns, (2.3 * columns + 0.4, 5.6 * rows), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for i, (_, row) in enumerate(drawn.iterrows()):
            image, mask = _read(prepared, row)
            column = grid[3 * (i // columns) : 3 * (i // columns) + 3, i % columns]
            column[0].set_title(f"{row['name']}\n{name}, {row['split']}", fontsize=8)
            for axes, pixels in zip(column, (image, mask, _outlined(image, mask, colour))):
                axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        alt = f"Class {name}: image, mask and outline of {', '.join(drawn['name'])}"
        file = "samples_" + re.sub(r"[^\w.-]", "_", name) + ".png"
        blocks += [{"heading": name}, _figure(figure, output / file, alt)]
    return blocks


def _outlined(image: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    drawing = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(max(image.shape) / 120))
    cv2.drawContours(drawing, outlines, -1, style.bgr(style.TRUE_COLOUR), 2 * width)
    cv2.drawContours(drawing, outlines, -1, style.bgr(colour), width)
    return drawing[..., ::-1]


def same_scans(images: pandas.DataFrame, colours: Colours, output: Path) -> list[dict]:
    """Images of one scan or patient side by side, those that cross classes or splits first."""
    if "group" not in images or not images["group"].duplicated().any():
        return [{"text": "No scan stands in several images."}]
    groups = {name: found for name, found in images.groupby("group") if len(found) > 1}
    crossing = {n: [g[key].nunique() > 1 for key in ("class_name", "split")] for n, g in groups.items()}
    by_class, by_split = np.sum(list(crossing.values()), axis=0)
    text = f"{len(groups)} scans or patients stand in several images ({sum(map(len, groups.values()))} in all); "
    text += f"{by_split} of them in several splits, {by_class} in several classes. The bar below an image has the "
    text += "colour of its class."
    strips = []
    for name in sorted(groups, key=lambda name: (*(not crosses for crosses in crossing[name]), name)):
        strip = []
        for thumb, class_name in zip(groups[name]["thumb"], groups[name]["class_name"]):
            thumb = cv2.copyMakeBorder(cv2.cvtColor(thumb, cv2.COLOR_GRAY2BGR), 0, 5, 0, 4, cv2.BORDER_CONSTANT)
            thumb[THUMB:], thumb[:, -4:] = style.bgr(colours[class_name]), 255
            strip.append(thumb)
        # 64 colours: a third of the page, and no difference at this size
        image = Image.fromarray(np.hstack(strip)[:, :-4, ::-1]).quantize(64, dither=Image.Dither.NONE)
        path = output / "same_scan" / f"{len(strips) + 1}.png"  # a group's name may be no name of a file
        write_whole(path, image.save)
        label = ", ".join(f"{Path(n).stem} ({s})" for n, s in zip(groups[name]["name"], groups[name]["split"]))
        strips.append({"path": path, "text": f"{name}: {label}", "width": image.width, "height": image.height})
    return [{"text": text}, {"strips": strips}]


def left_out(summary: dict, problems: list[str]) -> list[dict]:
    """What the conversion left out, repaired and refused, and what could not be read here."""
    blocks = [{"title": "Cannot be read here", "lines": problems}] if problems else []
    if not summary:
        text = "There is no summary.json beside the datalist, so what the conversion did is unknown."
        return [*blocks, {"text": text}]
    reasons = defaultdict(list, {"Refused": summary["refused"]})
    for title, found in (("Left out", summary["left_out"]), ("Repaired", summary["repaired"])):
        for file, reason in found.items():
            reasons[f"{title}: {reason}"].append(file)
    reasons["Several masks merged"] = [f"{file}: {number} masks" for file, number in summary["merged_masks"].items()]
    text = f"{len(summary['left_out'])} images were left out, {len(summary['refused'])} files refused."
    return [*blocks, {"text": text}, *({"title": reason, "lines": files} for reason, files in reasons.items() if files)]
