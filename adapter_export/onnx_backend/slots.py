"""Slots: tensors of an exported graph that adapters fill, planned as the union over all adapters of a build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Array, Weights
from adapter_export.errors import AdapterError, FormatError, InputError, NotNeutralError, within
from adapter_export.format.adapter_files import graph_from_json, graph_to_json
from adapter_export.format.manifest import Axis, HeadRecord, SlotRecord
from adapter_export.graph.adapter import HEAD, PREFIX, SHARED, Adapter
from adapter_export.graph.graph import HEAD_VALUES, READABLE, SITE_VALUES, AdapterGraph, bind_base_norm, first_free
from adapter_export.graph.kinds import Kind
from adapter_export.graph.ops import ACTIVATIONS, Dim
from adapter_export.graph.slot_form import (
    has_neutral_parameters,
    neutral_parameters,
    neutral_widths,
    repeated_zeros,
    slot_form,
    slot_weights,
)
from adapter_export.graph.strength_parameters import strength_parameters
from adapter_export.graph.tasks import HeadOutput, head_result
from adapter_export.numerics.evaluate_adapter import check_fit, evaluate, site_widths
from adapter_export.numerics.runner import head_output
from adapter_export.runtime.strength import STRENGTH_KEY
from adapter_export.safe_io.documents import parse_json
from adapter_export.sites.site import SiteMap
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

SLOT_PREFIX = "adapter."
"""Prefix of every slot's name."""

REPLACED = tuple(READABLE)
"""Values of a site that graphs replace, in order of evaluation: `u`, `h`, `y`."""

TOPOLOGY_KEY = "adapter_export.topology"
"""Key of the plan's digest in `metadata_props`."""

PLAN_KEY = "adapter_export.plan"
"""Key of the plan in `metadata_props`, JSON: `graphs`, and `groups` that refer to one of them by index."""


@dataclass(frozen=True)
class SlotGroup:
    """One topology at one site, or one topology of prediction head: its graph in slot form.

    `owner` is the site, or `head`; `graph_name` is the same at every site. `site_widths` are the symbols fixed by the
    base, such as `d`; all others are free per adapter. `alone`: no other topology is there, so the slots' names omit
    its name. `short`: full matrices are stored as zeros of length one along their last axis; false in graphs of older
    releases.
    """

    owner: str
    graph_name: str
    graph: AdapterGraph
    site_widths: Mapping[str, int]
    alone: bool
    short: bool = False

    @property
    def prefix(self) -> str:
        """Prefix of the names of its slots and nodes."""
        return f"{SLOT_PREFIX}{self.owner}" if self.alone else f"{SLOT_PREFIX}{self.owner}.{self.graph_name}"

    @cached_property
    def key(self) -> str:
        """Text that identifies its topology."""
        return topology_key(self.graph)

    def slot(self, parameter: str) -> str:
        """Return the slot of one of the graph's parameters; parameters that sites share have one slot."""
        prefix = f"{SLOT_PREFIX}{SHARED}.{self.graph_name}" if parameter in self.graph.shared else self.prefix
        return f"{prefix}.{parameter}"

    def records(self) -> Iterator[SlotRecord]:
        """Yield its slots, in the order of the graph's parameters."""
        for parameter, neutral in self.neutral().items():
            shape = self.graph.parameters[parameter]
            axes = tuple(self.site_widths.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)
            owner = SHARED if parameter in self.graph.shared else self.owner
            value = float(neutral.flat[0])  # neutral tensors are zeros or ones
            yield SlotRecord(self.slot(parameter), owner, self.graph_name, parameter, axes, neutral.shape, value)

    @property
    def gives_zeros_idle(self) -> bool:
        """True if it is a head whose result with neutral parameters is zero."""
        return has_neutral_parameters(self.graph)

    @cached_property
    def shortened(self) -> frozenset[str]:
        """Parameters whose neutral tensors, zeros, have length one along an axis fixed by the base."""
        return repeated_zeros(self.graph, self.site_widths) if self.short else frozenset()

    def neutral(self) -> Weights:
        """Neutral parameters; zeros for a head that has none, because its output is not read then."""
        widths = neutral_widths(self.graph, self.site_widths)
        if self.owner == HEAD and not self.gives_zeros_idle:
            shapes = self.graph.parameter_shapes(widths)
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        neutral = neutral_parameters(self.graph, widths)
        return {
            name: tensor[..., :1] if name in self.shortened and not tensor.any() else tensor
            for name, tensor in neutral.items()
        }

    def try_out(self, parameters: Weights) -> tuple[Mapping[str, Array], Array]:
        """Return random inputs of the graph, of one batch and size, and its result for them in float64."""
        graph, rng = bind_base_norm(self.graph, None), np.random.default_rng(0)
        widths = {"d": 1, **self.site_widths, "batch": 1, "tokens": 2}
        shapes: Mapping[str, Sequence[Dim]] = HEAD_VALUES if self.owner == HEAD else SITE_VALUES
        if graph.reads_ids:
            shapes = {**shapes, "u": ("batch", "tokens")}
        values = {name: rng.standard_normal([widths[str(axis)] for axis in shapes[name]]) for name in graph.inputs}
        if graph.reads_ids:
            values["u"] = np.arange(2.0)[None] % widths.get("d_in", 2)
        if "mask" in values:
            values["mask"] = np.ones_like(values["mask"])
        return values, evaluate(graph, values, parameters)

    def axis_name(self, axis: Axis, parameter: str | None = None) -> Axis:
        """Return the name of a slot's free axis in the ONNX graph, where one name means one size: `layers.0.ffn.b`."""
        if isinstance(axis, int) or (self.owner == HEAD and self.alone and axis == "classes"):
            return axis
        prefix = self.prefix if parameter is None else self.slot(parameter).removesuffix(f".{parameter}")
        return f"{prefix.removeprefix(SLOT_PREFIX)}.{axis}"


