"""The notebook of the documentation runs from top to bottom and shows what its stored outputs show."""

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"


def shown(notebook):
    """The kinds of results of each cell; how many lines of progress a run writes depends on the machine."""
    return [
        [sorted(output["data"]) for output in cell.get("outputs", []) if output["output_type"] == "execute_result"]
        for cell in notebook.cells
    ]


def test_the_notebook_runs_and_its_stored_outputs_are_of_the_same_kinds(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, of the extra `test`")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel, of the extra `test`")
    pytest.importorskip("altair", reason="needs the extra `figures`")
    nbformat = pytest.importorskip("nbformat")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert shown(notebook) == shown(stored)
    assert sum(bool(results) for results in shown(stored)) == 4
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "balanced-svd" in str(outputs[-2])
    assert "stderr" not in {output.get("name") for output in outputs}
    assert sorted(path.name.rsplit("-", 1)[0] for path in (tmp_path / "results" / "local").iterdir()) == [
        "small-quickstart",
        "small-quickstart",
    ]


def test_the_stored_outputs_name_no_place_of_the_machine_that_made_them():
    assert re.findall(r"/(?:tmp|root|home|work|Users)/", NOTEBOOK.read_text()) == []
