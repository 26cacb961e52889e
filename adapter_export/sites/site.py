"""Sites: the places of a base where an adapter can act."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["attention", "cross_attention", "ffn", "linear", "part", "embeddings"]

LAYERS: tuple[Role, ...] = ("linear", "part")
"""The roles of single layers: those with a product of their own, and the parts of fused ones."""

SUBLAYERS: tuple[Role, ...] = ("attention", "cross_attention", "ffn")
"""The roles of what adds its output to the residual stream."""


_IN_A_LAYER = re.compile(r"(?P<stream>(?:.+?\.)?)layers\.(?P<layer>\d+)\.(?P<part>.+)")


@dataclass(frozen=True)
class SiteName:
    """The parts of a site's name: `decoder.`, 3 and `cross_attention` of `decoder.layers.3.cross_attention`.

    A name outside of all layers, such as `pooler.dense`, is one `part` without a `layer`. `layer` counts within its
    stream, so that of a decoder's site is not `Site.layer`.
    """

    stream: str
    layer: int | None
    part: str

    @classmethod
    def parse(cls, name: str) -> SiteName:
        """Split a name."""
        found = _IN_A_LAYER.fullmatch(name)
        return cls("", None, name) if found is None else cls(found["stream"], int(found["layer"]), found["part"])

    @property
    def block(self) -> str:
        """The name up to its layer, such as `decoder.layers.3`; empty outside of all layers."""
        return "" if self.layer is None else f"{self.stream}layers.{self.layer}"

    @property
    def place(self) -> str:
        """The name without its layer, such as `decoder.cross_attention`."""
        return f"{self.stream}{self.part}"


@dataclass(frozen=True)
class Norm:
    """A norm over the features of each token (`unknown` if it cannot be read), its tensors [d] named as in the view."""

    kind: Literal["layer", "rms", "unknown"]
    epsilon: float
    weight: str | None
    bias: str | None


@dataclass(frozen=True)
class Site:
    """One place in the base, as values of its dataflow graph (names of the view that found it).

    A sublayer has all values. A linear layer, inside it or outside of all of them, has only `u` and `h`, the
    embeddings have only `h`; each value is [batch, tokens, width], or [batch·tokens, width] in a base that flattens
    them there, or [batch, width] behind a pooling. A split of a fused linear layer (role `part`) names the values of
    the whole layer, and is some of the features of its `h`.

    Attributes:
        name: such as `layers.3.attention.query` or `embeddings`; in a base of encoder and decoder with the stream
            first, `decoder.layers.3.cross_attention`; outside of all sublayers the module path, such as `pooler.dense`.
        layer: the index from 0, a decoder's after the encoder's; `None` for embeddings and sites outside all layers.
        width: the width `d` of `h`; at a sublayer that of the residual stream.
        width_in: the width `d_in` of `u`; `d` where there is no `u`.
        h: the sublayer's output, before the residual add; a linear layer's output with its bias.
        x: the residual stream at the sublayer's start.
        u: what the sublayer itself reads: `x` after the pre-norm where there is one; a linear layer's input.
        y: the block's output after the add, and after `norm` where the base normalises the sum.
        residual: the node that adds `h`: to `x`, or to the sublayer beside it in a parallel block.
        path: the module of the last product, at a sublayer its output projection, if the exporter recorded it. A module
            that is called once per layer gives several sites the same path.
        followed_by: the kind of what reads the sum first, such as `norm`, or `output`; empty at other sites.
        parts: the slices [start, end) of `h`, in a fused linear layer, that are its splits; at a split, its own.
        other_calls: how often the base calls the module of a linear layer on values other than activations of a text,
            such as relative positions; an adapter at the site does not act there.
        blocks: how many equal blocks `h` is cut into first, so that a split is a slice of each; more than 1 where
            a fused layer is laid out head by head.
        sequence_first: whether tokens come before batch, as in `torch.nn.MultiheadAttention`.
        part_paths: the modules of a fused layer's splits, by split, where the trained model has them apart; at a split,
            its own.
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
        """Its name without the layer: `attention.query` of `layers.3.attention.query`, `decoder.ffn` likewise."""
        return SiteName.parse(self.name).place

    @property
    def is_outside(self) -> bool:
        """True for a linear layer outside of all sublayers, such as a pooler or a language head."""
        return self.role == "linear" and self.layer is None

    def part(self, name: str) -> Site:
        """A split of this fused linear layer as a site of its own, beside it."""
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
    """A sublayer that lies in none of the sites.

    Attributes:
        layers: its layers with weights, by their torch paths, or names in the graph.
        reason: why they are not placed: a clause.
    """

    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Coverage:
    """The part of a base that its sites cover.

    Attributes:
        found: the number of sublayers that are sites.
        unplaced: those that are not.
    """

    found: int = 0
    unplaced: tuple[Unplaced, ...] = ()

    @property
    def expected(self) -> int:
        """The number of sublayers that the base has, at least."""
        return self.found + len(self.unplaced)

    @property
    def is_complete(self) -> bool:
        """True if every sublayer is a site."""
        return not self.unplaced

    def __str__(self) -> str:
        """Words such as `10 of 10 sublayers`, or `8 of at least 10`."""
        return f"{self.found} of {'' if self.is_complete else 'at least '}{self.expected} sublayers"


@dataclass(frozen=True)
class SiteMap:
    """The sites of a base in the order of evaluation, and the final hidden state [batch, tokens, width] for heads.

    `coverage` says whether these are all that the base has.
    """

    sites: tuple[Site, ...]
    final: str
    width: int
    coverage: Coverage = Coverage()

    def __iter__(self) -> Iterator[Site]:
        """The sites, each fused linear layer before its splits; a name that a site has is not given to a split."""
        names = {site.name for site in self.sites}
        for site in self.sites:
            yield site
            parts = map(site.part, site.parts if site.role == "linear" else ())
            yield from (part for part in parts if part.name not in names)

    @property
    def sublayers(self) -> tuple[Site, ...]:
        """The sites of the roles in `SUBLAYERS`, which have all values."""
        return self.of_roles(SUBLAYERS)

    def of_roles(self, roles: tuple[str, ...]) -> tuple[Site, ...]:
        """The sites whose role is one of `roles`."""
        return tuple(site for site in self if site.role in roles)
