"""The notebook runs from top to bottom, and its stored outputs are those of its code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT, Engines, model_dir
from tests.support.named_engines import named_engines

NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def read() -> Any:
    library: Any = nbformat  # without types
    return library.read(NOTEBOOK, as_version=4)


def test_outputs_are_stored() -> None:
    shown = 0
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None, cell.source
            assert all(output.output_type != "error" for output in cell.outputs)
            shown += bool(cell.outputs)
    assert shown >= 10


def test_nothing_of_a_machine_is_stored() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert "/tmp/" not in text


@pytest.mark.slow
def test_it_runs(engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name: model_dir(name) for name in ("base", "tiny.en")}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = read()
    precisions = {"tiny.en": ("int8", "fp32")}
    with named_engines(tmp_path, names, precisions, made=engines.path):
        where = {"metadata": {"path": str(NOTEBOOK.parent)}}
        NotebookClient(notebook, timeout=600, resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert {"text/html", "image/png"} <= {kind for one in outputs for kind in one.get("data", ())}
