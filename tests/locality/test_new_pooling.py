"""A new pooling: an op whose row names it; options, heads, records and exports follow from the row."""

from __future__ import annotations

from pathlib import Path

from small_encoder import save_encoder

OPS, NUMPY = "graph/ops.py", "graph/numpy_lowering.py"
TORCH, ONNX = "torch_backend/torch_lowering.py", "onnx_backend/onnx_lowering.py"

ROW = """
    OpSpec(
        "sum_pool",
        "Σₜ mask·x, from [batch, tokens, width] and [batch, tokens] to [batch, width]",
        arity=_TWO,
        shape=masked,
        sums=(TOKENS,),
        linear_in="first",
        mixes_tokens=True,
        three_axes=True,
        pooling="sum",
        pooled="the sum of the tokens",
    ),
"""
IN_NUMPY = """
    "sum_pool": Rule(
        lambda _node, values, _owned: (values[1][:, :, None] * values[0]).sum(1),
        lambda _node, values, _owned, gradient: (
            (values[1][:, :, None] * gradient[:, None], (values[0] @ gradient[:, :, None])[:, :, 0]),
            {},
        ),
    ),
"""
IN_TORCH = '    "sum_pool": lambda _node, values, _owned: (values[1].unsqueeze(1) @ values[0]).squeeze(1),\n'
WRITE = """
def _sum_pool(writer: Writer, node: Node, values: Values, _: Owned) -> ir.Value:
    (x, mask), name = values, node.output
    axis = writer.integers(f"{name}/axis", [1])
    row = mask if writer.stacked else writer.op(f"{name}/row", "Unsqueeze", (mask, axis))
    total = writer.op(f"{name}/product", "MatMul", (row, x))
    return total if writer.stacked else writer.op(name, "Squeeze", (total, axis))


"""
IN_ONNX = '    "sum_pool": _sum_pool,\n'
TRAIN = """
import sys, torch
import adapter_export as ae

torch.manual_seed(0)
with ae.attach(ae.open_base(sys.argv[1]), kind="pfeiffer", bottleneck=3, labels=["a", "b"], pooling="sum") as adapter:
    ids = {"input_ids": torch.tensor([[2, 4, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    optimizer = torch.optim.SGD(adapter.learned().values(), lr=0.5)
    adapter(**ids)["logits"].square().mean().backward()
    optimizer.step()
    adapter.save(sys.argv[2])
"""


def test_a_pooling_touches_four_files(trial, tmp_path: Path) -> None:
    base = save_encoder(tmp_path / "model.pt")
    first = '    OpSpec(\n        "first_token",'
    trial.edit(OPS, first, f"{ROW.lstrip()}{first}")
    trial.edit(NUMPY, '    "mean_pool": Rule(', f'{IN_NUMPY}    "mean_pool": Rule(')
    trial.edit(TORCH, '    "mean_pool": _mean_pool,\n', f'{IN_TORCH}    "mean_pool": _mean_pool,\n')
    trial.edit(ONNX, "def _mean_pool(", f"{WRITE.lstrip()}def _mean_pool(")
    trial.edit(ONNX, '    "mean_pool": _mean_pool,\n', f'{IN_ONNX}    "mean_pool": _mean_pool,\n')
    trial.python(TRAIN, base, tmp_path / "summed")
    assert '"sum_pool"' in (tmp_path / "summed" / "adapter_graph.json").read_text(encoding="utf-8")
    assert "the sum of the tokens" in " ".join(trial.command("train", "--help", "task").split())
    trial.command("build", base, "--adapters", tmp_path / "summed", "-o", tmp_path / "bundle")
    trial.command("check", tmp_path / "bundle", "--quick")
    assert set(trial.touched) == {OPS, NUMPY, TORCH, ONNX}
