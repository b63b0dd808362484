"""Show a prepared folder: classes and splits, sizes, lesions, samples, copies of a scan, marks, what was left out.

    python scripts/explore.py --dataset_dir PREPARED --output_dir DIR [--count 4] [--class benign] [--seed 0]

PREPARED is the output folder of scripts/prepare.py. DIR gets `report.html`, one page that holds all its images and
opens anywhere, and every chart as a PNG. --count random samples of each class are drawn by --seed; --class shows those
of one class alone.
"""

from __future__ import annotations

from pathlib import Path

from tools.cli import run


def explore(
    dataset_dir: Path, output_dir: Path, count: int = 4, class_: str | None = None, seed: int = 0
) -> dict[str, int]:
    """Write `report.html` and its charts.

    Args:
        dataset_dir: folder with `datalist.json`, `images` and `labels`.
        output_dir: folder to write to; made if missing.
        count: random samples of each class.
        class_: the only class to show samples of; all by default.
        seed: draws the samples.

    Returns:
        dict: number of images shown and of those left out because they cannot be read (each is named).

    Raises:
        ValueError: an option is wrong.
        FileNotFoundError: there is no datalist, or none of its images can be read.
    """
    from tools import data_page, style  # after the options are checked: they load torch

    if count < 1 or seed < 0:
        raise ValueError("--count needs a whole number from 1 on, --seed one from 0 on")
    items, names, summary = data_page.read_lists(dataset_dir)
    if class_ not in (None, *names):
        raise ValueError(f"--class {class_}: pass one of {', '.join(names)}")
    images, problems = data_page.read_images(dataset_dir, items)
    output_dir.mkdir(parents=True, exist_ok=True)
    colours = style.class_colours(names)
    shown = {class_: colours[class_]} if class_ else colours
    sections = {
        "Classes": data_page.classes(images, colours, output_dir),
        "Image sizes": data_page.sizes(images, colours, output_dir),
        "Lesions": data_page.lesions(images, colours, output_dir),
        "Burned-in marks": data_page.marks(images, colours),
        "Samples": data_page.samples(images, shown, dataset_dir, output_dir, count, seed),
        "The same scan": data_page.same_scans(images, colours, output_dir),
        "Left out and repaired": data_page.left_out(summary, problems),
    }
    facts = {"set_name": dataset_dir.resolve().name, "protocol": summary.get("protocol", ""), "count": len(images)}
    facts |= {"sections": {title: blocks for title, blocks in sections.items() if blocks}, "colours": colours}
    style.write_page(output_dir / "report.html", "report.html", title="The data at a glance", **facts)
    print(f"{len(images)} images: {output_dir / 'report.html'}")
    return {"shown": len(images), "left_out": len(problems)}


if __name__ == "__main__":
    run(explore, record=True)
