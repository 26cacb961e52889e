"""NICE: two coupled bottlenecks after the embeddings (Dinh et al. 2015, §3.2; Pfeiffer et al. 2020, MAD-X)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from adapter_export.errors import UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.kind import Component, Kind, KindOption, Maker, Places, RelativeWidth
from adapter_export.graph.ops import ACTIVATIONS


@dataclass(frozen=True)
class NiceOptions:
    """The options of NICE, two coupled bottlenecks (Dinh et al. 2015, §3.2)."""

    activation: Annotated[
        str, KindOption("Activation between the projections.", choices=ACTIVATIONS, packed="required")
    ] = "relu"
    reduction_factor: Annotated[
        float | Mapping[str, float], KindOption("`nice`: half of `d` over the width of each of its bottlenecks.")
    ] = 2.0


def nice_graph(activation: str) -> AdapterGraph:
    """`y₁ = h₁ + F(h₂)`, `y₂ = h₂ + G(y₁)`, where the halves are written as features of which the others are zero.

    Parameters `f_down.weight` [d, f], `f_down.bias` [f], `f_up.weight` [f, d], `f_up.bias` [d], and `g_…` with the
    width g. Of `f_down.weight` the first ⌊d/2⌋ rows have no effect, of `f_up.weight` and `f_up.bias` the last columns;
    of those of G the other ones. Raises `UsageError` for an unknown activation.
    """
    chain = Chain("h")
    halves = ("keep_first_half", "keep_second_half")
    for name, (written, read) in (("f", halves), ("g", halves[::-1])):
        value = chain.value
        chain.op(read, f"{name}_half")
        chain.linear(f"{name}_down", "d", name)
        chain.activation(activation, f"{name}_activated")
        chain.linear(f"{name}_up", name, "d")
        delta = chain.op(written, f"{name}_written")
        chain.value = value
        chain.op("add", f"{name}_sum", delta)
    return chain.graph()


def nice_component(activation: str, reduction_factor: float) -> Component:
    """NICE after the embeddings; F and G are as wide as half the features over the factor."""
    width = RelativeWidth("d", 2 * reduction_factor)
    return Component(f"nice_{activation}", nice_graph(activation), Places(("embeddings",)), {"f": width, "g": width})


def _nice_kind(options: NiceOptions) -> Kind:
    if isinstance(options.reduction_factor, Mapping):
        factors = dict(options.reduction_factor)
        raise UsageError("`nice` acts at one place and has one reduction factor", found=factors)
    return Kind("nice", (nice_component(options.activation, options.reduction_factor),), "normal")


nice = Maker(
    "nice",
    "`y₁ = h₁ + F(h₂)`, `y₂ = h₂ + G(y₁)` after the embeddings, `h₁` the first half of the features of `h`, F and G "
    'bottlenecks: `inv_adapter="nice"` of AdapterHub (Pfeiffer et al. 2020, MAD-X)',
    _nice_kind,
    NiceOptions(),
)
