"""Setups of bottlenecks at the sites of a base: one graph for all members and the attention over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, FormatError, within
from adapter_export.format.records import record_from_json
from adapter_export.graph.adapter import SHARED, Placement
from adapter_export.graph.compose.attention import FIRST_TEMPERATURE, FusionOptions, attend
from adapter_export.graph.compose.members import Merged, numbered
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.graph.kinds.bottleneck import BottleneckOptions, Wiring, wired
from adapter_export.graph.kinds.kind import Kind
from adapter_export.importers.adapterhub.bottleneck import (
    EMBEDDINGS,
    Parts,
    as_kind,
    bottleneck_recipes,
    embeddings_of,
    notes_of,
    part_widths,
    refuse_lost_rule,
    take_part,
    whole,
    without_unused_inverse,
)
from adapter_export.importers.adapterhub.config import LoraConfig
from adapter_export.importers.adapterhub.folder import Saved, read_fusion_folder
from adapter_export.importers.adapterhub.places import Key, Module, modules_of, parse_key, place_blocks
from adapter_export.importers.adapterhub.setups import Block, Member, Setup
from adapter_export.importers.adapterhub.tensors import Recipe, Taken, as_it_is, transposed
from adapter_export.sites.site import Site, SiteMap

# Compositions of bottlenecks as one graph, in the steps of AdapterHub (`methods/bottleneck.py`).
#
# An adapter reads what `pre_forward` makes of the value before it, and is added to the residual that this gives. In a
# stack each has its own; in an average all have the first one's, in a fusion all have the last one's. The last
# adapter of
# the whole decides what follows (`post_forward`).


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


_KINDS = {"Stack": "stack", "Average": "average", "Fuse": "fusion"}

_IGNORED = ("gate.weight", "gate.bias", "adapter_norm_after.weight", "adapter_norm_after.bias")
"""What a fusion leaves out of its members: it takes what they add before gates and norms."""

_TEMPERATURE = (
    "the fusion's temperature falls from 50 with every call of the library and is not in its files: it stays at 50, "
    "as in the first call after loading"
)
MEAN = (
    "AdapterHub divides an average by the number of its members although its weights have the sum 1: the imported "
    "adapter does so, too"
)
"""A note."""


def import_setup(setup: Setup, sites: SiteMap) -> Parts:
    """Bring a composition of bottlenecks to the sites of a base.

    Raises:
        AdapterError: the base lacks their places, or the composition cannot be expressed; the message names why.
        FileError, FormatError: a fusion layer is missing or damaged.
        TensorError: tensors are missing, left over or misshapen; all of them are listed.
    """
    first = setup.block.names[0]
    members = {
        name: _Sequential.of(member, number, sites, inverts=name == first)
        for number, (name, member) in enumerate(setup.members.items(), 1)
    }
    layers = dict(_layers(setup, sites))
    graphs = _Graphs(setup.block, {block: layer.attention for block, layer in layers.items()})
    placements: dict[str, Placement] = {}
    for site in sites.sublayers:
        here = {name: one for name, one in members.items() if one.kind.part_at(site) is not None}
        if not here:
            continue
        with within(f"`{site.name}`"):
            graph_name, graph = graphs.of({name: one.bottleneck for name, one in here.items()})
        widths = {"d": site.width, "d_in": site.width_in}
        for one in here.values():
            widths |= one.take(site, graph_name, graph)
        for block, layer in layers.items():
            if set(block.names) <= here.keys():
                layer.take(site)
        placements[site.name] = Placement(graph_name, {symbol: widths[symbol] for symbol in graph.symbols()})
    inverse = members[first].inverse(sites)
    placements = {**inverse.placements, **placements}
    files = (*(one.tensors for one in members.values()), *(layer.tensors for layer in layers.values()))
    for file in files:
        file.check()
    weights: Weights = {name: value for file in files for name, value in file.weights.items()}
    notes = [note for one in members.values() for note in one.notes]
    notes += dict.fromkeys(note for file in files for note in file.notes())
    notes += _notes(setup, layers.values())
    return Parts(_KINDS[setup.block.kind], {**graphs.made, **inverse.graphs}, placements, weights, tuple(notes))


class _Graphs:
    """The graphs of a composition: one for each set of members that act at a site."""

    def __init__(self, block: Block, attentions: Mapping[Block, Attention]) -> None:
        self._block = block
        self._attentions = attentions
        self._names: dict[tuple[str, ...], str] = {}
        self.made: dict[str, AdapterGraph] = {}

    def of(self, members: Mapping[str, Bottleneck]) -> tuple[str, AdapterGraph]:
        """The name of a graph, and the graph."""
        key = tuple(members)
        if key not in self._names:
            kind = _KINDS[self._block.kind]
            name = kind if not self._names else f"{kind}_{len(self._names) + 1}"
            self.made[name] = composed(self._block, members, self._attentions)
            self._names[key] = name
        return self._names[key], self.made[self._names[key]]


@dataclass(frozen=True)
class _Inverse:
    """The invertible adapter of a setup, if there is one."""

    graphs: Mapping[str, AdapterGraph]
    placements: Mapping[str, Placement]


@dataclass(frozen=True)
class _Sequential:
    """One member's tensors on their way into the graph."""

    bottleneck: Bottleneck
    kind: Kind
    modules: Mapping[str, Module]
    inverted: tuple[Module, ...]
    shared: Module | None
    tensors: Taken
    notes: tuple[str, ...]

    @classmethod
    def of(cls, member: Member, number: int, sites: SiteMap, *, inverts: bool) -> _Sequential:
        saved, config = member.folder.adapter, _method(member)
        parsed = (parse_key(full, member.config.name) for full in saved.tensors)
        keys = tuple(key for key in parsed if key is not None)
        with within(member.folder.path):
            refuse_lost_rule(config, keys)
            config, notes = without_unused_inverse(config, saved.document, keys)
            placed = place_blocks(modules_of(keys, "adapters"), sites)
        tensors = Taken(saved.tensors, f"{member.folder.path.name}/{saved.weights.name}")
        inverted = modules_of(keys, "invertible_adapters")
        if config.inv_adapter is not None and not inverts:
            config = replace(config, inv_adapter=None, inv_adapter_reduction_factor=None)
            tensors.forget(full for module in inverted for full in module.keys.values())
            notes += (
                f"AdapterHub runs the first adapter's invertible one alone: that of `{member.config.name}` has none",
            )
        kind, shared = as_kind(config, member.config.name), whole(modules_of(keys, "shared_parameters"))
        found = (*member.config.notes, *placed.notes, *notes, *notes_of(config))
        return cls(Bottleneck(member.label, number, config), kind, placed.sites, inverted, shared, tensors, found)

    def take(self, site: Site, graph_name: str, graph: AdapterGraph) -> dict[str, int]:
        """Take what acts at a site; returns its widths, by the symbols of the whole graph."""
        part, label = self.kind.part_at(site), self.bottleneck.label
        assert part is not None, "it acts there"
        widths = part_widths(part, site)
        module = self.modules.get(site.name)
        kept = [name.removeprefix(f"{label}.") for name in graph.parameters if name.startswith(f"{label}.")]
        if module is None:
            self.tensors.fault(f"every tensor of `{site.name}` is missing")
        else:
            common = f"{SHARED}.{graph_name}"
            owner = {name: common if f"{label}.{name}" in graph.shared else site.name for name in kept}
            names = {name: f"{owner[name]}.{label}.{name}" for name in kept}
            self.tensors.take(names, bottleneck_recipes(self.bottleneck.config), widths, module, self.shared)
            if self._fused(kept):
                self.tensors.forget(full for tensor, full in module.keys.items() if tensor in _IGNORED)
        return {str(numbered(symbol, self.bottleneck.number)): width for symbol, width in widths.items()}

    def _fused(self, kept: Iterable[str]) -> bool:
        """Whether the graph leaves out what a fusion does."""
        config, heads = self.bottleneck.config, {name.partition(".")[0] for name in kept}
        return (config.use_gating and "gate" not in heads) or (config.ln_after and "norm_after" not in heads)

    def inverse(self, sites: SiteMap) -> _Inverse:
        """Take the invertible adapter after the embeddings."""
        config = self.bottleneck.config
        if config.inv_adapter is None:
            return _Inverse({}, {})
        name = embeddings_of(sites)
        site = next(site for site in sites.of_roles((EMBEDDINGS,)) if site.name == name)
        part = self.kind.part_at(site)
        assert part is not None, "an invertible adapter is a part of its kind"
        widths = part_widths(part, site)
        take_part(config, part, site, widths, self.inverted[0] if self.inverted else None, None, self.tensors)
        placement = Placement(part.graph_name, {symbol: widths[symbol] for symbol in part.graph.symbols()})
        return _Inverse({part.graph_name: part.graph}, {name: placement})


