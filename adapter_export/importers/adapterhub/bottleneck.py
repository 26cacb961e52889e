"""Bottlenecks of AdapterHub: every field of `BnConfig`, with invertible adapters and what Compacter shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, TensorError, UsageError
from adapter_export.graph.adapter import SHARED, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.adapterhub import BottleneckConfig, bottleneck_config
from adapter_export.graph.kinds.kind import Kind, KindPart, Share
from adapter_export.importers.adapterhub.places import Key, Module, modules_of, place_blocks
from adapter_export.importers.adapterhub.tensors import Recipe, Source, Taken, as_it_is, transposed, zeros
from adapter_export.sites.site import Site, SiteMap

# How the parameters of bottlenecks are made of the library's tensors (`methods/modeling.py`).

Recipes = dict[str, Recipe]


def bottleneck_recipes(config: BottleneckConfig) -> Recipes:
    """The parameters of a bottleneck's graph, by their names there."""
    first = f"adapter_down.{1 if config.ln_before else 0}"
    found: Recipes = {
        "scaling.weight": as_it_is("scaling", ("d",) if config.scaling == "channel" else (1,)),
        "gate.weight": transposed("gate.weight", ("d", 1)),
        "gate.bias": as_it_is("gate.bias", (1,)),
    }
    for role in ("weight", "bias"):
        found[f"norm_before.{role}"] = _twice(f"adapter_norm_before.{role}", f"adapter_down.0.{role}")
        found[f"norm_after.{role}"] = as_it_is(f"adapter_norm_after.{role}", ("d",))
    if config.phm_layer:
        return found | _phm(config, first)
    return found | _linear("down", first, "d", "b") | _linear("up", "adapter_up", "b", "d")


def nice_recipes() -> Recipes:
    """The parameters of an invertible adapter's graph, which has whole features where the library has halves.

    `F` reads the second half (width `d2`) and writes the first (`d1`), `G` the other way round.
    """
    return _coupling("f", "F", read=_second, written=_first, halves=("d2", "d1")) | _coupling(
        "g", "G", read=_first, written=_second, halves=("d1", "d2")
    )


Half = Callable[[np.ndarray, int], np.ndarray]


def _coupling(name: str, library: str, read: Half, written: Half, halves: tuple[str, str]) -> Recipes:
    inside, outside = halves
    down, up = Source(f"{library}.0.weight", (name, inside)), Source(f"{library}.2.weight", (outside, name))
    bias = Source(f"{library}.2.bias", (outside,))

    return {
        f"{name}_down.weight": Recipe((down, up), lambda weight, other: read(weight.T, len(other))),
        f"{name}_down.bias": as_it_is(f"{library}.0.bias", (name,)),
        f"{name}_up.weight": Recipe((up, down), lambda weight, other: written(weight, other.shape[1]).T),
        f"{name}_up.bias": Recipe((bias, down), lambda one, other: written(one, other.shape[1])),
    }


def _first(half: np.ndarray, others: int) -> np.ndarray:
    """The first half of the rows; the others are zero."""
    return np.concatenate([half, np.zeros((others, *half.shape[1:]), half.dtype)])


def _second(half: np.ndarray, others: int) -> np.ndarray:
    """The second half of the rows; the others are zero."""
    return np.concatenate([np.zeros((others, *half.shape[1:]), half.dtype), half])


def _linear(name: str, library: str, width_in: str, width_out: str) -> Recipes:
    return {
        f"{name}.weight": transposed(f"{library}.weight", (width_in, width_out)),
        f"{name}.bias": as_it_is(f"{library}.bias", (width_out,)),
    }


def _twice(name: str, again: str) -> Recipe:
    """The norm before is a member of the module and the first of its `adapter_down`: files hold it under both names."""

    def the_same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not np.array_equal(one, other):
            raise TensorError(
                "one tensor lies in the file under two names, and the two differ",
                found=f"`…{name}` and `…{again}`",
                fix="save the adapter again with AdapterHub's library",
            )
        return one

    return Recipe((Source(name, ("d",)), Source(again, ("d",))), the_same)


def _phm(config: BottleneckConfig, first: str) -> Recipes:
    """Projections of Kronecker products (`PHMLayer`): rule [n, n, n], factors [n, in/n, k] and [n, k, out/n]."""
    found: Recipes = {"rule": _rule(config, "")}
    for name, library, part_in, part_out in (("down", first, "p", "q"), ("up", "adapter_up", "q", "p")):
        found[f"{name}.rule"] = _rule(config, f"{library}.")
        found[f"{name}.bias"] = _bias(config, library, "b" if name == "down" else "d")
        found |= _factors(config, name, library, part_in, part_out)
    return found


def _rule(config: BottleneckConfig, prefix: str) -> Recipe:
    shared = config.shared_phm_rule
    if not config.factorized_phm_rule:
        return as_it_is(f"{prefix}phm_rule", ("n", "n", "n"), shared=shared)
    left = Source(f"{prefix}phm_rule_left", ("n", "n", 1), shared)
    right = Source(f"{prefix}phm_rule_right", ("n", 1, "n"), shared)
    return Recipe((left, right), lambda one, other: one.astype(np.float64) @ other.astype(np.float64))


def _bias(config: BottleneckConfig, library: str, width: str) -> Recipe:
    return as_it_is(f"{library}.b", (width,)) if config.phm_bias else zeros(width)


def _factors(config: BottleneckConfig, name: str, library: str, part_in: str, part_out: str) -> Recipes:
    shared = config.shared_W_phm
    prefix = f"W_{name}" if shared else f"{library}.W"
    if config.factorized_phm_W:
        return {
            f"{name}.left": as_it_is(f"{prefix}_left", ("n", part_in, "k"), shared=shared),
            f"{name}.right": as_it_is(f"{prefix}_right", ("n", "k", part_out), shared=shared),
        }
    whole = Source(prefix, ("n", part_in, part_out), shared)
    itself = Recipe((whole,), np.asarray)
    left, right = (itself, _identities(whole, 2)) if name == "down" else (_identities(whole, 1), itself)
    return {f"{name}.left": left, f"{name}.right": right}


def _identities(whole: Source, axis: int) -> Recipe:
    """An identity matrix [k, k] for each product: a full matrix is its own factor; k is the bottleneck's share."""

    def make(matrices: np.ndarray) -> np.ndarray:
        width = matrices.shape[axis]
        return np.broadcast_to(np.eye(width, dtype=np.float32), (len(matrices), width, width))

    return Recipe((whole,), make)


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
