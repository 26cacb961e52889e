"""Cost of each form of the graph: slots, required inputs, bank and constants, relative to the base.

    python benchmarks/forms.py                                  # all-MiniLM-L6-v2, from `make setup`
    python benchmarks/forms.py --model model.onnx --shapes 1x16,8x128 --provider cuda

`base + arithmetic` is the base plus, timed separately, a graph with only the operations of the adapter: the minimum
cost of an adapter. Calls are interleaved; each ratio compares two calls of one round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from kit.adapters import arithmetic_alone
from kit.graphs import Graph
from kit.part import Part, Settings
from kit.subject import Arrays, Subject
from kit.tables import Cell, Table
from kit.timing import Call, Times, interleaved, milliseconds, ratio

from adapter_export.format.tensors import read_tensors

_ALONE = "arithmetic"
_COLUMNS = {
    "constants": "adapter as constants",
    "slots": "slots, adapter fed",
    "idle": "slots, no adapter",
    "inputs": "required inputs",
    "bank": "bank, one adapter",
    "rows": "bank, one per row",
}


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """The times of every form over that of the base, for each shape."""
    graphs = _graphs(subject, settings)
    rows = []
    for batch, tokens in settings.shapes:
        times = interleaved(_calls(graphs, subject, batch, tokens), settings.pace)
        rows.append([f"{batch} × {tokens}", milliseconds(times, "base"), *_ratios(times)])
    columns = ["batch × tokens", "base, ms", "base + arithmetic", *_COLUMNS.values(), "slots over base + arithmetic"]
    note = "Times relative to the base without adapters: median and quartiles."
    return [Table("Cost of each form of the graph", columns, rows, note)]


def _graphs(subject: Subject, settings: Settings) -> dict[str, Graph]:
    folder, manifest = subject.bundle.folder, subject.bundle.manifest
    files = {name: folder / path for name, path in manifest.graphs.items()}
    files |= {"base": subject.base.path, "constants": folder / (manifest.adapters[0].baked or "")}
    files[_ALONE] = _saved(arithmetic_alone(subject.adapters[0], subject.base), subject.folder / "arithmetic.onnx")
    return {name: Graph(path, settings.provider, settings.threads) for name, path in files.items()}


def _saved(model: ir.Model, path: Path) -> Path:
    ir.save(model, path)
    return path


def _calls(graphs: dict[str, Graph], subject: Subject, batch: int, tokens: int) -> dict[str, Call]:
    manifest, inputs = subject.bundle.manifest, subject.inputs(batch, tokens)
    adapter = read_tensors(subject.bundle.folder / manifest.adapters[0].safetensors)
    alone = {"h": np.ones((batch, tokens, subject.base.sites.width), "f4"), "mask": np.ones((batch, tokens), "f4")}
    calls = {
        "base": graphs["base"].call(inputs),
        _ALONE: graphs[_ALONE].call(alone),
        "constants": graphs["constants"].call(inputs),
        "slots": graphs["slots"].call({**inputs, **adapter}),
        "idle": graphs["slots"].call(inputs),
        "inputs": graphs["inputs"].call({**inputs, **adapter}),
        "bank": graphs["bank"].call({**inputs, **_ids(subject, [1] * batch)}),
    }
    if batch > 1:
        last = len(subject.adapters)
        calls["rows"] = graphs["bank"].call({**inputs, **_ids(subject, [1 + row % last for row in range(batch)])})
    return calls


def _ids(subject: Subject, rows: list[int]) -> Arrays:
    bank = subject.bundle.manifest.bank
    assert bank is not None  # a bundle of adapters of one kind has one
    return {bank.ids: np.array(rows, np.int64)}


def _ratios(times: Times) -> list[Cell]:
    least = {**times, "least": [base + own for base, own in zip(times["base"], times[_ALONE], strict=True)]}
    forms = [ratio(times, name, "base") if name in times else None for name in _COLUMNS]
    return [ratio(least, "least", "base"), *forms, ratio(least, "slots", "least")]


PART = Part(__doc__ or "", ("provider", "threads", "rounds", "seconds", "shapes"), measure)

if __name__ == "__main__":
    PART.main()
