"""Hypothesis strategies for graphs of the language."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from adapter_export.graph.graph import HEAD_VALUES, READABLE, SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.ops import LOWERED, OPS, Dim, Shape

WIDTHS = {"d": 8, "d_in": 8, "b": 3, "c": 4}
FACTORS = (-2.0, 0.25, 0.5, 2.0)
"""Powers of two: folding them is exact."""

RANK = 2
"""Standard deviation of the factors of Kronecker products."""

_ATTRIBUTES = {
    "slope": (0.01, 0.3),
    "factor": FACTORS,
    "rate": (0.0, 0.5),
    "epsilon": (1e-5, 0.1),
    "temperature": (0.5, 4.0),
}
_CHOICES = (
    *(op for op in LOWERED if not OPS[op].of_ids and op != "scatter"),  # ids and indices are no activations
    *("linear", "linear"),
)
_GROWING = frozenset({"multiply", "relu_squared", "dot"})
_MOST_GROWING = 3
"""Ops that square values, and how many of them a graph has at most: its values stay within the range of float32."""


class _Grower:
    """Add ops to existing values, as long as Hypothesis draws more."""

    def __init__(self, draw: st.DrawFn, inputs: tuple[str, ...], values: dict[str, Shape]) -> None:
        self.draw = draw
        self.inputs = inputs
        self.shapes: dict[str, Shape] = {name: values[name] for name in inputs}
        self.parameters: dict[str, Shape] = {}
        self.nodes: list[Node] = []

    def step(self) -> None:
        op, first = self.draw(st.sampled_from(_CHOICES)), self.source()
        growing = sum(node.op in _GROWING for node in self.nodes)
        if (OPS[op].three_axes and len(self.shapes[first]) != 3) or (op in _GROWING and growing == _MOST_GROWING):
            return
        if op == "l2_normalise":
            first = self.add("linear", first)  # not of a cancelling sum, whose direction would be only rounding
        inputs = self.inputs_of(op, first)
        if set(inputs) <= set(self.shapes):
            self.add(op, *inputs)

    def inputs_of(self, op: str, first: str) -> tuple[str, ...]:
        if OPS[op].pooling and str(OPS[op].arity) == "2":
            return (first, "mask")
        if op == "gate":
            return (first, self.number_beside(first))
        if op == "mix":
            return (first, *(self.equal(first) for _ in range(self.draw(st.integers(0, 2)))))
        if op == "softmax_mix":
            values = (first, *(self.equal(first) for _ in range(self.draw(st.integers(0, 2)))))
            return (*(self.number_beside(self.equal(first)) for _ in values), *values)
        return (first,) if str(OPS[op].arity) == "1" else (first, self.equal(first))

    def source(self) -> str:
        """Mostly the latest value, so that graphs grow deep."""
        names = [name for name in self.shapes if name != "mask"]
        return self.draw(st.sampled_from([names[-1], names[-1], names[-1], *names]))

    def equal(self, name: str) -> str:
        return self.draw(st.sampled_from([other for other, shape in self.shapes.items() if shape == self.shapes[name]]))

    def number_beside(self, name: str) -> str:
        return self.add("linear", name, out=1)

    def add(self, op: str, *inputs: str, out: Dim | None = None) -> str:
        output = f"v{len(self.nodes)}"
        dims = self.dimensions(op, inputs, out)
        roles = {}
        for parameter in OPS[op].parameters:
            if not parameter.optional or self.draw(st.booleans()):
                roles[parameter.role] = f"{output}.{parameter.role}"
                self.parameters[roles[parameter.role]] = tuple(dims.get(dim, dim) for dim in parameter.shape)
        attributes = {name: self.draw(st.sampled_from(_ATTRIBUTES[name])) for name in OPS[op].attributes}
        self.nodes.append(Node(op, inputs, output, roles, attributes))
        self.shapes[output] = OPS[op].shape(tuple(self.shapes[name] for name in inputs), dims)
        return output

    def dimensions(self, op: str, inputs: tuple[str, ...], out: Dim | None) -> dict[Dim, Dim]:
        width = self.shapes[inputs[0]][-1]
        out = out or self.draw(st.sampled_from(["d", "b", "c"]))
        dims: dict[Dim, Dim] = {"in": width, "out": out, "values": len(inputs), "rows": 1}
        if op == "phm_linear":
            number_in, number_out = WIDTHS.get(width, width), WIDTHS.get(out, out)
            n = math.gcd(number_in, number_out)
            dims |= {"n": n, "p": number_in // n, "k": RANK, "q": number_out // n}
        return dims

    def graph(self, result: str, replaces: str = "h") -> AdapterGraph:
        """Without what the result does not need."""
        needed, nodes = {result}, []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed |= set(node.inputs)
                nodes.insert(0, node)
        used = {name for node in nodes for name in node.parameters.values()}
        inputs = tuple(name for name in self.inputs if name in needed)
        parameters = {name: shape for name, shape in self.parameters.items() if name in used}
        return AdapterGraph(inputs, parameters, tuple(nodes), result, replaces)


@st.composite
def graphs(draw: st.DrawFn) -> AdapterGraph:
    """Any graph of a site or of a head."""
    if draw(st.booleans()):
        return _grown(draw, ("hidden", "mask"), "h")
    replaces = draw(st.sampled_from(sorted(READABLE)))
    return _grown(draw, READABLE[replaces], replaces)


def _grown(draw: st.DrawFn, inputs: tuple[str, ...], replaces: str) -> AdapterGraph:
    grower = _Grower(draw, inputs, {**SITE_VALUES, **HEAD_VALUES})
    for _ in range(draw(st.integers(2, 10))):
        grower.step()
    return grower.graph(grower.source(), replaces)


@st.composite
def residual_graphs(draw: st.DrawFn) -> AdapterGraph:
    """Generate graphs that end in `v + s·(…)`, where `v` is the replaced value; some have neutral parameters."""
    replaces = draw(st.sampled_from(sorted(READABLE)))
    width = SITE_VALUES[replaces][-1]
    grower = _Grower(draw, READABLE[replaces], dict(SITE_VALUES))
    for _ in range(draw(st.integers(0, 6))):
        grower.step()
    per_token = [name for name, shape in grower.shapes.items() if len(shape) == 3]
    value = draw(st.sampled_from([per_token[-1], *per_token]))
    if draw(st.booleans()) or grower.shapes[value][-1] != width:
        value = grower.add("linear", value, out=width)
    last = ["scale", "dropout", "identity", "gelu", "learned_scale", "scale_features", "keep_first_half", "drop_path"]
    value = grower.add(draw(st.sampled_from(last)), value)
    value = grower.add("add", replaces, value)
    if draw(st.booleans()):
        value = grower.add(draw(st.sampled_from(["scale_features", "learned_scale", "dropout"])), value)
    return grower.graph(value, replaces)
