"""A new op: its row in the table and three lowerings; folding, slots, budgets and checks follow from the row."""

from __future__ import annotations

from pathlib import Path

from small_encoder import save_encoder

OPS, NUMPY = "graph/ops.py", "graph/numpy_lowering.py"
TORCH, ONNX = "torch_backend/torch_lowering.py", "onnx_backend/onnx_lowering.py"

ROW = """
    OpSpec(
        "bent_elu",
        "x where x > 0, bend·(exp(x) − 1) elsewhere",
        attributes={"bend": FLOAT32_RANGE},
        defaults={"bend": 0.7},
        keeps_zero=True,
    ),
"""
IN_NUMPY = """
    "bent_elu": Rule(
        lambda node, values, _owned: np.where(values[0] > 0, values[0], node.attributes["bend"] * _elu(values[0])),
        lambda node, values, _owned, gradient: (
            (gradient * np.where(values[0] > 0, 1, node.attributes["bend"] * _elu_slope(values[0])),),
            {},
        ),
    ),
"""
IN_TORCH = '    "bent_elu": lambda node, values, _owned: F.elu(values[0], node.attributes["bend"]),\n'
IN_ONNX = """
    "bent_elu": lambda writer, node, values, _owned: writer.op(
        node.output, "Elu", values, {"alpha": float(node.attributes["bend"])}
    ),
"""
TRAIN = """
import sys, torch
import adapter_export as ae

torch.manual_seed(0)
with ae.attach(ae.open_base(sys.argv[1]), kind="pfeiffer", activation="bent_elu", bottleneck=3) as adapter:
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

graph, rng = bottleneck("h", BottleneckOptions("bent_elu")), np.random.default_rng(0)
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
    trial.edit(OPS, '    OpSpec("identity", ', f'{ROW}    OpSpec("identity", ')
    trial.edit(NUMPY, '    "identity": _NOTHING,\n', f'{IN_NUMPY}    "identity": _NOTHING,\n')
    in_torch = '    "identity": _elementwise(lambda x: x),\n'
    trial.edit(TORCH, in_torch, IN_TORCH + in_torch)
    trial.edit(ONNX, '    "identity": nothing,\n', f'{IN_ONNX}    "identity": nothing,\n')
    trial.python(GRADIENTS)
    trial.python(TRAIN, base, tmp_path / "soft")
    assert '"bent_elu"' in (tmp_path / "soft" / "adapter_graph.json").read_text(encoding="utf-8")
    trial.command("build", base, "--adapters", tmp_path / "soft", "-o", tmp_path / "bundle")
    trial.command("check", tmp_path / "bundle", "--quick")
    assert set(trial.touched) == {OPS, NUMPY, TORCH, ONNX}
