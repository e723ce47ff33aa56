"""Notebooks run from top to bottom, and each is the same as its source beside it. Nothing is timed here."""

from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
PAIRS = [pytest.param(source, source.with_suffix(".ipynb"), id=source.stem) for source in SOURCES]


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_three_and_every_one_has_its_source():
    assert len(SOURCES) == 3
    assert [path.stem for path in SOURCES] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(("source", "notebook"), PAIRS)
def test_the_pair_agrees(source, notebook):
    shown = nbformat.read(notebook, as_version=4)
    nbformat.validate(shown)
    assert cells(shown) == cells(jupytext.read(source)), f"jupytext --to ipynb {source.name}; jupyter execute --inplace {notebook.name}"
    assert all(cell.execution_count for cell in shown.cells if cell.cell_type == "code"), "saved without its outputs"
    assert str(ROOT) not in notebook.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_it_runs_from_top_to_bottom(source, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # this tree, wherever the kernel looks first
    notebook = jupytext.read(source)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs)
    assert said and "Traceback" not in said
