"""Slots: the tensors of an exported graph that an adapter fills, planned as the union over all adapters of a build."""

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
from adapter_export.errors import AdapterError, FormatError, InputError, NotNeutralError, argument, quoted, within
from adapter_export.format.adapter_files import graph_from_json, graph_to_json
from adapter_export.format.manifest import Axis, HeadRecord, SlotRecord
from adapter_export.graph.adapter import HEAD, SHARED, Adapter
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

SLOT_PREFIX = "adapter."
"""The beginning of every slot's name."""

REPLACED = tuple(READABLE)
"""The values of a site that graphs replace, in the order of evaluation: `u`, `h`, `y`."""

TOPOLOGY_KEY = "adapter_export.topology"
"""The key of the plan's digest in `metadata_props`."""

PLAN_KEY = "adapter_export.plan"
"""The key of the plan in `metadata_props`, JSON: `graphs`, and `groups` that name one of them by its place."""


@dataclass(frozen=True)
class SlotGroup:
    """One topology at one site, or one topology of prediction head: its graph in the form that goes into slots.

    `owner` is the site, or `head`; `graph_name` is the same at every site. `site_widths` are the symbols that the base
    fixes, such as `d`; all others are free per adapter. `alone`: no other topology is there, so that the slots' names
    do without its name. `short`: it has full matrices, whose zeros are one long along their last axis; not so in
    graphs that older releases made.
    """

    owner: str
    graph_name: str
    graph: AdapterGraph
    site_widths: Mapping[str, int]
    alone: bool
    short: bool = False

    @property
    def prefix(self) -> str:
        """The beginning of the names of its slots and nodes."""
        return f"{SLOT_PREFIX}{self.owner}" if self.alone else f"{SLOT_PREFIX}{self.owner}.{self.graph_name}"

    @cached_property
    def key(self) -> str:
        """Its topology, as text."""
        return topology_key(self.graph)

    def slot(self, parameter: str) -> str:
        """The slot of one of the graph's parameters; sites have one slot for what they share."""
        prefix = f"{SLOT_PREFIX}{SHARED}.{self.graph_name}" if parameter in self.graph.shared else self.prefix
        return f"{prefix}.{parameter}"

    def records(self) -> Iterator[SlotRecord]:
        """Its slots, in the order of the graph's parameters."""
        for parameter, neutral in self.neutral().items():
            shape = self.graph.parameters[parameter]
            axes = tuple(self.site_widths.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)
            owner = SHARED if parameter in self.graph.shared else self.owner
            value = float(neutral.flat[0])  # neutral tensors are zeros or ones
            yield SlotRecord(self.slot(parameter), owner, self.graph_name, parameter, axes, neutral.shape, value)

    @property
    def gives_zeros_idle(self) -> bool:
        """Return whether its result is zero with its neutral parameters, if it is a head."""
        return has_neutral_parameters(self.graph)

    @cached_property
    def shortened(self) -> frozenset[str]:
        """The parameters whose neutral tensors, zeros, are one long along an axis that the base fixes."""
        return repeated_zeros(self.graph, self.site_widths) if self.short else frozenset()

    def neutral(self) -> Weights:
        """Its neutral parameters, by parameter; zeros for a head that has none: its output is not read then."""
        widths = neutral_widths(self.graph, self.site_widths)
        if self.owner == HEAD and not self.gives_zeros_idle:
            shapes = self.graph.parameter_shapes(widths)
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        found = neutral_parameters(self.graph, widths)
        return {
            name: tensor[..., :1] if name in self.shortened and not tensor.any() else tensor
            for name, tensor in found.items()
        }

    def try_out(self, parameters: Weights) -> tuple[Mapping[str, Array], Array]:
        """Random values that the graph may read, at one batch of one size, and its result for them in float64."""
        graph, rng = bind_base_norm(self.graph, None), np.random.default_rng(0)
        widths = {"d": 1, **self.site_widths, "batch": 1, "tokens": 2}
        shapes = HEAD_VALUES if self.owner == HEAD else SITE_VALUES
        values = {name: rng.standard_normal([widths[str(axis)] for axis in shapes[name]]) for name in graph.inputs}
        if "mask" in values:
            values["mask"] = np.ones_like(values["mask"])
        return values, evaluate(graph, values, parameters)

    def axis_name(self, axis: Axis, parameter: str | None = None) -> Axis:
        """The name of a slot's free axis in the ONNX graph, where one name means one size: `layers.0.ffn.b`."""
        if isinstance(axis, int) or (self.owner == HEAD and self.alone and axis == "classes"):
            return axis
        prefix = self.prefix if parameter is None else self.slot(parameter).removesuffix(f".{parameter}")
        return f"{prefix.removeprefix(SLOT_PREFIX)}.{axis}"


