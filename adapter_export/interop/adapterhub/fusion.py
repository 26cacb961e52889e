"""Setup folders with a fusion of adapters: one adapter whose graph holds its members and the attention over them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, FormatError, UsageError, within
from adapter_export.format.records import record_from_json
from adapter_export.graph.adapter import SHARED, Placement
from adapter_export.graph.compose.merge import numbered
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.graph.kinds.kind import Kind
from adapter_export.interop.adapterhub.bottleneck import Parts, as_kind, refuse_lost_rule, whole
from adapter_export.interop.adapterhub.config import Config, LoraConfig, read_config
from adapter_export.interop.adapterhub.folder import (
    AdapterFolder,
    Saved,
    read_adapter_folder,
    read_fusion_folder,
    read_setup,
)
from adapter_export.interop.adapterhub.fusion_graph import FusionConfig, fusion_graph
from adapter_export.interop.adapterhub.keys import Key, Module, modules_of, parse_key
from adapter_export.interop.adapterhub.places import place_blocks
from adapter_export.interop.adapterhub.recipes import bottleneck_recipes
from adapter_export.interop.adapterhub.tensors import Recipe, Taken, as_it_is, transposed
from adapter_export.sites.site import Site, SiteMap

_GRAPH = "fusion"
_IGNORED = ("gate.weight", "gate.bias", "adapter_norm_after.weight", "adapter_norm_after.bias")
"""What a fusion leaves out of its members: it takes what they add before gates and norms."""

_TEMPERATURE = (
    "the fusion's temperature falls from 50 with every call of the library and is not in its files: it stays at 50, "
    "as in the first call after loading"
)


@dataclass(frozen=True)
class Member:
    """One adapter of a fusion.

    Attributes:
        label: its name, as a part of names of parameters.
        folder: its files.
        config: its config.
    """

    label: str
    folder: AdapterFolder
    config: Config

    @property
    def method(self) -> BottleneckConfig:
        """Its bottleneck."""
        if isinstance(self.config.method, LoraConfig):
            raise AdapterError("only bottlenecks can be fused", found=f"`{self.config.name}` is LoRA or IA3")
        return self.config.method


def read_members(path: Path) -> tuple[Member, ...]:
    """The adapters that a setup folder fuses, in their order.

    Raises:
        UsageError: its composition is not a fusion of single adapters.
        AdapterError: they do not go together.
        FileError, FormatError: a file is missing or damaged.
    """
    setup = read_setup(path)
    names = [child["children"][0] for child in setup["children"] if _is_single(child)]
    if setup["type"] != "Fuse" or len(names) != len(setup["children"]) or len(names) < 2:
        raise UsageError(
            "its composition is not imported as a whole",
            where=path,
            found=f"`{setup['type']}` of {len(setup['children'])}",
            expected="a `Fuse` of single adapters",
            fix=f"give `--name` with one of its adapters: {', '.join(f'`{name}`' for name in names)}",
        )
    members = []
    for number, name in enumerate(names, 1):
        folder = read_adapter_folder(path / name)
        with within(folder.adapter.path):
            label = name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) and name != _GRAPH else f"member{number}"
            members.append(Member(label, folder, read_config(folder.adapter.document)))
    with within(path):
        _check(tuple(members))
    return tuple(members)


def _is_single(child: object) -> bool:
    return (
        isinstance(child, dict)
        and child.get("type") == "single"
        and isinstance(child.get("children"), list)
        and len(child["children"]) == 1
        and isinstance(child["children"][0], str)
    )


def read_fusion(path: Path, members: tuple[Member, ...]) -> Saved:
    """The fusion layer of a setup folder.

    Raises:
        FileError, FormatError: it is missing or damaged.
    """
    return read_fusion_folder(path / ",".join(member.config.name for member in members))


def import_fusion(members: tuple[Member, ...], layer: Saved, sites: SiteMap) -> Parts:
    """Make one graph of a fusion and its members.

    Raises:
        AdapterError: the base lacks their places.
        TensorError: tensors are missing, left over or misshapen; all of them are listed.
    """
    fusion = read_fusion_config(layer)
    graph = fusion_graph(fusion, {member.label: member.method for member in members}).graph
    taken = [_Taken.of(member, sites) for member in members]
    layers, others = _layers(layer, sites, ",".join(member.config.name for member in members))
    attention = Taken({name: layer.tensors[name] for name in layer.tensors if name not in others}, layer.weights.name)
    placements: dict[str, Placement] = {}
    for site in sites.sublayers:
        if taken[0].kind.part_at(site) is None:
            continue
        widths = {"d": site.width, "d_in": site.width_in}
        for number, one in enumerate(taken, 1):
            widths |= one.take(site, number)
        placements[site.name] = Placement(_GRAPH, {symbol: widths[symbol] for symbol in graph.symbols()})
        _take_attention(attention, fusion, site, layers.get(site.name))
    files = (*(member.tensors for member in taken), attention)
    for file in files:
        file.check()
    weights: Weights = {name: value for file in files for name, value in file.weights.items()}
    notes = [note for member in members for note in member.config.notes]
    notes += dict.fromkeys(note for file in files for note in file.notes())
    return Parts("fusion", {_GRAPH: graph}, placements, weights, (*notes, *_notes(fusion, members, others)))


def read_fusion_config(layer: Saved) -> FusionConfig:
    """The config of a fusion layer.

    Raises:
        FormatError: an option is missing, unknown or of a wrong type.
    """
    config = layer.document.get("config")
    if not isinstance(config, dict):
        raise FormatError("is not the config of a fusion", where=layer.path, found=f"keys {', '.join(layer.document)}")
    with within(layer.path):
        return record_from_json(FusionConfig, config)


def _check(members: tuple[Member, ...]) -> None:
    parallel = [member.config.name for member in members if member.method.is_parallel]
    if parallel:
        raise AdapterError(
            "a fusion of parallel adapters adds output and residual twice in AdapterHub, which cannot be expressed",
            found=", ".join(f"`{name}`" for name in parallel),
        )
    inverted = [member.config.name for member in members if member.method.inv_adapter]
    if inverted:
        raise AdapterError("invertible adapters in a fusion are not imported", found=", ".join(inverted))
    places = {(one.method.mh_adapter, one.method.output_adapter, one.method.leave_out) for one in members}
    if len(places) > 1:
        raise AdapterError(
            "its members act in different places",
            found="different `mh_adapter`, `output_adapter` or `leave_out`",
            expected="the same in all of them",
        )


@dataclass(frozen=True)
class _Taken:
    """One member's tensors on their way into the graph."""

    member: Member
    kind: Kind
    modules: Mapping[str, Module]
    shared: Module | None
    tensors: Taken

    @classmethod
    def of(cls, member: Member, sites: SiteMap) -> _Taken:
        saved = member.folder.adapter
        parsed = (parse_key(full, member.config.name) for full in saved.tensors)
        keys = tuple(key for key in parsed if key is not None)
        with within(member.folder.path):
            refuse_lost_rule(member.method, keys)
            modules = place_blocks(modules_of(keys, "adapters"), sites).sites
        tensors = Taken(saved.tensors, f"{member.folder.path.name}/{saved.weights.name}")
        tensors.forget(key.full for key in keys if key.tensor in _IGNORED)
        shared = whole(modules_of(keys, "shared_parameters"))
        return cls(member, as_kind(member.method, member.config.name), modules, shared, tensors)

    def take(self, site: Site, number: int) -> dict[str, int]:
        """Take what acts at a site; returns its widths, by the symbols of the whole graph."""
        part, label = self.kind.part_at(site), self.member.label
        assert part is not None, "all members act at the same sites"
        widths = part.widths_at(site)
        module = self.modules.get(site.name)
        if module is None:
            self.tensors.fault(f"every tensor of `{site.name}` is missing")
        else:
            kept = [name for name in part.graph.parameters if name.partition(".")[0] not in ("gate", "norm_after")]
            common = f"{SHARED}.{_GRAPH}"
            names = {name: f"{common if name in part.graph.shared else site.name}.{label}.{name}" for name in kept}
            self.tensors.take(names, bottleneck_recipes(self.member.method), widths, module, self.shared)
        return {str(numbered(symbol, number)): width for symbol, width in widths.items()}


