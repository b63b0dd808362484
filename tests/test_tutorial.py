"""The notebook runs from the first cell to the last."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].source.count('root / "runs" / "tutorial"') == 1
    code[0].source = code[0].source.replace('root / "runs" / "tutorial"', f"Path({str(tmp_path / 'tutorial')!r})")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
    before, after = (nbformat.from_dict(cell.outputs[-1])["data"]["text/plain"] for cell in (code[1], code[4]))
    assert "class" in before and "fine-tuned" in after
    assert any("image/png" in output.get("data", {}) for output in code[2].outputs)
    prediction = code[5].outputs[-1]["data"]["text/plain"]
    assert "malignant" in prediction
