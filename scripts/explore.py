"""Show a prepared folder: classes, samples, sizes, lesions, grey values, copies of a scan, marks, what was left out.

    python scripts/explore.py --dataset_dir PREPARED --output_dir DIR [--count 4] [--class benign] [--seed 0]

PREPARED is the output folder of scripts/prepare_busi.py. DIR gets `report.html`, one page that holds all its pictures
and opens anywhere, and every chart as a PNG. --count random samples of each class are drawn by --seed; --class shows
those of one class alone.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from html import escape
from pathlib import Path

import cv2
import numpy as np
from command_line import run
from pages import style
from pages.style import CLASSES, TRUE_COLOUR, class_colours, class_mark
from PIL import Image
from tqdm import tqdm

from scripts.files import write_whole
from scripts.transforms import open_image, to_grey, to_mask

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
        dict: number of pictures shown and of those left out because they cannot be read (each is named).

    Raises:
        ValueError: an option is wrong.
        FileNotFoundError: there is no datalist, or none of its pictures can be read.
    """
    if count < 1 or seed < 0:
        raise ValueError("--count needs a whole number from 1 on, --seed one from 0 on")
    prepared, output = dataset_dir, output_dir
    items, names, summary = read_lists(prepared)
    if class_ not in (None, *names):
        raise ValueError(f"--class {class_}: pass one of {', '.join(names)}")
    colours = class_colours(names)
    pictures, problems = read_pictures(prepared, items)
    output.mkdir(parents=True, exist_ok=True)
    sections = {}
    for title, section in SECTIONS.items():
        sections[title] = section(pictures, output, colours)
    shown = {class_: colours[class_]} if class_ else colours
    sections["Samples"] = samples(pictures, prepared, output, shown, count, seed)
    sections["The same scan"] = same_scans(pictures, output, colours)
    sections["Left out and repaired"] = left_out(summary, problems)
    sections = {title: html for title, html in sections.items() if html}
    name = summary.get("split", "")
    lead = f"<p>{len(pictures)} pictures of {escape(prepared.resolve().name)}"
    lead += f", split {escape(name)}</p>" if name else "</p>"
    style.write_page(output / "report.html", style.page("The data at a glance", lead, sections))
    print(f"{len(pictures)} pictures: {output / 'report.html'}")
    return {"shown": len(pictures), "left_out": len(problems)}


def read_lists(prepared):
    """The datalist's items, each with its `part` and `class_name`, the names of the classes, and the content of
    `summary.json` (empty without that file)."""
    file = prepared / "datalist.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing; name a prepared folder")
    content = json.loads(file.read_text(encoding="utf-8"))
    names = content.get("class_names", CLASSES)
    parts = {k: v for k, v in content.items() if isinstance(v, list) and v and isinstance(v[0], dict)}
    summary = prepared / "summary.json"
    items = [
        {**item, "part": part, "class_name": names[item["class"]]} for part, found in parts.items() for item in found
    ]
    return items, names, json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}


def read_pictures(prepared, items):
    """What the charts need of each picture, and a line on each that cannot be read.

    Returns:
        list of the items with `class_name`, `size` (width, height in pixels), `thumb` (grey, `THUMB` high), `grey`
        (share of the pixels at each grey value (256,)), `grey_inside` (the same of the lesion, None without one),
        `area` (lesion's share of the picture), `lesions` (connected parts of the mask), `position` (`GRID`, `GRID`).
    """
    pictures, problems = [], []
    for item in tqdm(items, desc="Reading", unit="picture", disable=None):
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
        raise FileNotFoundError(f"{prepared}: none of the {len(items)} pictures of datalist.json can be read")
    return pictures, problems


def _read(prepared, item):
    return to_grey(open_image(prepared / item["image"])), to_mask(open_image(prepared / item["label"]))


def _of(pictures, name):
    return [p for p in pictures if p["class_name"] == name]


def _figure(figure, path, alt):
    """Save a chart and return it as HTML."""
    style.save_chart(figure, path)
    return f'<figure><img src="{style.embedded(path)}" alt="{escape(alt)}"></figure>'