def _layers(layer: Saved, sites: SiteMap, name: str) -> tuple[Mapping[str, Module], tuple[str, ...]]:
    """The fusion's tensors at each site, and those of other fusions, which the library saves by beginnings of names."""
    parsed: dict[str, Key | None] = {full: parse_key(full, name) for full in layer.tensors}
    others = tuple(full for full, key in parsed.items() if key is None and f"adapter_fusion_layer.{name}" in full)
    keys = [key for key in parsed.values() if key is not None]
    return place_blocks(modules_of(keys, "adapter_fusion_layer"), sites).sites, others


def _take_attention(taken: Taken, fusion: FusionConfig, site: Site, module: Module | None) -> None:
    recipes: dict[str, Recipe] = {}
    for name, there in (("query", fusion.query), ("key", fusion.key), ("value", fusion.value)):
        if there:
            recipes[f"{name}.weight"] = transposed(f"{name}.weight", ("d", "d"))
        if there and name != "value":
            recipes[f"{name}.bias"] = as_it_is(f"{name}.bias", ("d",))
    if module is None:
        taken.fault(f"every tensor of the fusion at `{site.name}` is missing")
        return
    if not recipes:  # the library makes a layer that it never calls
        taken.forget(iter(module.keys.values()))
    names = {name: f"{site.name}.fusion.{name}" for name in recipes}
    taken.take(names, recipes, {"d": site.width}, module)


def _notes(fusion: FusionConfig, members: tuple[Member, ...], others: tuple[str, ...]) -> Iterator[str]:
    if fusion.temperature:
        yield _TEMPERATURE
    ignored = [one.config.name for one in members if one.method.use_gating or one.method.ln_after]
    if ignored:
        names = ", ".join(f"`{name}`" for name in ignored)
        yield f"a fusion takes what its members add before their gates and norms: those of {names} have no effect"
    if others:
        yield f"{len(others)} tensors of other fusions lie in the file, and were left out"
    if any(member.folder.head is not None for member in members):
        yield "the heads of its members were left out"


def record(members: tuple[Member, ...], layer: Saved) -> dict[str, Any]:
    """Where the fusion came from, for its training record."""
    configs = {one.config.name: dict(one.folder.adapter.document["config"]) for one in members}
    return {"imported_from": {"library": "adapters", "fusion": dict(layer.document["config"]), "members": configs}}
