"""Adapter graphs: an adapter's computation at one site, as data; `base_norm` is bound to the norm of a base."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any, TypeVar

from adapter_export.errors import GraphError, within
from adapter_export.graph.ops import OPS, Dim, Shape, bind_dimensions, broken_products, check_attributes
from adapter_export.sites.site import Norm

SITE_VALUES: Mapping[str, Shape] = {
    "h": ("batch", "tokens", "d"),
    "x": ("batch", "tokens", "d"),
    "u": ("batch", "tokens", "d_in"),
    "y": ("batch", "tokens", "d"),
}
"""The values of a site: `h` the sublayer's output before the residual add, `x` the residual stream at the sublayer's
start, `u` what the sublayer itself reads, `y` the block's output after add and norm. `d_in` equals `d` at sublayers."""

READABLE: Mapping[str, tuple[str, ...]] = {"u": ("x", "u"), "h": ("h", "x", "u"), "y": ("h", "x", "u", "y")}
"""Values that a graph may read, computed by then, for each site value that its result may replace."""

HEAD_VALUES: Mapping[str, Shape] = {"hidden": ("batch", "tokens", "d"), "mask": ("batch", "tokens")}
"""Inputs of a head: the final hidden state, and the attention mask as numbers (1 real, 0 padding)."""

DATA_AXES = ("batch", "tokens")
"""Axes whose length depends on the data; parameters cannot have them."""


