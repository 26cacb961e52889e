"""A neutral view of a dataflow graph: what discovery needs to know, whichever framework the graph is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

NodeKind = Literal["add", "product", "attention", "norm", "other"]


@dataclass(frozen=True)
class FlowNode:
    """One operation.

    Attributes:
        name: unique in the graph.
        kind: `add` for an element-wise sum of two activations; `product` for a matrix product or convolution;
            `attention` for a softmax or a fused attention; `norm` for a layer or RMS norm in one node; else `other`.
        op: the framework's own name of it, for tables.
        inputs: the activations it reads, in order; weights and constants are left out.
        outputs: the values it defines.
        weighted: whether it reads a trained weight.
        path: the module path that the exporter recorded, if any.
    """

    name: str
    kind: NodeKind
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weighted: bool
    path: str | None = None


@dataclass(frozen=True)
class FlowGraph:
    """A base seen as dataflow.

    Attributes:
        nodes: in the order of evaluation.
        widths: the size of the last axis of each value, where it is a known number.
        ranks: the number of axes of each value, where it is known.
        outputs: the values that the base returns.
    """

    nodes: Sequence[FlowNode]
    widths: dict[str, int]
    ranks: dict[str, int]
    outputs: tuple[str, ...]