@dataclass(frozen=True)
class SlotPlan:
    """The adapters that go into one exported graph: groups in the order of evaluation, the heads last.

    Several groups at one site are chained in this order.
    """

    groups: tuple[SlotGroup, ...]

    @property
    def slots(self) -> tuple[SlotRecord, ...]:
        """Every slot of the graph; one that sites share is there once."""
        return tuple(dict.fromkeys(record for group in self.groups for record in group.records()))

    @property
    def digest(self) -> str:
        """The topology of the whole graph as `sha256:<hex>`: graphs of one digest take the same adapter files."""
        facts = [
            [group.owner, group.graph_name, group.alone, group.key, dict(group.site_widths), *sorted(group.shortened)]
            for group in self.groups
        ]
        return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    def at(self, owner: str) -> tuple[SlotGroup, ...]:
        """The groups at one site, or the heads."""
        return tuple(self._by_owner.get(owner, ()))

    @cached_property
    def _by_owner(self) -> Mapping[str, list[SlotGroup]]:
        found: dict[str, list[SlotGroup]] = {}
        for group in self.groups:
            found.setdefault(group.owner, []).append(group)
        return found


def topology_key(graph: AdapterGraph) -> str:
    """A text that is equal for two graphs if and only if they compute the same from parameters of the same names.

    Names of values do not count, nor does what `slot_form` removes.
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
    """A graph for which a plan has slots although no adapter of the build may have it: at a site, or as a head."""

    owner: str
    graph_name: str
    graph: AdapterGraph


def reserved_kinds(kinds: Iterable[Kind], sites: SiteMap) -> list[Reserved]:
    """Return the graphs that whole kinds reserve; an `AdapterError` names a kind for which the base has no site."""
    return [
        Reserved(site.name, component.graph_name, component.graph)
        for kind in kinds
        for site, component in kind.placed(sites)
    ]


def plan_slots(adapters: Sequence[Adapter], sites: SiteMap, reserved: Sequence[Reserved] = ()) -> SlotPlan:
    """The union of the slots of all adapters, of any topologies and widths, and of what is reserved beside them.

    `AdapterError`: adapters act where the base has no site, or are of other widths, and all of them are listed; or two
    slots would have one name. `NotNeutralError`: a graph that cannot lie idle, as `slot_form`.
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
    plan = SlotPlan(tuple(groups))
    slots: dict[str, SlotRecord] = {}
    for slot in plan.slots:
        other = slots.setdefault(slot.name, slot)
        if other is not slot:
            shared = slot.site == other.site == SHARED and slot.graph == other.graph
            raise AdapterError(
                "what sites share is of different widths there" if shared else "two slots would have one name",
                where=f"slot `{slot.name}`",
                found=f"{list(other.axes)} and {list(slot.axes)}" if shared else f"`{other.site}` and `{slot.site}`",
                fix="build these adapters one by one" if shared else "rename the graphs or the parameters",
            )
    return plan


def slot_tensors(plan: SlotPlan, adapter: Adapter) -> Weights:
    """A tensor for every slot: the adapter's weights with factors folded in, neutral zeros where it does not act.

    `AdapterError`: it does something for which the plan has no slots. `GraphError`: a factor takes a weight out of the
    range of float32.
    """
    graphs = {id(graph): graph for _, graph, _ in adapter.components()}  # one stands at many sites
    keys = {place: topology_key(graph) for place, graph in graphs.items()}
    own = {(owner, keys[id(graph)]): graph for owner, graph, _ in adapter.components()}
    planned = {(group.owner, group.key) for group in plan.groups}
    unplanned = {place: graph for place, graph in own.items() if place not in planned}
    if unplanned:
        raise _no_slots(plan, adapter, unplanned)
    tensors: Weights = {}
    for group in plan.groups:
        graph = own.get((group.owner, group.key))
        if graph is not None:
            _fill(tensors, group, slot_weights(graph, adapter.parameters(group.owner), group.site_widths), adapter)
    for group in plan.groups:
        if (group.owner, group.key) not in own:
            shared = {name: tensors[group.slot(name)] for name in group.graph.shared if group.slot(name) in tensors}
            idle = group.neutral() | shared
            _check_idle(group, idle, shared, adapter)
            _fill(tensors, group, idle, adapter)
    return {slot.name: tensors[slot.name] for slot in plan.slots}