@dataclass(frozen=True)
class Node:
    """One op: the values that it reads and defines, the graph's parameter for each of its roles, and its numbers."""

    op: str
    inputs: tuple[str, ...]
    output: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterGraph:
    """Nodes in the order of evaluation, checked when the graph is made; a `GraphError` names the node.

    `inputs` are keys of `SITE_VALUES` or of `HEAD_VALUES`, `parameters` the symbolic shapes of its tensors. `result`
    replaces the site value `replaces`, a key of `READABLE` (without meaning in a head). `shared` are the
    parameters that all places of one adapter with this graph have in common.
    """

    inputs: tuple[str, ...]
    parameters: Mapping[str, Shape]
    nodes: tuple[Node, ...]
    result: str
    replaces: str = "h"
    shared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_place()
        for name, shape in self.parameters.items():
            wrong = [dim for dim in shape if dim in DATA_AXES or (isinstance(dim, int) and dim < 1)]
            if wrong or not shape:
                raise GraphError(
                    f"parameter `{name}` has a shape that no tensor can have",
                    found=list(shape),
                    expected=f"numbers from 1, or symbols other than {' and '.join(DATA_AXES)}",
                )
        shapes = self.shapes()
        self._check_ids()
        if self.result not in shapes:
            expected = f"one of {sorted(shapes)}"
            raise GraphError("the result is not computed", found=f"`{self.result}`", expected=expected)
        read = {name for node in self.nodes for name in node.inputs} | {self.result}
        used = {name for node in self.nodes for name in node.parameters.values()}
        idle = {node.output for node in self.nodes} - read | set(self.parameters) - used | set(self.inputs) - read
        if idle:
            raise GraphError("declared but never used", found=", ".join(sorted(idle)), expected="only used parameters")

    def shapes(self) -> dict[str, Shape]:
        """Return the symbolic shape of every value, by the ops' shape rules."""
        return dict(self._bound[0])

    @cached_property
    def _bound(self) -> tuple[Mapping[str, Shape], Mapping[str, Mapping[str, Dim]]]:
        """The shape of every value, and the dimensions of every node's op, by what the node defines."""
        known, dimensions = self._input_shapes(), dict[str, Mapping[str, Dim]]()
        for index, node in enumerate(self.nodes):
            where = f"node {index} (`{node.op}`)"
            if node.output in known:
                raise GraphError("a value is defined twice", where=where, found=f"`{node.output}`")
            spec = OPS.get(node.op)
            if spec is None:
                raise GraphError("unknown op", where=where, found=f"`{node.op}`", expected=f"one of {', '.join(OPS)}")
            missing = [name for name in node.inputs if name not in known]
            if missing:
                raise GraphError("a value is read before it is defined", where=where, found=", ".join(missing))
            inputs = tuple(known[name] for name in node.inputs)
            if len(inputs) not in spec.arity:
                raise GraphError("wrong number of values read", where=where, found=len(inputs), expected=spec.arity)
            check_attributes(spec, node.attributes, where)
            dimensions[node.output] = bind_dimensions(spec, inputs, node.parameters, self.parameters, where)
            with within(where):
                known[node.output] = spec.shape(inputs, dimensions[node.output])
        return known, dimensions

    @property
    def reads_ids(self) -> bool:
        """True if its `u` is ids [batch, tokens], as at a lookup, and not activations."""
        return any(OPS[node.op].of_ids for node in self.nodes)

    def _check_ids(self) -> None:
        """Check that ids are the site value `u`, that nothing reads them as activations, and that they stay."""
        if not self.reads_ids:
            return
        wrong = [node.op for node in self.nodes if OPS[node.op].of_ids != ("u" in node.inputs)]
        if wrong or self.replaces == "u" or self.result == "u":
            raise GraphError(
                "ids and activations are mixed up",
                found=", ".join(wrong) or "`u` is replaced",
                expected="`u` read only by ops of ids, and ops of ids that read only `u`",
            )

    def _check_place(self) -> None:
        if self.replaces not in READABLE:
            raise GraphError("nothing that can be replaced", found=f"`{self.replaces}`", expected=", ".join(READABLE))
        if self.reads_head_values() and (self.replaces != "h" or self.shared):
            raise GraphError("a head replaces nothing and shares nothing", found=f"`{self.replaces}`, {self.shared}")
        late = sorted(set(self.inputs) & set(SITE_VALUES) - set(READABLE[self.replaces]))
        if late:
            fault = f"values are read that are computed after `{self.replaces}`, which the result replaces"
            raise GraphError(fault, found=", ".join(late), expected=", ".join(READABLE[self.replaces]))
        unknown = sorted(set(self.shared) - set(self.parameters))
        if unknown or len(set(self.shared)) != len(self.shared):
            fault = "`shared` must be different parameters of the graph"
            raise GraphError(fault, found=", ".join(self.shared), expected=", ".join(self.parameters))

    def _input_shapes(self) -> dict[str, Shape]:
        if len(set(self.inputs)) != len(self.inputs):
            raise GraphError("an input is declared twice", found=", ".join(self.inputs))
        for values in (SITE_VALUES, HEAD_VALUES):
            if self.inputs and set(self.inputs) <= set(values):
                return {name: values[name] for name in self.inputs}
        raise GraphError(
            "unknown values are read",
            found=", ".join(self.inputs) or "none",
            expected=f"only {', '.join(SITE_VALUES)} (at a site) or only {', '.join(HEAD_VALUES)} (in a head)",
        )

    def dimensions(self, node: Node) -> Mapping[str, Dim]:
        """Return the dimensions of a node's op in the graph's terms: `in` is the last axis of what it reads first."""
        return self._bound[1][node.output]

    def known_dimensions(self, node: Node, widths: Mapping[str, int]) -> dict[str, int]:
        """Shapes in numbers, without those whose width is not given."""
        dims = self.dimensions(node).items()
        return {name: resolve(dim, widths) for name, dim in dims if isinstance(dim, int) or dim in widths}

    def reads_head_values(self) -> bool:
        """Return true for the graph of a prediction head."""
        return set(self.inputs) <= set(HEAD_VALUES)

    def symbols(self) -> tuple[str, ...]:
        """Return the symbolic dimensions of its parameters, in the order in which they first occur."""
        return tuple(dict.fromkeys(dim for shape in self.parameters.values() for dim in shape if isinstance(dim, str)))

    def parameter_shapes(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter in numbers, given a width for each of `symbols()`."""
        return {name: tuple(resolve(dim, widths) for dim in shape) for name, shape in self.parameters.items()}

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Compare the widths with what the ops ask of them, such as that one is a multiple of another.

        A width that is not given, as only the base has it, is not checked. Raises `GraphError`, which names the node.
        """
        for index, node in enumerate(self.nodes):
            for fault in broken_products(OPS[node.op], self.known_dimensions(node, widths)):
                raise GraphError("widths do not fit", where=f"node {index} (`{node.op}`)", found=fault)


def resolve(dim: Dim, widths: Mapping[str, int]) -> int:
    """Return a dimension as a number."""
    if isinstance(dim, int):
        return dim
    if dim not in widths:
        raise GraphError("a width is not given", found=", ".join(sorted(widths)) or "none", expected=f"`{dim}`")
    return widths[dim]


def producer(graph: AdapterGraph, value: str) -> Node | None:
    """Return the node that defines a value, or `None` for an input of the graph."""
    return next((node for node in graph.nodes if node.output == value), None)


def readers(graph: AdapterGraph, value: str) -> int:
    """Count how often a value is read; being the result counts once."""
    return sum(node.inputs.count(value) for node in graph.nodes) + (graph.result == value)


def users(graph: AdapterGraph, parameter: str) -> int:
    """Count how often nodes use a parameter."""
    return sum(list(node.parameters.values()).count(parameter) for node in graph.nodes)


def unused(name: str, names: Collection[str]) -> str:
    """Return the name, followed by underscores that make it unique."""
    while name in names:
        name += "_"
    return name


def first_free(name: str, names: Collection[str]) -> str:
    """Return the name, followed by the first number that makes it unique if it is taken."""
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in names else next(other for other in numbered if other not in names)


def bypass(graph: AdapterGraph, node: Node) -> AdapterGraph:
    """Return the graph without a node and what only it used; its readers read its first input instead."""
    source = node.inputs[0]
    rest = tuple(
        replace(other, inputs=tuple(source if name == node.output else name for name in other.inputs))
        for other in graph.nodes
        if other is not node
    )
    result = source if graph.result == node.output else graph.result
    return _with_nodes(graph, rest, graph.parameters, result, graph.shared)


def exchange(
    graph: AdapterGraph, old: Node, new: Node, added: Mapping[str, Shape], shared: Sequence[str]
) -> AdapterGraph:
    """Return the graph with the node `new` for the same value as `old`, without the parameters that only `old` used.

    `added` are the shapes of new parameters, `shared` those of them that all places share.
    """
    nodes = tuple(new if node is old else node for node in graph.nodes)
    shapes = {**graph.parameters, **added}
    in_order_of_use = {name: shapes[name] for node in nodes for name in node.parameters.values()}
    return _with_nodes(graph, nodes, in_order_of_use, graph.result, (*graph.shared, *shared))


def _with_nodes(
    graph: AdapterGraph, nodes: tuple[Node, ...], parameters: Mapping[str, Shape], result: str, shared: tuple[str, ...]
) -> AdapterGraph:
    """Replace the nodes, and keep the parameters that they use."""
    used = {name for node in nodes for name in node.parameters.values()}
    return replace(
        graph,
        nodes=nodes,
        parameters={name: shape for name, shape in parameters.items() if name in used},
        result=result,
        shared=tuple(name for name in shared if name in used),
    )


Value = TypeVar("Value")
Lowering = Callable[[Node, tuple[Value, ...], Mapping[str, Value]], Value]
"""One op in one backend: from the node (its attributes, its output's name), the values that it reads and its
parameters by role to the value that it defines."""


def interpret(
    graph: AdapterGraph,
    lowerings: Mapping[str, Lowering[Value]],
    inputs: Mapping[str, Value],
    parameters: Mapping[str, Value],
) -> dict[str, Value]:
    """Evaluate every node of a graph; returns every value by name, the inputs included, the result at `graph.result`.

    `lowerings` has a function for every op, `inputs` and `parameters` what the graph reads and owns. Raises
    `GraphError` for a `bound` op, which has no value without a base.
    """
    values = {name: inputs[name] for name in graph.inputs}
    for node in graph.nodes:
        if OPS[node.op].bound:
            raise GraphError(
                "an op is the base's own and has no value without a base",
                where=f"`{node.output}`",
                found=f"`{node.op}`",
                fix="bind it to the base first",
            )
        read = tuple(values[name] for name in node.inputs)
        owned = {role: parameters[name] for role, name in node.parameters.items()}
        values[node.output] = lowerings[node.op](node, read, owned)
    return values


@dataclass(frozen=True)
class Cost:
    """The numbers that a graph stores at one site, their bytes in float32, and its multiply-accumulates per token.

    Those are of matrix products; element-wise work is not counted.
    """

    parameters: int
    bytes: int
    multiply_accumulates: int


def cost(graph: AdapterGraph, widths: Mapping[str, int]) -> Cost:
    """Count a graph at given widths, such as `{"d": 384, "b": 64}`."""
    accumulates = (OPS[node.op].multiply_accumulates(graph.known_dimensions(node, widths)) for node in graph.nodes)
    return stored(graph.parameter_shapes(widths).values(), sum(accumulates))


def stored(shapes: Iterable[tuple[int, ...]], multiply_accumulates: int) -> Cost:
    """Return the cost of float32 tensors of these shapes, and of the work that is done with them."""
    parameters = sum(map(math.prod, shapes))
    return Cost(parameters, 4 * parameters, multiply_accumulates)


BASE_NORM = "base_norm"
"""The op, and the prefix of the borrowed parameters."""

BORROWED_WEIGHT, BORROWED_BIAS = f"{BASE_NORM}.weight", f"{BASE_NORM}.bias"
"""Parameters [d] of a bound graph that are tensors of the base: they are in no adapter and have no slot."""

_OPS = {"layer": "layer_norm", "rms": "rms_norm"}


def needs_base_norm(graph: AdapterGraph) -> bool:
    """Return true if the graph applies the base's own norm, to which it must be bound."""
    return any(node.op == BASE_NORM for node in graph.nodes)


def bind_base_norm(graph: AdapterGraph, norm: Norm | None) -> AdapterGraph:
    """Replace `base_norm` by the base's norm, with the parameters `base_norm.weight` [d] and `base_norm.bias` [d].

    `norm` is the one between the residual sum and `y`; where there is none, as in pre-norm bases, `base_norm` is the
    identity. The caller supplies the tensors, ones where the norm has no weight. Raises `GraphError` if the norm is
    `unknown`, or the graph has a parameter of a borrowed name.
    """
    if not needs_base_norm(graph):
        return graph
    if norm is None:
        while (node := next((node for node in graph.nodes if node.op == BASE_NORM), None)) is not None:
            graph = bypass(graph, node)
        return graph
    if norm.kind == "unknown":
        raise GraphError(
            "a graph applies the base's norm, which could not be read",
            found=f"`{BASE_NORM}`",
            expected="a layer norm or an RMS norm after the residual sum",
            fix="give the base in a form that has the norm as one op, or choose a kind of adapter without it",
        )
    roles = {"weight": BORROWED_WEIGHT}
    if norm.bias is not None and norm.kind == "layer":
        roles["bias"] = BORROWED_BIAS
    reserved = sorted(set(roles.values()) & set(graph.parameters))
    if reserved:
        fault = "a parameter has a name that is kept for the base's norm"
        raise GraphError(fault, found=", ".join(reserved), fix="rename it")
    changes: dict[str, Any] = {"op": _OPS[norm.kind], "parameters": roles, "attributes": {"epsilon": norm.epsilon}}
    nodes = tuple(replace(node, **changes) if node.op == BASE_NORM else node for node in graph.nodes)
    return replace(graph, nodes=nodes, parameters={**graph.parameters, **dict.fromkeys(roles.values(), ("d",))})
