"""Graphs written down as a chain: each op reads the value before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from adapter_export.errors import UsageError
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.ops import ACTIVATIONS, OPS, Dim, Shape


class Chain:
    """Nodes one after the other; `value` names the last one's output, which the next one reads."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.nodes: list[Node] = []
        self.parameters: dict[str, Shape] = {}

    def op(
        self,
        op: str,
        output: str,
        *others: str,
        parameters: Mapping[str, str] | None = None,
        attributes: Mapping[str, float] | None = None,
    ) -> str:
        """Apply an op to the last value and to `others`; returns its output."""
        self.nodes.append(Node(op, (self.value, *others), output, parameters or {}, attributes or {}))
        self.value = output
        return output

    def owned(
        self,
        op: str,
        name: str,
        shapes: Mapping[str, Shape],
        attributes: Mapping[str, float] | None = None,
        *,
        output: str | None = None,
    ) -> str:
        """Apply an op with parameters `<name>.<role>`; its output has the name too where no other is given."""
        self.parameters |= {f"{name}.{role}": shape for role, shape in shapes.items()}
        roles = {role: f"{name}.{role}" for role in shapes}
        return self.op(op, output or name, parameters=roles, attributes=attributes)

    def linear(self, name: str, width_in: Dim, width_out: Dim, *, bias: bool = True, output: str | None = None) -> str:
        """Append a projection with parameters `<name>.weight` [in, out] and, with a bias, `<name>.bias` [out]."""
        shapes: dict[str, Shape] = {"weight": (width_in, width_out), **({"bias": (width_out,)} if bias else {})}
        return self.owned("linear", name, shapes, output=output)

    def layer_norm(self, name: str, width: Dim) -> str:
        """Append a trainable layer norm with torch's epsilon, 1e-5."""
        return self.owned("layer_norm", name, {"weight": (width,), "bias": (width,)}, {"epsilon": 1e-5})

    def activation(self, name: str, output: str = "activated") -> str:
        """One of `ACTIVATIONS`; raises `UsageError` for any other."""
        if name not in ACTIVATIONS:
            raise UsageError("unknown activation", found=f"`{name}`", expected=", ".join(ACTIVATIONS))
        return self.op(name, output, attributes=OPS[name].defaults)

    def dropout(self, rate: float, output: str = "dropped", op: str = "dropout") -> str:
        """Dropout in training, or another op with a rate; nothing at 0. Raises `UsageError` unless 0 ≤ rate < 1."""
        if rate not in OPS[op].attributes["rate"]:
            name = op.replace("_", " ")
            raise UsageError(f"a {name} rate is a probability below 1", found=rate, expected="0 ≤ rate < 1")
        return self.op(op, output, attributes={"rate": rate}) if rate else self.value

    def gate(self, source: str, width: Dim = "d") -> str:
        """`value · mean over the tokens of σ(W g + b)`, `g` the value named `source`, W [width, 1] (AdapterHub)."""
        gated, self.value = self.value, source
        self.linear("gate", width, 1)
        opened = self.op("sigmoid", "gate_open")
        self.value = gated
        return self.op("gate", "gated", opened)

    def scale(self, factor: float) -> str:
        """Append a constant factor, unless it is 1. Raises `UsageError` if it is not finite."""
        if factor not in OPS["scale"].attributes["factor"]:
            raise UsageError("the scaling is not a finite number", found=factor)
        return self.op("scale", "scaled", attributes={"factor": factor}) if factor != 1.0 else self.value

    def graph(
        self, replaces: str = "h", shared: tuple[str, ...] = (), *, values: Collection[str] = SITE_VALUES
    ) -> AdapterGraph:
        """Return the graph that returns the last value instead of the site value `replaces`.

        `shared` are the parameters that all places have in common, `values` those that may be read: a site's, or a
        head's.
        """
        read = {name for node in self.nodes for name in node.inputs}
        inputs = tuple(name for name in values if name in read)
        return AdapterGraph(inputs, self.parameters, tuple(self.nodes), self.value, replaces, shared)
