"""A graph run piece by piece, so that the weights of one piece at a time are in memory.

ONNX Runtime maps weights from their file, and what it has read of a mapped file stays in memory, as long as a session
is open. A graph of many weights is cut between its nodes into pieces that run one after the other, each in a session
of its own; the values that cross a cut are handed over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.onnx.session import open_session, run_session
from adapter_export.reference.runner import Arrays

PIECE_BYTES = 160 * 2**20
"""The most weights of one piece; a node that has more is a piece by itself."""


class Pieces:
    """A graph that is run seldom; each piece is opened when its turn comes, and closed before the next.

    Args:
        model: the graph, its nodes in the order of evaluation.
        folder: where its external data lie.
        optimize: whether ONNX Runtime may rewrite each piece.
        size: the most bytes of external weights of one piece; `PIECE_BYTES` if not given.
        keep: leave every piece open for the next run, since its weights are few.
    """

    def __init__(
        self, model: ir.Model, folder: Path, *, optimize: bool = True, size: int | None = None, keep: bool = False
    ) -> None:
        self._open: dict[int, ort.InferenceSession] | None = {} if keep else None
        self._folder = folder
        self._optimize = optimize
        self._outputs = [_name(value) for value in model.graph.outputs]
        self._models = _cut(model, PIECE_BYTES if size is None else size)

    def __len__(self) -> int:
        return len(self._models)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name.

        Args:
            feeds: the inputs, and tensors for overridable initializers; what the graph does not read is left alone.

        Raises:
            BaseModelError: ONNX Runtime cannot open a piece.
            RequestError: it cannot compute these inputs.
        """
        return self.run_all([feeds])[0]

    def run_all(self, requests: Sequence[Mapping[str, np.ndarray]]) -> list[Arrays]:
        """As `run` for each request, with each piece opened once."""
        known: list[Arrays] = [dict(feeds) for feeds in requests]
        for model in self._models:
            self._run_piece(model, known)
        return [{name: values[name] for name in self._outputs} for values in known]

    def _run_piece(self, model: ir.Model, known: Sequence[Arrays]) -> None:
        """A function of its own, at whose end the session is closed."""
        session = None if self._open is None else self._open.get(id(model))
        if session is None:
            session = open_session(model, self._folder, optimize=self._optimize, pack=False)
        if self._open is not None:
            self._open[id(model)] = session
        inputs = [_name(value) for value in model.graph.inputs]
        for values in known:
            values.update(run_session(session, {name: values[name] for name in inputs if name in values}))


def weights_are_many(model: ir.Model) -> bool:
    """Whether a graph has more weights outside of its file than one piece."""
    return sum(_external_bytes(value) for value in model.graph.initializers.values()) > PIECE_BYTES


def _cut(model: ir.Model, size: int) -> list[ir.Model]:
    nodes = list(model.graph)
    if any(value.producer() is None for value in model.graph.outputs):  # such an output crosses no cut
        return [model]
    reads = [_reads(node, model.graph) for node in nodes]
    last = {value: at for at, values in enumerate(reads) for value in values}
    last.update(dict.fromkeys(model.graph.outputs, len(nodes)))
    pieces, start = [], 0
    for end in (*_ends(nodes, reads, last, size), len(nodes)):
        pieces.append(_piece(model, nodes[start:end], reads[start:end], [v for v in last if last[v] >= end]))
        start = end
    return pieces


def _ends(
    nodes: Sequence[ir.Node], reads: Sequence[Collection[ir.Value]], last: Mapping[ir.Value, int], size: int
) -> Iterator[int]:
    """Before which nodes to cut: as late as the weights allow, between values whose types are known."""
    weights: set[ir.Value] = set()
    open_: set[ir.Value] = set()
    able = None
    for at, node in enumerate(nodes):
        added = weights | {value for value in reads[at] if _external_bytes(value)}
        if able is not None and sum(map(_external_bytes, added)) > size:
            yield able
            able, added = None, added - weights
        weights = added
        open_ |= {value for value in node.outputs if last.get(value, at) > at}
        open_ = {value for value in open_ if last[value] > at}
        if weights and all(isinstance(value.type, ir.TensorType) for value in open_):
            able = at + 1


def _piece(
    model: ir.Model, nodes: Sequence[ir.Node], reads: Sequence[Collection[ir.Value]], needed: Collection[ir.Value]
) -> ir.Model:
    made = {value for node in nodes for value in node.outputs}
    given = {value for values in reads for value in values if value not in made}
    overridable = set(model.graph.inputs)
    initializers = [value for value in given if value.is_initializer()]
    view = ir.GraphView(
        [value for value in given if value in overridable or not value.is_initializer()],
        [value for value in needed if value in made],
        nodes=nodes,
        initializers=initializers,
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    return ir.Model(view.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))


def _reads(node: ir.Node, graph: ir.Graph) -> set[ir.Value]:
    """What a node reads, itself or in a graph inside of it."""
    read = {value for value in node.inputs if value is not None}
    for inner in _inner_graphs(node):
        for each in ir.traversal.RecursiveGraphIterator(inner):
            read |= {value for value in each.inputs if value is not None and value.graph is graph}
        read |= {value for value in inner.outputs if value.graph is graph}
    return read


def _inner_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _external_bytes(value: ir.Value) -> int:
    tensor = value.const_value
    return tensor.nbytes if isinstance(tensor, ir.ExternalTensor) else 0


def _name(value: ir.Value) -> str:
    assert value.name is not None  # a loaded graph names every value
    return value.name
