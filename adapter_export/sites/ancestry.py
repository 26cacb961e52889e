"""What each value of a dataflow graph is computed from, and through what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adapter_export.sites.view import FlowGraph, FlowNode


@dataclass(frozen=True)
class Origins:
    """The tracked values that one value is computed from, as bit sets: bit `i` stands for the `i`-th tracked value.

    Attributes:
        all: all of them, the value itself included.
        weighted: those from which some way leads through a product with trained weights.
        mixed: those from which some way leads through a product of activations with activations.
        multiplied: those from which some way leads through a product of any kind.
    """

    all: int = 0
    weighted: int = 0
    mixed: int = 0
    multiplied: int = 0

    @property
    def unmultiplied(self) -> int:
        """Those from which no way leads through a product: norms, dropouts, casts and scales at most."""
        return self.all & ~self.multiplied


class Ancestry:
    """The origins of every value, found in one pass over the graph.

    Only values that could be a residual stream are tracked, [batch, tokens, d] with a known d: a bit set of them is
    one Python integer, so that a question about two values costs next to nothing, however far apart they are.
    """

    def __init__(self, flow: FlowGraph) -> None:
        self.tracked: list[str] = []
        self._bits: dict[str, int] = {}
        self._origins: dict[str, Origins] = {}
        for name in _inputs(flow):
            self._define(flow, name, Origins())
        for node in flow.nodes:
            origins = self._through(node)
            for name in node.outputs:
                self._define(flow, name, origins)

    def _define(self, flow: FlowGraph, name: str, origins: Origins) -> None:
        if is_stream(flow, name):
            self._bits[name] = 1 << len(self.tracked)
            self.tracked.append(name)
            origins = Origins(origins.all | self._bits[name], origins.weighted, origins.mixed, origins.multiplied)
        self._origins[name] = origins

    def _through(self, node: FlowNode) -> Origins:
        everything = weighted = mixed = multiplied = 0
        for name in node.inputs:
            read = self._origins[name]
            everything |= read.all
            weighted |= read.weighted
            mixed |= read.mixed
            multiplied |= read.multiplied
        return Origins(
            everything,
            weighted | everything if node.multiplies and node.weighted else weighted,
            mixed | everything if node.mixes_tokens else mixed,
            multiplied | everything if node.multiplies else multiplied,
        )

    def of(self, value: str) -> Origins:
        """What `value` is computed from."""
        return self._origins[value]

    def bit(self, value: str) -> int:
        """The bit of a tracked value; 0 for any other."""
        return self._bits.get(value, 0)

    def depends(self, value: str, *, on: str) -> bool:
        """Whether `value` is computed from the tracked value `on`, or is it."""
        return bool(self.of(value).all & self.bit(on))

    def is_weighted(self, x: str, h: str) -> bool:
        """Whether `h` is computed from `x` through a product with trained weights."""
        return bool(self.of(h).weighted & self.bit(x))

    def is_mixed(self, x: str, h: str) -> bool:
        """Whether `h` is computed from `x` through a product of activations with activations."""
        return bool(self.of(h).mixed & self.bit(x))

    def latest(self, bits: int) -> str | None:
        """The last defined of a set of tracked values."""
        return self.tracked[bits.bit_length() - 1] if bits else None


def is_stream(flow: FlowGraph, value: str) -> bool:
    """Whether it has the shape of a residual stream: [batch, tokens, d] or [batch·tokens, d], with a known d."""
    return flow.rank(value) in (2, 3) and flow.width(value) is not None


def _inputs(flow: FlowGraph) -> Iterator[str]:
    """The values that are read but not defined, in the order in which they are first read."""
    defined = {name for node in flow.nodes for name in node.outputs}
    read = dict.fromkeys(name for node in flow.nodes for name in node.inputs)
    yield from (name for name in read if name not in defined)
