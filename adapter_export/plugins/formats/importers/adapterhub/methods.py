"""Import of AdapterHub's methods: bottlenecks, LoRA and IA3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.errors import AdapterError, TensorError, UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.bottleneck_config import BottleneckConfig, bottleneck_config
from adapter_export.graph.kinds.kind import Component, Kind, RelativeWidth
from adapter_export.graph.kinds.linear import changed_layer_graph, lora_graph
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_config import LoraConfig
from adapter_export.plugins.formats.importers.adapterhub.adapterhub_folder import Keys, Names, sublayer_target
from adapter_export.plugins.formats.importers.match import Target, inside, match
from adapter_export.plugins.formats.importers.tensor_map import (
    Recipe,
    Source,
    TensorMap,
    as_it_is,
    flattened,
    transposed,
    zeros,
)
from adapter_export.sites.site import LAYERS, Site, SiteMap
from adapter_export.tables import number_of

# Bottlenecks: every field of `BnConfig`, invertible adapters, and shared tensors of Compacter (`methods/modeling.py`).

EMBEDDINGS = "embeddings"


def import_bottleneck(
    config: BottleneckConfig, names: Names, mapped: TensorMap, sites: SiteMap, kind: str, *, by_number: bool
) -> tuple[str, ...]:
    """Map bottlenecks to the sites of a base, and return notes; the caller calls `TensorMap.check`.

    Raises:
        AdapterError: the config is inconsistent, or the base lacks its sites.
    """
    if config.phm_layer and (config.shared_phm_rule or config.shared_W_phm) and not names.shared:
        raise AdapterError(
            "is a Compacter without its shared tensors, so that its results cannot be reproduced",
            found="no tensor `shared_parameters.…`",
            expected="`phm_rule`, and the other shared tensors of the config",
            fix="the library loses them when it saves from a bare model such as `BertModel`: save it again from the "
            "`AutoAdapterModel` in which it was trained",
        )
    kind_of_config = as_kind(config, kind)
    keys, told = keys_at_sites(
        names.of("adapters"), lambda path: sublayer_target(path, sites), sites, by_number=by_number
    )
    inverted = next(iter(sites.of_roles((EMBEDDINGS,))), None)  # the encoder's, if there is a decoder
    if names.inverse is not None:
        if inverted is None:
            raise AdapterError(
                "has an invertible adapter after the embeddings, a site that the base lacks",
                fix="pass a base with token embeddings, or train without `inv_adapter`",
            )
        keys[inverted.name] = names.inverse
    for site in sites:
        component = kind_of_config.component_at(site)
        if component is None or (site.role == EMBEDDINGS and site is not inverted):
            continue
        if site.name not in keys:
            mapped.fault(f"every tensor of `{site.name}`{f' (`{site.path}`)' if site.path else ''} is missing")
            continue
        try:
            widths = bottleneck_widths(component, site)
        except UsageError as error:
            raise AdapterError(
                error.what, where=f"`{site.name}`", found=error.found, expected=error.expected
            ) from error
        recipes = nice_recipes() if site.role == EMBEDDINGS else bottleneck_recipes(config)
        mapped.place(site, component.graph_name, component.graph, recipes, widths, keys[site.name], names.shared)
    notes = list(told)
    if config.phm_layer and config.factorized_phm_rule:
        notes.append("the two factors of the rule were multiplied, and each number rounded once to float32")
    if config.inv_adapter is not None:
        notes.append(
            "the invertible adapter acts after the embeddings; AdapterHub also inverts it before a language-model "
            "head, which is not supported"
        )
    return tuple(notes)


def bottleneck_widths(component: Component, site: Site) -> dict[str, int]:
    """Return the widths of a bottleneck at a site, including those of the halves of its features."""
    return {**component.widths_at(site), "d": site.width, "d1": site.width // 2, "d2": (site.width + 1) // 2}


def keys_at_sites(
    modules: Mapping[str, Keys],
    target: Callable[[str], Target],
    sites: SiteMap,
    where: object = None,
    *,
    by_number: bool,
) -> tuple[dict[str, Keys], tuple[str, ...]]:
    """Return the tensors of the module at each site, by site name, and notes.

    Raises AdapterError, listing modules that the base lacks.
    """
    matched = match([target(path) for path in modules], sites, where, by_number=by_number)
    matched.require(list(modules))
    return {site: modules[path] for site, path in matched.modules().items()}, matched.notes()


def as_kind(config: BottleneckConfig, name: str) -> Kind:
    """Return the graphs of a config; AdapterError if it is inconsistent or cannot be expressed."""
    try:
        kind = bottleneck_config(config, name)
    except UsageError as error:
        raise AdapterError(error.what, found=error.found, expected=error.expected, fix=error.fix) from error
    # a full matrix is one factor, the identity the other: the rank is the narrower side
    narrower = RelativeWidth("b", float(config.phm_dim), exact=True)
    return kind if config.factorized_phm_W else kind.with_widths(k=narrower)


def without_unused_inverse(
    config: BottleneckConfig, document: Mapping[str, Any], names: Names
) -> tuple[BottleneckConfig, tuple[str, ...]]:
    """Remove unused invertible adapters from old task adapters (`AdapterLoader._fix_legacy_config`)."""
    if config.inv_adapter is None or document.get("type") != "text_task" or names.inverse is not None:
        return config, ()
    note = "the config names an invertible adapter, which old task adapters do not use: it was ignored"
    return replace(config, inv_adapter=None, inv_adapter_reduction_factor=None), (note,)


def bottleneck_recipes(config: BottleneckConfig) -> dict[str, Recipe]:
    """Return the recipes for the parameters of a bottleneck's graph."""
    first = f"adapter_down.{1 if config.ln_before else 0}"
    recipes: dict[str, Recipe] = {
        "scaling.weight": as_it_is("scaling", ("d",) if config.scaling == "channel" else (1,)),
        **_gate("d"),
    }
    for role in ("weight", "bias"):
        recipes[f"norm_before.{role}"] = _twice(f"adapter_norm_before.{role}", f"adapter_down.0.{role}")
        recipes[f"norm_after.{role}"] = as_it_is(f"adapter_norm_after.{role}", ("d",))
    if config.phm_layer:
        return recipes | _phm(config, first)
    for name, library, shape in (("down", first, ("d", "b")), ("up", "adapter_up", ("b", "d"))):
        recipes[f"{name}.weight"] = transposed(f"{library}.weight", shape)
        recipes[f"{name}.bias"] = as_it_is(f"{library}.bias", shape[1:])
    return recipes


