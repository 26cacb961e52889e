"""A base with fused operators, made before the slots go in: what is fused afterwards may swallow a slot.

onnxscript's fusions for ONNX Runtime know the graphs that torch exports, which ONNX Runtime's own fusions do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxscript.rewriter.ort_fusions import optimize_for_ort

from adapter_export.errors import BaseModelError, argument
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.base.operators import SUMMANDS, fused_bias, is_skip_norm
from adapter_export.onnx_backend.graft.fused import open_sum, take_bias
from adapter_export.onnx_backend.quantise.precision import Deviation, in_memory, write_rewritten

_RULES_THAT_FAIL = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""The exceptions that rules of onnxscript raise on graphs that they do not expect."""


def optimized(base: OnnxBase, folder: Path) -> tuple[OnnxBase, Mapping[str, int]]:
    """Write a base with attention, norms and activations fused, and open it; count the fusions by onnxscript's names.

    Its precision, fingerprint, inputs, outputs and sites stay. The weights of the base are in memory meanwhile.
    `BaseModelError`: onnxscript cannot fuse it, or it is no longer the same base.
    """
    try:
        whole = ONNXModel(ir.to_proto(in_memory(base)))
        whole.replace_gemm_with_matmul()  # fused attention loses the reshape to two axes that `Gemm` needs behind it
        model, counts = optimize_for_ort(ir.from_proto(whole.model))
    except _RULES_THAT_FAIL as error:
        raise BaseModelError(
            "onnxscript cannot fuse the operators of the base",
            where=base.path,
            found=f"{type(error).__name__}: {error}".partition("\n")[0],
            fix=f"build it without {argument('optimize')}; ONNX Runtime fuses what it can when it loads the graph",
        ) from error
    made = write_rewritten(_with_sums_apart(model), base, folder, "optimised")
    return made, {name: count for name, count in counts.items() if count and not name.startswith("skip_")}


def _with_sums_apart(model: ir.Model) -> ir.Model:
    """Take the sums out of norms and activations again, where it is clear what a bias among them was added to.

    On a CPU the two take less time apart, and elsewhere ONNX Runtime fuses them when it loads.
    """
    for node in [node for node in model.graph.all_nodes() if is_skip_norm(node) or fused_bias(node) is not None]:
        summands, own = node.inputs[:SUMMANDS], [0]
        if is_skip_norm(node):
            own = [at for at, value in enumerate(summands) if value is not None and len(value.uses()) == 1]
        if fused_bias(node) is not None and len(own) != 1:
            continue
        bias = take_bias(node)
        if bias is not None:
            biased = ir.node("Add", [summands[own[0]], bias])
            biased.outputs[0].shape, biased.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            model.graph.insert_before(node, biased)
            node.replace_input_with(own[0], biased.outputs[0])
        if is_skip_norm(node):
            open_sum(node)
    return model


def check_deviation(found: Deviation) -> None:
    """Refuse an optimised base that differs from the plain one by more than rounding explains."""
    if not found.absolute <= found.allowed:  # NaN fails
        raise BaseModelError(
            "the optimised base does not compute what the plain one computes",
            where=f"output `{found.output}`",
            found=f"a deviation of {found.absolute:.2e}",
            expected=f"at most {found.allowed:.2e}",
            fix=f"build it without {argument('optimize')}, and report this with the base",
        )
