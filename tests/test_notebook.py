"""The notebook runs from top to bottom as it stands, but for the length of its two trainings.

That a training of full length learns is what `test_house.py` proves of the quickstart, the same network and data.
"""

import itertools
import pathlib

import pytest

from segjax import report

PATH = pathlib.Path(__file__).parent.parent / "colab" / "quickstart.ipynb"


SHORTER = {"run.eval_every = 200, 20, 50": "run.eval_every = 20, 5, 10", "run.total = 100": "run.total = 10"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*", "ignore::DeprecationWarning:zmq.*")
def test_quickstart_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    # A user's kernel has neither the tests' strict modes nor their slow, unoptimised XLA.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = nbformat.read(PATH, as_version=4)
    for cell, (long, short) in itertools.product(notebook.cells, SHORTER.items()):
        cell.source = cell.source.replace(long, short)
    assert all(any(short in cell.source for cell in notebook.cells) for short in SHORTER.values())
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    html = " ".join(data["text/html"] for data in shown if "text/html" in data)
    assert html.count("<svg") >= 3 and html.count("data:image/png;base64") == 6
    assert "grey_matter" in html and "triangle" in html
    assert any("image/png" in data for data in shown)
    assert [x["step"] for x in report.read_log(str(tmp_path / "runs" / "brain")) if x["split"] == "test"] == [10, 20]
