"""What is published against what images.csv gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isclose
from pathlib import Path

import pandas
from tools.cli import ROOT
from tools.evaluations import tables_of

from breast_ultrasound.files import read_csv
from breast_ultrasound.metrics import Images, summarize
from study import EVALUATIONS, RESULTS
from study.tables import METADATA, TEXTS, with_metrics, with_tables

TABLES = ("subgroups.csv", "differences.csv", "failures.csv")


def differing(evidence: Path, results: Path = RESULTS) -> list[str]:
    """What differs, a line each; empty where all agrees.

    Args:
        evidence: folder that `study.report.report` has just written from the evaluations in `results`.
        results: what is published.
    """
    lines = []
    for name in EVALUATIONS:
        file, table = tables_of(results / "evaluations" / name)
        rows, published = read_csv(table), json.loads(file.read_text(encoding="utf-8"))
        names = [key.removeprefix("p_") for key in rows[0] if key.startswith("p_")]
        # The table keeps six digits, in which two of the smallest probabilities can tie
        for path in _apart(published, summarize(Images.from_rows(rows, names)), 2e-5, partial=True):
            lines.append(f"{file.relative_to(results)}: {path}")
    reports = [
        json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (results / "evidence", evidence)
    ]
    lines += [f"evidence/report.json: {path}" for path in _apart(*reports, 1e-9)]
    for table in TABLES:
        both = [pandas.read_csv(folder / table).to_dict("list") for folder in (results / "evidence", evidence)]
        lines += [f"evidence/{table}: {path}" for path in _apart(*both, 1e-6)]
    for text, change in {**dict.fromkeys(TEXTS, with_tables), METADATA: with_metrics}.items():
        content = (ROOT / text).read_text(encoding="utf-8")
        if change(content) != content:
            lines.append(f"{text}: its tables are not those of the results")
    return lines


def _apart(published: object, found: object, tolerance: float, path: str = "", partial: bool = False) -> Iterator[str]:
    """Where two nested values differ; `partial`: what the second lacks may stand in the first."""
    if isinstance(published, dict) and isinstance(found, dict):
        for key in found if partial else dict.fromkeys((*published, *found)):
            yield from _apart(published.get(key), found.get(key), tolerance, f"{path}/{key}", partial)
    elif isinstance(published, list) and isinstance(found, list) and len(published) == len(found):
        for k, pair in enumerate(zip(published, found)):
            yield from _apart(*pair, tolerance, f"{path}/{k}", partial)
    elif isinstance(published, float) and isinstance(found, (int, float)):
        both_missing = published != published and found != found
        if not both_missing and not isclose(published, found, rel_tol=0, abs_tol=tolerance):
            yield f"{path} is {published} and should be {found}"
    elif published != found:
        yield f"{path} is {published} and should be {found}"
