"""NICE: an invertible adapter after the embeddings, two coupled bottlenecks (Dinh et al. 2015, §3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.chain import Chain
from adapter_export.graph.kinds.kind import Kind, KindPart, Places, Share, Width

NICE_PLACES = Places(("embeddings",))
_REDUCTION = 2.0


@dataclass(frozen=True)
class NiceOptions:
    """What NICE can vary.

    Attributes:
        activation: one of `ACTIVATIONS`, between the projections of both bottlenecks.
    """

    activation: str = "relu"


def nice(options: NiceOptions | None = None) -> Kind:
    """`y₁ = h₁ + F(h₂)`, `y₂ = h₂ + G(y₁)` after the embeddings, `h₁` the first half of the features of `h`.

    F and G are bottlenecks. AdapterHub calls it `inv_adapter="nice"` (Pfeiffer et al. 2020, MAD-X).

    Raises:
        UsageError: an unknown activation.
    """
    activation = (options or NiceOptions()).activation
    part = KindPart(f"nice_{activation}", nice_graph(activation), NICE_PLACES, nice_widths(_REDUCTION))
    return Kind("nice", (part,), "normal")


def nice_graph(activation: str) -> AdapterGraph:
    """`y₁ = h₁ + F(h₂)`, `y₂ = h₂ + G(y₁)`, where the halves are written as features of which the others are zero.

    Parameters `f_down.weight` [d, f], `f_down.bias` [f], `f_up.weight` [f, d], `f_up.bias` [d], and `g_…` with the
    width g. Of `f_down.weight` the first ⌊d/2⌋ rows have no effect, of `f_up.weight` and `f_up.bias` the last columns;
    of those of G the other ones.
    """
    chain = Chain("h")
    _coupling(chain, "f", "h", "keep_second_half", "keep_first_half", activation)
    _coupling(chain, "g", chain.value, "keep_first_half", "keep_second_half", activation)
    return chain.graph()


def _coupling(chain: Chain, name: str, value: str, read: str, written: str, activation: str) -> None:
    """`value` plus a bottleneck that reads one half of it and writes the other."""
    chain.value = value
    chain.op(read, f"{name}_half")
    chain.linear(f"{name}_down", "d", name)
    chain.activation(activation, f"{name}_activated")
    chain.linear(f"{name}_up", name, "d")
    delta = chain.op(written, f"{name}_written")
    chain.value = value
    chain.op("add", f"{name}_sum", delta)


def nice_widths(reduction_factor: float) -> dict[str, Width]:
    """The widths of F and G: half the features over the factor."""
    return {"f": Share("d", 2 * reduction_factor), "g": Share("d", 2 * reduction_factor)}
