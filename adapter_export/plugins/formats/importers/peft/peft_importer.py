"""Import of a PEFT folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adapter_export.bases.base_view import BaseView, ImportRequest
from adapter_export.errors import AdapterError, TensorError, within
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds.linear import ia3_graph, lora_graph
from adapter_export.numerics.lookup_tables import LookupTable
from adapter_export.plugins.formats.importers.match import (
    Match,
    Renaming,
    Target,
    alike,
    check_architecture,
    find_renaming,
    match,
)
from adapter_export.plugins.formats.importers.peft.head import HeadBase, HeadChoice, MadeHead, take_head
from adapter_export.plugins.formats.importers.peft.methods import IA3, LORA, Change, IncompleteError, Layer, Shared
from adapter_export.plugins.formats.importers.peft.methods.low_rank import lora as lora_of_weights
from adapter_export.plugins.formats.importers.peft.peft_embeddings import place_embeddings, take_saved
from adapter_export.plugins.formats.importers.peft.peft_folder import PeftFolder, Sorted, read_folder, sort_tensors
from adapter_export.plugins.formats.importers.peft.peft_options import CHECKED_WITH, PREFIX_KIND, Options, targeted
from adapter_export.plugins.formats.importers.peft.prefix_import import import_prefix
from adapter_export.plugins.formats.importers.placing import norm_sites, place_change, place_norm, place_shift
from adapter_export.plugins.formats.importers.tensor_map import Imported, Recipe, Source, TensorMap
from adapter_export.sites.site import Site, SiteMap
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

LOST_MODULES = "tensors are missing for modules selected by the config"
"""The problem of a file that lacks tensors of modules which its config selects."""


def import_peft(
    folder: Path, base: BaseView, request: ImportRequest, *, head: HeadChoice | None = None, dense: bool = False
) -> Imported:
    """Import a PEFT adapter that is a fixed change of the base's weights.

    Args:
        folder: a folder with one or several adapters.
        base: the base; `tensor` is required for trained biases and norms, and for heads that read a base layer;
            `layer_at` for changes that depend on base weights.
        request: options of the import.
        head: description of the head.
        dense: whether to allow full-rank changes, as large as the layers.

    Raises:
        AdapterError: options, modules or a head cannot be expressed, or the base lacks modules or calls them outside of
            sites; the message lists all.
        TensorError: tensors are missing, unused or misshapen; the message lists all.
        UsageError: the description of the head does not match.
    """
    read = read_folder(folder, request.member, request.read_pickle)
    return import_read(read, base, request, head=head, dense=dense)


def import_read(
    read: PeftFolder, base: BaseView, request: ImportRequest, *, head: HeadChoice | None = None, dense: bool = False
) -> Imported:
    """Import a PEFT adapter whose files were read; arguments and errors as for `import_peft`."""
    if read.options.kind == PREFIX_KIND:
        return import_prefix(read, base, request)
    options, where, mapped = read.options, read.path, TensorMap(read.tensors, read.path)
    sorted_keys = sort_tensors(mapped, options, where)
    with within(where):
        check_architecture(options.architecture, base.model_type, by_number=request.by_number)
    in_base = _Base(base, _matched(sorted_keys, base.sites, options, where, by_number=request.by_number))
    take_saved(sorted_keys, in_base)
    changes = _Changes(sorted_keys, mapped, options, in_base)
    _check_base_weights(sorted_keys, mapped, in_base, where)
    of_head = HeadBase(in_base.tensor, changes.at, base.head_of, base.sites.width)
    made_head = take_head(sorted_keys, mapped, of_head, options, head or HeadChoice(), where)
    if options.kind == "ln_tuning":
        updates = _norm_updates(sorted_keys, in_base, where)
    else:
        updates = _updates(sorted_keys, mapped, in_base, made_head, where)
    _check_lost(in_base.lost(sorted_keys, options), where)
    if options.kind == "lora":
        changed = [update.path for update in updates if update.keys]
        _check_patterns([*changed, *sorted_keys.embeddings], options, where)
    cost = _place(updates, mapped, options, changes, in_base)
    cost |= place_embeddings(sorted_keys, mapped, options, in_base, where)
    mapped.check()
    _check_cost(cost, dense, where)
    renaming = in_base.matched.renaming
    modules = {"drop": renaming.drop, "add": renaming.add, "saved": list(sorted_keys.saved)}
    record = {"imported": {"from": "peft", "config": dict(read.config), "modules": modules}}
    graphs = mapped.graphs
    placements = {site.name: mapped.placements[site.name] for site in base.sites if site.name in mapped.placements}
    adapter = Adapter(
        request.name, options.kind, base.fingerprint, graphs, placements, mapped.weights, made_head.head, record
    )
    untouched = [
        f"`{path}` of the base matches the config, but the adapter does not change it"
        for path in in_base.untouched(sorted_keys, options)
    ]
    return Imported(
        adapter, (*_notes(in_base.matched, sorted_keys, options), *untouched, *mapped.notes(), *made_head.notes)
    )


def _matched(sorted_keys: Sorted, sites: SiteMap, options: Options, where: object, *, by_number: bool) -> Match:
    """Match the modules of the adapter with those of the base; norms by path, embeddings with lookups."""
    if not sorted_keys.adapted:
        lookups = [site.path for site in sites.of_roles(("lookup",)) if site.path is not None]
        renaming = find_renaming(sorted_keys.embeddings, lookups, where) or Renaming()
        return Match({}, renaming, False, (), where)
    if options.kind != "ln_tuning":
        linear = [Target(path, path) for path in sorted_keys.adapted]
        embeddings = [Target(path, path, "lookup") for path in sorted_keys.embeddings]
        return match([*linear, *embeddings], sites, where, by_number=by_number)
    renaming = find_renaming(sorted_keys.adapted, norm_sites(sites), where) or Renaming()
    return Match({}, renaming, False, (), where)


def _check_lost(paths: Sequence[str], where: object) -> None:
    """Reject a file that lacks tensors of modules selected by the config."""
    if paths:
        raise TensorError(
            LOST_MODULES,
            where=where,
            found=quoted(paths),
            fix="get the file from its source again; if it is complete, list these in `exclude_modules` of the config",
        )


def _place(
    updates: Sequence[_Update], mapped: TensorMap, options: Options, changes: _Changes, base: _Base
) -> dict[str, int]:
    """Place all updates in site order; return the bytes of dense matrices at each site."""
    order = {site.name: number for number, site in enumerate(base.map)}
    names: dict[tuple[float, bool], str] = {}
    cost = dict[str, int]()
    for update in sorted(updates, key=lambda update: order[update.site.name]):
        if options.kind == "ia3":
            _place_ia3(mapped, update, options)
        elif options.kind == "ln_tuning":
            _place_norm(mapped, update, base)
        elif update.keys and options.kind == "lora" and not options.of_weights:
            _place_lora(mapped, update, options, names)
        elif update.keys:
            change = changes.at(update.path)
            if change is not None:
                cost[update.site.name] = place_change(mapped, update.path, update.site, change, base.bias(update.path))
        else:
            assert update.shift is not None, "an update without tensors is a shift"
            place_shift(mapped, update.site, update.value, update.shift)
    return cost


@dataclass(frozen=True)
class _Update:
    """Change by the module at `path` (the adapter's name) at one of its calls in the base.

    `keys` maps tensor names to keys, as in `Sorted.adapted`; empty if only a bias was trained. `shift` [out] is the
    change of a trained bias: of `h`, or of `y` after a norm that follows a sum.
    """

    path: str
    site: Site
    keys: Mapping[str, str]
    shift: np.ndarray | None = None
    value: str = "h"


class _Changes:
    """Changes of linear layers by their paths, computed from the adapter's tensors and the base's weights."""

    def __init__(self, sorted_keys: Sorted, mapped: TensorMap, options: Options, base: _Base) -> None:
        self._sorted_keys, self._mapped, self._options, self._base = sorted_keys, mapped, options, base
        self._shared = Shared(options.config, mapped, sorted_keys.shared)
        self._known: dict[str, Change | None] = {}

    def at(self, path: str, widths: tuple[int, ...] | None = None) -> Change | None:
        """Return the change of a layer; record a fault and return `None` if its tensors do not fit.

        `widths` (out, in) of a layer without a site; defaults to those of its site.
        """
        if path not in self._known:
            self._known[path] = self._compute(path, widths)
        return self._known[path]

    def _compute(self, path: str, widths: tuple[int, ...] | None) -> Change | None:
        formula = lora_of_weights if self._options.method is None else self._options.method.formula
        if widths is None:
            site = self._base.sites(path)[0]
            widths = site.width, site.width_in
        width, width_in = widths

        def of_base(name: str) -> np.ndarray | None:
            trained = self._sorted_keys.biases.get(path) if name == "bias" else None
            return self._base.layer(path, name) if trained is None else self._mapped.tensors[trained]

        layer = Layer(path, width, width_in, self._sorted_keys.adapted[path], self._shared, of_base)
        try:
            change = formula(layer).smaller()
        except IncompleteError:
            return None
        except (ValueError, IndexError, np.linalg.LinAlgError) as error:
            self._mapped.fault(f"the tensors of `{path}` are inconsistent ({error})")
            return None
        bias = layer.bias if change.bias is None else change.bias
        return replace(change, bias=bias)


class _Base:
    """The base with the adapter's names; `read` returns tensors by their names in the base.

    `linears` maps module paths to sites of linear layers, `norms` to sites of norms after a sum or the embeddings, with
    the value of their result.
    """

    def __init__(self, base: BaseView, matched: Match) -> None:
        self.map, self.matched, self._view, sites = base.sites, matched, base, base.sites
        self._tables: dict[str, LookupTable | None] = {}
        self.linears: dict[str, list[Site]] = {}
        for site in sites.of_roles(("linear",)):
            if site.path is not None:
                self.linears.setdefault(site.path, []).append(site)
        self.norms = norm_sites(sites)
        self._lookups = {site.path: site for site in sites.of_roles(("lookup",)) if site.path is not None}

    @property
    def lookup_names(self) -> Sequence[str]:
        """Names of all lookups of the base."""
        return [site.name for site in self.map.of_roles(("lookup",))]

    def lookup(self, path: str) -> Site | None:
        """Return the lookup of an embedding of the adapter's model."""
        return self._lookups.get(self.matched.renaming(path) or "")

    def table(self, site: Site) -> LookupTable | None:
        """Return the table of a lookup."""
        if site.name not in self._tables:
            self._tables[site.name] = self._view.table_at(site)
        return self._tables[site.name]

    def sites(self, path: str) -> Sequence[Site]:
        """Return the calls of a linear layer of the adapter's model."""
        return self.matched.sites.get(path) or self.linears.get(self.matched.renaming(path) or "", [])

    def norm(self, path: str) -> tuple[Site, str] | None:
        """Return the site of a norm of the adapter's model, and the site value of its result."""
        return self.norms.get(self.matched.renaming(path) or "")

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a tensor of the base by its name in the adapter's model."""
        known = self.matched.renaming(name)
        return None if known is None else self._view.tensor(known)

    def bias(self, path: str) -> np.ndarray | None:
        """Return the bias of a linear layer of the adapter's model, before training."""
        return self.layer(path, "bias")

    def layer(self, path: str, name: str) -> np.ndarray | None:
        """Return `weight` [out, in] or `bias` of a linear layer of the adapter's model, before training."""
        sites = self.sites(path)
        if not sites:
            tensor = self.tensor(f"{path}.{name}")
        elif self._view.layer_at is None:
            tensor = None
        else:  # a name states neither a matrix's layout nor that the layer adds nothing else
            layer = self._view.layer_at(sites[0])
            tensor = None if layer is None else layer.weight if name == "weight" else layer.bias
        return None if tensor is None else tensor.astype(np.float64)

    def weight(self, path: str) -> np.ndarray | None:
        """Return the weight of a linear layer, or the table of an embedding, of the adapter's model."""
        site = self.lookup(path)
        table = None if site is None else self.table(site)
        return self.layer(path, "weight") if table is None else table.rows

    def lost(self, sorted_keys: Sorted, options: Options) -> list[str]:
        """Return modules selected by the config without tensors in the file, a sign of lost tensors."""
        if options.kind == "ln_tuning":
            return []
        if not self.matched.by_number:
            return [path for path in self._targeted(options, outside=False) if path not in sorted_keys.changed]
        few = options.layers or options.excluded or isinstance(options.targets, str)
        numbered = [site for sites in self.matched.sites.values() for site in sites]
        return [] if few else [site.name for site in alike(numbered, self.map)]

    def untouched(self, sorted_keys: Sorted, options: Options) -> list[str]:
        """Return layers outside of sublayers that are selected by the config without tensors.

        The model of training may lack them, as token classifiers lack a pooler.
        """
        if options.kind == "ln_tuning" or self.matched.by_number:
            return []
        return [path for path in self._targeted(options, outside=True) if path not in sorted_keys.changed]

    def _targeted(self, options: Options, *, outside: bool) -> Iterator[str]:
        """Yield paths, in the adapter's model, of layers selected by the config, inside or outside of sublayers."""
        paths = [path for path, sites in self.linears.items() if sites[0].is_outside == outside]
        paths += self._lookups if outside else []
        return targeted(options, (path for path in map(self.matched.renaming.back, paths) if path is not None))


def _updates(sorted_keys: Sorted, mapped: TensorMap, base: _Base, head: MadeHead, where: object) -> list[_Update]:
    shifts = _shifts(sorted_keys, mapped, base, head, where)
    base.matched.require([path for path in sorted_keys.adapted if base.sites(path) or path not in head.used])
    updates = [
        _Update(path, site, sorted_keys.adapted.get(path, {}), shifts.get(path))
        for path in dict.fromkeys([*sorted_keys.adapted, *shifts])
        for site in base.sites(path)
    ]
    norms = {path: base.norm(path) for path in shifts if not base.sites(path)}
    return updates + [_Update(path, norm[0], {}, shifts[path], norm[1]) for path, norm in norms.items() if norm]


def _norm_updates(sorted_keys: Sorted, base: _Base, where: object) -> list[_Update]:
    """Return updates of trained norms; AdapterError lists norms without sites."""
    norms = {path: base.norm(path) for path in sorted_keys.adapted}
    missing = [path for path, norm in norms.items() if norm is None]
    if missing:
        raise AdapterError(
            "has trained norms without sites",
            where=where,
            found=quoted(missing),
            expected="norms after a sum or the embeddings, not before a sublayer or after the last layer",
            fix="merge it with PEFT (`merge_and_unload`) and use the result as a base",
        )
    return [_Update(path, norm[0], sorted_keys.adapted[path], None, norm[1]) for path, norm in norms.items() if norm]


def _shifts(
    sorted_keys: Sorted, mapped: TensorMap, base: _Base, head: MadeHead, where: object
) -> dict[str, np.ndarray]:
    """Return the difference of each trained bias to the base's; equal biases are omitted."""
    shifts, faults = {}, []
    for path, key in sorted_keys.biases.items():
        bias, base_bias = mapped.tensors[key], base.tensor(f"{path}.bias")
        if base_bias is None or base_bias.shape != bias.shape:
            faults.append(f"the base has no `{path}.bias` {list(bias.shape)} to compare with")
        elif (shift := bias.astype(np.float64) - base_bias).any():
            shifts[path] = shift
    faults += [
        f"`{path}.bias` belongs to no linear layer and no norm after a sum"
        for path in shifts
        if not (base.sites(path) or base.norm(path) or path in head.used)
    ]
    if faults:
        raise AdapterError(
            "has trained biases of the base that cannot be expressed",
            where=where,
            found="; ".join(faults),
            expected="biases of linear layers, and of norms after sums and embeddings",
            fix="train it with `bias='none'` or `'lora_only'`",
        )
    return shifts


def _check_base_weights(sorted_keys: Sorted, mapped: TensorMap, base: _Base, where: object) -> None:
    """Reject saved base weights, as for language heads, that differ from the base."""
    faults = []
    for path, key in sorted_keys.base_weights.items():
        saved, base_weight = mapped.tensors[key], base.weight(path)
        if (
            base_weight is None
            or base_weight.shape != saved.shape
            or not np.array_equal(base_weight.astype(saved.dtype), saved)
        ):
            shape = "none" if base_weight is None else f"another one, {list(base_weight.shape)}"
            faults.append(f"`{key}` {list(saved.shape)}, of which the base has {shape}")
    if faults:
        raise AdapterError(
            "contains base weights that differ from this base",
            where=where,
            found="; ".join(faults),
            expected="unchanged base weights, which PEFT saves with a change of the language head",
            fix="pass the base that it was trained on; a resized vocabulary makes another base",
        )


def _check_patterns(changed: Sequence[str], options: Options, where: object) -> None:
    """Reject patterns that PEFT versions interpret differently, if the version is unknown."""
    paths = dict.fromkeys(changed if not options.versioned else ())
    factors = {path: (options.older_factor_at(path), options.factor_at(path)) for path in paths}
    faults = [
        f"`{path}`: the factor {older:g} before version 0.15 and {newer:g} since"
        for path, (older, newer) in factors.items()
        if older != newer
    ]
    if faults:
        raise AdapterError(
            "has an `alpha_pattern` that PEFT versions interpret differently, and no version",
            where=where,
            found="; ".join(faults),
            fix="add the training `peft_version` to the config if it is 0.15 or newer; otherwise write whole paths "
            "in the pattern, with the alphas that were used",
        )


def _place_lora(mapped: TensorMap, update: _Update, options: Options, names: dict[tuple[float, bool], str]) -> None:
    """Place `h + factor·B(A u)`.

    A trained bias is not scaled by the factor, which is then multiplied into the weights, in float64 and rounded once.
    """
    factor, shift, own_bias = options.factor_at(update.path), update.shift, "lora_B.bias" in update.keys
    recipes = dict(LORA)
    scale, bias = factor, own_bias
    if shift is not None:
        summand, scale, bias = shift, 1.0, True
        biases = (Source("lora_B.bias", ("d",)),) if own_bias else ()
        recipes["lora_B.weight"] = Recipe(
            (Source("lora_B.weight", ("d", "r")),), lambda matrix: matrix.T.astype(np.float64) * factor
        )
        recipes["lora_B.bias"] = Recipe(
            biases, lambda *stored: sum((tensor.astype(np.float64) * factor for tensor in stored), summand)
        )
    if (scale, bias) not in names:
        number = sum(other == bias for _, other in names) + 1
        names[scale, bias] = ("lora_bias" if bias else "lora") + (f"_{number}" if number > 1 else "")
    graph = lora_graph(scale, bias=bias, dropout=options.dropout)
    widths = {"d": update.site.width, "d_in": update.site.width_in, "r": options.rank_at(update.path)}
    mapped.place(update.site, names[scale, bias], graph, recipes, widths, update.keys)


def _check_cost(cost: Mapping[str, int], dense: bool, where: object) -> None:
    """Reject full-rank changes, as large as the layers, unless they are allowed."""
    full = [name for name, size in cost.items() if size]
    if full and not dense:
        raise AdapterError(
            "changes the weights by full-rank matrices, as large as the layers",
            where=where,
            found=f"{sum(cost.values()):,} bytes at {number_of(len(full), 'layer')}, and a product for each 4 of them "
            "in every call",
            expected="changes of low rank",
            fix="allow them with " + argument("dense", True) + "; if you need only one adapter, merge it into the base "
            "instead",
        )


def _place_norm(mapped: TensorMap, update: _Update, base: _Base) -> None:
    """Place a trained norm after the base's norm."""
    path = update.path
    trained = {role.rpartition(".")[2]: mapped.tensors[key].astype(np.float64) for role, key in update.keys.items()}
    of_base = {role: base.tensor(f"{path}.{role}") for role in trained}
    if any(tensor is None or tensor.shape != trained[role].shape for role, tensor in of_base.items()):
        mapped.fault(f"`{path}` does not match the norm in the base")
        return
    before = {role: np.asarray(tensor, np.float64) for role, tensor in of_base.items()}
    if (before["weight"] == 0).any():
        mapped.fault(f"`{path}` has factors of zero in the base, which cannot be rescaled")
        return
    place_norm(mapped, update.site, update.value, before, trained)


def _place_ia3(mapped: TensorMap, update: _Update, options: Options) -> None:
    """Place `l⊙h`, or `l⊙u` where the layer's input is scaled."""
    widths = {"d": update.site.width, "d_in": update.site.width_in}
    scales_input = options.scales_input(update.path)
    if scales_input is None:  # the vector is a row for an input, and a column for an output
        scales_input = mapped.tensors[update.keys["ia3_l"]].shape == (1, widths["d_in"])
        if scales_input and widths == {"d": 1, "d_in": 1}:
            mapped.fault(f"`{update.path}` has one factor, and the config lacks `feedforward_modules`")
    name, value = ("ia3_input", "u") if scales_input else ("ia3", "h")
    mapped.place(update.site, name, ia3_graph(value), IA3[value], widths, update.keys)


def _notes(matched: Match, sorted_keys: Sorted, options: Options) -> Iterator[str]:
    """Yield notes on renamed modules, and on ambiguous patterns."""
    if matched.renaming.drop:
        yield f"the adapter's modules `{matched.renaming.drop}.…` match the base's without this prefix"
    if matched.renaming.add:
        yield f"the adapter's modules match the base's with the prefix `{matched.renaming.add}.`"
    yield from matched.notes()
    if options.kind == "lora" and "lora_alpha" not in options.config.values:
        yield f"the config has no `lora_alpha`: the factor is that of PEFT's default, {options.alpha:g}"
    formula = options.method is not None or options.of_weights or options.kind == "ln_tuning"
    if formula and not f"{options.version}.".startswith(f"{CHECKED_WITH}."):
        version = f"version {options.version}" if options.versioned else "an unknown version"
        yield f"PEFT saved it in {version}; the formula was checked with {CHECKED_WITH}: compare a few outputs"
    for pattern in options.idle_patterns(sorted_keys.changed):
        yield f"the pattern `{pattern}` matches no module of the adapter, neither here nor in PEFT"
    for path in sorted_keys.adapted:
        if rivals := options.rivals(path):
            names = quoted(rivals)
            yield (
                f"`{path}` matches the patterns {names} for alpha: the first is used, as when PEFT loads the folder; "
                "it saves patterns sorted, so that another may have been used in training"
            )
