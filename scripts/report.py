"""Report on an evaluation: every figure with its interval, and charts for a paper, in one page.

    python scripts/report.py --evaluation runs/evaluation --output_dir runs/report [--datalist runs/own/datalist.json]
        [--columns "['device','birads']"] [--against runs/other_evaluation] [--draws 1000]

EVALUATION is the output folder of the bundle's evaluation or of scripts/cross_validate.py (`images.csv`,
`metrics.json`). OUTPUT_DIR gets `index.html`, one page that holds all its charts and opens anywhere; each chart as SVG
and PNG; `figures.csv`, `subgroups.csv` and `failures.csv`. With --datalist intervals know which images are of one scan
or patient, and every column that a table gave to the images tells subgroups. With --against the page also tells how far
another evaluation of the same images is from this one (`differences.csv`).
"""

from __future__ import annotations

from pathlib import Path

from tools.cli import run


def report(
    evaluation: Path,
    output_dir: Path,
    datalist: Path | None = None,
    columns: tuple[str, ...] | None = None,
    against: Path | None = None,
    draws: int = 1000,
) -> dict[str, int]:
    """Write `index.html`, its charts and its tables.

    Args:
        evaluation: folder with `images.csv` and `metrics.json`.
        output_dir: folder to write to; made if missing.
        datalist: the datalist that was evaluated, for scans or patients and subgroups; each image alone by default.
        columns: of the datalist, to tell subgroups by; all that have few values or are numbers by default.
        against: folder of another evaluation of the same images, to compare with.
        draws: of each bootstrap.

    Returns:
        dict: number of images, of figures and of charts.

    Raises:
        ValueError: an option is wrong, a table is damaged, or the datalist or --against is of another set.
        FileNotFoundError: a table or the datalist is missing.
    """
    if draws < 100:
        raise ValueError(f"--draws {draws}: intervals of 95 % need 100 or more")
    from tools import style
    from tools.evaluation_page import Page, as_row
    from tools.evaluations import read_evaluation

    from breast_ultrasound.files import write_csv

    found = read_evaluation(evaluation, datalist, columns)
    for note in found.notes:
        print(note)
    page = Page(found, output_dir, draws, against)
    output_dir.mkdir(parents=True, exist_ok=True)
    sections = page.sections()
    rows = [
        {"section": section, "figure": name, **as_row(estimate)}
        for section, figures in page.figures.items()
        for name, estimate in figures.items()
    ]
    write_csv(output_dir / "figures.csv", rows, list(rows[0]))
    rows_of_subgroups = [
        {"subgroup": name, "images": row["images"], "groups": row["groups"], "figure": key, **as_row(cell)}
        for name, row in page.subgroups.items()
        for key, cell in row.items()
        if key not in ("images", "groups")
    ]
    write_csv(output_dir / "subgroups.csv", rows_of_subgroups, ["subgroup", "images", "groups", *list(rows[0])[1:]])
    tables = ["figures", "subgroups", "failures"]
    if against:
        rows_of_differences = [{"figure": name, **as_row(cell)} for name, cell in page.differences.items()]
        write_csv(output_dir / "differences.csv", rows_of_differences, ["figure", "value", "low", "high"])
        tables.append("differences")
    columns_of_failures = ["failure", "filename", "true_class", "predicted_class", "probability", "dice"]
    write_csv(output_dir / "failures.csv", page.failures, columns_of_failures)
    values = {"name": evaluation.resolve().name, "split": dict(found.source).get("split"), "count": len(found.images)}
    values |= {"sections": sections, "colours": page.colours, "tables": tables}
    style.write_page(output_dir / "index.html", "evaluation.html", title="The evaluation in figures", **values)
    drawn = sum(len(block["charts"]) for blocks in sections.values() for block in blocks if "charts" in block)
    print(f"{len(found.images)} images, {len(rows)} figures, {drawn} charts: {output_dir / 'index.html'}")
    return {"images": len(found.images), "figures": len(rows), "charts": drawn}


if __name__ == "__main__":
    run(report, record=True)
