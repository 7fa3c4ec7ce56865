"""The notebooks run from first to last cell, draw their pictures, and are kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
# Notebook -> number of its pictures.
NOTEBOOKS = {"first_five_minutes": 4, "train_on_your_own_task": 3}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_tested():
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.fixture(scope="module", params=NOTEBOOKS)
def played(request, tmp_path_factory):
    """A notebook's name, and the notebook with its outputs; it starts in its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.setenv("PYTHONWARNINGS", "error::UserWarning:__main__")
        book = read(request.param)
        resources = {"metadata": {"path": str(FOLDER)}}
        nbclient.NotebookClient(book, timeout=600, resources=resources).execute()
    return request.param, book


def outputs(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in book.cells for output in cell.get("outputs", [])]


# jupyter's own packages warn of themselves
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_and_draws(played):
    name, book = played
    found = outputs(book)
    assert not [output for output in found if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in found) == NOTEBOOKS[name]
    assert not [output.text for output in found if output.get("name") == "stderr"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_what_it_prints_is_what_it_says(played):
    """The controller of the notebook has learned, and random decisions are worse than none."""
    name, book = played
    text = "".join(output.text for output in outputs(book) if output.get("name") == "stdout")
    number = r"([-+]?\d+\.\d+)"
    if name == "first_five_minutes":
        alone, at_random = re.search(f"alone: {number} nats; at random: {number}", text).groups()
        assert float(alone) > float(at_random) + 1.0
    else:
        found = re.search(rf"no controller {number}, controller {number}, .* rate {number}", text)
        alone, trained, best = map(float, found.groups())
        assert trained > alone + 0.7 * (best - alone)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_kept_without_outputs(name):
    book = read(name)
    nbformat.validate(book)
    assert not outputs(book)
    assert not [cell for cell in book.cells if cell.get("execution_count")]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 20_000


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_pages_that_it_names_exist(name):
    text = "\n".join(cell.source for cell in read(name).cells)
    pages = re.findall(r"`((?:docs|examples)/[\w/]+\.(?:md|py))`", text)
    assert pages
    assert all((ROOT / page).exists() for page in pages)
    assert all(len(line) <= 110 for line in text.splitlines())
