"""Walk back from a value to the products that it is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.view import FlowNode

_TURNS = frozenset({"transpose", "permute", "t", "mt", "movedim", "swapaxes"})


@dataclass(frozen=True)
class Reach:
    """What a value is computed from, up to the next products behind it.

    Attributes:
        values: the values on the way, the outputs of the products among them.
        nodes: the nodes on the way, in the order of evaluation.
        products: the products at its end, by name.
    """

    values: frozenset[str]
    nodes: tuple[FlowNode, ...]
    products: dict[str, FlowNode]

    def since(self, product: FlowNode) -> list[FlowNode]:
        """The nodes on the way from one of the products."""
        derived, found = set(product.outputs), []
        for node in self.nodes:
            if not derived.isdisjoint(node.inputs):
                derived.update(node.outputs)
                found.append(node)
        return found


def bends(nodes: Iterable[FlowNode]) -> bool:
    """Whether an activation is among them."""
    return any(node.kind == "activation" for node in nodes)


def turns(nodes: Iterable[FlowNode]) -> bool:
    """Whether one of them lets axes change places."""
    return any(node.op.lower() in _TURNS for node in nodes)


def reach(index: FlowIndex, value: str, ends: Set[str]) -> Reach:
    """Walk back from a value, over every way, to the next product or to one of the values `ends`."""
    values: set[str] = set()
    nodes: dict[str, FlowNode] = {}
    products: dict[str, FlowNode] = {}
    waiting = [value]
    while waiting:
        name = waiting.pop()
        node = index.producer(name)
        if name in values or name in ends or node is None:
            continue
        values.add(name)
        (products if node.multiplies else nodes)[node.name] = node
        waiting.extend(() if node.multiplies else node.inputs)
    ordered = sorted(nodes.values(), key=lambda node: index.position(node.outputs[0]))
    return Reach(frozenset(values), tuple(ordered), products)