def _table(head, rows):
    """HTML of a table; what is right of the first column are numbers."""
    cells = "".join(f'<th scope="col"{_number(i)}>{h}</th>' for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{_number(i)}>{c}</td>" for i, c in enumerate(r)) + "</tr>" for r in rows)
    table = f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="Table">{table}</div>'


def _number(column):
    return ' class="number"' if column else ""


def classes(pictures, output, colours):
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
    width = 0.8 / len(colours)
    for k, name in enumerate(colours):
        places = np.arange(len(counts)) + width * (k - (len(colours) - 1) / 2)
        drawn = bars.bar(places, [c[name] for c in counts.values()], 0.92 * width, color=colours[name], label=name)
        bars.bar_label(drawn, fontsize=8, padding=1)
    bars.set(xticks=range(len(counts)), xticklabels=list(counts), ylabel="pictures")
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
    alt = f"Bar chart of the pictures of each class in {', '.join(counts)}, and their shares as pies"
    rows = [(escape(part), *(c[n] for n in colours), c.total()) for part, c in {**counts, "all": everything}.items()]
    head = ("Part", *itertools.starmap(class_mark, colours.items()), "all")
    return _figure(figure, output / "classes.png", alt) + _table(head, rows)


def sizes(pictures, output, colours):
    """Width and height of each picture."""
    w, h = np.array([p["size"] for p in pictures]).T
    figure, grid = style.chart(1, len(colours), (3 * len(colours), 3.2), sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid[0], colours):
        found = np.array([p["size"] for p in _of(pictures, name)]).reshape(-1, 2)
        axes.scatter(*found.T, s=14, alpha=0.5, linewidths=0, color=colours[name])
        axes.set(xlabel="width (pixels)", title=f"{name} ({len(found)} pictures)")
    grid[0, 0].set(ylabel="height (pixels)", xlim=(0, 1.05 * w.max()), ylim=(0, 1.05 * h.max()))
    text = f"<p>Widths {w.min()} to {w.max()} (median {np.median(w):.0f}), "
    text += f"heights {h.min()} to {h.max()} (median {np.median(h):.0f}) pixels.</p>"
    return text + _figure(figure, output / "picture_sizes.png", "Scatter plot of width and height in pixels by class")


def lesions(pictures, output, colours):
    """Area of the lesion, number of its parts, and where it lies."""
    named = [name for name in colours if any(p["area"] for p in _of(pictures, name))]
    if not named:
        return "<p>No picture has a lesion.</p>"
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
        places = np.arange(1, most + 1) + 0.8 / len(named) * (k - (len(named) - 1) / 2)
        drawn = number.bar(
            places, [times[i] for i in range(1, most + 1)], 0.75 / len(named), color=colours[name], label=name
        )
        number.bar_label(drawn, fontsize=8, padding=1)
        number.set(xticks=range(1, most + 1))
    area.set(xscale="log", xlabel="lesion area (% of the picture)", ylabel="pictures")
    area.xaxis.set_major_formatter("{x:g}")
    area.set_ylim(0, 1.25 * area.get_ylim()[1])  # room for the legend
    area.yaxis.get_major_locator().set_params(integer=True)
    area.legend(loc="upper left")
    number.set(xlabel="separate parts of the mask", ylabel="pictures")
    number.legend()
    html = _figure(
        figure, output / "lesion_area.png", "Histogram of lesion areas and bars of lesions a picture, by class"
    )

    figure, grid = style.chart(1, len(named), (4 * len(named) + 0.6, 3.8), squeeze=False)
    maps = {name: 100 * np.mean([p["position"] for p in kept[name]], axis=0) for name in named}
    top = max(m.max() for m in maps.values())
    for axes, name in zip(grid[0], named):
        drawn = axes.imshow(maps[name], cmap="cividis", vmin=0, vmax=top, extent=(0, 100, 100, 0))
        axes.set(xlabel="from the left (% of the width)", title=f"{name} ({len(kept[name])} pictures)")
    grid[0, 0].set(ylabel="from the top (% of the height)")
    figure.colorbar(drawn, ax=grid[0], label="pictures with a lesion here (%)", shrink=0.85)
    alt = f"Maps of where lesions lie: {', '.join(named)}"
    return html + _figure(figure, output / "lesion_position.png", alt)


def intensities(pictures, output, colours):
    """Mean histogram of the grey values of each class, of the whole picture and of the lesion."""
    figure, (whole, inside) = style.chart(1, 2, (8.5, 3.4), sharey=True)
    for name in colours:
        found = _of(pictures, name)
        lesion = [p["grey_inside"] for p in found if p["grey_inside"] is not None]
        for axes, shares in ((whole, [p["grey"] for p in found]), (inside, lesion)):
            if shares:
                mean = 100 * np.mean(shares, axis=0).reshape(64, 4).sum(1)
                level = np.mean(shares, axis=0) @ np.arange(256)
                axes.plot(np.arange(2, 256, 4), mean, color=colours[name], label=f"{name}: mean {level:.0f}")
    whole.set(title="whole picture", ylabel="pixels (%) in each 4 grey values", ylim=(0, None))
    inside.set(title="inside the lesion")
    for axes in (whole, inside):
        axes.set(xlabel="grey value (0 black, 255 white)", xlim=(0, 255))
        if axes.lines:
            axes.legend()
    alt = "Histograms of grey values by class, of whole pictures and inside lesions"
    return _figure(figure, output / "intensities.png", alt)


def marks(pictures, output, colours):
    """Share of the pictures with burned-in marks, by class and kind, where the published list of BUSI knows them."""
    known = [p for p in pictures if "burned_in_marks" in p]
    if not known:
        return ""
    kinds = sorted({kind for p in known for kind in p["burned_in_marks"].split("&") if kind})
    bars = {"any": lambda p: bool(p["burned_in_marks"])}
    bars |= {kind: lambda p, kind=kind: kind in p["burned_in_marks"].split("&") for kind in kinds}
    figure, axes = style.chart(size=(7.5, 3.6))
    width = 0.8 / len(colours)
    for k, name in enumerate(colours):
        found = _of(known, name)
        counts = [sum(map(test, found)) for test in bars.values()]
        places = np.arange(len(bars)) + width * (k - (len(colours) - 1) / 2)
        shares = [100 * c / max(1, len(found)) for c in counts]
        drawn = axes.bar(places, shares, 0.92 * width, color=colours[name], label=f"{name} ({len(found)})")
        axes.bar_label(drawn, counts, fontsize=8, padding=1)
    axes.set(xticks=range(len(bars)), xticklabels=list(bars), ylabel="pictures of the class (%)")
    axes.legend(title="number on a bar: pictures", title_fontsize=8)
    text = f"<p>Known for {len(known)} of {len(pictures)} pictures, from the published list. "
    text += "A picture may have several kinds.</p>"
    return text + _figure(figure, output / "burned_in_marks.png", "Bars of burned-in marks by kind and class")


def samples(pictures, prepared, output, colours, count, seed):
    """Random pictures of each class: image, mask, and the mask's outline on the image."""
    random, html = np.random.default_rng(seed), ""
    for name in colours:
        found = _of(pictures, name)
        drawn = [found[i] for i in random.choice(len(found), min(count, len(found)), replace=False)] if found else []
        if not drawn:
            html += f"<p>No picture of class {name}.</p>"
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
            column[2].imshow(_outlined(image, mask, colours[name]))
        alt = f"Class {name}: image, mask and outline of {', '.join(p['name'] for p in drawn)}"
        file = "samples_" + re.sub(r"[^\w.-]", "_", name) + ".png"
        html += f"<h3>{class_mark(name, colours[name])}</h3>" + _figure(figure, output / file, alt)
    return "<p>Drawn at random; from top to bottom image, mask, and the mask's outline on the image.</p>" + html


def _outlined(image, mask, colour):
    drawing = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    outlines, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(max(image.shape) / 120))
    cv2.drawContours(drawing, outlines, -1, style.bgr(TRUE_COLOUR), 2 * width)
    cv2.drawContours(drawing, outlines, -1, style.bgr(colour), width)
    return drawing[..., ::-1]


