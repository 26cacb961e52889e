"""LoRA and IA3 of AdapterHub (`methods/lora.py`), around single linear layers and around fused ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.chain import Chain
from adapter_export.graph.compose.members import Here, Merged, compose, members_of
from adapter_export.graph.compose.members import Parts as Own
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.lora import lora_graph
from adapter_export.importers.adapterhub.bottleneck import Parts
from adapter_export.importers.adapterhub.config import LoraConfig
from adapter_export.importers.adapterhub.places import Key, Module, modules_of, place_linears
from adapter_export.importers.adapterhub.setups import Setup
from adapter_export.importers.adapterhub.tensors import Recipe, Source, Taken, as_it_is, transposed
from adapter_export.sites.site import Site, SiteMap

# Averages of LoRA or of IA3 (`LoRALinear.mean` and `com` in `methods/lora.py`).


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


_LAYER = re.compile(r"\blayers\.\d+\.")
_FUSED = {"q": "query", "k": "key", "v": "value"}
"""The parts of a fused layer, in their order, by the names that the config has for them."""

Recipes = Mapping[str, Recipe]


@dataclass(frozen=True)
class _Form:
    """What is computed at one linear layer, and how its parameters are made."""

    graph_name: str
    graph: AdapterGraph
    recipes: Recipes
    widths: Mapping[str, int]


def import_low_rank(config: LoraConfig, keys: Iterable[Key], taken: Taken, sites: SiteMap) -> Parts:
    """Bring LoRA or IA3 to the linear layers of a base.

    Raises:
        AdapterError: the base lacks its places, or it cannot be expressed.
        TensorError: tensors are missing, left over or misshapen; all of them are listed.
    """
    placed = place_linears(modules_of(keys, "loras"), sites)
    _check_layers(config, placed.sites, sites, taken)
    graphs: dict[str, AdapterGraph] = {}
    placements: dict[str, Placement] = {}
    for site in sites:
        module = placed.sites.get(site.name)
        if module is not None and site.layer not in config.leave_out:
            form = _form(config, site)
            graphs[form.graph_name] = form.graph
            placements[site.name] = Placement(
                form.graph_name, {symbol: form.widths[symbol] for symbol in form.graph.symbols()}
            )
            names = {name: f"{site.name}.{name}" for name in form.graph.parameters}
            taken.take(names, form.recipes, form.widths, module)
    taken.check()
    kind = "lora" if config.composition_mode == "add" else "ia3"
    return Parts(kind, graphs, placements, taken.weights, (*placed.notes, *taken.notes()))


def _form(config: LoraConfig, site: Site) -> _Form:
    fused = _enabled(config, site) if site.parts else ()
    if config.composition_mode == "scale":
        if fused and config.use_gating:
            raise AdapterError(
                "is an IA3 with a gate for each part of a fused layer, which cannot be expressed",
                where=f"`{site.name}`",
                found="`use_gating`",
                fix="train without gates, or on a base whose query, key and value are separate layers",
            )
        return _ia3(config, site, fused)
    return _gated_parts(config, site, fused) if fused and config.use_gating else _lora(config, site, fused)


def _enabled(config: LoraConfig, site: Site) -> tuple[int, ...]:
    """Which thirds of a fused layer take part; the library cuts it into three equal ones."""
    third = site.width // len(_FUSED)
    expected = {name: (third * at, third * (at + 1)) for at, name in enumerate(_FUSED.values())}
    if dict(site.parts) != expected:
        raise AdapterError(
            "AdapterHub cuts a fused layer into equal parts for query, key and value, which this one has not",
            where=f"`{site.name}`",
            found=", ".join(f"{name} {start}:{end}" for name, (start, end) in site.parts.items()),
        )
    return tuple(at for at, letter in enumerate(_FUSED) if letter in config.attn_matrices)


def _lora(config: LoraConfig, site: Site, fused: tuple[int, ...]) -> _Form:
    """`h + (alpha/r)·B(A u)`; of a fused layer's products side by side, each writes its own part."""
    factor = 1.0 if config.use_gating else config.alpha / config.r
    graph = lora_graph(factor, dropout=config.dropout, gate=config.use_gating)
    recipes = {"lora_A.weight": transposed("lora_A", ("d_in", "r")), "lora_B.weight": transposed("lora_B", ("r", "d"))}
    rank = config.r * (len(fused) or 1)
    widths = {"d": site.width, "d_in": site.width_in, "r": rank, "r1": config.r}
    if fused:
        third = site.width // len(_FUSED)
        source = Source("lora_B", (third * len(fused), "r1"))
        recipes["lora_B.weight"] = Recipe((source,), lambda stacked: _spread(stacked, fused, third, site.width))
    return _Form("lora_gate" if config.use_gating else "lora", graph, {**recipes, **_gate()}, widths)


