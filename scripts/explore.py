"""Show a prepared folder: classes, samples, sizes, lesions, grey values, copies of a scan, marks, what was left out.

    python scripts/explore.py --dataset_dir PREPARED --output_dir DIR [--count 4] [--class benign] [--seed 0]

PREPARED is the output folder of scripts/prepare_busi.py. DIR gets `report.html`, one page that holds all its images
and opens anywhere, and every chart as a PNG. --count random samples of each class are drawn by --seed; --class shows
those of one class alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
from command_line import run
from matplotlib.figure import Figure
from pages import style
from pages.style import TRUE_COLOUR
from PIL import Image
from tqdm import tqdm

from scripts.data import read_datalist
from scripts.files import write_whole
from scripts.transforms import open_image, to_grey, to_mask

Colours = dict[str, str]  # of the classes, by name
GRID = 128  # side of the map of lesion positions
THUMB = 100  # height of a thumbnail in pixels
PIE_AT_MOST = 6  # parts that get a pie each


def explore(
    dataset_dir: Path, output_dir: Path, count: int = 4, class_: str | None = None, seed: int = 0
) -> dict[str, int]:
    """Write `report.html` and its charts.

    Args:
        dataset_dir: folder with `datalist.json`, `images` and `labels`.
        output_dir: folder to write to; made if missing.
        count: random samples of each class.
        class_: the only class to show samples of, typed `--class`; all by default.
        seed: draws the samples.

    Returns:
        dict: number of images shown and of those left out because they cannot be read (each is named).

    Raises:
        ValueError: an option is wrong.
        FileNotFoundError: there is no datalist, or none of its images can be read.
    """
    if count < 1 or seed < 0:
        raise ValueError("--count needs a whole number from 1 on, --seed one from 0 on")
    prepared, output = dataset_dir, output_dir
    items, names, summary = read_lists(prepared)
    colours = style.class_colours(names)
    if class_ not in (None, *names):
        raise ValueError(f"--class {class_}: pass one of {', '.join(names)}")
    pictures, problems = read_pictures(prepared, items)
    output.mkdir(parents=True, exist_ok=True)
    sections = {title: section(pictures, colours, output) for title, section in SECTIONS.items()}
    shown = {class_: colours[class_]} if class_ else colours
    sections["Samples"] = samples(pictures, shown, prepared, output, count, seed)
    sections["The same scan"] = same_scans(pictures, colours, output)
    sections["Left out and repaired"] = left_out(summary, problems)
    sections = {title: blocks for title, blocks in sections.items() if blocks}
    facts = {"set_name": prepared.resolve().name, "split": summary.get("split", ""), "count": len(pictures)}
    title = "The data at a glance"
    style.write_page(output / "report.html", "report.html", title=title, sections=sections, colours=colours, **facts)
    print(f"{len(pictures)} images: {output / 'report.html'}")
    return {"shown": len(pictures), "left_out": len(problems)}


def read_lists(prepared: Path) -> tuple[list[dict], list[str], dict]:
    """The datalist's items, each with `part` and `class_name`, the classes' names, and `summary.json` if any."""
    file = prepared / "datalist.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; name a prepared folder")
    content = read_datalist(file)
    parts = {k: v for k, v in content.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    summary = prepared / "summary.json"
    names = style.class_names(content)
    items = [{**i, "part": part, "class_name": names[i["class"]]} for part, found in parts.items() for i in found]
    return items, names, json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}


def read_pictures(prepared: Path, items: list[dict]) -> tuple[list[dict], list[str]]:
    """What the charts need of each image, and a line on each that cannot be read.

    Returns:
        list of the items with `size` (width, height in pixels), `thumb` (grey, `THUMB` high), `grey`
        (share of the pixels at each grey value (256,)), `grey_inside` (the same of the lesion, None without one),
        `area` (lesion's share of the image), `lesions` (connected parts of the mask), `position` (`GRID`, `GRID`).
    """
    pictures, problems = [], []
    for item in tqdm(items, desc="Reading", unit="image", disable=None):
        try:
            image, mask = _read(prepared, item)
        except (OSError, ValueError) as error:
            problems.append(f"{item['image']}: left out, it or its label cannot be read ({error})")
            continue
        if image.shape != mask.shape:
            problems.append(f"{item['image']}: left out, its label has another size")
            continue
        lesion = mask > 0
        height, width = image.shape
        parts, _ = cv2.connectedComponents(lesion.astype(np.uint8), connectivity=8)
        grey = np.bincount(image.ravel(), minlength=256)
        inside = np.bincount(image[lesion], minlength=256)
        pictures.append(
            {
                **item,
                "name": Path(item["image"]).name,
                "size": (width, height),
                "thumb": cv2.resize(
                    image, (max(1, round(width * THUMB / height)), THUMB), interpolation=cv2.INTER_AREA
                ),
                "grey": grey / grey.sum(),
                "grey_inside": inside / inside.sum() if lesion.any() else None,
                "area": lesion.mean(),
                "lesions": parts - 1,
                "position": cv2.resize(lesion.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA),
            }
        )
    for problem in problems:
        print(problem, file=sys.stderr)
    if not pictures:
        raise FileNotFoundError(f"{prepared}: none of the {len(items)} images of datalist.json can be read")
    return pictures, problems


def _read(prepared: Path, item: dict) -> tuple[np.ndarray, np.ndarray]:
    return to_grey(open_image(prepared / item["image"])), to_mask(open_image(prepared / item["label"]))


def _of(pictures: list[dict], name: str) -> list[dict]:
    return [p for p in pictures if p["class_name"] == name]


def _figure(figure: Figure, path: Path, alt: str) -> dict:
    """Save a chart and return what the page shows of it."""
    style.save_chart(figure, path)
    return {"path": path, "alt": alt}


def _places(count: int, k: int, of: int) -> np.ndarray:
    """Where the k-th of several bars stands in each of `count` groups of bars, and beside the others."""
    return np.arange(count) + 0.8 / of * (k - (of - 1) / 2)


def classes(pictures: list[dict], colours: Colours, output: Path) -> list[dict]:
    """Bars and pies of the classes in each part."""
    counts = {part: Counter() for part in dict.fromkeys(p["part"] for p in pictures)}
    for p in pictures:
        counts[p["part"]][p["class_name"]] += 1
    everything = sum(counts.values(), Counter())
    pies = {"all": everything, **counts} if len(counts) < PIE_AT_MOST else {"all": everything}
    figure, grid = style.chart(2, len(pies), (max(6.5, 2.2 * len(pies)), 5.4), height_ratios=(3, 2), squeeze=False)
    for axes in grid[0]:
        axes.remove()
    bars = figure.add_subplot(grid[0, 0].get_gridspec()[0, :])
    for k, (name, colour) in enumerate(colours.items()):
        places = _places(len(counts), k, len(colours))
        drawn = bars.bar(places, [c[name] for c in counts.values()], 0.75 / len(colours), color=colour, label=name)
        bars.bar_label(drawn, fontsize=8, padding=1)
    bars.set(xticks=range(len(counts)), xticklabels=list(counts), ylabel="images")
    bars.spines[["top", "right"]].set_visible(False)
    bars.legend()
    for axes, (part, found) in zip(grid[1], pies.items()):
        shown = [name for name in colours if found[name]]
        axes.pie(
            [found[name] for name in shown],
            colors=[colours[name] for name in shown],
            autopct="%.0f %%",
            startangle=90,
            counterclock=False,
            wedgeprops={"edgecolor": "white"},
            textprops={"color": "white", "fontsize": 8, "fontweight": "bold"},
        )
        axes.set_title(f"{part} ({sum(found.values())})", fontsize=9)
    alt = f"Bar chart of the images of each class in {', '.join(counts)}, and their shares as pies"
    rows = [(part, *(c[n] for n in colours), c.total()) for part, c in {**counts, "all": everything}.items()]
    return [_figure(figure, output / "classes.png", alt), {"head": ("Part", *colours, "all"), "rows": rows}]


def sizes(pictures: list[dict], colours: Colours, output: Path) -> list[dict]:
    """Width and height of each image."""
    w, h = np.array([p["size"] for p in pictures]).T
    figure, grid = style.chart(1, len(colours), (9, 3.2), sharex=True, sharey=True, squeeze=False)
    grid = grid[0]
    for axes, name in zip(grid, colours):
        found = np.array([p["size"] for p in _of(pictures, name)]).reshape(-1, 2)
        axes.scatter(*found.T, s=14, alpha=0.5, linewidths=0, color=colours[name])
        axes.set(xlabel="width (pixels)", title=f"{name} ({len(found)} images)")
    grid[0].set(ylabel="height (pixels)", xlim=(0, 1.05 * w.max()), ylim=(0, 1.05 * h.max()))
    text = f"Widths {w.min()} to {w.max()} (median {np.median(w):.0f}), "
    text += f"heights {h.min()} to {h.max()} (median {np.median(h):.0f}) pixels."
    alt = "Scatter plot of width and height in pixels by class"
    return [{"text": text}, _figure(figure, output / "picture_sizes.png", alt)]


def lesions(pictures: list[dict], colours: Colours, output: Path) -> list[dict]:
    """Area of the lesion, number of its parts, and where it lies."""
    named = [name for name in colours if any(p["area"] for p in _of(pictures, name))]
    if not named:
        return [{"text": "No image has a lesion."}]
    figure, (area, number) = style.chart(1, 2, (8.5, 3.6), width_ratios=(3, 2))
    shares = [p["area"] for p in pictures if p["area"]]
    bins = np.geomspace(min(shares), 1.001 * max(shares), 25)
    kept = {name: [p for p in _of(pictures, name) if p["area"]] for name in named}
    for k, name in enumerate(named):
        share = [100 * p["area"] for p in kept[name]]
        label = f"{name}: median {np.median(share):.1f} %"
        area.hist(share, 100 * bins, color=colours[name], alpha=0.25)
        area.hist(share, 100 * bins, color=colours[name], histtype="step", linewidth=1.6, label=label)
        times = Counter(p["lesions"] for p in kept[name])
        most = max(p["lesions"] for found in kept.values() for p in found)
        places = 1 + _places(most, k, len(named))
        heights = [times[i] for i in range(1, most + 1)]
        drawn = number.bar(places, heights, 0.75 / len(named), color=colours[name], label=name)
        number.bar_label(drawn, fontsize=8, padding=1)
        number.set(xticks=range(1, most + 1))
    area.set(xscale="log", xlabel="lesion area (% of the image)", ylabel="images")
    area.xaxis.set_major_formatter("{x:g}")
    area.set_ylim(0, 1.25 * area.get_ylim()[1])  # room for the legend
    area.yaxis.get_major_locator().set_params(integer=True)
    area.legend(loc="upper left")
    number.set(xlabel="separate parts of the mask", ylabel="images")
    number.legend()
    alt = "Histogram of lesion areas and bars of lesions an image, by class"
    areas = _figure(figure, output / "lesion_area.png", alt)

    figure, grid = style.chart(1, len(named), (4 * len(named) + 0.6, 3.8), squeeze=False)
    maps = {name: 100 * np.mean([p["position"] for p in kept[name]], axis=0) for name in named}
    top = max(m.max() for m in maps.values())
    for axes, name in zip(grid[0], named):
        drawn = axes.imshow(maps[name], cmap="cividis", vmin=0, vmax=top, extent=(0, 100, 100, 0))
        axes.set(xlabel="from the left (% of the width)", title=f"{name} ({len(kept[name])} images)")
    grid[0, 0].set(ylabel="from the top (% of the height)")
    figure.colorbar(drawn, ax=grid[0], label="images with a lesion here (%)", shrink=0.85)
    alt = f"Maps of where lesions lie: {', '.join(named)}"
    return [areas, _figure(figure, output / "lesion_position.png", alt)]


def intensities(pictures: list[dict], colours: Colours, output: Path) -> list[dict]:
    """Mean histogram of the grey values of each class, of the whole image and of the lesion."""
    figure, (whole, inside) = style.chart(1, 2, (8.5, 3.4), sharey=True)
    for name in colours:
        found = _of(pictures, name)
        lesion = [p["grey_inside"] for p in found if p["grey_inside"] is not None]
        for axes, shares in ((whole, [p["grey"] for p in found]), (inside, lesion)):
            if shares:
                mean = 100 * np.mean(shares, axis=0).reshape(64, 4).sum(1)
                level = np.mean(shares, axis=0) @ np.arange(256)
                axes.plot(np.arange(2, 256, 4), mean, color=colours[name], label=f"{name}: mean {level:.0f}")
    whole.set(title="whole image", ylabel="pixels (%) in each 4 grey values", ylim=(0, None))
    inside.set(title="inside the lesion")
    for axes in (whole, inside):
        axes.set(xlabel="grey value (0 black, 255 white)", xlim=(0, 255))
        if axes.lines:
            axes.legend()
    alt = "Histograms of grey values by class, of whole images and inside lesions"
    return [_figure(figure, output / "intensities.png", alt)]


def marks(pictures: list[dict], colours: Colours, output: Path) -> list[dict]:
    """Fraction of the images with burned-in marks, by class and kind, where the published list of BUSI knows them."""
    known = [p for p in pictures if "burned_in_marks" in p]
    if not known:
        return []
    kinds = sorted({kind for p in known for kind in p["burned_in_marks"].split("&") if kind})
    bars = {"any": lambda p: bool(p["burned_in_marks"])}
    bars |= {kind: lambda p, kind=kind: kind in p["burned_in_marks"].split("&") for kind in kinds}
    figure, axes = style.chart(size=(7.5, 3.6))
    for k, name in enumerate(colours):
        found = _of(known, name)
        counts = [sum(map(test, found)) for test in bars.values()]
        places = _places(len(bars), k, len(colours))
        shares = [100 * c / max(1, len(found)) for c in counts]
        drawn = axes.bar(places, shares, 0.75 / len(colours), color=colours[name], label=f"{name} ({len(found)})")
        axes.bar_label(drawn, counts, fontsize=8, padding=1)
    axes.set(xticks=range(len(bars)), xticklabels=list(bars), ylabel="images of the class (%)")
    axes.legend(title="number on a bar: images", title_fontsize=8)
    text = f"Known for {len(known)} of {len(pictures)} images, from the published list. "
    text += "An image may have several kinds."
    alt = "Bars of burned-in marks by kind and class"
    return [{"text": text}, _figure(figure, output / "burned_in_marks.png", alt)]


def samples(pictures: list[dict], colours: Colours, prepared: Path, output: Path, count: int, seed: int) -> list[dict]:
    """Random images of each class: image, mask, and the mask's outline on the image."""
    random = np.random.default_rng(seed)
    blocks = [{"text": "Drawn at random; from top to bottom image, mask, and the mask's outline on the image."}]
    for name, colour in colours.items():
        found = _of(pictures, name)
        drawn = [found[i] for i in random.choice(len(found), min(count, len(found)), replace=False)] if found else []
        if not drawn:
            blocks.append({"text": f"No image of class {name}."})
            continue
        columns = min(4, len(drawn))
        rows = -(-len(drawn) // columns)
        figure, grid = style.chart(3 * rows, columns, (2.3 * columns + 0.4, 5.6 * rows), squeeze=False)
        for axes in grid.flat:
            axes.axis("off")
        for i, p in enumerate(drawn):
            image, mask = _read(prepared, p)
            column = grid[3 * (i // columns) : 3 * (i // columns) + 3, i % columns]
            column[0].set_title(f"{p['name']}\n{name}, {p['part']}", fontsize=8)
            column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
            column[1].imshow(mask, cmap="gray", vmin=0, vmax=255)
            column[2].imshow(_outlined(image, mask, colour))
        alt = f"Class {name}: image, mask and outline of {', '.join(p['name'] for p in drawn)}"
        file = "samples_" + re.sub(r"[^\w.-]", "_", name) + ".png"
        blocks += [{"heading": name}, _figure(figure, output / file, alt)]
    return blocks


def _outlined(image: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    drawing = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(max(image.shape) / 120))
    cv2.drawContours(drawing, outlines, -1, style.bgr(TRUE_COLOUR), 2 * width)
    cv2.drawContours(drawing, outlines, -1, style.bgr(colour), width)
    return drawing[..., ::-1]


def same_scans(pictures: list[dict], colours: Colours, output: Path) -> list[dict]:
    """Images of one scan side by side, the scans that cross parts or classes first."""
    groups = defaultdict(list)
    for p in pictures:
        groups[p.get("group", p["name"])].append(p)
    groups = {name: found for name, found in groups.items() if len(found) > 1}
    if not groups:
        return [{"text": "No scan stands in several images."}]

    def crossing(found: list[dict], key: str) -> bool:
        return len({p[key] for p in found}) > 1

    by_part, by_class = (sum(crossing(g, key) for g in groups.values()) for key in ("part", "class_name"))
    text = f"{len(groups)} scans stand in several images ({sum(map(len, groups.values()))} in all); {by_part} of "
    text += f"them in several parts of the split, {by_class} in several classes. The bar below an image has the "
    text += "colour of its class."
    strips = []
    order = sorted(groups, key=lambda g: (not crossing(groups[g], "class_name"), not crossing(groups[g], "part"), g))
    for name in order:
        found = groups[name]
        strip = []
        for p in found:
            thumb = cv2.cvtColor(p["thumb"], cv2.COLOR_GRAY2BGR)
            thumb = cv2.copyMakeBorder(
                thumb, 0, 5, 0, 0, cv2.BORDER_CONSTANT, value=style.bgr(colours[p["class_name"]])
            )
            strip.append(cv2.copyMakeBorder(thumb, 0, 0, 0, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
        # 64 colours: a third of the page, and no difference at this size
        picture = Image.fromarray(np.hstack(strip)[:, :-4, ::-1]).quantize(64, dither=Image.Dither.NONE)
        path = output / "same_scan" / f"{name}.png"
        write_whole(path, picture.save)
        label = ", ".join(f"{Path(p['name']).stem} ({p['part']})" for p in found)
        size = {"width": picture.width, "height": picture.height}
        strips.append({"path": path, "text": f"{name}: {label}", **size})
    return [{"text": text}, {"strips": strips}]


def left_out(summary: dict, problems: list[str]) -> list[dict]:
    """What the conversion left out, repaired and refused, and what could not be read here."""
    blocks = [{"title": "Cannot be read here", "lines": problems}] if problems else []
    if not summary:
        text = "There is no summary.json beside the datalist, so what the conversion did is unknown."
        return [*blocks, {"text": text}]
    reasons = defaultdict(list)
    for file, reason in summary["left_out"].items():
        reasons[f"Left out: {reason}"].append(file)
    for file, repair in summary["repaired"].items():
        reasons[f"Repaired: {repair}"].append(file)
    merged = [f"{file}: {number} masks" for file, number in summary["merged_masks"].items()]
    reasons |= {"Several masks merged": merged} if merged else {}
    reasons |= {"Refused": summary["refused"]} if summary["refused"] else {}
    text = f"{len(summary['left_out'])} images were left out, {len(summary['refused'])} files refused."
    return [*blocks, {"text": text}, *({"title": reason, "lines": files} for reason, files in reasons.items())]


SECTIONS = {
    "Classes": classes,
    "Image sizes": sizes,
    "Lesions": lesions,
    "Grey values": intensities,
    "Burned-in marks": marks,
}


if __name__ == "__main__":
    run(explore)
