"""Give the bundle's commands several hundred bad inputs and faults, and count how each ends.

    python study/tests/fault_campaign.py --output results/faults.json

Every input must end in one of two ways: `right` (the prediction or result that it must give) or `named` (a line of the
error or the log names the file or the option). Two others are counted as faults: `silent` (lost or wrong, without a
word) and `opaque` (an error that names neither). The exit status is 1 where there is a fault. The same seed gives the
same inputs; `--project` points at another checkout, such as that of an earlier release, whose totals stand beside the
others in the file. Commands run in forks of this process, which has imported what they need; tables, paths, the
Predictor, resumption and the label server are asked in process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from campaign.bodies import body_campaign
from campaign.images import image_campaign, mask_campaign
from campaign.kills import full_disk_campaign, kill_campaign
from campaign.paths import path_campaign
from campaign.prediction import prediction_campaign
from campaign.process import Case, printable
from campaign.resume import resume_campaign
from campaign.tables import table_campaign
from campaign.training import checkpoint_campaign, option_campaign


def campaign(project: Path, folder: Path, seed: int, scale: float) -> dict[str, dict[str, int]]:
    """Run all parts; print each fault, and return the totals by part."""
    parts: dict[str, Callable[[Path], list[tuple[Case, str]]]] = {
        "images": lambda f: image_campaign(project, f, seed, round(300 * scale)),
        "masks": lambda f: mask_campaign(project, f, seed, round(100 * scale)),
        "options and datalists": lambda f: option_campaign(project, f, seed, round(100 * scale)),
        "checkpoints": lambda f: checkpoint_campaign(project, f),
        "kills": lambda f: kill_campaign(project, f, seed, round(20 * scale)),
        "disk full": lambda f: full_disk_campaign(project, f),
        # In this process, so that they come last
        "tables": lambda f: table_campaign(f, seed, round(120 * scale)),
        "paths": lambda f: path_campaign(project, f, seed, round(200 * scale)),
        "predictor": lambda f: prediction_campaign(project, f, seed, round(60 * scale)),
        "resume": lambda f: resume_campaign(project, f, seed, round(80 * scale)),
        "label server": lambda f: body_campaign(project, f, seed, round(150 * scale)),
    }
    sys.path[:0] = [str(project / "bundle"), str(project / "scripts")]
    totals = {}
    for name, part in parts.items():
        began = time.time()
        place = folder / name
        place.mkdir(parents=True)
        ends = part(place)
        counts = Counter(end for _, end in ends)
        totals[name] = {end: counts[end] for end in ("right", "named", "opaque", "silent")}
        for case, end in ends:
            if end in ("opaque", "silent"):
                print(f"  {end}: {case.kind}, {printable(case.name)}")
        print(f"{name}: {totals[name]} in {time.time() - began:.0f} s", flush=True)
    return totals


def main() -> int:
    """Run the campaign as the command line says; 1 where an input ended in a third way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--output", type=Path, help="JSON file that gets the totals, beside those of other runs")
    parser.add_argument("--name", help="of these totals in the file; the project's version by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1, help="of the number of inputs")
    parser.add_argument("--keep", type=Path, help="new folder for inputs and logs, which are removed otherwise")
    given = parser.parse_args()
    project = given.project.resolve()
    version = json.loads((project / "bundle" / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    folder = given.keep or Path(
        tempfile.mkdtemp()
    )  # a TemporaryDirectory would be removed by the first child that ends
    try:
        totals = campaign(project, folder, given.seed, given.scale)
    finally:
        if not given.keep:
            shutil.rmtree(folder)
    if given.output:
        content = json.loads(given.output.read_text(encoding="utf-8")) if given.output.is_file() else {}
        runs = content.get("runs", {}) | {given.name or version: totals}
        text = json.dumps({"seed": given.seed, "runs": dict(sorted(runs.items()))}, indent=4)
        given.output.write_text(text + "\n", encoding="utf-8")
    return int(any(part["opaque"] or part["silent"] for part in totals.values()))


if __name__ == "__main__":
    sys.exit(main())
