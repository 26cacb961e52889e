"""Slots: the tensors of an exported graph that an adapter fills, planned as the union over all adapters of a build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, NotNeutralError
from adapter_export.format.manifest import Axis, SlotRecord
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.fold import fold_weights, inference_form
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.neutral import neutral_parameters, neutral_widths
from adapter_export.graph.ops import Dim
from adapter_export.graph.tasks import HeadOutput, head_result
from adapter_export.sites.site import SiteMap

SLOT_PREFIX = "adapter."
"""What the name of every slot begins with."""

_SITE_SYMBOLS = ("d", "d_in")


@dataclass(frozen=True)
class Part:
    """One topology at one site, or one topology of prediction head.

    Attributes:
        owner: the site, or `head`.
        graph_name: what the topology is called, the same at every site.
        graph: what is computed, in its inference form.
        site_widths: the symbols that the base fixes, such as `d`; all others are free per adapter.
        alone: whether it is the only topology there, so that its name need not stand in the slots' names.
    """

    owner: str
    graph_name: str
    graph: AdapterGraph
    site_widths: Mapping[str, int]
    alone: bool

    @property
    def prefix(self) -> str:
        """What the names of its slots and nodes begin with."""
        return f"{SLOT_PREFIX}{self.owner}" if self.alone else f"{SLOT_PREFIX}{self.owner}.{self.graph_name}"

    @property
    def key(self) -> str:
        """Its topology, as text."""
        return topology_key(self.graph)

    def slot(self, parameter: str) -> str:
        """The slot of one of the graph's parameters."""
        return f"{self.prefix}.{parameter}"

    def records(self) -> Iterator[SlotRecord]:
        """Its slots, in the order of the graph's parameters."""
        for parameter, neutral in self.neutral().items():
            shape = self.graph.parameters[parameter]
            axes = tuple(self.site_widths.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)
            yield SlotRecord(self.slot(parameter), self.owner, self.graph_name, parameter, axes, neutral.shape)

    @property
    def result(self) -> HeadOutput:
        """What it gives, if it is a head."""
        found = head_result(self.graph.shapes()[self.graph.result])
        assert found is not None  # adapters are checked
        return found

    @property
    def result_width(self) -> Dim:
        """The last axis of what it gives: a number if the base fixes it."""
        width = self.graph.shapes()[self.graph.result][-1]
        return self.site_widths.get(width, width) if isinstance(width, str) else width

    @property
    def gives_zeros_idle(self) -> bool:
        """Whether its result is zero with its neutral parameters, if it is a head."""
        try:
            neutral_parameters(self.graph, neutral_widths(self.graph, self.site_widths))
        except NotNeutralError:
            return False
        return True

    def neutral(self) -> Weights:
        """Its neutral parameters, by parameter; zeros for a head that has none, whose output nobody reads then.

        Raises:
            NotNeutralError: a site's graph has none, so that it cannot lie idle in a shared graph.
        """
        widths = neutral_widths(self.graph, self.site_widths)
        if self.owner == HEAD and not self.gives_zeros_idle:
            shapes = self.graph.parameter_shapes(widths)
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        try:
            return neutral_parameters(self.graph, widths)
        except NotNeutralError as error:
            where = f"graph `{self.graph_name}` at `{self.owner}`"
            raise NotNeutralError(
                error.what, where=where, found=error.found, expected=error.expected, fix=error.fix
            ) from error

    def axis_name(self, axis: Axis) -> Axis:
        """The name of a slot's free axis in the ONNX graph, where one name means one size: `layers.0.ffn.b`."""
        if isinstance(axis, int) or (self.owner == HEAD and self.alone and axis == "classes"):
            return axis
        return f"{self.prefix.removeprefix(SLOT_PREFIX)}.{axis}"


@dataclass(frozen=True)
class SlotPlan:
    """What goes into one exported graph.

    Attributes:
        parts: in the order of evaluation, the heads last; several at one site are chained in this order.
    """

    parts: tuple[Part, ...]

    @property
    def slots(self) -> tuple[SlotRecord, ...]:
        """Every slot of the graph."""
        return tuple(record for part in self.parts for record in part.records())

    @property
    def has_head(self) -> bool:
        """Whether the graph has a head."""
        return any(part.owner == HEAD for part in self.parts)

    @property
    def digest(self) -> str:
        """The topology of the whole graph as `sha256:<hex>`: graphs of one digest take the same adapter files."""
        facts = [[part.owner, part.graph_name, part.alone, part.key, dict(part.site_widths)] for part in self.parts]
        return f"sha256:{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}"

    def at(self, owner: str) -> tuple[Part, ...]:
        """The parts at one site, or the heads."""
        return tuple(part for part in self.parts if part.owner == owner)


def topology_key(graph: AdapterGraph) -> str:
    """A text that is equal for two graphs if and only if they compute the same from parameters of the same names.

    Names of values do not count, nor does what `inference_form` removes.
    """
    form = inference_form(graph)
    names = {node.output: f"v{index}" for index, node in enumerate(form.nodes)}
    nodes = [
        asdict(replace(node, output=names[node.output], inputs=tuple(names.get(name, name) for name in node.inputs)))
        for node in form.nodes
    ]
    return json.dumps([nodes, dict(form.parameters), names.get(form.result, form.result)], sort_keys=True)