PREFIX_LENGTH = "length"
"""Parameter of the slot with the number of tokens of a prefix, [1]: 0 without one. Longer tensors are cut."""


@dataclass(frozen=True)
class PrefixSlots:
    """Slots of keys and values before the first token, for the caches of a base.

    `shapes` are as in `Prefix`; `longest` is the maximum number of tokens, by which texts are shorter.
    """

    shapes: Mapping[str, tuple[int | str, ...]]
    longest: int

    @property
    def length(self) -> str:
        """The slot of the number of tokens."""
        return f"{SLOT_PREFIX}{PREFIX}.{PREFIX_LENGTH}"

    def slot(self, cache: str) -> str:
        """Return the slot of the keys or values that precede a cache."""
        return f"{SLOT_PREFIX}{PREFIX}.cache.{cache}"

    def records(self) -> Iterator[SlotRecord]:
        """Yield its slots; they are idle with a length of 0."""
        yield SlotRecord(self.length, PREFIX, PREFIX, PREFIX_LENGTH, (1,), (1,), 0.0)
        for cache, shape in self.shapes.items():
            neutral = tuple(axis if isinstance(axis, int) else 1 for axis in shape)
            yield SlotRecord(self.slot(cache), PREFIX, PREFIX, f"cache.{cache}", shape, neutral, 0.0)

    def tensors(self, adapter: Adapter) -> Weights:
        """Return the tensors of an adapter, neutral without a prefix; AdapterError for another or longer one."""
        prefix = adapter.prefix
        if prefix is None:
            return {record.name: np.zeros(record.neutral, np.float32) for record in self.records()}
        if prefix.shapes != self.shapes or prefix.tokens > self.longest:
            raise AdapterError(
                "has a prefix that does not fit the slots of the exported graph",
                where=f"adapter `{adapter.name}`",
                found=f"{number_of(prefix.tokens, 'token')} for {number_of(len(prefix.shapes), 'cache')}",
                expected=f"at most {number_of(self.longest, 'token')} for {number_of(len(self.shapes), 'cache')}",
                fix="build the bundle with this adapter",
            )
        length = {self.length: np.array([prefix.tokens], np.float32)}
        return length | {self.slot(cache): adapter.weights[f"{PREFIX}.{cache}"] for cache in self.shapes}


