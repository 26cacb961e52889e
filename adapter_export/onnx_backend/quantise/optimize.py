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
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.quantise.rewrite import Deviation, in_memory, write_rewritten

Fusions = Mapping[str, int]
"""The number of each fusion that was made, by onnxscript's name for it; only those that were."""

_RULES_THAT_FAIL = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""The exceptions that rules of onnxscript raise on graphs that they do not expect."""


def optimized(base: OnnxBase, folder: Path) -> tuple[OnnxBase, Fusions]:
    """Write a base with attention, norms and activations fused, and open it.

    Its fingerprint, inputs, outputs and sites stay. The weights of the base are in memory meanwhile.

    Args:
        base: the base.
        folder: where the files go, with the names `base.onnx` and `base.bin`.

    Raises:
        BaseModelError: onnxscript cannot fuse it, or it is no longer the same base.
        OSError: the operating system refused a write.
    """
    try:
        model, counts = optimize_for_ort(_without_gemm(in_memory(base)))
    except _RULES_THAT_FAIL as error:
        raise BaseModelError(
            "onnxscript cannot fuse the operators of the base",
            where=base.path,
            found=f"{type(error).__name__}: {error}".partition("\n")[0],
            fix=f"build it without {argument('optimize')}; ONNX Runtime fuses what it can when it loads the graph",
        ) from error
    return write_rewritten(model, base, folder, "optimised"), {name: count for name, count in counts.items() if count}


def _without_gemm(model: ir.Model) -> ir.Model:
    """Fused attention loses the reshape to two axes behind it, which `Gemm` needs and `MatMul` does not."""
    whole = ONNXModel(ir.to_proto(model))
    whole.replace_gemm_with_matmul()
    made: ir.Model = ir.from_proto(whole.model)
    return made


def check_deviation(found: Deviation) -> None:
    """Refuse an optimised base that computes something else.

    Raises:
        BaseModelError: it differs from the plain one by more than rounding explains.
    """
    if not found.absolute <= found.allowed:  # NaN fails
        raise BaseModelError(
            "the optimised base does not compute what the plain one computes",
            where=f"output `{found.output}`",
            found=f"a deviation of {found.absolute:.2e}",
            expected=f"at most {found.allowed:.2e}",
            fix=f"build it without {argument('optimize')}, and report this with the base",
        )
