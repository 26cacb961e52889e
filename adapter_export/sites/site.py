"""Sites: the locations in a base where adapters can act."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["attention", "cross_attention", "ffn", "linear", "part", "embeddings", "lookup"]

LAYERS: tuple[Role, ...] = ("linear", "part")
"""Roles of single layers: linear layers, and parts of fused ones."""

SUBLAYERS: tuple[Role, ...] = ("attention", "cross_attention", "ffn")
"""Roles of blocks that add their output to the residual stream."""


_IN_A_LAYER = re.compile(r"(?P<stream>(?:.+?\.)?)layers\.(?P<layer>\d+)\.(?P<part>.+)")


@dataclass(frozen=True)
class SiteName:
    """Parsed site name: `decoder.`, 3 and `cross_attention` for `decoder.layers.3.cross_attention`.

    A name outside of layers, such as `pooler.dense`, is one `part` without a `layer`. `layer` counts within its stream,
    so that a decoder's differs from `Site.layer`.
    """

    stream: str
    layer: int | None
    part: str

    @classmethod
    def parse(cls, name: str) -> SiteName:
        """Split a name."""
        match = _IN_A_LAYER.fullmatch(name)
        return cls("", None, name) if match is None else cls(match["stream"], int(match["layer"]), match["part"])

    @property
    def block(self) -> str:
        """Name up to its layer, such as `decoder.layers.3`; empty outside of layers."""
        return "" if self.layer is None else f"{self.stream}layers.{self.layer}"

    @property
    def place(self) -> str:
        """Name without its layer, such as `decoder.cross_attention`."""
        return f"{self.stream}{self.part}"


@dataclass(frozen=True)
class Norm:
    """A norm over the features of each token (`unknown` if unsupported), with tensors [d] by name in the view."""

    kind: Literal["layer", "rms", "unknown"]
    epsilon: float
    weight: str | None
    bias: str | None


@dataclass(frozen=True)
class Site:
    """A site, as values of the base's dataflow graph, by name in the view that found it.

    A sublayer has all values, a linear layer only `u` and `h`, the embeddings only `h`. Values are [batch, tokens,
    width], or [batch·tokens, width] if the base flattens them, or [batch, width] after a pooling. A split of a fused
    linear layer (role `part`) has the values of the whole layer, and consists of some features of its `h`. A lookup in
    a table has `u` and `h`, as a linear layer of one-hot vectors: its `u` is ids [batch, tokens].

    Attributes:
        name: name such as `layers.3.attention.query` or `embeddings`; in an encoder–decoder with the stream first,
            `decoder.layers.3.cross_attention`; outside of sublayers the module path, such as `pooler.dense`.
        layer: index from 0, a decoder's after the encoder's; `None` for embeddings and sites outside of layers.
        width: width `d` of `h`; at a sublayer, of the residual stream.
        width_in: width `d_in` of `u`; `d` without `u`; at a lookup the number of the table's rows.
        h: the sublayer's output, before the residual add; a linear layer's output with its bias.
        x: the residual stream at the sublayer's start.
        u: the sublayer's input, `x` after a pre-norm; a linear layer's input.
        y: the block's output after the add, and after `norm` if the base normalizes the sum.
        residual: the node that adds `h` to `x`, or to the other sublayer of a parallel block.
        path: module of the last product, at a sublayer its output projection, if recorded by the exporter. Sites of a
            module called in several layers share its path.
        followed_by: kind of the sum's first reader, such as `norm`, or `output`; empty at other sites.
        parts: slices [start, end) of `h` for the splits of a fused linear layer; at a split, its own.
        other_calls: number of calls of a linear layer's module on values other than activations of a text, such as
            relative positions; adapters do not act there.
        blocks: number of equal blocks of `h`, so that a split is a slice of each; more than 1 in a fused layer with
            interleaved heads.
        sequence_first: whether tokens come before batch, as in `torch.nn.MultiheadAttention`.
        part_paths: modules of a fused layer's splits, if separate in the trained model; at a split, its own.
    """

    name: str
    role: Role
    layer: int | None
    width: int
    width_in: int
    h: str
    x: str | None = None
    u: str | None = None
    y: str | None = None
    norm: Norm | None = None
    residual: str | None = None
    path: str | None = None
    followed_by: str = ""
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    other_calls: int = 0
    blocks: int = 1
    sequence_first: bool = False
    part_paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Name without the layer: `attention.query` for `layers.3.attention.query`; similarly `decoder.ffn`."""
        return SiteName.parse(self.name).place

    @property
    def is_outside(self) -> bool:
        """True for a layer outside of sublayers, such as a pooler, a language head or a lookup."""
        return self.role in ("linear", "lookup") and self.layer is None

    def part(self, name: str) -> Site:
        """Return a split of this fused linear layer as an additional site."""
        start, end = self.parts[name]
        own_path = {name: self.part_paths[name]} if name in self.part_paths else {}
        return replace(
            self,
            name=f"{self.name.rpartition('.')[0]}.{name}",
            role="part",
            width=(end - start) * self.blocks,
            path=own_path.get(name, self.path),
            parts={name: (start, end)},
            part_paths=own_path,
        )


@dataclass(frozen=True)
class Unplaced:
    """A sublayer without a site.

    Attributes:
        layers: its layers with weights, by torch path or name in the graph.
        reason: reason, a clause.
    """

    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Coverage of a base by its sites.

    Attributes:
        found: number of sublayers with sites.
        unplaced: sublayers without sites.
    """

    found: int = 0
    unplaced: tuple[Unplaced, ...] = ()

    @property
    def expected(self) -> int:
        """Minimum number of sublayers of the base."""
        return self.found + len(self.unplaced)

    @property
    def is_complete(self) -> bool:
        """True if every sublayer is a site."""
        return not self.unplaced

    def __str__(self) -> str:
        """Format as `10 of 10 sublayers`, or `8 of at least 10`."""
        return f"{self.found} of {'' if self.is_complete else 'at least '}{self.expected} sublayers"


@dataclass(frozen=True)
class SiteMap:
    """The sites of a base in order of evaluation, and the final hidden state [batch, tokens, width] for heads.

    `coverage` records whether sublayers are missing.
    """

    sites: tuple[Site, ...]
    final: str
    width: int
    coverage: Coverage = Coverage()

    def __iter__(self) -> Iterator[Site]:
        """Iterate over the sites, each fused linear layer before its splits; splits never reuse a site's name."""
        names = {site.name for site in self.sites}
        for site in self.sites:
            yield site
            parts = map(site.part, site.parts if site.role == "linear" else ())
            yield from (part for part in parts if part.name not in names)

    @property
    def sublayers(self) -> tuple[Site, ...]:
        """Sites with roles in `SUBLAYERS`, which have all values."""
        return self.of_roles(SUBLAYERS)

    def of_roles(self, roles: tuple[str, ...]) -> tuple[Site, ...]:
        """Return the sites with one of `roles`."""
        return tuple(site for site in self if site.role in roles)
