"""Graphs for training on the CPU: the same results within rounding, with faster products and attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter

import torch
from torch import Tensor, fx

from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.torch_backend.packed_linear import SMALLEST, PackedLinear, can_pack
from adapter_export.torch_backend.short_attention import attend
from adapter_export.training.loop.cache import HiddenCache

_LINEAR = torch.ops.aten.linear.default
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@contextmanager
def faster_graphs(model: AdaptedModel, caches: Sequence[HiddenCache | None], budget: int) -> Iterator[None]:
    """Rewrite the graphs of a float32 model on the CPU, and of its caches, within a block.

    Copies of frozen weights take at most `budget` bytes; weights that do not fit keep their product.
    """
    body, rewriter = model.body, _Rewriter(budget)
    for cache in caches:
        if cache is not None:
            cache.above = rewriter.rewrite(cache.above)
    # with a cache of all rows, nothing reads the whole graph
    if None in caches:
        model.body = rewriter.rewrite(body)
    try:
        yield
    finally:
        model.body = body


class _Rewriter:
    """Rewrites graphs of one model, which share packed weights."""

    def __init__(self, budget: int) -> None:
        self._left = budget if can_pack() else 0
        self._packed: dict[tuple[str, bool], PackedLinear] = {}

    def rewrite(self, body: fx.GraphModule) -> fx.GraphModule:
        """Return a graph with the weights of `body`, which is not changed."""
        graph = fx.Graph()
        graph.output(graph.graph_copy(body.graph, {}))
        result, adapted = fx.GraphModule(body, graph), set[fx.Node]()
        for node in graph.nodes:
            if _has_tensors(body, node) or adapted.intersection(node.all_input_nodes):
                adapted.add(node)
            if node.target is _ATTENTION:
                node.target = attend
            elif node.target is _LINEAR and _is_frozen(body, node):
                self._pack(result, node, backward=node in adapted)
        graph.lint()
        result.recompile()
        return result

    def _pack(self, result: fx.GraphModule, node: fx.Node, *, backward: bool) -> None:
        """Replace a product by one with a packed weight, if there is memory for it."""
        weight, bias = (_constant(result, node, place) for place in (1, 2))
        assert weight is not None  # a product has a weight
        key = (" ".join(str(getattr(each, "target", None)) for each in node.args[1:]), backward)
        if key not in self._packed:
            needed = weight.nbytes * (1 + backward)
            if needed > self._left:
                return
            self._left -= needed
            self._packed[key] = PackedLinear(weight, bias, backward=backward)
        name = f"packed_{list(self._packed).index(key)}"
        result.add_submodule(name, self._packed[key])
        node.op, node.target, node.args = "call_module", name, node.args[:1]


def _has_tensors(body: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a node is an adapter, or a weight that is trained."""
    return node.op == "call_module" or (node.op == "get_attr" and attrgetter(str(node.target))(body).requires_grad)


def _is_frozen(body: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a product has a constant float32 weight that is worth packing, and a constant bias, if any."""
    x, *constants = node.args
    if not isinstance(x, fx.Node) or not all(
        each is None or (isinstance(each, fx.Node) and each.op == "get_attr") for each in constants
    ):
        return False
    weight, bias = _constant(body, node, 1), _constant(body, node, 2)
    value = x.meta.get("val")
    return (
        weight is not None
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and weight.numel() >= SMALLEST
        and not any(each is not None and each.requires_grad for each in (weight, bias))
        and isinstance(value, Tensor)
        and value.dim() > 1
    )


def _constant(body: fx.GraphModule, node: fx.Node, place: int) -> Tensor | None:
    """Return a constant operand of a node; `None` without one."""
    operand = node.args[place] if len(node.args) > place else None
    if not isinstance(operand, fx.Node):
        return None
    constant: Tensor = attrgetter(str(operand.target))(body)
    return constant
