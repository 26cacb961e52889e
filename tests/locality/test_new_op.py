"""A new op: its row in the table and three lowerings; folding, slots, budgets and checks follow from the row."""

from __future__ import annotations

from pathlib import Path

from small_encoder import save_encoder

OPS, NUMPY = "graph/ops.py", "graph/numpy_lowering.py"
TORCH, ONNX = "torch_backend/torch_lowering.py", "onnx_backend/onnx_lowering.py"

TRAIN = """
import sys, torch
import adapter_export as ae

torch.manual_seed(0)
with ae.attach(ae.open_base(sys.argv[1]), kind="pfeiffer", activation="softsign", bottleneck=3) as adapter:
    ids = {"input_ids": torch.tensor([[2, 4, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    optimizer = torch.optim.SGD(adapter.learned().values(), lr=0.5)
    adapter(**ids)["hidden"].square().mean().backward()
    optimizer.step()
    adapter.save(sys.argv[2])
"""
GRADIENTS = """
import numpy as np
from adapter_export.graph.kinds import BottleneckOptions, bottleneck
from adapter_export.graph.slot_form import neutral_parameters, neutral_widths
from adapter_export.numerics.evaluate_adapter import evaluate, gradients

graph, rng = bottleneck("h", BottleneckOptions("softsign")), np.random.default_rng(0)
own = {name: rng.normal(size=shape) for name, shape in graph.parameter_shapes({"d": 4, "b": 2}).items()}
h, step = rng.normal(size=(1, 3, 4)), 1e-6
of_h = gradients(graph, {"h": h}, own, np.ones_like(h))[0]["h"]
moved = np.zeros_like(h)
moved[0, 1, 2] = step
both = [evaluate(graph, {"h": h + sign * moved}, own).sum() for sign in (1, -1)]
assert abs((both[0] - both[1]) / (2 * step) - of_h[0, 1, 2]) < 1e-6
assert not any(one.any() for one in neutral_parameters(graph, neutral_widths(graph, {"d": 4})).values())
"""


def test_an_op_is_a_row_and_three_lowerings(trial, tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "model.pt")
    row = '    OpSpec("softsign", "x/(1 + |x|)", keeps_zero=True, degree=bounded),\n'
    identity = '    OpSpec("identity", "x", '
    trial.edit(OPS, identity, row + identity)
    rule = '    "softsign": _elementwise(lambda x: x / (1 + np.abs(x)), lambda x: 1 / np.square(1 + np.abs(x))),\n'
    trial.edit(NUMPY, '    "identity": _NOTHING,\n', rule + '    "identity": _NOTHING,\n')
    identity = '    "identity": _elementwise(lambda x: x),\n'
    trial.edit(TORCH, identity, '    "softsign": _elementwise(F.softsign),\n' + identity)
    trial.edit(ONNX, '    "identity": nothing,\n', '    "softsign": one("Softsign"),\n    "identity": nothing,\n')
    trial.python(GRADIENTS)
    trial.python(TRAIN, base, tmp_path / "soft")
    assert '"softsign"' in (tmp_path / "soft" / "adapter_graph.json").read_text(encoding="utf-8")
    trial.command("build", base, "--adapters", tmp_path / "soft", "-o", tmp_path / "bundle")
    trial.command("check", tmp_path / "bundle", "--quick")
    assert set(trial.touched) == {OPS, NUMPY, TORCH, ONNX}