@dataclass(frozen=True)
class SlotPlan:
    """Adapters of one exported graph: groups in order of evaluation, the heads last, and slots of prefixes.

    Several groups at one site are chained in this order.
    """

    groups: tuple[SlotGroup, ...]
    prefix: PrefixSlots | None = None

    @property
    def slots(self) -> tuple[SlotRecord, ...]:
        """Every slot of the graph; a slot that sites share occurs once."""
        of_prefix = () if self.prefix is None else self.prefix.records()
        return (*dict.fromkeys(record for group in self.groups for record in group.records()), *of_prefix)

    @property
    def digest(self) -> str:
        """Digest of the topology of the graph, `sha256:<hex>`: equal digests accept the same adapter files."""
        facts: list[list[Any]] = [
            [group.owner, group.graph_name, group.alone, group.key, dict(group.site_widths), *sorted(group.shortened)]
            for group in self.groups
        ]
        if self.prefix is not None:
            facts.append([PREFIX, self.prefix.longest, dict(self.prefix.shapes)])
        return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    def at(self, owner: str) -> tuple[SlotGroup, ...]:
        """Return the groups at one site, or the heads."""
        return tuple(self._by_owner.get(owner, ()))

    @cached_property
    def _by_owner(self) -> Mapping[str, list[SlotGroup]]:
        groups: dict[str, list[SlotGroup]] = {}
        for group in self.groups:
            groups.setdefault(group.owner, []).append(group)
        return groups


def topology_key(graph: AdapterGraph) -> str:
    """Return a text that is equal for two graphs exactly if they compute the same from parameters of the same names.

    Names of values do not count, nor does anything that `slot_form` removes.
    """
    form = slot_form(graph)
    names = {node.output: f"v{index}" for index, node in enumerate(form.nodes)}
    nodes = [
        asdict(replace(node, output=names[node.output], inputs=tuple(names.get(name, name) for name in node.inputs)))
        for node in form.nodes
    ]
    result = names.get(form.result, form.result)
    return json.dumps([nodes, dict(form.parameters), result, form.replaces, sorted(form.shared)], sort_keys=True)


@dataclass(frozen=True)
class Reserved:
    """A graph for which a plan reserves slots, even without an adapter in the build: at a site, or as a head."""

    owner: str
    graph_name: str
    graph: AdapterGraph


def reserved_kinds(kinds: Iterable[Kind], sites: SiteMap) -> list[Reserved]:
    """Return the graphs that whole kinds reserve; raises `AdapterError` for a kind without sites in the base."""
    return [
        Reserved(site.name, component.graph_name, component.graph)
        for kind in kinds
        for site, component in kind.placed(sites)
    ]


def plan_slots(adapters: Sequence[Adapter], sites: SiteMap, reserved: Sequence[Reserved] = ()) -> SlotPlan:
    """Return the union of the slots of all adapters, of any topologies and widths, and of reserved graphs.

    Raises:
        AdapterError: adapters act where the base has no site, or have other widths (all of them are listed); or two
            slots would have the same name.
        NotNeutralError: a graph cannot be idle, as for `slot_form`.
    """
    check_fit(adapters, sites)
    forms = _forms(adapters, reserved)
    names = _graph_names(adapters, reserved)
    groups = []
    owners = {**{site.name: site_widths(site) for site in sites}, HEAD: {"d": sites.width}}
    for owner, fixed in owners.items():
        here = sorted((REPLACED.index(form.replaces), names[key], key) for key, form in forms.get(owner, {}).items())
        for _, name, key in here:
            form = forms[owner][key]
            widths = {symbol: fixed[symbol] for symbol in form.symbols() if symbol in fixed}
            short = owner != HEAD and bool(repeated_zeros(form, widths))
            groups.append(SlotGroup(owner, name, form, widths, alone=len(here) == 1, short=short))
    plan = SlotPlan(tuple(groups), _plan_prefix(adapters))
    slots: dict[str, SlotRecord] = {}
    for slot in plan.slots:
        other = slots.setdefault(slot.name, slot)
        if other is not slot:
            shared = slot.site == other.site == SHARED and slot.graph == other.graph
            raise AdapterError(
                "a shared tensor has different widths at its sites" if shared else "two slots would have the same name",
                where=f"slot `{slot.name}`",
                found=f"{list(other.axes)} and {list(slot.axes)}" if shared else f"`{other.site}` and `{slot.site}`",
                fix="build these adapters separately" if shared else "rename the graphs or the parameters",
            )
    return plan


