"""Split a graph at the values that it shares with its source: each step between them can run separately.

torch's exporter records on every node the FX node that it was made for, and names the last one's value after it. A
graph from an ONNX base has the names of its source. So each shared value is known by its name in the reference, and the
nodes between it and earlier shared values are one step.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.flow import all_read
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import Pieces, with_outputs
from adapter_export.onnx_backend.rewrite.insert import exposed, result_of, site_values
from adapter_export.onnx_backend.rewrite.surgery import NODE_SITE_KEY
from adapter_export.onnx_backend.slots import REPLACED
from adapter_export.runtime.graphs import run_session

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


class Steps:
    """Steps of a bundle's graph.

    Attributes:
        model: a copy of the graph.
        names: names in the reference by names in the graph, in order of evaluation.
    """

    def __init__(self, model: ir.Model, folder: Path) -> None:
        self.model, self._folder = model.clone(), folder
        typed = [value for node in self.model.graph for value in node.outputs if value.name and value.type is not None]
        known = {value.name or "": name for value, name in _named(self.model) if value.type is not None}
        self.names = {value.name or "": known[value.name or ""] for value in typed if value.name in known}
        self._values = {value.name or "": value for value in typed}

    def known(self, dtypes: Mapping[str, str]) -> list[str]:
        """Return the values, by their names in the graph, that a reference has with the same types."""
        return [in_graph for in_graph, name in self.names.items() if dtypes.get(name) == self._dtype(in_graph)]

    def _dtype(self, name: str) -> str | None:
        dtype = self._values[name].dtype
        return None if dtype is None else dtype.numpy().name

    def alone(self, known: Collection[str], size: int | None = None) -> Pieces:
        """Make each step read `known_input(name)` in place of `known` values, which become its outputs.

        `size` is that of a piece, as for `Pieces`.
        """
        model = self.model.clone()
        for value in [value for node in model.graph for value in node.outputs if value.name in known]:
            place = ir.Value(name=known_input(value.name or ""), type=value.type, shape=None)
            for node, index in value.uses():
                node.replace_input_with(index, place)
            if place.uses():
                model.graph.inputs.append(place)
        return Pieces(with_outputs(model, known), self._folder, optimize=False, size=size)

    def whole(self, known: Collection[str] = (), size: int | None = None) -> Pieces:
        """Return the whole graph, with the `known` values among its outputs, in pieces of a `size` as for `Pieces`."""
        outputs = {value.name or "" for value in self.model.graph.outputs}
        return Pieces(with_outputs(self.model, {*known, *outputs}), self._folder, optimize=False, size=size)

    def step(self, name: str, known: Collection[str]) -> Step:
        """Return the step that computes a value from known ones."""
        return Step(self.model, self._folder, self._values[name], known)


class Step:
    """Nodes that compute one value from known ones, in order of evaluation."""

    def __init__(self, model: ir.Model, folder: Path, value: ir.Value, known: Collection[str]) -> None:
        self._model, self.folder, self.value = model, folder, value
        nodes_found, todo = set[ir.Node](), [value]
        read: dict[str, ir.Value] = {}
        while todo:
            node = todo.pop().producer()
            if node is None or node in nodes_found:
                continue
            nodes_found.add(node)
            for each in all_read(node):
                if each.name in known and each is not value:
                    read[each.name or ""] = each
                else:
                    todo.append(each)
        self.nodes = [node for node in model.graph if node in nodes_found]
        self.reads = read

    @property
    def operators(self) -> str:
        """Operators of its nodes that compute numbers, for example `Gemm`."""
        operators = [node.op_type for node in self.nodes if node.op_type not in _OF_SHAPES]
        return ", ".join(dict.fromkeys(operators or [node.op_type for node in self.nodes]))

    @property
    def computing(self) -> list[str]:
        """Names of these nodes, or of their results."""
        nodes = [node for node in self.nodes if node.op_type not in _OF_SHAPES] or self.nodes
        return [node.name or node.outputs[0].name or "" for node in nodes]

    @property
    def inputs(self) -> list[str]:
        """Known values and graph inputs that it reads."""
        read = [value for node in self.nodes for value in all_read(node)]
        fed = [value.name or "" for value in read if value.is_graph_input() and not value.is_initializer()]
        return list(dict.fromkeys([*self.reads, *fed]))

    @cached_property
    def weights(self) -> dict[str, ir.Value]:
        """Initializers that it reads, including slots."""
        read = [value for node in self.nodes for value in all_read(node)]
        return {value.name or "": value for value in read if value.is_initializer()}

    @cached_property
    def model(self) -> ir.Model:
        """The step as a separate graph whose inputs are the known values, by name."""
        outputs = {value for node in self.nodes for value in node.outputs}
        read = {value for node in self.nodes for value in all_read(node) if value not in outputs}
        overridable = set(self._model.graph.inputs)
        view = ir.GraphView(
            [value for value in read if value in overridable or not value.is_initializer()],
            [self.value],
            nodes=self.nodes,
            initializers=[value for value in read if value.is_initializer()],
            opset_imports=self._model.graph.opset_imports,
            name="step",
        )
        model = ir.Model(
            view.clone(), ir_version=self._model.ir_version, functions=list(self._model.functions.values())
        )
        for value in model.graph.inputs:
            value.shape = None if value.const_value is None else value.shape
        return model

    def run(self, feeds: Mapping[str, np.ndarray], model: ir.Model | None = None) -> np.ndarray:
        """Compute the value from known values and slots, by name; `model` is a modified copy of this step."""
        model = self.model if model is None else model
        session = open_session(model, self.folder, optimize=False, pack=False)
        inputs = {value.name for value in model.graph.inputs}
        outputs: Arrays = run_session(session, {name: value for name, value in feeds.items() if name in inputs})
        return next(iter(outputs.values()))


def known_input(name: str) -> str:
    """Return the input that replaces a known value."""
    return f"given/{name}"


_OF_SHAPES = frozenset(
    {"Shape", "Concat", "Constant", "Squeeze", "Unsqueeze", "Slice", "Gather", "Cast", "Identity", "Reshape", "Expand"}
)
"""Operators that mostly prepare the input of another one."""


def _named(model: ir.Model) -> Iterator[tuple[ir.Value, str]]:
    """Yield values with their names in the reference."""
    results = {
        name: exposed(owner, role)
        for owner, values in site_values(model).items()
        for role, name in values.items()
        if role in map(result_of, REPLACED)
    }
    groups: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        stamp = _stamp(node)
        if stamp is not None:
            groups.setdefault(stamp, []).append(node)
        for value in node.outputs:
            if value.name in results:
                yield value, results[value.name]
            elif value.name and stamp in (None, value.name) and NODE_SITE_KEY not in node.metadata_props:
                yield value, value.name
    for stamp, nodes in groups.items():
        outputs = [value for node in nodes for value in node.outputs]
        if all(value.name != stamp for value in outputs):
            read = [
                value
                for value in outputs
                if value.is_graph_output() or any(use.node not in nodes for use in value.uses())
            ]
            # the input of a fusion or slot may lack the last step of the FX node, such as adding the bias
            others = [use.node for value in read for use in value.uses() if use.node not in nodes]
            whole = all(node.domain in ("", "ai.onnx") and _stamp(node) is not None for node in others)
            if len(read) == 1 and whole and read[0].name not in results:
                yield read[0], stamp


def _stamp(node: ir.Node) -> str | None:
    """Return the name of the FX node that torch's exporter made a node for, or `None` without its metadata."""
    try:
        scopes: Sequence[object] = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "()"))
    except (ValueError, SyntaxError):  # other tools may have written anything
        return None
    return str(scopes[-1]) if scopes else None
