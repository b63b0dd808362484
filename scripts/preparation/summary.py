"""What a conversion did, for programs and for reading, and the datalists."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from preparation.item import Item, some
from preparation.split import PROTOCOLS

NOT_A_DEVICE = "Research software, not a medical device."


def count(lists: dict[str, list[Item]], class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count the images of each class in each list."""
    return {split: {c: sum(p.class_name == c for p in found) for c in class_names} for split, found in lists.items()}


def summarise(
    items: list[Item], lists: dict[str, list[Item]], refused: list[str], class_names: Sequence[str], about: dict
) -> dict:
    """Return the content of `summary.json`; files are named relative to the source.

    Args:
        items: all images that could be used, with those left out.
        lists: the images of each split or fold.
        refused: a line on each file that could not be used.
        class_names: names in the order of the class indices.
        about: `name`, `reference`, `notes`, `ignored` of the set, and `prepared_by`, `protocol`, `folds`, `seed`.
    """
    used = [item for item in items if not item.left_out]
    counts = count({"found": items, "used": used, **lists}, class_names)
    sizes = Counter(item.group for item in used)
    places = Counter(group for found in lists.values() for group in {item.group for item in found})
    missing = [
        f"No image of class {name} in {split}."
        for split, found in lists.items()
        for name in class_names
        if found and counts["used"][name] and not counts[split][name]
    ]
    return {
        **about,
        "class_names": list(class_names),
        "counts": counts,
        "shares_percent": {
            split: {name: round(100 * number / max(1, sum(row.values())), 1) for name, number in row.items()}
            for split, row in counts.items()
        },
        "in_published_list": sum(item.burned_in_marks is not None for item in items),
        "groups": len(sizes),
        "groups_of_several_images": sum(size > 1 for size in sizes.values()),
        "groups_in_several_splits": sum(splits > 1 for splits in places.values()),
        "masks": sum(len(item.masks) for item in items),
        "merged_masks": {item.file: len(item.masks) for item in items if len(item.masks) > 1},
        "left_out": {item.file: item.left_out for item in items if item.left_out},
        "repaired": {item.file: "; ".join(item.repairs) for item in items if item.repairs},
        "refused": refused,
        "notes": [*about["notes"], *missing, NOT_A_DEVICE],
    }


def as_text(summary: dict) -> str:
    """Return the summary for reading: a table of counts and percentages, then what happened to single files."""
    names = summary["class_names"]
    width = max(16, 11 + max(map(len, names)))
    lines = [f"Protocol {summary['protocol']}, seed {summary['seed']}: {PROTOCOLS[summary['protocol']]}.", ""]
    lines.append(f"{'':<12}" + "".join(f"{name:>{width}}" for name in names) + f"{'all':>8}")
    for split, row in summary["counts"].items():
        cells = [f"{row[name]} ({summary['shares_percent'][split][name]:.1f} %)" for name in names]
        lines.append(f"{split:<12}" + "".join(f"{cell:>{width}}" for cell in cells) + f"{sum(row.values()):>8}")
    lines += [
        "",
        "Scans or patients: {groups}, {groups_of_several_images} of them in several images, "
        "{groups_in_several_splits} in several splits.".format(**summary),
    ]
    if summary["in_published_list"]:
        lines.append(
            f"The published list of scans applies to {summary['in_published_list']} of these images; "
            "copies were looked for on the pixels of all."
        )
    lines += [f"No image of class {name}." for name in names if not summary["counts"]["found"][name]]
    stories = {"Several masks merged": list(summary["merged_masks"])} if summary["merged_masks"] else {}
    for file, reason in summary["left_out"].items():
        stories.setdefault(f"Left out, {reason}", []).append(file)
    for file, repair in summary["repaired"].items():
        stories.setdefault(f"Repaired, {repair}", []).append(file)
    if summary["ignored"]:
        stories["No images, or not of interest, ignored"] = summary["ignored"]
    for title, files in stories.items():
        more = " (all in summary.json)" if len(files) > 8 else ""
        lines.append(f"{title} ({len(files)}): {some(files)}{more}")
    lines += [f"Refused ({len(summary['refused'])}):", *summary["refused"]] if summary["refused"] else []
    return "\n".join([*lines, "", *summary["notes"]])


def write_files(folder: Path, datalists: dict[str, dict[str, list[Item]]], summary: dict) -> None:
    """Write the datalists and the summary, with the same bytes on every system."""
    names = summary["class_names"]
    head = {
        "name": summary["name"],
        "description": "Breast ultrasound images with lesion masks and classes; for research, not for diagnosis",
        "reference": summary["reference"],
        "modality": {"0": "US"},
        "labels": {"0": "background", "255": "lesion"},
        **{key: summary[key] for key in ("class_names", "prepared_by", "protocol", "folds", "seed")},
    }
    contents = {
        name: head
        | {"counts": count(lists, names)}
        | {split: [item.entry(summary["name"], names) for item in found] for split, found in lists.items()}
        for name, lists in datalists.items()
    }
    for name, content in {**contents, "summary.json": summary}.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    (folder / "summary.txt").write_text(as_text(summary) + "\n", encoding="utf-8", newline="\n")