def _gate(width: str) -> dict[str, Recipe]:
    return {"gate.weight": transposed("gate.weight", (width, 1)), "gate.bias": as_it_is("gate.bias", (1,))}


def _twice(name: str, again: str) -> Recipe:
    """Read a norm stored under two names: as a member of the module, and in its `adapter_down`."""

    def the_same(first: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not np.array_equal(first, other):
            raise TensorError(
                "the file contains a tensor under two names with different values",
                found=f"`…{name}` and `…{again}`",
                fix="save the adapter again with AdapterHub's library",
            )
        return first

    return Recipe((Source(name, ("d",)), Source(again, ("d",))), the_same, undo=lambda first: (first, first))


def _phm(config: BottleneckConfig, first: str) -> dict[str, Recipe]:
    """Return recipes for Kronecker products (`PHMLayer`): rule [n, n, n], factors [n, in/n, k] and [n, k, out/n]."""
    recipes = {"rule": _rule(config, "")}
    for name, library, part_in, part_out in (("down", first, "p", "q"), ("up", "adapter_up", "q", "p")):
        width, shared = "b" if name == "down" else "d", config.shared_W_phm
        factors = f"W_{name}" if shared else f"{library}.W"
        recipes[f"{name}.rule"] = _rule(config, f"{library}.")
        recipes[f"{name}.bias"] = as_it_is(f"{library}.b", (width,)) if config.phm_bias else zeros(width)
        if config.factorized_phm_W:
            left = as_it_is(f"{factors}_left", ("n", part_in, "k"), shared=shared)
            right = as_it_is(f"{factors}_right", ("n", "k", part_out), shared=shared)
        else:
            whole = Source(factors, ("n", part_in, part_out), shared)
            itself = Recipe((whole,), np.asarray)
            left, right = (itself, _identities(whole, 2)) if name == "down" else (_identities(whole, 1), itself)
        recipes |= {f"{name}.left": left, f"{name}.right": right}
    return recipes


def _rule(config: BottleneckConfig, prefix: str) -> Recipe:
    shared = config.shared_phm_rule
    if not config.factorized_phm_rule:
        return as_it_is(f"{prefix}phm_rule", ("n", "n", "n"), shared=shared)
    left = Source(f"{prefix}phm_rule_left", ("n", "n", 1), shared)
    right = Source(f"{prefix}phm_rule_right", ("n", 1, "n"), shared)
    return Recipe((left, right), lambda first, other: first.astype(np.float64) @ other.astype(np.float64))


def _identities(whole: Source, axis: int) -> Recipe:
    """Return identity matrices [k, k], the second factors of full matrices; k is the bottleneck's share."""

    def make(matrices: np.ndarray) -> np.ndarray:
        width = matrices.shape[axis]
        return np.broadcast_to(np.eye(width, dtype=np.float32), (len(matrices), width, width))

    return Recipe((whole,), make)


def nice_recipes() -> dict[str, Recipe]:
    """Return recipes for an invertible adapter's graph, which acts on whole features instead of halves.

    `F` reads the second half (width `d2`) and writes the first (`d1`), `G` the reverse; rows of the other half are
    zero.
    """

    def first(half: np.ndarray, others: int) -> np.ndarray:
        return np.concatenate([half, np.zeros((others, *half.shape[1:]), half.dtype)])

    def second(half: np.ndarray, others: int) -> np.ndarray:
        return np.concatenate([np.zeros((others, *half.shape[1:]), half.dtype), half])

    return _coupling("f", "F", second, first, ("d2", "d1")) | _coupling("g", "G", first, second, ("d1", "d2"))


_Half = Callable[[np.ndarray, int], np.ndarray]


def _coupling(name: str, library: str, read: _Half, written: _Half, halves: tuple[str, str]) -> dict[str, Recipe]:
    reads, writes = halves
    down, up = Source(f"{library}.0.weight", (name, reads)), Source(f"{library}.2.weight", (writes, name))
    bias = Source(f"{library}.2.bias", (writes,))

    def half_of(whole: np.ndarray, half: str) -> np.ndarray:
        return whole[: len(whole) // 2] if half == "d1" else whole[len(whole) // 2 :]

    return {
        f"{name}_down.weight": Recipe(
            (down, up), lambda weight, other: read(weight.T, len(other)), undo=lambda whole: (half_of(whole, reads).T,)
        ),
        f"{name}_down.bias": as_it_is(f"{library}.0.bias", (name,)),
        f"{name}_up.weight": Recipe(
            (up, down),
            lambda weight, other: written(weight, other.shape[1]).T,
            undo=lambda whole: (half_of(whole.T, writes),),
        ),
        f"{name}_up.bias": Recipe(
            (bias, down),
            lambda tensor, other: written(tensor, other.shape[1]),
            undo=lambda whole: (half_of(whole, writes),),
        ),
    }


# LoRA and IA3 (`methods/lora.py`), around single linear layers and around fused ones.

_FUSED = {"q": "query", "k": "key", "v": "value"}
"""Parts of a fused layer, in order, by their names in the config."""


@dataclass(frozen=True)
class LowRankForm:
    """The graph at one linear layer, and the recipes for its parameters."""

    graph_name: str
    graph: AdapterGraph
    recipes: Mapping[str, Recipe]
    widths: Mapping[str, int]


def import_low_rank(
    config: LoraConfig, names: Names, mapped: TensorMap, base: BaseView, *, by_number: bool
) -> tuple[str, ...]:
    """Map LoRA or IA3 to the linear layers of a base, like `import_bottleneck`."""
    if config.is_vera and not names.shared:
        raise AdapterError(
            "is a VeRA without its shared matrices, so that its results cannot be reproduced",
            found="no tensor `shared_parameters.…`",
            expected="`lora_A` and `lora_B`",
            fix="the library loses them when it saves from a bare model such as `BertModel`: save it again from the "
            "`AutoAdapterModel` in which it was trained",
        )
    sites = base.sites
    keys, notes = keys_at_sites(
        names.of("loras"), lambda path: Target(path, path), sites, "LoRA and IA3", by_number=by_number
    )
    _check_layers(config, keys, sites, mapped)
    for site in sites.of_roles(LAYERS):
        if site.name in keys and site.layer not in config.leave_out:
            form = low_rank_form(config, site, base)
            mapped.place(site, form.graph_name, form.graph, form.recipes, form.widths, keys[site.name], names.shared)
    return notes


def _check_layers(config: LoraConfig, placed: Mapping[str, object], sites: SiteMap, mapped: TensorMap) -> None:
    """Check that all adapted layers have the same tensors, as many as the config requires.

    The library treats cross-attention like attention.
    """
    possible: dict[int, set[str]] = {}
    names_by_layer: dict[int, set[str]] = {}
    for site in sites.of_roles(LAYERS):
        if site.layer is not None and site.layer not in config.leave_out:
            possible.setdefault(site.layer, set()).add(inside(site))
            names_by_layer.setdefault(site.layer, set()).update([inside(site)] if site.name in placed else [])
    everywhere = set().union(*names_by_layer.values())
    crossing = {f"cross_{name}" for name in everywhere if name.startswith("attention.")}
    for layer, names in names_by_layer.items():
        for name in sorted(((everywhere | crossing) & possible[layer]) - names):
            mapped.fault(f"every tensor of `{name}` in layer {layer} is missing")
    fused = any(site.parts for site in sites.of_roles(("linear",)) if site.name in placed)
    attention = 1 if fused else len(_FUSED.keys() & set(config.attn_matrices))
    wanted = attention * config.selfattn_lora + config.intermediate_lora + config.output_lora
    layer_names = [name for name in everywhere if not name.startswith("cross_")]
    if len(layer_names) != wanted:
        mapped.fault(
            f"each layer has {number_of(len(layer_names), 'adapted linear layer')}, and the config requires {wanted}"
        )


def low_rank_form(config: LoraConfig, site: Site, base: BaseView) -> LowRankForm:
    """Return the graph of LoRA or IA3 at a linear layer; AdapterError if it is not supported there."""
    fused = _enabled(config, site) if site.role == "linear" and site.parts else ()
    if fused and (config.use_dora or config.is_vera or config.architecture != "lora"):
        raise AdapterError(
            "AdapterHub supports DoRA, VeRA and MTL-LoRA only at single linear layers, and this one fuses query, key "
            "and value",
            where=f"`{site.name}`",
            fix="train LoRA there instead",
        )
    if config.use_dora:
        return _dora(config, site, base)
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
    """Return the adapted thirds of a fused layer; the library splits it into three equal parts."""
    third = site.width // len(_FUSED)
    expected = {name: (third * at, third * (at + 1)) for at, name in enumerate(_FUSED.values())}
    if dict(site.parts) != expected:
        raise AdapterError(
            "AdapterHub splits a fused layer into equal parts for query, key and value, which this layer lacks",
            where=f"`{site.name}`",
            found=", ".join(f"{name} {start}:{end}" for name, (start, end) in site.parts.items()),
        )
    return tuple(at for at, letter in enumerate(_FUSED) if letter in config.attn_matrices)


def _lora(config: LoraConfig, site: Site, fused: tuple[int, ...]) -> LowRankForm:
    """Return `h + (alpha/r)·B(A u)`; in a fused layer, each product writes its own part."""
    factor = 1.0 if config.use_gating else config.alpha / config.r
    graph = lora_graph(factor, dropout=config.dropout, gate=config.use_gating)
    down, up = _matrices(config)
    recipes = {"lora_A.weight": down, "lora_B.weight": Recipe(up.sources, lambda *tensors: up.make(*tensors).T)}
    if len(up.sources) == 1:
        recipes["lora_B.weight"] = transposed("lora_B", ("r", "d"))
    widths = {"d": site.width, "d_in": site.width_in, "r": config.r * (len(fused) or 1), "r1": config.r}
    widths["n"] = config.n_up_projection
    if fused:
        third = site.width // len(_FUSED)

        def spread(stacked: np.ndarray) -> np.ndarray:
            """[n·d/3, r] as [n·r, d]."""
            return np.concatenate([_in_thirds(stacked, at, part, third) for at, part in enumerate(fused)])

        def gathered(whole: np.ndarray) -> tuple[np.ndarray]:
            """[n·r, d] as [n·d/3, r]."""
            parts = (
                whole[config.r * at : config.r * (at + 1), third * part : third * (part + 1)].T
                for at, part in enumerate(fused)
            )
            return (np.concatenate(list(parts)),)

        recipes["lora_B.weight"] = Recipe((Source("lora_B", (third * len(fused), "r1")),), spread, undo=gathered)
    return LowRankForm("lora_gate" if config.use_gating else "lora", graph, {**recipes, **_gate("d_in")}, widths)


def _matrices(config: LoraConfig) -> tuple[Recipe, Recipe]:
    """Return A [d_in, r] and B [d, r]: from the file, or computed for VeRA and MTL-LoRA."""
    if config.is_vera:  # `vera_B @ lora_B @ vera_D @ lora_A`
        sources = (
            Source("vera_B", ("d", "d")),
            Source("lora_B", ("d", "r"), shared=True),
            Source("vera_D", ("r", "r")),
        )
        down = Recipe((Source("lora_A", ("r", "d_in"), shared=True),), np.transpose)
        return down, Recipe(sources, lambda outer, b, inner: _wide(outer) @ _wide(b) @ _wide(inner))
    down = transposed("lora_A", ("d_in", "r"))
    if config.architecture == "lora":
        return down, as_it_is("lora_B", ("d", "r"))

    def weighed(ups: np.ndarray, factors: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """`Σ wᵢ·Bᵢ diag(v)`, w a softmax (`MTLLoRA.forward`)."""
        sharp = _wide(weights) / config.weights_sharpness
        shares = np.exp(sharp - sharp.max())
        return np.asarray(np.tensordot(shares / shares.sum(), _wide(ups), 1) * factors)

    sources = Source("lora_B", ("n", "d", "r")), Source("task_specific.values", ("r",)), Source("weights", ("n",))
    return down, Recipe(sources, weighed)


def _wide(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float64)


def _dora(config: LoraConfig, site: Site, base: BaseView) -> LowRankForm:
    """`s⊙h + s⊙(alpha/r)·B(A u)`, `s = m/‖W + B A‖` for each output (`compute_dora_deltaw`).

    The library adds `B A` [out, in] to the weight as its module stores it: [in, out] in `Conv1D` of transformers, where
    it fails unless the matrix is square.
    """
    layer = base.layer(site)
    if layer is None:
        raise AdapterError(
            "is `m/‖W + B A‖ ⊙ (h + B A u)`, and the base does not expose the weight W of this layer",
            where=f"`{site.name}`",
            found="`use_dora`",
            fix="pass the model's folder as the base",
        )
    if layer.module_in_first is None and site.width == site.width_in:
        raise AdapterError(
            "is a DoRA whose norms depend on the layout of the module's weight, which this base does not show",
            where=f"`{site.name}`",
            found=f"a square weight [{site.width}, {site.width}]",
            fix="pass the model's folder or a torch archive as the base",
        )
    weight = layer.weight.T if layer.module_in_first else layer.weight
    if weight.shape != layer.weight.shape:
        raise AdapterError(
            "is a DoRA at a layer that stores [in, out], for which the library computes no norms",
            where=f"`{site.name}`",
            found=f"a weight {list(weight.shape)}",
            fix="train LoRA there instead",
        )
    down, up = _matrices(config)
    count, magnitude = len(up.sources), Source("m.weight", ("d", 1))

    def parts(tensors: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The factor of each output, and B."""
        b = _wide(up.make(*tensors[:count]))
        norms = np.linalg.norm(weight + b @ _wide(down.make(*tensors[count:-1])).T, axis=1)
        return _wide(tensors[-1])[:, 0] / norms, b

    def factors(*tensors: np.ndarray) -> np.ndarray:
        return parts(tensors)[0]

    def scaled(*tensors: np.ndarray) -> np.ndarray:
        scale, b = parts(tensors)
        return np.asarray((scale[:, None] * b * (config.alpha / config.r)).T)

    sources = (*up.sources, *down.sources, magnitude)
    recipes = {
        "scaling.weight": Recipe(sources, factors),
        "lora_A.weight": down,
        "lora_B.weight": Recipe(sources, scaled),
    }
    widths = {"d": site.width, "d_in": site.width_in, "r": config.r, "n": config.n_up_projection}
    return LowRankForm("scaled_lora", changed_layer_graph(scale=True), recipes, widths)


def _in_thirds(stacked: np.ndarray, at: int, part: int, third: int) -> np.ndarray:
    """Return the `at`-th of stacked matrices [n·d/3, r] as [r, d]: the `part`-th third of the columns, else zeros."""
    block = stacked[third * at : third * (at + 1)].T
    return np.concatenate([block if column == part else np.zeros_like(block) for column in range(len(_FUSED))], axis=1)


def _gated_parts(config: LoraConfig, site: Site, fused: tuple[int, ...]) -> LowRankForm:
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
    widths = {"d": site.width, "d_in": site.width_in, "r": config.r}
    widths |= {"rn": config.r * len(fused), "dn": third * len(fused)}
    return LowRankForm("lora_gates", chain.graph(), recipes, widths)


def _part_recipes(name: str, at: int, part: int, parts: int, third: int, rank: int) -> dict[str, Recipe]:
    """Return recipes for the `at`-th stacked product, which writes the `part`-th third of the layer."""
    return {
        f"{name}A.weight": Recipe((Source("lora_A", ("rn", "d_in")),), lambda a: a[rank * at : rank * (at + 1)].T),
        f"{name}B.weight": Recipe((Source("lora_B", ("dn", "r")),), lambda b: _in_thirds(b, at, part, third)),
        f"{name}gate.weight": Recipe((Source("gate.weight", (parts, "d_in")),), lambda g: g[at : at + 1].T),
        f"{name}gate.bias": Recipe((Source("gate.bias", (parts,)),), lambda g: g[at : at + 1]),
    }


def _ia3(config: LoraConfig, site: Site, fused: tuple[int, ...]) -> LowRankForm:
    """Return `alpha·l⊙h`, with a gate `g·l⊙h`; other parts of a fused layer have factors of 1."""
    chain = Chain("h")
    chain.owned("scale_features", "scaling", {"weight": ("d",)})
    if config.use_gating:
        chain.gate("u", "d_in")
    else:
        chain.scale(config.alpha)
    third, width = site.width // len(_FUSED), site.width

    def among_ones(factors: np.ndarray) -> np.ndarray:
        whole = np.ones(width, factors.dtype)
        for at, part in enumerate(fused):
            whole[third * part : third * (part + 1)] = factors[third * at : third * (at + 1), 0]
        return whole

    def parts_of(whole: np.ndarray) -> tuple[np.ndarray]:
        return (np.concatenate([whole[third * part : third * (part + 1)] for part in fused]),)

    recipe = flattened("lora_B", ("d", 1))
    if fused:
        recipe = Recipe((Source("lora_B", (third * len(fused), 1)),), among_ones, undo=parts_of)
    name = "ia3_gate" if config.use_gating else "ia3"
    widths = {"d": site.width, "d_in": site.width_in}
    return LowRankForm(name, chain.graph(), {"scaling.weight": recipe, **_gate("d_in")}, widths)
