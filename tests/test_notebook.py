"""The notebooks run from top to bottom as they stand, but for the length of trainings and measurements.

That a training of full length learns is what `test_house.py` proves of the quickstart, the same network and data.
"""

import json
import os
import pathlib
import sys

import pytest

from segjax import report

COLAB = pathlib.Path(__file__).parent.parent / "colab"
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*", "ignore::DeprecationWarning:zmq.*")


def run(name, folder, monkeypatch, shorter):
    """Runs a notebook in a folder; its cells with their outputs."""
    import nbclient
    import nbformat

    # A user's kernel has neither the tests' strict modes nor their slow, unoptimised XLA.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(COLAB / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    for long, short in shorter.items():
        assert any(long in cell.source for cell in notebook.cells)
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells


@pytest.mark.slow
@QUIET
def test_quickstart_runs(tmp_path, monkeypatch):
    shorter = {"run.eval_every = 200, 20, 50": "run.eval_every = 20, 5, 10", "run.total = 100": "run.total = 10"}
    cells = run("quickstart.ipynb", tmp_path, monkeypatch, shorter)
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    html = " ".join(data["text/html"] for data in shown if "text/html" in data)
    assert html.count("<svg") >= 3 and html.count("data:image/png;base64") == 6
    assert "grey_matter" in html and "triangle" in html
    assert any("image/png" in data for data in shown)
    assert [x["step"] for x in report.read_log(str(tmp_path / "runs" / "brain")) if x["split"] == "test"] == [10, 20]


@pytest.mark.slow
@QUIET
def test_benchmark_runs(tmp_path, monkeypatch):
    """What its commands print, and what they save."""
    cells = run("benchmark.ipynb", tmp_path, monkeypatch, {"--seconds 2": "--seconds 0"})
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert "Bottleneck: " in text and "times the images/s of the earlier run" in text and "largest buffers" in text
    assert "Traceback" not in text
    after, compiled = (json.loads((tmp_path / name).read_text()) for name in ("after.txt", "compiled.txt"))
    assert after["compared"]["train"] > 0 and compiled["train"]["peak_bytes"] > 0