def _method(member: Member) -> BottleneckConfig:
    if isinstance(member.config.method, LoraConfig):
        raise AdapterError(
            "only bottlenecks can be fused or stacked, and LoRA and IA3 averaged among themselves",
            found=f"`{member.config.name}` is LoRA or IA3",
            fix=f"give `--name {member.config.name}` to import it alone",
        )
    return member.config.method


@dataclass(frozen=True)
class _Layer:
    """A fusion's tensors on their way into the graph."""

    attention: Attention
    modules: Mapping[str, Module]
    tensors: Taken
    others: tuple[str, ...]

    def take(self, site: Site) -> None:
        """Take the attention at a site."""
        fusion, recipes = self.attention.config, dict[str, Recipe]()
        for name, there in (("query", fusion.query), ("key", fusion.key), ("value", fusion.value)):
            if there:
                recipes[f"{name}.weight"] = transposed(f"{name}.weight", ("d", "d"))
            if there and name != "value":
                recipes[f"{name}.bias"] = as_it_is(f"{name}.bias", ("d",))
        module = self.modules.get(site.name)
        if module is None:
            self.tensors.fault(f"every tensor of the fusion at `{site.name}` is missing")
            return
        if not recipes:  # the library makes a layer that it never calls
            self.tensors.forget(iter(module.keys.values()))
        names = {name: f"{site.name}.{self.attention.owner}.{name}" for name in recipes}
        self.tensors.take(names, recipes, {"d": site.width}, module)


