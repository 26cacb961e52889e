"""What a graph costs: parameters, bytes, multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapter_export.graph.graph import AdapterGraph, resolve
from adapter_export.graph.ops import OPS

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """The price of one graph at one site.

    Attributes:
        parameters: how many numbers it stores.
        bytes: their size in float32.
        multiply_accumulates: those of its matrix products, per token; element-wise work is not counted.
    """

    parameters: int
    bytes: int
    multiply_accumulates: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.multiply_accumulates + other.multiply_accumulates,
        )


NO_COST = Cost(0, 0, 0)


def cost(graph: AdapterGraph, widths: Mapping[str, int]) -> Cost:
    """Count a graph at given widths.

    Args:
        graph: the graph.
        widths: a number for each of its symbols, such as `{"d": 384, "b": 64}`.
    """
    return stored(graph.parameter_shapes(widths).values(), _multiply_accumulates(graph, widths))


def stored(shapes: Iterable[tuple[int, ...]], multiply_accumulates: int) -> Cost:
    """The price of float32 tensors of these shapes, and of the work that is done with them."""
    parameters = sum(map(math.prod, shapes))
    return Cost(parameters, parameters * _FLOAT32_BYTES, multiply_accumulates)


def _multiply_accumulates(graph: AdapterGraph, widths: Mapping[str, int]) -> int:
    total = 0
    for node in graph.nodes:
        spec = OPS[node.op]
        dims: dict[str, int] = {}
        for parameter in spec.parameters:
            if parameter.role in node.parameters:
                shape = graph.parameters[node.parameters[parameter.role]]
                pairs = zip(parameter.shape, shape, strict=True)
                dims.update({name: resolve(dim, widths) for name, dim in pairs if isinstance(name, str)})
        total += spec.multiply_accumulates(dims)
    return total
