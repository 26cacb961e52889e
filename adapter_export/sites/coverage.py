"""Proof that all sublayers of a base were found: no layers outside of them form a sublayer.

Embeddings, layers between stages, poolers and language heads are outside of sublayers. Layers there that attend, or
whose result is joined with a value it is computed from, form a sublayer that was not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from adapter_export.sites.site import Coverage, Site, Unplaced
from adapter_export.sites.view import FlowIndex, FlowNode


def coverage_of(index: FlowIndex, sublayers: Sequence[Site], final: str) -> Coverage:
    """Analyze all layers outside and inside of the sublayers."""
    proof = _Proof(index, sublayers, final)
    aside = proof.aside()
    return Coverage(len(sublayers) - len(aside), (*aside, *proof.nested(), *proof.outside()))


@dataclass(frozen=True)
class _Block:
    """A sublayer-like block that was not found: positions of its nodes, and the reason."""

    positions: frozenset[int]
    reason: str


class _Proof:
    """Search for layers outside of a base's sublayers."""

    def __init__(self, index: FlowIndex, sublayers: Sequence[Site], final: str) -> None:
        self._index, self._final = index, final
        self._sublayers = [site for site in sublayers if site.x is not None]
        sums = {site.residual: site for site in self._sublayers if site.residual is not None}
        self._sums = {at: sums[node.name] for at, node in enumerate(index.nodes) if node.name in sums}
        for at, site in list(self._sums.items()):
            self._sums |= dict.fromkeys(self._outer_sums(index.nodes[at], site), site)
        self._ends = {value for site in sublayers for value in (site.x, site.h, site.y) if value is not None}
        self._ends |= {value for at in self._sums for value in index.nodes[at].outputs}
        self._inside = {at for site in sublayers for at in self._back(site.h)}
        self._inside |= {at for position, site in self._sums.items() for at in self._carrying(position, site)}

    def _back(self, value: str) -> set[int]:
        """Return positions of the nodes that compute a value, back to values of the streams."""
        index, positions, waiting = self._index, set[int](), [value]
        while waiting:
            name = waiting.pop()
            at = index.position(name)
            if at >= 0 and at not in positions and (name == value or name not in self._ends):
                positions.add(at)
                waiting.extend(index.nodes[at].inputs)
        return positions

    def _carrying(self, position: int, site: Site) -> set[int]:
        """Return positions of the nodes, such as factors of a gate, that carry `x` into a sum without a product."""
        index, positions = self._index, set[int]()
        waiting = [value for value in index.nodes[position].inputs if value != site.h]
        while waiting:
            name = waiting.pop()
            at = index.position(name)
            if name != site.x and at not in positions and index.ancestry.is_straight(site.x or "", name):
                positions.add(at)
                waiting.extend(index.nodes[at].inputs)
        return positions - self._sums.keys()

    def _outer_sums(self, node: FlowNode, site: Site) -> Iterator[int]:
        """Yield positions of the sums after that of two parallel sublayers, up to the one that adds the stream."""
        index = self._index
        while site.x is not None and not index.ancestry.is_straight(site.x, node.outputs[0]):
            following = index.readers(node.outputs[0])
            if len(following) != 1 or following[0].kind not in ("add", "other"):
                return
            (node,) = following
            if node.kind == "add":
                yield index.position(node.outputs[0])

    def aside(self) -> list[Unplaced]:
        """Return sublayers whose output does not reach the final hidden state."""
        return [
            Unplaced(
                self._layers(self._back(site.h)),
                f"the result of `{site.name}` does not reach `{self._final}`, the input of heads",
            )
            for site in self._sublayers
            if not self._index.ancestry.depends(self._final, on=site.h)
        ]

    def nested(self) -> Iterator[Unplaced]:
        """Yield sublayers that contain the sum of another one, or an inner residual sum."""
        ancestry = self._index.ancestry
        for site in self._sublayers:
            assert site.x is not None  # as chosen
            held = {at for at in self._index.between(site.x, site.h) if self._sums.get(at, site) is not site}
            siblings = {at for at in held if self._sums[at].x == site.x}  # of the other sublayer in a parallel block
            inner = [f"`{self._sums[at].name}`" for at in sorted(held - siblings)]
            inner += [
                f"an inner residual sum, `{node.outputs[0]}`"
                for node, x, h in self._joins(self._back(site.h))
                if node.kind == "add"
                and node.name != site.residual
                and ancestry.depends(x, on=site.x)
                and (ancestry.is_mixed(x, h) or self._index.flow.width(x) == site.width)
            ]
            if inner:
                yield Unplaced(self._layers(self._back(site.h)), f"`{site.name}` contains {inner[0]}")

    def outside(self) -> list[Unplaced]:
        """Return blocks outside of the sublayers, with their layers."""
        blocks: list[_Block] = []
        for block in (*self._joined(), *self._attending()):
            if not any(block.positions & other.positions for other in blocks):
                blocks.append(block)
        blocks.sort(key=lambda block: max(block.positions))
        return [Unplaced(self._layers(block.positions), block.reason) for block in blocks]

    def _outer(self, positions: Iterable[int]) -> frozenset[int]:
        return frozenset(at for at in positions if at not in self._inside and at not in self._sums)

    def _joined(self) -> Iterator[_Block]:
        """Yield blocks whose result is joined with a value that they are computed from through weights."""
        index = self._index
        for node, x, h in self._joins(set(range(len(index.nodes))) - self._inside - self._sums.keys()):
            way = index.between(x, h)
            products = [index.nodes[at] for at in way if index.nodes[at].multiplies]
            if all(product.kind == "convolution" for product in products) or self._is_pooled(node.outputs[0]):
                continue  # a position or image embedding, or a head on a pooled vector
            position = index.position(node.outputs[0])
            if node.kind == "add":
                reason = f"the sum `{node.outputs[0]}` adds them to `{x}`, which is not on the residual stream"
            else:
                reason = f"`{node.outputs[0]}` joins them with `{x}` by `{node.op}`, which is not a supported sum"
            yield _Block(self._outer([*way, *self._back(h), position]) or frozenset([position]), reason)

    def _joins(self, positions: Iterable[int]) -> Iterator[tuple[FlowNode, str, str]]:
        """Yield nodes that read a value `x` of their result's shape, and an `h` computed from it through weights."""
        for node in (self._index.nodes[at] for at in sorted(positions)):
            if node.kind not in ("norm", "attention", "convolution") and len(set(node.inputs)) > 1:
                for side, other in permutations(dict.fromkeys(node.inputs), 2):
                    x = self._joined_value(node, side, other)
                    if x is not None:
                        yield node, x, other
                        break

    def _joined_value(self, node: FlowNode, side: str, other: str) -> str | None:
        """Return the last value equal to `side` up to norms and scales from which weights compute `other`."""
        index, origins = self._index, self._index.ancestry.of(other)
        if node.kind == "product" and side in node.operands:
            return None
        weighted = origins.weighted & ~origins.straight  # others only mix values of the stream
        if node.kind == "product" and node.weighted:
            weighted = origins.all
        of_side = index.ancestry.of(side)
        x = index.ancestry.latest((of_side.straight if node.kind == "add" else of_side.unmultiplied) & weighted)
        # a sum of unknown width may be one of the stream
        widths = () if x is None else (None, index.flow.width(x))
        return x if index.flow.width(node.outputs[0]) in widths else None

    def _attending(self) -> Iterator[_Block]:
        """Yield attention whose result is not added to a value that it is computed from."""
        index = self._index
        for at, node in enumerate(index.nodes):
            if at in self._inside or at in self._sums or not node.mixes_tokens or not self._goes_on(at):
                continue
            if self._is_behind(node) and self._is_pooled(node.outputs[0], rows=-2):
                continue
            end, total = self._next_sum(at)
            if total is None:
                reason = f"no sum adds their result to a value of the stream that ends in `{self._final}`"
            else:
                reason = f"the sum `{end}` adds two values that are both computed through weights"
            yield _Block(self._outer(self._back(end)), reason)

    def _goes_on(self, at: int) -> bool:
        """Return whether a product follows: bare scores, as of token pairs, are not attention."""
        if self._index.nodes[at].kind == "attention":
            return True
        derived = set(self._index.nodes[at].outputs)
        for node in self._index.nodes[at + 1 :]:
            if not derived.isdisjoint(node.inputs):
                if node.multiplies:
                    return True
                derived.update(node.outputs)
        return False

    def _next_sum(self, at: int) -> tuple[str, FlowNode | None]:
        """Return the next sum before the stream continues, with its node, or else the last value before."""
        index = self._index
        derived = set(index.nodes[at].outputs)
        end = index.nodes[at].outputs[0]
        for position in range(at + 1, len(index.nodes)):
            node = index.nodes[position]
            if derived.isdisjoint(node.inputs) or position in self._inside or position in self._sums:
                continue
            end = node.outputs[0]
            if node.kind == "add" and index.flow.alike(end, node.inputs[0]) and index.flow.rank(end) in (2, 3):
                return end, node
            if not self._ends.isdisjoint(node.outputs):
                return end, None
            derived.update(node.outputs)
        return end, None

    def _is_behind(self, node: FlowNode) -> bool:
        """Return whether a node reads the final hidden state."""
        return any(self._index.ancestry.depends(name, on=self._final) for name in node.inputs)

    def _is_pooled(self, value: str, *, rows: int = 1) -> bool:
        """Return whether a value has one row per text, not one per token."""
        shape = self._index.flow.shapes.get(value, ())
        texts = self._index.flow.shapes.get(self._final, ())[:1]
        return (len(shape) == 2 and shape[:1] == texts) or (len(shape) > 2 and shape[rows] == 1)

    def _layers(self, positions: Iterable[int]) -> tuple[str, ...]:
        nodes = (self._index.nodes[at] for at in sorted(positions))
        named = (node for node in nodes if node.multiplies and (node.weighted or node.kind == "attention"))
        return tuple(dict.fromkeys(node.path or node.name for node in named))
