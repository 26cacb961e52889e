"""Graphs of several adapters become one: each under a label of its own, what they compute alike computed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.chain import Chain
from adapter_export.graph.ops import Dim
from adapter_export.graph.rewire import producer

ROWS = "rows"
"""The symbol for the rows of a fusion's weights: one in files, and one for each row of a batch if a call gives them."""

SITE_DIMS = ("d", "d_in")
"""The dimensions that the site gives; all others are a member's own."""

_RANDOM = frozenset({"dropout", "drop_path"})


def numbered(dim: Dim, number: int) -> Dim:
    """A dimension of a member among those of the others; the site's own are common to all.

    Weights of a fusion inside another composition are no longer given by row, so theirs are one row.

    Args:
        dim: as the member's graph has it.
        number: the member's, from 1.
    """
    if dim == ROWS:
        return 1
    return dim if isinstance(dim, int) or dim in SITE_DIMS else f"{dim}_{number}"


class Merged(Chain):
    """A chain that takes in whole graphs, and computes nothing twice."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.shared: tuple[str, ...] = ()

    def result(self, label: str, number: int, graph: AdapterGraph, values: Mapping[str, str]) -> str:
        """Take in the nodes of a member's graph; returns the value that is its result.

        Args:
            label: the member's, the beginning of its names.
            number: the member's, the end of its widths.
            graph: the graph.
            values: what stands for the site values that it reads.
        """
        return self._taken_in(label, number, graph, values, graph.nodes)[graph.result]

    def delta(self, label: str, number: int, graph: AdapterGraph, values: Mapping[str, str]) -> str:
        """Take in a member's graph without the value that it replaces; returns what it adds to that value.

        Where the graph is no such sum, that is the difference of its result and the value.
        """
        last = producer(graph, graph.result)
        if last is not None and last is graph.nodes[-1] and last.op == "add" and graph.replaces in last.inputs:
            first, second = last.inputs
            added = second if first == graph.replaces else first
            return self._taken_in(label, number, graph, values, graph.nodes[:-1])[added]
        found = self.result(label, number, graph, values)
        return self.difference(found, values.get(graph.replaces, graph.replaces), f"{label}_delta")

    def normed_sum(self, value: str) -> str:
        """What the base makes of another `h`: its own norm of `h + x`."""
        total = self.once(Node("add", (value, "x"), f"{value}_sum"))
        return self.once(Node("base_norm", (total,), f"{value}_normed"))

    def difference(self, minuend: str, subtrahend: str, output: str) -> str:
        """One value less another one."""
        negative = self.once(Node("scale", (subtrahend,), f"minus_{subtrahend}", {}, {"factor": -1.0}))
        return self.once(Node("add", (minuend, negative), output))

    def zero(self) -> str:
        """What a member adds where it does not act."""
        return self.once(Node("scale", (self.value,), "nothing", {}, {"factor": 0.0}))

    def once(self, node: Node) -> str:
        """Add a node under its own name or the next free one, or find the one that computes the same.

        Returns:
            The name of its output.
        """
        wanted = replace(node, output="")
        if not node.parameters and node.op not in _RANDOM:
            for other in self.nodes:
                if replace(other, output="") == wanted:
                    return other.output
        self.nodes.append(replace(node, output=self.free(node.output)))
        return self.nodes[-1].output

    def free(self, name: str) -> str:
        """The name, or with the first number behind it that makes it new."""
        taken = {node.output for node in self.nodes}
        numbers = (f"{name}_{number}" for number in count(2))
        return name if name not in taken else next(other for other in numbers if other not in taken)

    def _taken_in(
        self, label: str, number: int, graph: AdapterGraph, values: Mapping[str, str], nodes: tuple[Node, ...]
    ) -> dict[str, str]:
        names = {name: values.get(name, name) for name in graph.inputs}
        for node in nodes:
            roles = {role: f"{label}.{name}" for role, name in node.parameters.items()}
            inputs = tuple(names[name] for name in node.inputs)
            names[node.output] = self.once(
                replace(node, inputs=inputs, output=f"{label}_{node.output}", parameters=roles)
            )
        self.parameters |= {
            f"{label}.{name}": tuple(numbered(dim, number) for dim in shape) for name, shape in graph.parameters.items()
        }
        self.shared += tuple(f"{label}.{name}" for name in graph.shared)
        return names
