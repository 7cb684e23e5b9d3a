"""The notebook: it runs from start to end, and what is committed of it is small and of one run."""

import functools
import json

import matplotlib
from absl import logging

from experiments import notebook
from fsq_jax.runtime import sharding
from tests import tiny

PATH = tiny.ROOT / "notebooks" / "fsq.ipynb"


def code_cells(book: dict) -> list[dict]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    return "".join(line for output in cell["outputs"] for line in output.get("text", ()))


def pictures(cell: dict) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_it_runs_from_start_to_end_on_a_given_checkpoint(trained, monkeypatch, without_page):
    book = json.loads(PATH.read_text())
    monkeypatch.setenv("FSQ_JAX_NOTEBOOK_SCALE", "0.001")
    monkeypatch.setenv("FSQ_JAX_NOTEBOOK_CHECKPOINT", trained.tokenizer)
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, 1))
    verbosity = logging.get_verbosity()
    with matplotlib.rc_context():
        executed = notebook.execute(book)
    logging.set_verbosity(verbosity)
    for ours, committed in zip(code_cells(executed), code_cells(book), strict=True):
        without_checkpoint = "CHECKPOINT:" in "".join(committed["source"])
        assert pictures(ours) == pictures(committed) + without_checkpoint


def test_what_is_committed_is_small_and_of_one_run():
    assert PATH.stat().st_size < 300_000
    cells = code_cells(json.loads(PATH.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert "minutes on" in printed(cells[-1])
    assert any("1500 steps" in printed(cell) for cell in cells)  # the whole of it