def _layers(setup: Setup, sites: SiteMap) -> Iterator[tuple[Block, _Layer]]:
    fusions = [block for block in setup.block.blocks() if block.kind == "Fuse"]
    for number, block in enumerate(fusions, 1):
        name = ",".join(setup.members[last].config.name for last in block.last_names)
        saved = read_fusion_folder(setup.path / name)
        parsed: dict[str, Key | None] = {full: parse_key(full, name) for full in saved.tensors}
        others = tuple(full for full, key in parsed.items() if key is None and f"adapter_fusion_layer.{name}" in full)
        keys = [key for key in parsed.values() if key is not None]
        modules = place_blocks(modules_of(keys, "adapter_fusion_layer"), sites).sites
        own = {full: tensor for full, tensor in saved.tensors.items() if full not in others}
        owner = "fusion" if number == 1 else f"fusion_{number}"
        taken = Taken(own, f"{saved.weights.parent.name}/{saved.weights.name}")
        yield block, _Layer(Attention(owner, read_fusion_config(saved)), modules, taken, others)


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


def _notes(setup: Setup, layers: Iterable[_Layer]) -> Iterator[str]:
    layers = list(layers)
    if any(layer.attention.config.temperature for layer in layers):
        yield _TEMPERATURE
    fused = {name for block in setup.block.blocks() if block.kind == "Fuse" for name in block.last_names}
    methods = {name: setup.members[name].config.method for name in setup.members if name in fused}
    ignored = [
        name
        for name, method in methods.items()
        if isinstance(method, BottleneckConfig) and (method.use_gating or method.ln_after)
    ]
    if ignored:
        names = ", ".join(f"`{name}`" for name in ignored)
        yield f"a fusion takes what its members add before their gates and norms: those of {names} have no effect"
    others = sum(len(layer.others) for layer in layers)
    if others:
        yield f"{others} tensors of other fusions lie in the file, and were left out"
    if any(block.kind == "Average" and len(block.children) > 1 for block in setup.block.blocks()):
        yield MEAN
