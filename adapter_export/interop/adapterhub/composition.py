"""Compositions of bottlenecks as one graph, in the steps of AdapterHub (`methods/bottleneck.py`).

An adapter reads what `pre_forward` makes of the value before it, and is added to the residual that this gives. In a
stack each has its own; in an average all have the first one's, in a fusion all have the last one's. The last adapter of
the whole decides what follows (`post_forward`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapter_export.errors import AdapterError
from adapter_export.graph.compose.attention import FIRST_TEMPERATURE, FusionOptions, attend
from adapter_export.graph.compose.merge import Merged
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.graph.kinds.bottleneck import BottleneckOptions, Wiring, wired
from adapter_export.interop.adapterhub.setups import Block


@dataclass(frozen=True)
class FusionConfig:
    """`AdapterFusionConfig` by its own names; the last three have no effect on what is computed."""

    key: bool
    query: bool
    value: bool
    query_before_ln: bool = False
    residual_before: bool = False
    temperature: bool = False
    value_before_softmax: bool = True
    regularization: bool = False
    value_initialized: bool | str = False
    dropout_prob: float | None = None

    def options(self) -> FusionOptions:
        """What of it decides what is computed."""
        return FusionOptions(
            query=self.query,
            key=self.key,
            value=self.value,
            query_before_norm=self.query_before_ln,
            residual_before=self.residual_before,
            value_before_softmax=self.value_before_softmax,
            temperature=FIRST_TEMPERATURE if self.temperature else 1.0,
        )


@dataclass(frozen=True)
class Bottleneck:
    """A member that acts at a site.

    Attributes:
        label: the beginning of the names of its parameters.
        number: its position in the whole setup, from 1: the end of its widths.
        config: its config.
    """

    label: str
    number: int
    config: BottleneckConfig


@dataclass(frozen=True)
class Attention:
    """A fusion.

    Attributes:
        owner: the beginning of the names of its parameters.
        config: its config.
    """

    owner: str
    config: FusionConfig


def composed(block: Block, members: Mapping[str, Bottleneck], fusions: Mapping[Block, Attention]) -> AdapterGraph:
    """The graph of a composition at a site.

    Args:
        block: the composition.
        members: those of its adapters that act there, at least one, by their names.
        fusions: its fusions.

    Raises:
        AdapterError: AdapterHub's library cannot run it there, or loses what the layer computes.
        UsageError: a config contradicts itself.
    """
    return _Composer(members, fusions).graph(block)


@dataclass(frozen=True)
class _Read:
    """What `pre_forward` gives."""

    value: str
    residual: str


class _Composer:
    """Writes the nodes of a composition; values are named by the nodes that define them."""

    def __init__(self, members: Mapping[str, Bottleneck], fusions: Mapping[Block, Attention]) -> None:
        self._members = members
        self._fusions = fusions
        self._chain = Merged("h")

    def graph(self, block: Block) -> AdapterGraph:
        value = self._block(block, "h")
        last = self._members[[name for name in block.names if name in self._members][-1]].config
        if last.is_parallel:
            value = self._chain.once(Node("add", (value, "h"), "result"))
        self._chain.value = value
        return self._chain.graph("h" if last.original_ln_after else "y", self._chain.shared)

    def _block(self, block: Block, value: str) -> str:
        if not any(name in self._members for name in block.names):
            return value
        if block.kind == "Stack":
            return self._stack(block, value)
        self._check_places(block)
        return self._average(block, value) if block.kind == "Average" else self._fuse(block, value)

    def _stack(self, block: Block, value: str) -> str:
        here = [child for child in block.children if isinstance(child, Block) or child in self._members]
        for child in here:
            if isinstance(child, Block):
                value = self._block(child, value)
            else:
                self._check_sequential(child, len(here))
                value = self._single(child, self._pre(child, value))
        return value

    def _average(self, block: Block, value: str) -> str:
        """`1/N·Σ wᵢ·Aᵢ`: the library takes the mean of what the weights have weighed already."""
        read = self._pre(block.names[0], value)
        parts = []
        for child, weight in zip(block.children, block.weights, strict=True):
            result = self._stack(child, read.value) if isinstance(child, Block) else self._single(child, read)
            factor = weight / len(block.children)
            parts.append(self._chain.once(Node("scale", (result,), f"{result}_part", {}, {"factor": factor})))
        total = parts[0]
        for part in parts[1:]:
            total = self._chain.once(Node("add", (total, part), "sum"))
        return total

    def _fuse(self, block: Block, value: str) -> str:
        fusion, last = self._fusions[block], block.names[-1]
        read = self._pre(last, value)
        added = [self._added_by(child, read.value) for child in block.children]
        query = value if fusion.config.query_before_ln else read.value
        attend(self._chain, fusion.config.options(), added, query, read.residual, owner=fusion.owner)
        return self._chain.value

    def _added_by(self, child: Block | str, value: str) -> str:
        """What a fusion takes of a child: what its up-projection gives, before gates and norms."""
        if isinstance(child, Block):
            *before, child = child.names
            for name in before:
                value = self._single(name, self._pre(name, value))
            value = self._pre(child, value).value
        member = self._members[child]
        options = replace(member.config.options(), gate=False, norm_after=False, dropout=0.0)
        return self._added(member, options, value)

    def _pre(self, name: str, value: str) -> _Read:
        config = self._members[name].config
        if config.is_parallel:
            return _Read("x", "x")
        read, total = value, value
        if config.original_ln_before:
            total = self._chain.once(Node("add", (value, "x"), f"{value}_sum"))
            read = self._chain.once(Node("base_norm", (total,), f"{value}_normed"))
        if config.residual_before_ln == "post_add":
            return _Read(read, total)
        return _Read(read, value if config.residual_before_ln is True else read)

    def _single(self, name: str, read: _Read) -> str:
        member = self._members[name]
        config = member.config
        config.wiring()  # raises where the config contradicts itself
        if config.is_parallel:
            return self._added(member, config.options(), read.value)
        core = wired(Wiring("x", residual_inside=config.adapter_residual_before_ln), config.options())
        return self._chain.result(member.label, member.number, core, {"x": read.value, "h": read.residual})

    def _added(self, member: Bottleneck, options: BottleneckOptions, value: str) -> str:
        core = wired(Wiring("x"), options)
        return self._chain.delta(member.label, member.number, core, {"x": value})

    def _check_places(self, block: Block) -> None:
        absent = [name for name in block.names if name not in self._members]
        if absent:
            raise AdapterError(
                "its members act in different places, and AdapterHub's library cannot run a "
                f"`{block.kind}` of which some act at a site and some do not",
                found=f"nothing of {', '.join(f'`{name}`' for name in absent)}",
                expected="`mh_adapter`, `output_adapter` and `leave_out` that are the same in all of them",
            )
        parallel = [name for name in block.names if self._members[name].config.is_parallel]
        if parallel and block.kind == "Fuse":
            raise AdapterError(
                "a fusion of parallel adapters adds output and residual twice in AdapterHub, which cannot be expressed",
                found=_listed(parallel),
            )
        if parallel and len(parallel) < len(block.names):
            raise AdapterError(
                "an average of parallel and other adapters loses or doubles what the layer computes in AdapterHub",
                found=_listed(parallel),
            )

    def _check_sequential(self, name: str, count: int) -> None:
        if count > 1 and self._members[name].config.is_parallel:
            raise AdapterError(
                "a stack with a parallel adapter loses what the layer and the adapters before it compute in AdapterHub",
                found=f"`{name}`",
            )


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
