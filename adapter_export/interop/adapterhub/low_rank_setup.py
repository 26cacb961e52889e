"""Averages of LoRA or of IA3 (`LoRALinear.mean` and `com` in `methods/lora.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.members import Here, compose, members_of
from adapter_export.graph.compose.members import Parts as Own
from adapter_export.graph.compose.merge import Merged
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.interop.adapterhub.setups import Setup
from adapter_export.sites.site import SiteMap


def import_low_rank_average(setup: Setup, adapters: Sequence[Adapter], sites: SiteMap, name: str) -> Adapter:
    """`h + 1/N·Σ wᵢ·Δᵢ` of LoRA, `1/N·Σ wᵢ·(lᵢ⊙h)` of IA3: the library takes the mean of what is weighed already.

    Args:
        setup: an average of single adapters.
        adapters: those adapters, imported, in their order.
        sites: of the base.
        name: of the new adapter.

    Raises:
        UsageError: it is another composition.
        AdapterError: the library cannot run it.
    """
    _check(setup, adapters, sites)
    factors = [weight / len(adapters) for weight in setup.block.weights]
    merged = _mean(factors, added=adapters[0].kind == "lora")
    return compose(members_of(adapters), Own(name, "average", {}), merged, None)


def _check(setup: Setup, adapters: Sequence[Adapter], sites: SiteMap) -> None:
    if setup.block.kind != "Average" or len(adapters) != len(setup.block.children):
        raise UsageError(
            "a composition of LoRA or IA3 that is not imported as a whole",
            where=setup.path,
            found=f"`{setup.block.kind}` of {', '.join(f'`{name}`' for name in setup.block.names)}",
            expected="an `Average` of single adapters",
            fix="give `--name` with one of its adapters",
        )
    if len({adapter.kind for adapter in adapters}) > 1 or len({tuple(one.placements) for one in adapters}) > 1:
        raise AdapterError(
            "its members act in different places or ways, and AdapterHub's library cannot run their average",
            found=", ".join(f"`{one.name}`: {one.kind} at {len(one.placements)} layers" for one in adapters),
            expected="the same method at the same layers in all of them",
        )
    fused = [site.name for site in sites if site.name in adapters[0].placements and site.parts]
    if fused:
        raise AdapterError("AdapterHub's library cannot run an average at fused layers", found=f"`{fused[0]}`")


def _mean(factors: Sequence[float], *, added: bool) -> Callable[[Sequence[Here | None], str], AdapterGraph]:
    def merged(here: Sequence[Here | None], _: str) -> AdapterGraph:
        chain = Merged("h")
        parts = []
        for one, factor in zip(here, factors, strict=True):
            assert one is not None, "all act at the same layers"
            values: Mapping[str, str] = {}
            value = one.delta(chain, values) if added else one.result(chain, values)
            parts.append(chain.once(Node("scale", (value,), f"{one.member.label}_part", {}, {"factor": factor})))
        first, *others = ["h", *parts] if added else parts
        for part in others:
            first = chain.once(Node("add", (first, part), "sum"))
        chain.value = first
        return chain.graph("h", chain.shared)

    return merged