def _no_slots(plan: SlotPlan, adapter: Adapter, unplanned: Mapping[tuple[str, str], AdapterGraph]) -> AdapterError:
    """Name the places that lack slots and, where a slot there differs in its activation only, both activations."""
    places: dict[str, list[str]] = {}
    for (owner, _), graph in unplanned.items():
        near = filter(None, (_other_activation(graph, group.graph) for group in plan.at(owner)))
        places.setdefault(next(near, "no slots for such a graph"), []).append(owner)
    retrained = all("`" in difference for difference in places)
    rebuilt = f"build again with this adapter among the others, or with its kind in {argument('reserve')}"
    return AdapterError(
        "computes something for which the exported graph has no slots",
        where=f"adapter `{adapter.name}` (kind `{adapter.kind}`)",
        found="; ".join(f"{difference} at {', '.join(sorted(owners))}" for difference, owners in places.items()),
        fix=f"train it again with {argument('activation')} as in the slots, or {rebuilt}" if retrained else rebuilt,
    )


def _other_activation(graph: AdapterGraph, slots: AdapterGraph) -> str | None:
    """Compare two activations, if they are all that differs between a graph and one that has slots."""
    ops = [node.op for node in slot_form(graph).nodes], [node.op for node in slots.nodes]
    differing = [pair for pair in zip(*ops, strict=False) if pair[0] != pair[1]]
    if len(ops[0]) != len(ops[1]) or len(differing) != 1 or not set(ACTIVATIONS).issuperset(differing[0]):
        return None
    return "activation `{}` where the slots have `{}`".format(*differing[0])


def _fill(tensors: Weights, group: SlotGroup, filled: Weights, adapter: Adapter) -> None:
    for name in group.graph.parameters:
        tensor = np.ascontiguousarray(filled[name])
        if not np.array_equal(tensors.setdefault(group.slot(name), tensor), tensor):
            raise AdapterError(
                "has two graphs that compute the same and share other tensors, for which a graph has one slot",
                where=f"adapter `{adapter.name}`, `{group.owner}`",
                found=f"two values of `{group.slot(name)}`",
                fix="give the places of both graphs tensors of their own, not shared ones",
            )


def _check_idle(group: SlotGroup, idle: Weights, shared: Collection[str], adapter: Adapter) -> None:
    """An idle group must do nothing whatever the adapter shares among its other places: tried out on random values."""
    if not shared:
        return
    values, result = group.try_out(idle)
    if not np.array_equal(result, values[group.graph.replaces]):
        raise NotNeutralError(
            "what an adapter shares among its sites would act where the adapter does not",
            where=f"adapter `{adapter.name}`, graph `{group.graph_name}` at `{group.owner}`",
            found=quoted(shared),
            fix="build this adapter on its own",
        )


def _forms(adapters: Sequence[Adapter], reserved: Sequence[Reserved]) -> dict[str, dict[str, AdapterGraph]]:
    """Return the graphs that go into slots, by owner and topology; always the same of several spellings of one."""
    found: dict[str, dict[str, tuple[str, AdapterGraph]]] = {}
    known: dict[int, tuple[str, tuple[str, AdapterGraph]]] = {}  # of one graph at many sites
    of_adapters = ((adapter.name, owner, graph) for adapter in adapters for owner, graph, _ in adapter.components())
    for name, owner, graph in (*of_adapters, *((one.graph_name, one.owner, one.graph) for one in reserved)):
        if id(graph) not in known:
            with within(f"adapter `{name}`, `{owner}`"):
                form = slot_form(graph)
            known[id(graph)] = topology_key(form), (json.dumps(asdict(form)), form)
        key, spelt = known[id(graph)]
        here = found.setdefault(owner, {})
        here[key] = min(here.get(key, spelt), spelt, key=itemgetter(0))
    return {owner: {key: form for key, (_, form) in here.items()} for owner, here in found.items()}


def _graph_names(adapters: Sequence[Adapter], reserved: Sequence[Reserved]) -> dict[str, str]:
    """One name for each topology; where two want the same name, the later one is numbered."""
    wanted: dict[str, str] = {}
    for one in reserved:
        wanted.setdefault(topology_key(one.graph), one.graph_name)
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
        names[key] = first_free(wanted[key], names.values())
    return names


