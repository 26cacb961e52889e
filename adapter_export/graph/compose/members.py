"""The members of a composition, whose graphs become one at each site: common nodes once, the others under its label."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import HEAD, SHARED, Adapter, Head, Placement, refuse_prefixes
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import READABLE, AdapterGraph, Node, first_free, producer
from adapter_export.graph.ops import OPS, Dim
from adapter_export.sites.site import SiteName
from adapter_export.words import quoted

ROWS = "rows"
"""The symbol for the rows of a fusion's weights: one in files, and one for each row of a batch if a call gives them."""

SITE_DIMS = ("d", "d_in")
"""Dimensions of the site; all others are a member's own."""

OWN = re.compile(r"(mix|fusion)(_\d+)?")
"""Prefixes of a composition's own parameters, which are no member's label."""

COMPOSITION = "composition"
"""Key of the training record with the members of a composition."""


def numbered(dim: Dim, number: int) -> Dim:
    """Return a dimension of the member `number` (from 1) among those of the others; the site's own are common to all.

    The weights of a fusion inside another composition cannot be given by row, so they are one row.
    """
    if dim == ROWS:
        return 1
    return dim if isinstance(dim, int) or dim in SITE_DIMS else f"{dim}_{number}"


@dataclass(frozen=True)
class Member:
    """One adapter of a composition: the label that begins its names, and its position from 1."""

    label: str
    number: int
    adapter: Adapter


@dataclass(frozen=True)
class Here:
    """A member at one site, with its graph there."""

    member: Member
    graph: AdapterGraph


class Merged(Chain):
    """A chain that includes whole graphs and computes common nodes once."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.shared: tuple[str, ...] = ()

    def result(self, branch: Here, values: Mapping[str, str]) -> str:
        """Add a member's nodes, with `values` instead of its site values; return the name of its result."""
        return self._add_nodes(branch, values, branch.graph.nodes)[branch.graph.result]

    def delta(self, branch: Here, values: Mapping[str, str]) -> str:
        """Add a member's graph without its residual; return the name of its addition to the replaced value.

        If the graph is not such a sum, the addition is the difference of its result and the replaced value.
        """
        graph = branch.graph
        last = producer(graph, graph.result)
        if last is not None and last is graph.nodes[-1] and last.op == "add" and graph.replaces in last.inputs:
            first, second = last.inputs
            added = second if first == graph.replaces else first
            return self._add_nodes(branch, values, graph.nodes[:-1])[added]
        replaced = values.get(graph.replaces, graph.replaces)
        return self.difference(self.result(branch, values), replaced, f"{branch.member.label}_delta")

    def normed_sum(self, value: str) -> str:
        """Return the base's own norm of `h + x`, for another `h`."""
        total = self.once(Node("add", (value, "x"), f"{value}_sum"))
        return self.once(Node("base_norm", (total,), f"{value}_normed"))

    def difference(self, minuend: str, subtrahend: str, output: str) -> str:
        """One value less another one."""
        negative = self.once(Node("scale", (subtrahend,), f"minus_{subtrahend}", {}, {"factor": -1.0}))
        return self.once(Node("add", (minuend, negative), output))

    def once(self, node: Node) -> str:
        """Add a node under its own or the next free name, or find one that computes the same; returns its output."""
        wanted = replace(node, output="")
        if not node.parameters and not OPS[node.op].random:
            for other in self.nodes:
                if replace(other, output="") == wanted:
                    return other.output
        self.nodes.append(replace(node, output=self.free(node.output)))
        return self.nodes[-1].output

    def free(self, name: str) -> str:
        """Return the name, followed by the first number that makes it unique if it is taken."""
        return first_free(name, {node.output for node in self.nodes})

    def _add_nodes(self, branch: Here, values: Mapping[str, str], nodes: tuple[Node, ...]) -> dict[str, str]:
        graph, label = branch.graph, branch.member.label
        names = {name: values.get(name, name) for name in graph.inputs}
        for node in nodes:
            roles = {role: f"{label}.{name}" for role, name in node.parameters.items()}
            inputs = tuple(names[name] for name in node.inputs)
            renamed = replace(node, inputs=inputs, output=f"{label}_{node.output}", parameters=roles)
            names[node.output] = self.once(renamed)
        for name, shape in graph.parameters.items():
            self.parameters[f"{label}.{name}"] = tuple(numbered(dim, branch.member.number) for dim in shape)
        self.shared += tuple(f"{label}.{name}" for name in graph.shared)
        return names


