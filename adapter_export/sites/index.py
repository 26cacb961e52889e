"""An index of a dataflow graph: who reads what, what comes from what, what lies between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import replace

from adapter_export.sites.ancestry import Ancestry
from adapter_export.sites.view import FlowGraph, FlowNode


class FlowIndex:
    """A graph without the nodes that no result depends on.

    Attributes:
        flow: the graph.
        nodes: its nodes; a position is an index into them.
        ancestry: the origins of its values.
    """

    def __init__(self, flow: FlowGraph) -> None:
        self.nodes = _live(flow)
        self.flow = replace(flow, nodes=self.nodes)
        self.ancestry = Ancestry(self.flow)
        self._producers = {name: at for at, node in enumerate(self.nodes) for name in node.outputs}
        self._readers: dict[str, list[int]] = {}
        for at, node in enumerate(self.nodes):
            for name in node.inputs:
                self._readers.setdefault(name, []).append(at)

    def producer(self, value: str) -> FlowNode | None:
        """The node that defines it; none for an input of the graph."""
        at = self._producers.get(value)
        return None if at is None else self.nodes[at]

    def position(self, value: str) -> int:
        """The position of the node that defines it; before all of them for an input of the graph."""
        return self._producers.get(value, -1)

    def readers(self, value: str) -> list[FlowNode]:
        """The nodes that read it, in the order of evaluation."""
        return [self.nodes[at] for at in self._readers.get(value, ())]

    def between(self, x: str, h: str) -> list[int]:
        """The positions of the nodes on all ways from `x` to `h`, in the order of evaluation."""
        found: set[int] = set()
        waiting = [h]
        while waiting:
            value = waiting.pop()
            if value != x and self.ancestry.depends(value, on=x) and self._producers[value] not in found:
                found.add(self._producers[value])
                waiting.extend(self.nodes[self._producers[value]].inputs)
        return sorted(found)

    def computed_from(self, start: str) -> Iterator[int]:
        """The positions of the nodes that follow `start`, up to the first that reads something else as well."""
        derived = {start}
        for at in range(self.position(start) + 1, len(self.nodes)):
            node = self.nodes[at]
            if not derived.isdisjoint(node.inputs):
                if not derived.issuperset(node.inputs):
                    return
                derived.update(node.outputs)
                yield at

    def last_before_product(self, start: str, positions: Iterable[int], readers: Set[int] | None = None) -> str:
        """The last value that everything computed from `start` goes through, before any product or move of its axes.

        Args:
            start: a value [batch, tokens, d].
            positions: the nodes that follow it, in the order of evaluation.
            readers: the positions of the nodes that count as reading; all, if not given.

        Returns:
            `start`, or a value like it that stands for it: a way around that value would have to jump over it, read
            something earlier and be read later.
        """
        last, furthest = start, self._last_reader(start, readers)
        for at in positions:
            node = self.nodes[at]
            if node.multiplies or self._moves(node, start):
                return last
            if furthest <= at and self.flow.alike(start, node.outputs[0]):
                last = node.outputs[0]
            furthest = max(furthest, *(self._last_reader(value, readers) for value in node.outputs))
        return last

    def _last_reader(self, value: str, readers: Set[int] | None) -> int:
        """The position of the last node that reads it; beyond all of them for a result that no node reads."""
        default = len(self.nodes) if value in self.flow.outputs else -1
        return max((at for at in self._readers.get(value, ()) if readers is None or at in readers), default=default)

    def _moves(self, node: FlowNode, like: str) -> bool:
        """Whether it moves axes of something as wide as `like`; the small statistics of a norm may be reshaped."""
        return node.kind == "layout" and any(self.flow.width(value) == self.flow.width(like) for value in node.inputs)


def _live(flow: FlowGraph) -> list[FlowNode]:
    needed = set(flow.outputs)
    live = []
    for node in reversed(flow.nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
            live.append(node)
    return live[::-1]
