"""The ONNX lowering: every op as nodes of the standard ONNX domain, one file per family of ops."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.interpret import Lowering, interpret
from adapter_export.onnx.lowering import activations, factors, norms, pooling, projections, sums
from adapter_export.onnx.lowering.writer import MINIMUM_OPSET, Owned, Write, Writer

__all__ = ["MINIMUM_OPSET", "Writer", "emit", "lowerings"]

_WRITE: Mapping[str, Write] = {
    **projections.WRITE,
    **activations.WRITE,
    **factors.WRITE,
    **sums.WRITE,
    **norms.WRITE,
    **pooling.WRITE,
}


def emit(graph: AdapterGraph, inputs: Owned, parameters: Owned, writer: Writer) -> ir.Value:
    """Write an adapter graph as ONNX nodes.

    Args:
        graph: best in its `inference_form`; what acts in training alone writes nothing.
        inputs: the ONNX value of each site value that the graph reads; in a head, `mask` as floating-point numbers.
        parameters: the ONNX value of each parameter, [in, out] for weights; each feeds its `MatMul` as it is.
        writer: where the nodes go, and under which names.

    Returns:
        The value of the graph's result; one of `inputs` if the graph computes nothing.
    """
    return interpret(graph, lowerings(writer), inputs, parameters)[graph.result]


def lowerings(writer: Writer) -> Mapping[str, Lowering[ir.Value]]:
    """The ops, each writing its nodes by `writer`."""
    return {op: _bound(write, writer) for op, write in _WRITE.items()}


def _bound(write: Write, writer: Writer) -> Lowering[ir.Value]:
    return lambda node, values, owned: write(writer, node, values, owned)