@dataclass(frozen=True)
class Composition:
    """The new adapter's name and kind (also the name of its first graph), its record, and its own weights.

    `weights` makes the tensors of the graph's own parameters at a site from their names and shapes; `widths` are the
    widths of the graph's own symbols.
    """

    name: str
    kind: str
    record: Mapping[str, Any]
    weights: Callable[[str, Mapping[str, tuple[int, ...]]], Weights] = lambda *_: {}
    widths: Mapping[str, int] = field(default_factory=dict)


def members_of(adapters: Sequence[Adapter]) -> tuple[Member, ...]:
    """Return the members, labelled by their names if these are valid in names of parameters.

    Raises `UsageError` if there are none, or two of one name, `AdapterError` if they were trained on different bases.
    """
    names = [adapter.name for adapter in adapters]
    if not adapters or len(set(names)) != len(names):
        raise UsageError(
            "the members of a composition are different adapters, each with a name of its own",
            found=", ".join(names) or "none",
            fix="name each once; rename one of two that are called alike: `other=folder`",
        )
    bases = {adapter.base for adapter in adapters}
    if len(bases) > 1:
        raise AdapterError(
            "the members of a composition were trained on different bases",
            found=", ".join(f"`{adapter.name}`: {adapter.base}" for adapter in adapters),
            expected="one base",
        )
    labelled = enumerate(zip(labels_of(names), adapters, strict=True), 1)
    return tuple(Member(label, number, adapter) for number, (label, adapter) in labelled)


