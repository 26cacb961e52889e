"""An option of `run` that reaches the runtime: the command, the row, the request and the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx

if TYPE_CHECKING:
    from conftest import TrialChange

COMMAND, ROW = "commands/bundles/run.py", "graph/tasks/asked.py"
REQUEST, SESSION = "runtime/batches.py", "runtime/session.py"
STRENGTH = "    strength: float = 1.0\n"


def test_an_option_that_reaches_the_runtime_touches_four_files(trial: TrialChange) -> None:
    declared = '    contrast: Annotated[float, Option("Multiply the results of heads.", "C")] = 1.0,\n'
    before = "    adapter_file: AdapterFile = None,\n"
    trial.edit(COMMAND, before, declared + before)
    trial.edit(COMMAND, "weights=weights).on_side(", "weights=weights, contrast=contrast).on_side(")
    trial.edit(ROW, STRENGTH, STRENGTH + "    contrast: float = 1.0\n")
    trial.edit(REQUEST, "head_only, row.where)", "head_only, row.where, contrast=row.contrast)")
    trial.edit(REQUEST, '    where: str = ""\n', '    where: str = ""\n    contrast: float = 1.0\n')
    trial.edit(
        SESSION,
        '        items = self._items(requests, self._entry, "request", allow_mixed_rows, token_budget)\n'
        "        return self._run_items(items, token_budget, allow_mixed_rows, reporter)\n",
        "        asked = list(requests)\n"
        '        items = self._items(asked, self._entry, "request", allow_mixed_rows, token_budget)\n'
        "        found = self._run_items(items, token_budget, allow_mixed_rows, reporter)\n"
        "        return [{name: array * one.contrast for name, array in outputs.items()}\n"
        "                for one, outputs in zip(asked, found, strict=True)]\n",
    )
    base = open_onnx(save_tiny(trial.folder))
    ae.save(random_adapter("a", houlsby(), base, labels="xy"), trial.folder / "a")
    trial.command("build", base.path, "--adapters", "a", "--variants", "slots", "-o", "bundle")
    ids = np.array([[3, 1, 4, 1, 5]], np.int64)
    np.savez(trial.folder / "rows.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    run = ("run", "bundle", "--adapter", "a", "--arrays", "rows.npz")
    plain, doubled = (trial.json(*run, *options)["rows"][0] for options in ((), ("--contrast", "2")))
    plain, doubled = (one["probabilities"] for one in (plain, doubled))
    assert not np.isclose(plain["x"], 0.5, atol=0.01)
    assert np.isclose(doubled["x"] / doubled["y"], (plain["x"] / plain["y"]) ** 2, rtol=1e-4)  # of doubled logits
    assert len(trial.touched) == 4
