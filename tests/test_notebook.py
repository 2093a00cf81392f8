"""The notebook runs from top to bottom as it stands, at its default size."""

import pathlib

import pytest

PATH = pathlib.Path(__file__).parent.parent / "colab" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:jupyter_client.*", "ignore::DeprecationWarning:zmq.*")
def test_quickstart_runs(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    # A user's kernel has neither the tests' strict modes nor their slow, unoptimised XLA.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = nbformat.read(PATH, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    html = " ".join(data["text/html"] for data in shown if "text/html" in data)
    assert html.count("<svg") >= 3 and html.count("data:image/png;base64") == 6
    assert "grey_matter" in html and "triangle" in html
    assert any("image/png" in data for data in shown)
    test = [x for x in _log(tmp_path / "runs" / "brain") if x["split"] == "test"][-1]
    assert (test["dice_per_class"]["grey_matter"] + test["dice_per_class"]["white_matter"]) / 2 > 0.85


def _log(workdir):
    from segjax import report

    return report.read_log(str(workdir))