def _plan_prefix(adapters: Sequence[Adapter]) -> PrefixSlots | None:
    """Return slots for the longest prefix of any adapter; AdapterError if they are for different caches."""
    prefixes = {adapter.name: adapter.prefix for adapter in adapters if adapter.prefix is not None}
    if not prefixes:
        return None
    shapes = next(iter(prefixes.values())).shapes
    others = [name for name, prefix in prefixes.items() if dict(prefix.shapes) != dict(shapes)]
    if others:
        raise AdapterError(
            "prefixes are for different caches", found=quoted([next(iter(prefixes)), *others]), fix="build separately"
        )
    return PrefixSlots(shapes, longest_prefix(adapters))


def longest_prefix(adapters: Iterable[Adapter]) -> int:
    """Return the tokens of the longest prefix of any adapter; 0 without one."""
    return max((adapter.prefix.tokens for adapter in adapters if adapter.prefix is not None), default=0)


def slot_tensors(plan: SlotPlan, adapter: Adapter) -> Weights:
    """Return a tensor for every slot: folded weights of the adapter, or neutral zeros where it does not act.

    Raises:
        AdapterError: the plan has no slots for the adapter.
        GraphError: folding a factor exceeds the range of float32.
    """
    graphs = {id(graph): graph for _, graph, _ in adapter.components()}  # sites share graph objects
    keys = {place: topology_key(graph) for place, graph in graphs.items()}
    graphs_by_place = {(owner, keys[id(graph)]): graph for owner, graph, _ in adapter.components()}
    planned = {(group.owner, group.key) for group in plan.groups}
    unplanned = {place: graph for place, graph in graphs_by_place.items() if place not in planned}
    if unplanned:
        raise _no_slots(plan, adapter, unplanned)
    if adapter.prefix is not None and plan.prefix is None:
        raise AdapterError(
            "needs slots that the exported graph does not have",
            where=f"adapter `{adapter.name}` (kind `{adapter.kind}`)",
            found="no slots for keys and values before the first token",
            fix="build the bundle with this adapter",
        )
    tensors: Weights = {} if plan.prefix is None else plan.prefix.tensors(adapter)
    for group in plan.groups:
        graph = graphs_by_place.get((group.owner, group.key))
        if graph is not None:
            _fill(tensors, group, slot_weights(graph, adapter.parameters(group.owner), group.site_widths), adapter)
    for group in plan.groups:
        if (group.owner, group.key) not in graphs_by_place:
            shared = {name: tensors[group.slot(name)] for name in group.graph.shared if group.slot(name) in tensors}
            idle = group.neutral() | shared
            _check_idle(group, idle, shared, adapter)
            _fill(tensors, group, idle, adapter)
    return {slot.name: tensors[slot.name] for slot in plan.slots}


def _no_slots(plan: SlotPlan, adapter: Adapter, unplanned: Mapping[tuple[str, str], AdapterGraph]) -> AdapterError:
    """Name the places without slots and, if slots there differ only in their activation, both activations."""
    places: dict[str, list[str]] = {}
    for (owner, _), graph in unplanned.items():
        near = filter(None, (_other_activation(graph, group.graph) for group in plan.at(owner)))
        places.setdefault(next(near, "no slots for this graph"), []).append(owner)
    retrained = all("`" in difference for difference in places)
    rebuilt = "rebuild with this adapter, or with its kind in " + argument("reserve")
    return AdapterError(
        "needs slots that the exported graph does not have",
        where=f"adapter `{adapter.name}` (kind `{adapter.kind}`)",
        found="; ".join(f"{difference} at {', '.join(sorted(owners))}" for difference, owners in places.items()),
        fix="train it again with the " + argument("activation") + " of the slots, or " + rebuilt
        if retrained
        else rebuilt,
    )


