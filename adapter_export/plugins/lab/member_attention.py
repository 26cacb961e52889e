"""Mean attention weights of the members of a fusion, by layer, over the tokens of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.dtypes import Array
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.members import COMPOSITION, OWN, labels_of
from adapter_export.graph.graph import AdapterGraph, Node, bind_base_norm, producer
from adapter_export.graph.numpy_lowering import shares_of
from adapter_export.numerics.evaluate_adapter import BORROWED, borrowed, values_of
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import exposed, site_norms, with_site_outputs
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site import SiteName
from adapter_export.tables import Table, number_of


@dataclass(frozen=True)
class Attention:
    """Mean attention weights of the members of a fusion.

    Attributes:
        adapter: the fusion.
        members: the names of its members.
        weights: for each site the mean weight of each member over all tokens; null for a member that does not act
            there. The weights of a site sum to 1.
        tokens: the number of tokens.
    """

    adapter: str
    members: tuple[str, ...]
    weights: Mapping[str, tuple[float | None, ...]]
    tokens: int

    def tables(self) -> Iterator[Table]:
        """Yield a table of layers and members for each role of sites."""
        roles: dict[str, list[tuple[str, tuple[float | None, ...]]]] = {}
        for site, weights in self.weights.items():
            name = SiteName.parse(site)
            role = "all sites" if name.layer is None else name.place
            roles.setdefault(role, []).append((name.block or site, weights))
        for role, lines in roles.items():
            rows = [(layer, *("–" if weight is None else f"{weight:.3f}" for weight in row)) for layer, row in lines]
            title = f"`{self.adapter}` at `{role}`: mean attention weight over {number_of(self.tokens, 'token')}"
            yield Table(("layer", *self.members), rows, title, "l" + "r" * len(self.members))


def is_fusion(adapter: Adapter) -> bool:
    """Return true if an adapter attends to members."""
    return any(_mix(graph) is not None for graph in adapter.graphs.values())


def attention(bundle: OpenedBundle, name: str, texts: Iterable[Mapping[str, np.ndarray]]) -> Attention:
    """Return the mean attention weights of the members of a fusion in a bundle.

    The inputs of each site are read from the exported graph; the weights are computed from them in float64.

    Args:
        bundle: the bundle.
        name: the name of the fusion.
        texts: the inputs of one text each; masked tokens do not count.

    Raises:
        RequestError: ONNX Runtime cannot compute them.
    """
    adapter, norms = bundle.source(name), site_norms(bundle.slots_model)
    session = open_session(with_site_outputs(bundle.slots_model), bundle.home, optimize=False)
    graphs = {
        site: bind_base_norm(adapter.graphs[at.graph], norms.get(site)) for site, at in adapter.placements.items()
    }
    mixes = {site: mix for site, graph in graphs.items() if (mix := _mix(graph)) is not None}
    shown = {value.name for value in session.get_outputs()}
    read = {
        site: {
            tensor: exposed(site, tensor)
            for tensor in (*graphs[site].inputs, *BORROWED)
            if exposed(site, tensor) in shown
        }
        for site in mixes
    }
    masks = [record.name for record in bundle.manifest.inputs if record.role == "mask"]
    totals, tokens = dict.fromkeys(mixes, np.zeros(1)), 0
    for arrays in texts:
        outputs = run_session(
            session,
            {**arrays, **bundle.tensors(name)},
            list({output for names in read.values() for output in names.values()}),
        )
        counted = arrays[masks[0]].ravel().astype(bool) if masks else None
        for site, mix in mixes.items():
            values = {tensor: outputs[output] for tensor, output in read[site].items()}
            shares = _shares(adapter, site, graphs[site], mix, values)
            real = shares[:, counted] if counted is not None and len(counted) == shares.shape[1] else shares
            totals[site] = totals[site] + real.sum(1)
            here = real.shape[1]
        tokens += here
    members, labels = _members(adapter, graphs, mixes)
    weights = {}
    for site, mix in mixes.items():
        by_label = dict(zip(_labels(graphs[site], mix), (totals[site] / tokens).tolist(), strict=True))
        weights[site] = tuple(by_label.get(label) for label in labels)
    return Attention(name, members, weights, tokens)


def _shares(adapter: Adapter, site: str, graph: AdapterGraph, mix: Node, values: Mapping[str, np.ndarray]) -> Array:
    """Return the attention weights [members, tokens] of one text."""
    parameters = adapter.parameters(site)
    width = adapter.placements[site].widths["d"]
    read = {name: values[name] for name in graph.inputs}
    computed = values_of(graph, read, parameters | borrowed(graph, {**values, **parameters}, width))
    shares = shares_of(tuple(computed[score] for score in _scores(mix)), mix.attributes["temperature"])
    return shares.reshape(len(shares), -1)


def _scores(mix: Node) -> tuple[str, ...]:
    return mix.inputs[: len(mix.inputs) // 2]


def _mix(graph: AdapterGraph) -> Node | None:
    """Return the attention over distinguishable members; the outer one of nested fusions."""
    mixes = [node for node in graph.nodes if node.op == "softmax_mix"]
    return next((node for node in reversed(mixes) if len(set(_labels(graph, node))) == len(_scores(node))), None)


def _labels(graph: AdapterGraph, mix: Node) -> tuple[str, ...]:
    """Return the labels of the attended members, which prefix the parameters of their values."""
    return tuple(_label(graph, value) for value in mix.inputs[len(mix.inputs) // 2 :])


def _label(graph: AdapterGraph, value: str) -> str:
    labels, seen, left = set[str](), set[str](), [value]
    while left:
        node = producer(graph, left.pop())
        if node is not None and node.output not in seen:
            seen.add(node.output)
            owners = {name.partition(".")[0] for name in node.parameters.values() if name not in BORROWED}
            labels |= {owner for owner in owners if not OWN.fullmatch(owner)}
            left += node.inputs
    return min(labels, default="")


def _members(
    adapter: Adapter, graphs: Mapping[str, AdapterGraph], mixes: Mapping[str, Node]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the members with their labels: from the record, or else from all sites."""
    record = adapter.training.get(COMPOSITION)
    facts = record.get("members", ()) if isinstance(record, Mapping) else ()
    names = tuple(str(member.get("name")) for member in facts if isinstance(member, Mapping))
    present = dict.fromkeys(label for site, mix in mixes.items() for label in _labels(graphs[site], mix))
    known = labels_of(names)
    return (names, known) if set(present) <= set(known) else (tuple(present), tuple(present))
