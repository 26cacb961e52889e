"""A linear layer: what it reads, and its output with its bias."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.sites.ancestry import is_stream
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.view import FlowNode


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    Attributes:
        product: the node that multiplies.
        u: its input, [batch, tokens, d_in] or [batch·tokens, d_in].
        h: its output with its bias, likewise.
    """

    product: FlowNode
    u: str
    h: str


def layer_of(index: FlowIndex, product: FlowNode) -> Layer | None:
    """The layer around a product with one trained matrix; none if adapters cannot act there.

    A layer of integers begins with what is quantised, and ends with what is scaled back. Where the tokens are put in
    one row for the product alone, it is what lies outside of that.
    """
    u, h = _read(index, product), _written(index, product)
    if u is None or not is_stream(index.flow, u) or not is_stream(index.flow, h):
        return None
    return Layer(product, *(_restored(index, u, h) or (u, h)))


def _read(index: FlowIndex, product: FlowNode) -> str | None:
    """What is multiplied; before it is quantised, as values of integers have no shape in a view."""
    value = product.operands[0]
    while value not in index.flow.shapes:
        node = index.producer(value)
        if node is None or not node.inputs:
            return None
        value = node.inputs[0]
    return value


def _written(index: FlowIndex, product: FlowNode) -> str:
    """The product, scaled back and with its bias; both stand behind it alone, and a bias belongs to the same module."""
    node, value = product, product.outputs[0]
    while node.finish != "bias":
        readers = index.readers(value)
        if len(readers) != 1 or value in index.flow.outputs or not _finishes(readers[0], product):
            break
        node, value = readers[0], readers[0].outputs[0]
    return value


def _finishes(node: FlowNode, product: FlowNode) -> bool:
    """Quantisers drop the path of a product that they replace, and keep that of its bias."""
    same_module = None in (node.path, product.path) or node.path == product.path
    return node.finish is not None and not node.multiplies and same_module


def _restored(index: FlowIndex, u: str, h: str) -> tuple[str, str] | None:
    """Both with batch and tokens apart, where they are only put together in between."""
    flow, source, readers = index.flow, index.producer(u), index.readers(h)
    if source is None or len(readers) != 1 or h in flow.outputs or (flow.rank(u), flow.rank(h)) != (2, 2):
        return None
    if source.kind != "layout" or readers[0].kind != "layout":
        return None
    before, after = source.inputs[0], readers[0].outputs[0]
    if (flow.rank(before), flow.rank(after)) != (3, 3):
        return None
    kept = flow.width(before) == flow.width(u) and flow.width(after) == flow.width(h)
    return (before, after) if kept else None