def plan_slots(adapters: Sequence[Adapter], sites: SiteMap) -> SlotPlan:
    """The union of the slots of all adapters.

    Args:
        adapters: any number, of any topologies and widths.
        sites: those of the base.

    Raises:
        AdapterError: adapters act where the base has no site, or are of other widths; all of them are listed.
        NotNeutralError: a graph that cannot lie idle.
    """
    _check_fit(adapters, sites)
    forms = _forms(adapters)
    names = _graph_names(adapters)
    parts = []
    for owner, width in [*((site.name, site.width) for site in sites.sublayers), (HEAD, sites.width)]:
        here = sorted((names[key], key) for key in forms.get(owner, {}))
        for name, key in here:
            form = forms[owner][key]
            widths = {symbol: width for symbol in form.symbols() if symbol in _SITE_SYMBOLS}
            parts.append(Part(owner, name, form, widths, alone=len(here) == 1))
    plan = SlotPlan(tuple(parts))
    _check_names(plan)
    return plan


def slot_tensors(plan: SlotPlan, adapter: Adapter) -> Weights:
    """A tensor for every slot: the adapter's weights with factors folded in, neutral zeros where it does not act.

    Raises:
        AdapterError: it does something for which the plan has no slots.
        GraphError: a factor takes a weight out of the range of float32.
    """
    own = {(owner, topology_key(graph)): graph for owner, graph, _ in adapter.parts()}
    unplanned = own.keys() - {(part.owner, part.key) for part in plan.parts}
    if unplanned:
        raise AdapterError(
            "does something for which the exported graph has no slots",
            where=f"adapter `{adapter.name}`",
            found=", ".join(sorted(owner for owner, _ in unplanned)),
            fix="build again with this adapter among the others",
        )
    tensors: Weights = {}
    for part in plan.parts:
        graph = own.get((part.owner, part.key))
        filled = part.neutral() if graph is None else fold_weights(graph, adapter.parameters(part.owner))
        tensors.update({part.slot(name): np.ascontiguousarray(filled[name]) for name in part.graph.parameters})
    return tensors


def _forms(adapters: Sequence[Adapter]) -> dict[str, dict[str, AdapterGraph]]:
    """The inference forms by owner and topology; of several spellings of one topology, always the same is taken."""
    forms: dict[str, dict[str, AdapterGraph]] = {}
    for adapter in adapters:
        for owner, graph, _ in adapter.parts():
            form, here = inference_form(graph), forms.setdefault(owner, {})
            key = topology_key(graph)
            here[key] = min(here.get(key, form), form, key=_spelling)
    return forms


def _spelling(graph: AdapterGraph) -> str:
    return json.dumps(asdict(graph))


def _graph_names(adapters: Sequence[Adapter]) -> dict[str, str]:
    """One name for each topology; where two want the same name, the later one is numbered."""
    wanted: dict[str, str] = {}
    for adapter in adapters:
        for name, graph in _named_graphs(adapter):
            key = topology_key(graph)
            wanted[key] = min(wanted.get(key, name), name)
    names: dict[str, str] = {}
    for key in sorted(wanted):
        names[key] = first_free(wanted[key], names.values())
    return names


def _named_graphs(adapter: Adapter) -> Iterator[tuple[str, AdapterGraph]]:
    yield from adapter.graphs.items()
    if adapter.head is not None:
        yield "_".join(node.op for node in inference_form(adapter.head.graph).nodes) or HEAD, adapter.head.graph


def first_free(name: str, taken: Collection[str]) -> str:
    """The name itself, or with the first number behind it that makes it new."""
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _check_fit(adapters: Sequence[Adapter], sites: SiteMap) -> None:
    widths = {**{site.name: site.width for site in sites.sublayers}, HEAD: sites.width}
    faults = [fault for adapter in adapters for fault in _misfits(adapter, widths)]
    if faults:
        raise AdapterError(
            "adapters do not fit the base",
            found="; ".join(faults),
            expected=f"sites {_listed(list(widths)[:-1])} of width {sites.width}",
            fix="give the base that they were trained on; `adapter-export sites` lists what a base has",
        )


def _misfits(adapter: Adapter, widths: Mapping[str, int]) -> Iterator[str]:
    for owner, _, found in adapter.parts():
        if owner not in widths:
            yield f"`{adapter.name}` acts at `{owner}`, which the base does not have"
            continue
        for symbol in _SITE_SYMBOLS:
            if found.get(symbol, widths[owner]) != widths[owner]:
                yield f"`{adapter.name}` has `{symbol}` = {found[symbol]} at `{owner}`, the base {widths[owner]}"


def _listed(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-2:]])


def _check_names(plan: SlotPlan) -> None:
    names = [slot.name for slot in plan.slots]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AdapterError(
            "two slots would have one name", found=", ".join(twice), fix="rename the graphs or the parameters"
        )