def _other_activation(graph: AdapterGraph, slots: AdapterGraph) -> str | None:
    """Compare two activations, if they are the only difference between a graph and one with slots."""
    ops = [node.op for node in slot_form(graph).nodes], [node.op for node in slots.nodes]
    differing = [pair for pair in zip(*ops, strict=False) if pair[0] != pair[1]]
    if len(ops[0]) != len(ops[1]) or len(differing) != 1 or not set(ACTIVATIONS).issuperset(differing[0]):
        return None
    return "activation `{}`, but the slots have `{}`".format(*differing[0])


def _fill(tensors: Weights, group: SlotGroup, filled: Weights, adapter: Adapter) -> None:
    for name in group.graph.parameters:
        tensor = np.ascontiguousarray(filled[name])
        if not np.array_equal(tensors.setdefault(group.slot(name), tensor), tensor):
            raise AdapterError(
                "has two equal graphs that share different tensors, but the exported graph has one slot for both",
                where=f"adapter `{adapter.name}`, `{group.owner}`",
                found=f"two values of `{group.slot(name)}`",
                fix="use separate tensors for the places of both graphs",
            )


def _check_idle(group: SlotGroup, idle: Weights, shared: Collection[str], adapter: Adapter) -> None:
    """Verify on random values that an idle group has no effect for any shared tensors of the adapter."""
    if not shared:
        return
    values, result = group.try_out(idle)
    if not np.array_equal(result, values[group.graph.replaces]):
        raise NotNeutralError(
            "a tensor that an adapter shares between its sites would have an effect at other sites",
            where=f"adapter `{adapter.name}`, graph `{group.graph_name}` at `{group.owner}`",
            found=quoted(shared),
            fix="build this adapter separately",
        )


def _forms(adapters: Sequence[Adapter], reserved: Sequence[Reserved]) -> dict[str, dict[str, AdapterGraph]]:
    """Return the slot forms by owner and topology; equal graphs with different names share one form."""
    forms: dict[str, dict[str, tuple[str, AdapterGraph]]] = {}
    known: dict[int, tuple[str, tuple[str, AdapterGraph]]] = {}  # cache for graphs shared by sites
    of_adapters = ((adapter.name, owner, graph) for adapter in adapters for owner, graph, _ in adapter.components())
    for name, owner, graph in (*of_adapters, *((slot.graph_name, slot.owner, slot.graph) for slot in reserved)):
        if id(graph) not in known:
            with within(f"adapter `{name}`, `{owner}`"):
                form = slot_form(graph)
            known[id(graph)] = topology_key(form), (json.dumps(asdict(form)), form)
        key, spelt = known[id(graph)]
        here = forms.setdefault(owner, {})
        here[key] = min(here.get(key, spelt), spelt, key=itemgetter(0))
    return {owner: {key: form for key, (_, form) in here.items()} for owner, here in forms.items()}


def _graph_names(adapters: Sequence[Adapter], reserved: Sequence[Reserved]) -> dict[str, str]:
    """Return one name for each topology; a later topology with the same name gets a number."""
    wanted: dict[str, str] = {}
    for slot in reserved:
        wanted.setdefault(topology_key(slot.graph), slot.graph_name)
    for adapter in adapters:
        graphs = list(adapter.graphs.items())
        if adapter.head is not None:
            ops = "_".join(node.op for node in slot_form(adapter.head.graph).nodes)
            graphs.append((ops or HEAD, adapter.head.graph))
        for name, graph in graphs:
            key = topology_key(graph)
            wanted[key] = min(wanted.get(key, name), name)
    names: dict[str, str] = {}
    for key in sorted(wanted):
        names[key] = first_free(wanted[key], {PREFIX, *names.values()})
    return names


@dataclass(frozen=True)
class HeadSum:
    """Heads that share one output: their results are added; those of idle heads are zeros.

    `width` is the last axis: a number if the base fixes it, otherwise a symbol whose value each adapter sets.
    """

    output: str
    result: HeadOutput
    width: Dim
    groups: tuple[SlotGroup, ...]