def labels_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of members, in names of parameters, by their own names."""
    labels: list[str] = []
    for number, name in enumerate(names, 1):
        label = name.replace(".", "_")  # a dot ends the label in names of parameters
        labels.append(f"member{number}" if label in labels or OWN.fullmatch(label) else label)
    return tuple(labels)


def replaced_by(here: Sequence[Here | None], site: str) -> str:
    """Return the value that a composition replaces at a site: the last that a member replaces, in base order.

    Raises `AdapterError` if one member replaces the input of a layer, and another one its output.
    """
    names = {branch.graph.replaces: branch.member.adapter.name for branch in here if branch is not None}
    if "u" in names and len(names) > 1:
        raise AdapterError(
            "members replace both the input and the output of a layer, and a graph at a site replaces only one of them",
            where=f"`{site}`",
            found=", ".join(f"`{name}` replaces `{value}`" for value, name in names.items()),
            fix="compose adapters that act on the same values there",
        )
    return max(names, key=tuple(READABLE).index)


def compose(
    members: Sequence[Member],
    composition: Composition,
    merged: Callable[[Sequence[Here | None], str], AdapterGraph],
    head: str | None,
) -> Adapter:
    """Make the adapter: `merged` makes one graph of the members at a site, the member called `head` gives its head.

    Raises `UsageError` if no member of that name has a head, `AdapterError` if the members do not go together.
    """
    refuse_prefixes((member.adapter for member in members), "composed")
    graphs: dict[str, AdapterGraph] = {}
    names: dict[tuple[str | None, ...], str] = {}
    placements: dict[str, Placement] = {}
    weights: Weights = {}
    sites = dict.fromkeys(site for member in members for site in member.adapter.placements)
    parsed = {site: SiteName.parse(site) for site in sites}
    streams = [name.stream for name in parsed.values()]

    def order(site: str) -> tuple[int, int]:
        stream, layer = parsed[site].stream, parsed[site].layer
        return streams.index(stream), -1 if layer is None else layer

    for site in sorted(sites, key=order):
        acting = [member for member in members if site in member.adapter.placements]
        key = tuple(member.adapter.placements[site].graph if member in acting else None for member in members)
        if key not in names:
            names[key] = composition.kind if not names else f"{composition.kind}_{len(names) + 1}"
            pairs = zip(members, key, strict=True)
            here = [None if name is None else Here(member, member.adapter.graphs[name]) for member, name in pairs]
            graphs[names[key]] = merged(here, site)
        graph = graphs[names[key]]
        widths = _widths(graph, acting, composition, site)
        placements[site] = Placement(names[key], widths)
        tensors = {
            f"{member.label}.{name}": tensor
            for member in acting
            for name, tensor in member.adapter.parameters(site).items()
        }
        shapes = graph.parameter_shapes(widths)
        own_shapes = {name: shape for name, shape in shapes.items() if OWN.fullmatch(name.partition(".")[0])}
        tensors |= composition.weights(site, own_shapes) if own_shapes else {}
        common = f"{SHARED}.{names[key]}"
        weights = {
            f"{common if name in graph.shared else site}.{name}": tensors[name] for name in graph.parameters
        } | weights
    chosen, tensors = _head(members, head)
    facts = [{"name": member.adapter.name, "kind": member.adapter.kind} for member in members]
    record = {COMPOSITION: {**composition.record, "members": facts}}
    base = members[0].adapter.base
    return Adapter(composition.name, composition.kind, base, graphs, placements, {**weights, **tensors}, chosen, record)


def data_of(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the data of a training record, and those of the members of a composition: files by their part."""
    composition = training.get(COMPOSITION)
    members = composition.get("members") if isinstance(composition, Mapping) else None
    parts = [training.get("data")]
    for member in members if isinstance(members, list | tuple) else ():
        of_member = member.get("data") if isinstance(member, Mapping) else None
        parts += of_member if isinstance(of_member, list | tuple) else []
    return [part for part in parts if isinstance(part, Mapping)]


def own_tensors(adapter: Adapter) -> tuple[str, ...]:
    """Return the composition's own tensors, which are trained while the members are frozen."""
    names = {
        tensor: None
        for site in adapter.placements
        for name, tensor in adapter.tensor_names(site).items()
        if OWN.fullmatch(name.partition(".")[0])
    }
    return tuple(names)


def _widths(graph: AdapterGraph, acting: Sequence[Member], composition: Composition, site: str) -> dict[str, int]:
    """Return the widths of a graph at a site; widths of the site are common to all members."""
    widths: dict[str, int] = {}
    for branch in acting:
        for name, width in branch.adapter.placements[site].widths.items():
            symbol = str(numbered(name, branch.number))
            if widths.setdefault(symbol, width) != width:
                raise AdapterError(
                    "the members of a composition say different widths of one site",
                    where=f"`{site}`",
                    found=f"`{symbol}` = {width} in `{branch.adapter.name}`, {widths[symbol]} before it",
                    expected="adapters of one base",
                )
    known = {**composition.widths, **widths}
    missing = [symbol for symbol in graph.symbols() if symbol not in known]
    if missing:
        raise AdapterError("no member says how wide its site is", where=f"`{site}`", found=f"no `{missing[0]}`")
    return {symbol: known[symbol] for symbol in graph.symbols()}


def _head(members: Sequence[Member], head: str | None) -> tuple[Head | None, Weights]:
    """Return a member's head and its tensors."""
    if head is None:
        return None, {}
    owner = next((member.adapter for member in members if member.adapter.name == head), None)
    if owner is None or owner.head is None:
        heads = [member.adapter.name for member in members if member.adapter.head is not None]
        raise UsageError(
            "no member of this name has a head",
            found=f"`{head}`",
            expected=quoted(heads) or "none of them has one: leave the head out",
        )
    return owner.head, {f"{HEAD}.{name}": tensor for name, tensor in owner.parameters(HEAD).items()}
