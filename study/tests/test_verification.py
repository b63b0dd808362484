"""What images.csv gives agrees with what is published, and what does not is named."""

import json
import shutil

from conftest import ROOT
from study import report, verification

RESULTS = ROOT / "study/results"


def test_what_differs_from_images_csv_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "EVALUATIONS", ["testing"])
    shutil.copytree(RESULTS / "evaluations/testing", tmp_path / "evaluations/testing")
    made = tmp_path / "made"
    lists = [RESULTS / "splits/clean_datalist.json"]
    report.report({"testing": tmp_path / "evaluations/testing"}, made, lists, {}, draws=100)
    shutil.copytree(made, tmp_path / "evidence")
    assert verification.differing(made, tmp_path) == []
    metrics, published = tmp_path / "evaluations/testing/metrics.json", tmp_path / "evidence/report.json"
    content = json.loads(published.read_text())
    content["testing"]["figures"]["accuracy"]["high"] += 0.001
    published.write_text(json.dumps(content))
    metrics.write_text(metrics.read_text().replace('"missed_rate": 0.', '"missed_rate": 1.'))
    failures = tmp_path / "evidence/failures.csv"
    failures.write_text(failures.read_text().replace("worst mask", "best mask", 1))
    found = verification.differing(made, tmp_path)
    assert len(found) == 3 and found[0].startswith("evaluations/testing/metrics.json: /missed_rate is 1.")
    assert "evidence/report.json: /testing/figures/accuracy/high is " in found[1]
    assert found[2] == "evidence/failures.csv: /failure/0 is best mask and should be worst mask"
