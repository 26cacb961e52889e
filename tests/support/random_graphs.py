"""Hypothesis strategies for graphs of the language."""

from __future__ import annotations

from hypothesis import strategies as st

from adapter_export.graph.graph import HEAD_VALUES, SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.ops import ACTIVATIONS, OPS, Shape

WIDTHS = {"d": 8, "d_in": 8, "b": 3, "c": 5}
FACTORS = (-2.0, 0.25, 0.5, 2.0)
"""Powers of two: folding them is exact."""

_ATTRIBUTES = {"slope": (0.01, 0.3), "factor": FACTORS, "rate": (0.0, 0.5), "epsilon": (1e-5, 0.1)}


class _Grower:
    """Adds ops to what is there, as long as Hypothesis asks for more."""

    def __init__(self, draw: st.DrawFn, inputs: tuple[str, ...], values: dict[str, Shape]) -> None:
        self.draw = draw
        self.inputs = inputs
        self.shapes: dict[str, Shape] = {name: values[name] for name in inputs}
        self.parameters: dict[str, Shape] = {}
        self.nodes: list[Node] = []

    def step(self) -> None:
        op = self.draw(
            st.sampled_from(
                [
                    *ACTIVATIONS,
                    "linear",
                    "linear",
                    "scale",
                    "dropout",
                    "add",
                    "multiply",
                    "layer_norm",
                    "rms_norm",
                    "first_token",
                    "mean_pool",
                ]
            )
        )
        first = self.source()
        if op in {"add", "multiply"}:
            equal = [name for name, shape in self.shapes.items() if shape == self.shapes[first]]
            self.add(op, first, self.draw(st.sampled_from(equal)))
        elif op == "mean_pool":
            if "mask" in self.shapes and len(self.shapes[first]) == 3:
                self.add(op, first, "mask")
        elif op != "first_token" or len(self.shapes[first]) == 3:
            self.add(op, first)

    def source(self) -> str:
        """Mostly the latest value, so that graphs grow deep."""
        names = [name for name in self.shapes if name != "mask"]
        return self.draw(st.sampled_from([names[-1], names[-1], names[-1], *names]))

    def add(self, op: str, *inputs: str, out: str | None = None) -> str:
        output = f"v{len(self.nodes)}"
        width = self.shapes[inputs[0]][-1]
        out = out or self.draw(st.sampled_from(["d", "b", "c"]))
        dims = {"in": width, "out": out}
        roles = {}
        for parameter in OPS[op].parameters:
            if not parameter.optional or self.draw(st.booleans()):
                roles[parameter.role] = f"{output}.{parameter.role}"
                self.parameters[roles[parameter.role]] = tuple(dims[dim] for dim in parameter.shape)
        attributes = {name: self.draw(st.sampled_from(_ATTRIBUTES[name])) for name in OPS[op].attributes}
        self.nodes.append(Node(op, inputs, output, roles, attributes))
        self.shapes[output] = OPS[op].shape(tuple(self.shapes[name] for name in inputs), dims)
        return output

    def graph(self, result: str) -> AdapterGraph:
        """Without what the result does not need."""
        needed, nodes = {result}, []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed |= set(node.inputs)
                nodes.insert(0, node)
        used = {name for node in nodes for name in node.parameters.values()}
        inputs = tuple(name for name in self.inputs if name in needed)
        parameters = {name: shape for name, shape in self.parameters.items() if name in used}
        return AdapterGraph(inputs, parameters, tuple(nodes), result)


@st.composite
def graphs(draw: st.DrawFn) -> AdapterGraph:
    """Any graph of a site or of a head."""
    inputs, values = draw(st.sampled_from([(("h", "x", "u"), SITE_VALUES), (("hidden", "mask"), HEAD_VALUES)]))
    grower = _Grower(draw, inputs, dict(values))
    for _ in range(draw(st.integers(2, 10))):
        grower.step()
    return grower.graph(grower.source())


@st.composite
def residual_graphs(draw: st.DrawFn) -> AdapterGraph:
    """Graphs that end in `h + s·(…)`, some of which have neutral parameters."""
    grower = _Grower(draw, ("h", "x"), dict(SITE_VALUES))
    for _ in range(draw(st.integers(0, 6))):
        grower.step()
    per_token = [name for name, shape in grower.shapes.items() if len(shape) == 3]
    value = draw(st.sampled_from([per_token[-1], *per_token]))
    if draw(st.booleans()) or grower.shapes[value][-1] != "d":
        value = grower.add("linear", value, out="d")
    value = grower.add(draw(st.sampled_from(["scale", "dropout", "identity", "gelu"])), value)
    return grower.graph(grower.add("add", "h", value))
