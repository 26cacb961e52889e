"""Cache of activations below the first adapter, computed once per row: they are equal in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from adapter_export.graph.tasks import TASK_TYPES
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.training.loop.data import Examples, Rows, evaluation_batches, in_order

_CLOSE, _CLOSE_IN_HALF = 1e-4, 0.05
"""Maximum rounding difference between results with and without the cache, relative to the largest."""


class HiddenCache:
    """Values of the base's graph that no adapter changes, [tokens, …] of each row, where adapters' layers read them.

    Other nodes below the first adapter, such as masks, are recomputed in each call. Padding contains zeros instead of
    the values of the base.
    """

    def __init__(self, above: fx.GraphModule, lengths: Rows, values: Sequence[Tensor]) -> None:
        """Store values [tokens of all rows, …], each with a final row of zeros."""
        self.above, self._lengths, self._values = above, lengths, values
        self._starts = np.cumsum(lengths) - lengths

    @property
    def bytes(self) -> int:
        """Size of its values in bytes."""
        return sum(value.nbytes for value in self._values)

    @classmethod
    def of(cls, model: AdaptedModel, examples: Examples, batch_size: int, budget: int) -> HiddenCache | None:
        """Compute the values of all rows; return `None` if that saves no product, exceeds `budget` bytes or is inexact.

        They are computed in fixed batches, so that a resumed run gets the same bits.
        """
        if TASK_TYPES[examples.problem].has_several:  # each row has several texts
            return None
        kept = _kept(model.body)
        below, above = _below(model.body, kept), _above(model.body, kept)
        products = {node.name for node in model.base.flow.nodes if node.multiplies}
        if not products.intersection(node.name for node in below.graph.nodes):
            return None
        tokens, cache = int(examples.lengths.sum()), cls(above, examples.lengths, ())
        batches = evaluation_batches(examples.lengths, batch_size)
        with torch.no_grad():
            for rows in batches:
                for call in examples.calls(rows, pads=model.pads):
                    values = below(*model.base.ordered(model.placed(call.inputs)))
                    places = cache._places(rows[call.places], values[0].device)
                    # the base was padded to a longer allowed length, so tokens are not where they are expected
                    if any(value.shape[:2] != places.shape for value in values):
                        return None
                    if not cache._values:
                        if (tokens + 1) * sum(value[0, 0].nbytes for value in values) > budget:
                            return None
                        cache._values = [value.new_zeros(tokens + 1, *value.shape[2:]) for value in values]
                    for value, part in zip(cache._values, values, strict=True):
                        value[places] = part
                        value[-1] = 0  # the row for padding
        return cache if cache._is_exact(model, examples, np.array([batches[0][0], batches[-1][-1]])) else None

    def _places(self, rows: Rows, device: torch.device) -> Tensor:
        """Return the indices of the tokens of rows, [rows, longest]; padding has the last index."""
        lengths, at = self._lengths[rows][:, None], np.arange(self._lengths[rows].max())
        places = np.where(at < lengths, self._starts[rows][:, None] + at, self._lengths.sum())
        return torch.from_numpy(places).to(device)

    def _is_exact(self, model: AdaptedModel, examples: Examples, rows: Rows) -> bool:
        """Return whether results for some rows, the shortest and the longest, match the whole graph.

        They do not if the graph is random, or depends on padding that no mask hides.
        """
        was_training = model.training
        model.eval()
        with torch.no_grad():
            whole, cached = (
                examples.matched(results_of(model, examples, rows, cache), rows)[0] for cache in (None, self)
            )
        model.train(was_training)
        close = _CLOSE_IN_HALF if torch.is_autocast_enabled(whole.device.type) else _CLOSE
        largest = float(whole[whole.isfinite()].abs().max())
        return bool(torch.isclose(cached, whole, rtol=0, atol=close * largest).all())

    @contextmanager
    def read(self, model: AdaptedModel, rows: Rows) -> Iterator[None]:
        """Make the model read these rows from the cache within a block."""
        body = model.body
        places = self._places(rows, self._values[0].device)
        given = _Given(self.above, [value[places] for value in self._values])
        model.body = cast("fx.GraphModule", given)
        try:
            yield
        finally:
            model.body = body


def results_of(model: AdaptedModel, examples: Examples, rows: Rows, cache: HiddenCache | None = None) -> Tensor:
    """Compute the results of a model for some rows; one call per length if padding changes results."""
    calls, found = list(examples.calls(rows, pads=model.pads)), []
    for call in calls:
        with nullcontext() if cache is None else cache.read(model, rows[call.places]):
            found.append(model.result(model.placed(call.inputs)))
    return in_order(found, calls)


class _Given(nn.Module):
    """The graph above some values, with the inputs of the whole graph."""

    def __init__(self, above: fx.GraphModule, values: Sequence[Tensor]) -> None:
        super().__init__()
        self.above, self.values = above, values

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the whole graph."""
        results: tuple[Tensor, ...] = self.above(*self.values, *inputs)
        return results


def _kept(body: fx.GraphModule) -> list[fx.Node]:
    """Return the values [batch, tokens, …] below every adapter that nodes above read."""
    above: set[fx.Node] = set()
    for node in body.graph.nodes:
        if node.op in ("call_module", "output") or above.intersection(node.all_input_nodes):
            above.add(node)
    rows = {_dims(node) for node in body.graph.find_nodes(op="placeholder")}
    return [
        node
        for node in body.graph.nodes
        if node.op == "call_function"
        and node not in above
        and above.intersection(node.users)
        and len(_dims(node)) > 2
        and _dims(node)[:2] in rows
    ]


def _dims(node: fx.Node) -> tuple[str, ...]:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else ()


def _below(body: fx.GraphModule, kept: Sequence[fx.Node]) -> fx.GraphModule:
    """Return the graph that computes the values from the inputs."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(body.graph, copies)
    graph.output(tuple(copies[node] for node in kept))
    return _tidy(fx.GraphModule(body, graph))


def _above(body: fx.GraphModule, cut_nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """Return the graph that computes the outputs from the values followed by the inputs."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    given = [graph.placeholder(f"kept_{place}") for place in range(len(cut_nodes))]
    graph.output(graph.graph_copy(body.graph, copies))
    for node, value in zip(cut_nodes, given, strict=True):
        copies[node].replace_all_uses_with(value)
    return _tidy(fx.GraphModule(body, graph))


def _tidy(module: fx.GraphModule) -> fx.GraphModule:
    """Remove unread nodes, including attention without dropout, which torch treats as random."""
    module.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    module.recompile()
    return module