def same_scans(pictures, output, colours):
    """Pictures of one scan side by side, the scans that cross parts or classes first."""
    groups = defaultdict(list)
    for p in pictures:
        groups[p.get("group", p["name"])].append(p)
    groups = {name: found for name, found in groups.items() if len(found) > 1}
    if not groups:
        return "<p>No scan stands in several pictures.</p>"

    def crossing(found, key):
        return len({p[key] for p in found}) > 1

    by_part, by_class = (sum(crossing(g, key) for g in groups.values()) for key in ("part", "class_name"))
    text = f"<p>{len(groups)} scans stand in several pictures ({sum(map(len, groups.values()))} in all); {by_part} of "
    text += f"them in several parts of the split, {by_class} in several classes. The bar below a picture has the "
    text += "colour of its class.</p>"
    html = ""
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
        html += (
            f'<figure style="max-width:{picture.width}px"><img src="{style.embedded(path)}" width="{picture.width}" '
        )
        html += f'height="{picture.height}" alt="{escape(f"Scan {name}: {label}")}">'
        html += f"<figcaption>{escape(f'{name}: {label}')}</figcaption></figure>"
    return f'{text}<div class="grid">{html}</div>'


def left_out(summary, problems):
    """What the conversion left out, repaired and refused, and what could not be read here."""
    html = ""
    if problems:
        html += _files(f"Cannot be read here ({len(problems)})", problems)
    if not summary:
        return html + "<p>There is no summary.json beside the datalist, so what the conversion did is unknown.</p>"
    reasons = defaultdict(list)
    for file, reason in summary["left_out"].items():
        reasons[f"Left out: {reason}"].append(file)
    for file, repair in summary["repaired"].items():
        reasons[f"Repaired: {repair}"].append(file)
    merged = [f"{file}: {number} masks" for file, number in summary["merged_masks"].items()]
    reasons |= {"Several masks merged": merged} if merged else {}
    reasons |= {"Refused": summary["refused"]} if summary["refused"] else {}
    html += f"<p>{len(summary['left_out'])} pictures were left out, {len(summary['refused'])} files refused.</p>"
    return html + "".join(_files(f"{reason} ({len(files)})", files) for reason, files in reasons.items())


def _files(title, lines):
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<details><summary>{escape(title)}</summary><ul class="small">{listed}</ul></details>'


SECTIONS = {
    "Classes": classes,
    "Picture sizes": sizes,
    "Lesions": lesions,
    "Grey values": intensities,
    "Burned-in marks": marks,
}


if __name__ == "__main__":
    run(explore)
