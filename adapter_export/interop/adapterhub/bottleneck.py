"""Bottlenecks of AdapterHub: every field of `BnConfig`, with invertible adapters and what Compacter shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import SHARED, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.adapterhub import BottleneckConfig, bottleneck_config
from adapter_export.graph.kinds.kind import Kind, KindPart
from adapter_export.graph.kinds.widths import Share
from adapter_export.interop.adapterhub.keys import Key, Module, modules_of
from adapter_export.interop.adapterhub.places import place_blocks
from adapter_export.interop.adapterhub.recipes import bottleneck_recipes, nice_recipes
from adapter_export.interop.adapterhub.tensors import Taken
from adapter_export.sites.site import Site, SiteMap

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Parts:
    """What an adapter does at the sites of a base.

    Attributes:
        kind: the kind's name.
        graphs: by name.
        placements: what acts where.
        weights: by the names that adapters give them.
        notes: what was done on the way.
    """

    kind: str
    graphs: Mapping[str, AdapterGraph]
    placements: Mapping[str, Placement]
    weights: Weights
    notes: tuple[str, ...]


def import_bottleneck(config: BottleneckConfig, keys: Iterable[Key], taken: Taken, sites: SiteMap, kind: str) -> Parts:
    """Bring bottlenecks to the sites of a base.

    Args:
        config: the config.
        keys: the names of the adapter's tensors.
        taken: the tensors.
        sites: of the base.
        kind: the name of the kind.

    Raises:
        AdapterError: the config contradicts itself, or the base lacks its places.
        TensorError: tensors are missing, left over or misshapen; all of them are listed.
    """
    keys = tuple(keys)
    refuse_lost_rule(config, keys)
    made = as_kind(config, kind)
    placed = place_blocks(modules_of(keys, "adapters"), sites)
    inverted = modules_of(keys, "invertible_adapters")
    shared = whole(modules_of(keys, "shared_parameters"))
    modules = {**placed.sites, **({embeddings_of(sites): inverted[0]} if inverted else {})}
    placements: dict[str, Placement] = {}
    for site, part in _at(made, sites):
        widths = part_widths(part, site)
        placements[site.name] = Placement(part.graph_name, {name: widths[name] for name in part.graph.symbols()})
        take_part(config, part, site, widths, modules.get(site.name), shared, taken)
    taken.check()
    used = {placement.graph for placement in placements.values()}
    graphs = {name: graph for name, graph in made.graphs.items() if name in used}
    return Parts(kind, graphs, placements, taken.weights, (*placed.notes, *notes_of(config), *taken.notes()))


def as_kind(config: BottleneckConfig, name: str) -> Kind:
    """The graphs of a config.

    Raises:
        AdapterError: it contradicts itself, or asks for what has no graph; the message names it.
    """
    try:
        kind = bottleneck_config(config, name)
    except UsageError as error:
        raise AdapterError(error.what, found=error.found, expected=error.expected, fix=error.fix) from error
    # a full matrix is its own factor, the other one the identity: the rank is the narrower side
    return kind if config.factorized_phm_W else kind.with_widths(k=Share("b", float(config.phm_dim), exact=True))


def _at(kind: Kind, sites: SiteMap) -> Iterator[tuple[Site, KindPart]]:
    for site in sites:
        part = kind.part_at(site)
        if part is not None:
            yield site, part


def part_widths(part: KindPart, site: Site) -> dict[str, int]:
    """The widths of a part's symbols, and those of the two halves of the features."""
    try:
        widths = part.widths_at(site)
    except UsageError as error:
        raise AdapterError(error.what, where=f"`{site.name}`", found=error.found, expected=error.expected) from error
    return {**widths, "d": site.width, "d1": site.width // 2, "d2": site.width - site.width // 2}


def take_part(
    config: BottleneckConfig,
    part: KindPart,
    site: Site,
    widths: Mapping[str, int],
    module: Module | None,
    shared: Module | None,
    taken: Taken,
) -> None:
    """Take the parameters of one part at one site."""
    if module is None:
        place = f"`{site.name}`" + (f" (`{site.path}`)" if site.path else "")
        taken.fault(f"every tensor of {place} is missing")
        return
    recipes = nice_recipes() if site.role == EMBEDDINGS else bottleneck_recipes(config)
    common = f"{SHARED}.{part.graph_name}"
    names = {name: f"{common if name in part.graph.shared else site.name}.{name}" for name in part.graph.parameters}
    taken.take(names, recipes, widths, module, shared)


def whole(modules: tuple[Module, ...]) -> Module | None:
    """All that belongs to the whole adapter, whatever the prefix."""
    if not modules:
        return None
    return replace(modules[0], keys={name: full for module in modules for name, full in module.keys.items()})


def embeddings_of(sites: SiteMap) -> str:
    """The site of an invertible adapter.

    Raises:
        AdapterError: the base has none.
    """
    found = sites.of_roles((EMBEDDINGS,))
    if not found:
        raise AdapterError(
            "has an invertible adapter after the embeddings, and no such site was found in the base",
            fix="give a base that starts from tokens, or train without `inv_adapter`",
        )
    return found[0].name


def without_unused_inverse(
    config: BottleneckConfig, document: Mapping[str, Any], keys: tuple[Key, ...]
) -> tuple[BottleneckConfig, tuple[str, ...]]:
    """Old task adapters name invertible adapters that they never had (`AdapterLoader._fix_legacy_config`)."""
    unused = document.get("type") == "text_task" and not any(key.container == "invertible_adapters" for key in keys)
    if config.inv_adapter is None or not unused:
        return config, ()
    note = "the config names an invertible adapter, which old task adapters do not use: it was left out"
    return replace(config, inv_adapter=None, inv_adapter_reduction_factor=None), (note,)


def refuse_lost_rule(config: BottleneckConfig, keys: tuple[Key, ...]) -> None:
    """Bare models save Compacter without what its modules share (`AdapterLoader.filter_func` wants a dot before it).

    Raises:
        AdapterError: such a file.
    """
    shares = config.phm_layer and (config.shared_phm_rule or config.shared_W_phm)
    if shares and not any(key.container == "shared_parameters" for key in keys):
        raise AdapterError(
            "is a Compacter without the tensors that its modules share; nothing that is computed with it can be right",
            found="no tensor `shared_parameters.…`",
            expected="`phm_rule`, and whatever else the config shares",
            fix="the library loses them when it saves from a bare model such as `BertModel`: save it again from the "
            "`AutoAdapterModel` in which it was trained",
        )


def notes_of(config: BottleneckConfig) -> Iterator[str]:
    """What a user should know of how a config was read."""
    if config.phm_layer and config.factorized_phm_rule:
        yield "the two factors of the rule were multiplied, and each number rounded once to float32"
    if config.inv_adapter is not None:
        yield (
            "the invertible adapter acts after the embeddings; AdapterHub also inverts it before a language-model "
            "head, which is not done here"
        )