def head_sums(plan: SlotPlan, base_outputs: Collection[str]) -> tuple[HeadSum, ...]:
    """Return the outputs of all heads of a plan, with names that differ from the base's outputs.

    Heads with the same result share an output, unless adding would be wrong: a head whose idle result is not zero, and
    heads of different fixed widths, have separate outputs: `logits`, `logits_2`, and so on.
    """
    groups: dict[tuple[HeadOutput, Dim, str], list[SlotGroup]] = {}
    for group in plan.at(HEAD):
        shape = group.graph.shapes()[group.graph.result]
        result = head_result(shape)
        assert result is not None  # validated with the adapter
        width = group.site_widths.get(shape[-1], shape[-1]) if isinstance(shape[-1], str) else shape[-1]
        apart = "" if group.gives_zeros_idle else group.graph_name
        groups.setdefault((result, width, apart), []).append(group)
    used = set(base_outputs)
    sums = []
    for (result, width, _), heads in groups.items():
        name = first_free(head_output(base_outputs, result), used)
        used.add(name)
        sums.append(HeadSum(name, result, width, tuple(heads)))
    return tuple(sums)


def head_records(sums: Iterable[HeadSum]) -> tuple[HeadRecord, ...]:
    """Return every topology of head, as listed in the manifest."""
    return tuple(HeadRecord(group.graph_name, total.output, total.result) for total in sums for group in total.groups)


def adapter_head(sums: Iterable[HeadSum], adapter: Adapter | None) -> HeadRecord | None:
    """Return the head that an adapter fills, or `None` without one."""
    if adapter is None or adapter.head is None:
        return None
    key = topology_key(adapter.head.graph)
    groups = ((total, group) for total in sums for group in total.groups)
    return next(HeadRecord(group.graph_name, total.output, total.result) for total, group in groups if group.key == key)


def adapter_output(sums: Iterable[HeadSum], adapter: Adapter | None) -> str | None:
    """Return the name of the output with the result of an adapter's head, or `None` without a head."""
    head = adapter_head(sums, adapter)
    return None if head is None else head.output


def describe_plan(model: ir.Model, plan: SlotPlan) -> None:
    """Record a plan in its graph: adapters can then be added without the base."""
    graphs: list[dict[str, Any]] = []
    groups = []
    for group in plan.groups:
        graph = graph_to_json(group.graph)
        if graph not in graphs:
            graphs.append(graph)
        facts = group.owner, group.graph_name, graphs.index(graph), dict(group.site_widths), group.alone
        groups.append([*facts, True] if group.short else [*facts])
    model.metadata_props[TOPOLOGY_KEY] = plan.digest
    document: dict[str, Any] = {"graphs": graphs, "groups": groups}
    if plan.prefix is not None:
        document[PREFIX] = [dict(plan.prefix.shapes), plan.prefix.longest]
    model.metadata_props[PLAN_KEY] = json.dumps(document)
    scaled = {group.graph_name: strength_parameters(group.graph) for group in plan.groups if group.owner != HEAD}
    named = {name: None if parameters is None else sorted(parameters) for name, parameters in scaled.items()}
    if plan.prefix is not None:
        named[PREFIX] = None  # a prefix adds nothing to a value
    model.metadata_props[STRENGTH_KEY] = json.dumps(named)


def read_plan(model: ir.Model, where: object) -> SlotPlan:
    """Return the plan that a graph was made from; `FormatError` if it is missing or does not match its digest."""
    cause = None
    try:
        document: Any = parse_json(model.metadata_props[PLAN_KEY].encode(), PLAN_KEY)
        graphs = [graph_from_json(graph) for graph in document["graphs"]]
        facts = ((owner, name, graphs[index], *rest) for owner, name, index, *rest in document["groups"])
        plan = SlotPlan(tuple(SlotGroup(*each) for each in facts), _read_prefix(document.get(PREFIX)))
        digest = plan.digest
        if digest == model.metadata_props.get(TOPOLOGY_KEY):
            return plan
        reason = f"the topology {digest}"
    except (InputError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        cause, reason = error, f"{type(error).__name__}: {error}"
    raise FormatError(
        "does not contain a valid slot plan",
        where=where,
        found=reason,
        expected=f"`{PLAN_KEY}` in the metadata of the graph, in the format of this release",
        fix="rebuild the bundle",
    ) from cause


def _read_prefix(document: Any) -> PrefixSlots | None:
    if document is None:
        return None
    shapes, longest = document
    return PrefixSlots({cache: tuple(shape) for cache, shape in shapes.items()}, longest)
