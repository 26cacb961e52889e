"""Expand sums of activations inside other operators of a torch graph, so that each sum is an `add` or a `sub`.

Results are unchanged within rounding; `onnx_backend.base.normalise.open_sums` does the same to ONNX graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten

Make = Callable[..., fx.Node]
"""Function that inserts a call of an operator before the node being expanded."""


def _scaled(make: Make, value: Any, factor: object) -> Any:
    return value if factor == 1 else make(_ATEN.mul.Tensor, value, factor)


def _add(make: Make, x: Any, h: Any, alpha: object = 1) -> fx.Node:
    return make(_ATEN.add.Tensor, x, _scaled(make, h, alpha))


def _sub(make: Make, x: Any, h: Any, alpha: object = 1) -> fx.Node:
    return make(_ATEN.sub.Tensor, x, _scaled(make, h, alpha))


def _product(operator: Callable[..., Any]) -> Callable[..., fx.Node]:
    def written(make: Make, x: Any, left: Any, right: Any, beta: object = 1, alpha: object = 1) -> fx.Node:
        return make(_ATEN.add.Tensor, _scaled(make, x, beta), _scaled(make, make(operator, left, right), alpha))

    return written


def _elementwise(operator: Callable[..., Any]) -> Callable[..., fx.Node]:
    def written(make: Make, x: Any, one: Any, other: Any, value: object = 1) -> fx.Node:
        return make(_ATEN.add.Tensor, x, make(operator, _scaled(make, one, value), other))

    return written


def _lerp(make: Make, start: Any, end: Any, weight: object) -> fx.Node:
    return make(_ATEN.add.Tensor, start, make(_ATEN.mul.Tensor, make(_ATEN.sub.Tensor, end, start), weight))


_WRITTEN: dict[str, Callable[..., fx.Node]] = {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "rsub": lambda make, h, x, alpha=1: _sub(make, x, h, alpha),
    "addmm": _product(_ATEN.mm.default),
    "baddbmm": _product(_ATEN.bmm.default),
    "addcmul": _elementwise(_ATEN.mul.Tensor),
    "addcdiv": _elementwise(_ATEN.div.Tensor),
    "lerp": _lerp,
}
"""Expansion of each operator, called with its arguments by their names in torch."""


def open_sums(module: fx.GraphModule) -> None:
    """Expand the sums of two activations [batch, tokens, d] or [batch·tokens, d] in a graph, in place.

    The expanded value keeps its name, so that site maps fit before and after.
    """
    fed: set[fx.Node] = set()
    changed = False
    for node in list(module.graph.nodes):
        if node.op == "placeholder" or not fed.isdisjoint(node.all_input_nodes):
            fed.add(node)
        if node.op == "call_function" and _is_stream(node):
            write = _written(node, fed)
            if write is not None:
                fed.add(_replace(node, write))
                changed = True
    if changed:
        module.recompile()


def _written(node: fx.Node, fed: Set[fx.Node]) -> Callable[[Make], fx.Node] | None:
    """Return the function that expands a node; `None` if it adds no activations of `fed`, or is a plain sum."""
    name = _operator(node)
    parts = _stacked(node, name)
    if parts:
        return partial(_total, parts=parts, mean=name == "mean")
    read = node.args[0] if node.args else None
    summands = sum(_is_stream(each) for each in node.all_input_nodes if each in fed)
    if name not in _WRITTEN or read not in fed or summands < 2:
        return None
    if name in ("add", "sub", "subtract") and node.kwargs.get("alpha", 1) == 1:
        return None
    write, args, kwargs = _WRITTEN[name], node.args, node.kwargs
    return lambda make: write(make, *args, **kwargs)


def _operator(node: fx.Node) -> str:
    """Return the name without overload: `add` for `aten.add.Tensor`; in-place operators keep their mark."""
    return getattr(node.target, "__name__", "").partition(".")[0]


def _is_stream(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() in (2, 3) and isinstance(value.shape[-1], int)


def _total(make: Make, parts: Sequence[fx.Node], *, mean: bool) -> fx.Node:
    total = parts[0]
    for part in parts[1:]:
        total = make(_ATEN.add.Tensor, total, part)
    return make(_ATEN.div.Tensor, total, len(parts)) if mean else total


def _stacked(node: fx.Node, name: str) -> list[fx.Node]:
    """Return the tensors that a node sums or averages over the axis on which they were stacked."""
    whole = node.args[0] if node.args else None
    if name not in ("sum", "mean") or not isinstance(whole, fx.Node) or len(node.args) < 2 or len(node.args) > 2:
        return []
    maker = _operator(whole)
    if maker not in ("stack", "cat") or node.kwargs.get("dtype") is not None:
        return []
    rank = whole.meta["val"].dim()
    reduced = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    axis: Any = whole.args[1] if len(whole.args) > 1 else whole.kwargs.get("dim", 0)
    parts: Any = whole.args[0]
    if len(reduced) != 1 or len(parts) < 2 or reduced[0] % rank != axis % rank:
        return []
    if maker == "stack":
        return list(parts)
    opened = [part.args for part in parts if _operator(part) == "unsqueeze"]
    alone = len(opened) == len(parts) and all(args[1] % rank == axis % rank for args in opened)
    return [args[0] for args in opened] if alone else []


def _replace(node: fx.Node, write: Callable[[Make], fx.Node]) -> fx.Node:
    """Replace a node by the result of `write`, under the node's name."""
    graph, result = node.graph, node.meta["val"]

    def make(operator: Callable[..., Any], *args: Any) -> fx.Node:
        made = graph.call_function(operator, args)
        made.meta = {**node.meta, "val": operator(*fx.map_arg(args, lambda each: each.meta["val"]))}
        return made

    with graph.inserting_before(node):
        total = write(make)
    assert total.meta["val"].shape == result.shape
    name = node.name
    node.replace_all_uses_with(total)
    graph.erase_node(node)
    total.name = name
    return total