def _gated_parts(config: LoraConfig, site: Site, fused: tuple[int, ...]) -> _Form:
    """`h + Σ gᵢ·Bᵢ(Aᵢ u)`: each part of a fused layer has its own product and its own gate."""
    chain, third, recipes = Chain("h"), site.width // len(_FUSED), dict[str, Recipe]()
    for at, part in enumerate(fused):
        name, total, chain.value = list(_FUSED.values())[part], chain.value, "u"
        chain.dropout(config.dropout, f"{name}_dropped")
        chain.linear(f"{name}_A", "d_in", "r", bias=False)
        delta = chain.linear(f"{name}_B", "r", "d", bias=False)
        chain.value = "u"
        chain.linear(f"{name}_gate", "d_in", 1)
        opened = chain.op("sigmoid", f"{name}_open")
        chain.value = delta
        gated = chain.op("gate", f"{name}_gated", opened)
        chain.value = total
        chain.op("add", f"{name}_added", gated)
        recipes |= _part_recipes(f"{name}_", at, part, len(fused), third, config.r)
    widths = {"d": site.width, "d_in": site.width_in, "r": config.r, "n": len(fused)}
    return _Form(
        "lora_gates", chain.graph(), recipes, {**widths, "rn": config.r * len(fused), "dn": third * len(fused)}
    )


def _part_recipes(name: str, at: int, part: int, parts: int, third: int, rank: int) -> dict[str, Recipe]:
    """The `at`-th of the stacked products, which writes the `part`-th third of the layer."""

    def own(stacked: np.ndarray) -> np.ndarray:
        block = stacked[third * at : third * (at + 1)].T
        return np.concatenate([block if one == part else np.zeros_like(block) for one in range(len(_FUSED))], axis=1)

    return {
        f"{name}A.weight": Recipe((Source("lora_A", ("rn", "d_in")),), lambda a: a[rank * at : rank * (at + 1)].T),
        f"{name}B.weight": Recipe((Source("lora_B", ("dn", "r")),), own),
        f"{name}gate.weight": Recipe((Source("gate.weight", (parts, "d_in")),), lambda g: g[at : at + 1].T),
        f"{name}gate.bias": Recipe((Source("gate.bias", (parts,)),), lambda g: g[at : at + 1]),
    }


def _spread(stacked: np.ndarray, fused: tuple[int, ...], third: int, width: int) -> np.ndarray:
    """[n·d/3, r] as [n·r, d]: each product's columns in its own part, zeros elsewhere."""
    rank = stacked.shape[1]
    whole = np.zeros((rank * len(fused), width), stacked.dtype)
    for at, part in enumerate(fused):
        block = stacked[third * at : third * (at + 1)]
        whole[rank * at : rank * (at + 1), third * part : third * (part + 1)] = block.T
    return whole


def _ia3(config: LoraConfig, site: Site, fused: tuple[int, ...]) -> _Form:
    """`alpha·l⊙h`, with a gate `g·l⊙h`."""
    chain = Chain("h")
    chain.owned("scale_features", "scaling", {"weight": ("d",)})
    if config.use_gating:
        chain.gate("u", "d_in")
    else:
        chain.scale(config.alpha)
    recipe = Recipe((Source("lora_B", ("d", 1)),), lambda factors: factors[:, 0])
    if fused:
        third = site.width // len(_FUSED)
        source = Source("lora_B", (third * len(fused), 1))
        recipe = Recipe((source,), lambda factors: _among_ones(factors[:, 0], fused, third, site.width))
    name = "ia3_gate" if config.use_gating else "ia3"
    widths = {"d": site.width, "d_in": site.width_in}
    return _Form(name, chain.graph(), {"scaling.weight": recipe, **_gate()}, widths)


def _among_ones(factors: np.ndarray, fused: tuple[int, ...], third: int, width: int) -> np.ndarray:
    whole = np.ones(width, factors.dtype)
    for at, part in enumerate(fused):
        whole[third * part : third * (part + 1)] = factors[third * at : third * (at + 1)]
    return whole


def _gate() -> dict[str, Recipe]:
    return {"gate.weight": transposed("gate.weight", ("d_in", 1)), "gate.bias": as_it_is("gate.bias", (1,))}


def _check_layers(config: LoraConfig, placed: Mapping[str, Module], sites: SiteMap, taken: Taken) -> None:
    """Every layer that is not left out must have what others like it have, and as many as the config asks for.

    The library treats cross-attention as attention: both have the same.
    """
    there: dict[int, set[str]] = {}
    found: dict[int, set[str]] = {}
    for site in sites.of_roles(("linear",)):
        if site.layer is not None and site.layer not in config.leave_out:
            there.setdefault(site.layer, set()).add(_inside(site))
            found.setdefault(site.layer, set()).update([_inside(site)] if site.name in placed else [])
    everywhere = set().union(*found.values())
    crossing = {f"cross_{name}" for name in everywhere if name.startswith("attention.")}
    for layer, names in found.items():
        for name in sorted(((everywhere | crossing) & there[layer]) - names):
            taken.fault(f"every tensor of `{name}` in layer {layer} is missing")
    own = [name for name in everywhere if not name.startswith("cross_")]
    fused = any(site.parts for site in sites.of_roles(("linear",)) if site.name in placed)
    wanted = _modules_per_layer(config, fused)
    if len(own) != wanted:
        taken.fault(f"there are {len(own)} linear layers in each layer, and the config asks for {wanted}")


def _inside(site: Site) -> str:
    """A site's name without its layer: `attention.query` of `layers.3.attention.query`."""
    return _LAYER.split(site.name, maxsplit=1)[-1]


def _modules_per_layer(config: LoraConfig, fused: bool) -> int:
    attention = (1 if fused else len(_FUSED.keys() & set(config.attn_matrices))) if config.selfattn_lora else 0
    return attention + config.intermediate_lora + config.output_lora