@dataclass(frozen=True)
class HeadSum:
    """Heads that give one output: their results are added up, those of idle ones are zeros.

    `width` is the last axis: a number if the base fixes it, else a symbol that each adapter gives a number.
    """

    output: str
    result: HeadOutput
    width: Dim
    groups: tuple[SlotGroup, ...]


def head_sums(plan: SlotPlan, base_outputs: Collection[str]) -> tuple[HeadSum, ...]:
    """The outputs of all heads of a plan, whose names are not among those of the base's outputs.

    Heads of one result share an output, except where adding up would be wrong: a head that is not zero while it lies
    idle, and heads of different fixed widths, have outputs of their own: `logits`, `logits_2`, and so on.
    """
    groups: dict[tuple[HeadOutput, Dim, str], list[SlotGroup]] = {}
    for group in plan.at(HEAD):
        shape = group.graph.shapes()[group.graph.result]
        result = head_result(shape)
        assert result is not None  # adapters are checked
        width = group.site_widths.get(shape[-1], shape[-1]) if isinstance(shape[-1], str) else shape[-1]
        apart = "" if group.gives_zeros_idle else group.graph_name
        groups.setdefault((result, width, apart), []).append(group)
    taken = set(base_outputs)
    sums = []
    for (result, width, _), heads in groups.items():
        name = first_free(head_output(base_outputs, result), taken)
        taken.add(name)
        sums.append(HeadSum(name, result, width, tuple(heads)))
    return tuple(sums)


def head_records(sums: Iterable[HeadSum]) -> tuple[HeadRecord, ...]:
    """Every topology of head, as the manifest lists them."""
    return tuple(HeadRecord(group.graph_name, found.output, found.result) for found in sums for group in found.groups)


def adapter_head(sums: Iterable[HeadSum], adapter: Adapter | None) -> HeadRecord | None:
    """Return the head that an adapter fills, or `None` without one."""
    if adapter is None or adapter.head is None:
        return None
    key = topology_key(adapter.head.graph)
    groups = ((found, group) for found in sums for group in found.groups)
    return next(HeadRecord(group.graph_name, found.output, found.result) for found, group in groups if group.key == key)


def adapter_output(sums: Iterable[HeadSum], adapter: Adapter | None) -> str | None:
    """Return the name of the output with the result of an adapter's head, or `None` without a head."""
    head = adapter_head(sums, adapter)
    return None if head is None else head.output


def describe_plan(model: ir.Model, plan: SlotPlan) -> None:
    """Keep a plan in the graph that was made by it: adapters are added by it, without the base."""
    graphs: list[dict[str, Any]] = []
    groups = []
    for group in plan.groups:
        graph = graph_to_json(group.graph)
        if graph not in graphs:
            graphs.append(graph)
        facts = group.owner, group.graph_name, graphs.index(graph), dict(group.site_widths), group.alone
        groups.append([*facts, True] if group.short else [*facts])
    model.metadata_props[TOPOLOGY_KEY] = plan.digest
    model.metadata_props[PLAN_KEY] = json.dumps({"graphs": graphs, "groups": groups})
    scaled = {group.graph_name: strength_parameters(group.graph) for group in plan.groups if group.owner != HEAD}
    model.metadata_props[STRENGTH_KEY] = json.dumps(
        {name: None if found is None else sorted(found) for name, found in scaled.items()}
    )


def read_plan(model: ir.Model, where: object) -> SlotPlan:
    """The plan that a graph was made by; `FormatError` if it has none, or another than the digest beside it says."""
    cause = None
    try:
        document: Any = parse_json(model.metadata_props[PLAN_KEY].encode(), PLAN_KEY)
        graphs = [graph_from_json(graph) for graph in document["graphs"]]
        facts = ((owner, name, graphs[index], *rest) for owner, name, index, *rest in document["groups"])
        plan = SlotPlan(tuple(SlotGroup(*each) for each in facts))
        digest = plan.digest
        if digest == model.metadata_props.get(TOPOLOGY_KEY):
            return plan
        found = f"the topology {digest}"
    except (InputError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        cause, found = error, f"{type(error).__name__}: {error}"
    raise FormatError(
        "does not say what its slots were planned for",
        where=where,
        found=found,
        expected=f"`{PLAN_KEY}` in the metadata of the graph, as this release writes it",
        fix="build the bundle again",
    ) from cause
