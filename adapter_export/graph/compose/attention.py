"""AdapterFusion: an attention of each token over what adapters add there (Pfeiffer et al. 2021, §3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from adapter_export.dtypes import Array, Weights
from adapter_export.errors import UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.members import Composition, Here, Merged, compose, members_of, replaced_by
from adapter_export.graph.compose.sums import deltas
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph
from adapter_export.graph.initialise import normal
from adapter_export.graph.ops import OPS, Shape

FIRST_TEMPERATURE = 50.0
"""AdapterHub's default temperature."""

VALUE = "fusion.value.weight"
"""The parameter [d, d] that a penalty keeps near the identity."""

_MIX, _MIXED = "softmax_mix", "mixed"
_OFF_DIAGONAL = 1e-6
"""Elements beside the diagonal of the first value projection, as in AdapterHub."""


@dataclass(frozen=True)
class FusionOptions:
    """`AdapterFusionConfig` of AdapterHub: which of `query`, `key` and `value` have a projection, and where.

    With `query_before_norm` the query is the replaced value even where the members read the base's norm.
    `residual_before` adds the residual to each value instead of their mean, `value_before_softmax` projects the values
    instead of it. Training lowers a `temperature` above 1 to 1. `dropout` is the rate on the scores, `first_value` N(0,
    0.02²) or the identity.
    """

    query: bool = True
    key: bool = True
    value: bool = True
    query_before_norm: bool = False
    residual_before: bool = False
    value_before_softmax: bool = True
    temperature: float = 1.0
    dropout: float = 0.0
    first_value: Literal["identity", "normal"] = "identity"

    def __post_init__(self) -> None:
        if self.temperature not in OPS[_MIX].attributes["temperature"]:
            raise UsageError("no temperature of a softmax", found=self.temperature, expected="above 0, finite")


DYNAMIC = FusionOptions()
"""AdapterHub's `dynamic`."""

STATIC = FusionOptions(value=False)
"""AdapterHub's `static`: it only weighs what the members add."""


def adapter_fusion(
    *adapters: Adapter, name: str, options: FusionOptions = DYNAMIC, seed: int = 0, head: str | None = None
) -> Adapter:
    """`h + Σ pᵢ·V Δᵢ` with `p = softmax(Q q · K Δᵢ / T)`, for each token at each site (Pfeiffer et al. 2021, §3.2).

    `Δᵢ` is what a member adds, or the difference that it makes; only those that act at a site are in the sum there. `q`
    is the input of the members if the last one reads `norm(h + x)`, or else the replaced value. The projections are
    initialized: keys and queries from N(0, 0.02²) by `seed`, values according to the options. `head` names the member
    whose head it gets.

    Raises as `stack`, and `AdapterError` if no member says how wide a site is.
    """
    rng = np.random.default_rng(seed)

    def merged(here: Sequence[Here | None], site: str) -> AdapterGraph:
        target = replaced_by(here, site)
        chain = Merged(target)
        added = [delta for delta in deltas(chain, here, target) if delta is not None]
        last = [acting.graph for acting in here if acting is not None][-1]
        query = target
        if target == "h" and not options.query_before_norm and any(node.op == "base_norm" for node in last.nodes):
            query = chain.normed_sum("h")
        attend(chain, options, added, query, target, str(SITE_VALUES[target][-1]))
        return chain.graph(target, chain.shared)

    def drawn(_: str, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
        projections = {}
        for name, shape in shapes.items():
            first: Array
            if name.endswith(".bias"):
                first = np.zeros(shape)
            elif name == VALUE and options.first_value == "identity":
                first = np.eye(shape[0]) + _OFF_DIAGONAL * (1 - np.eye(shape[0]))
            else:
                first = normal(rng, shape)
            projections[name] = first.astype(np.float32)
        return projections

    record = {"type": "adapter_fusion", **asdict(options)}
    return compose(members_of(adapters), Composition(name, "fusion", record, drawn), merged, head)


def attend(
    chain: Merged,
    options: FusionOptions,
    added: Sequence[str],
    query: str,
    residual: str,
    width: str = "d",
    owner: str = "fusion",
) -> None:
    """Add the attention over the members' additions, of width `width` (`BertFusion.forward` of AdapterHub).

    The chain has all these values; it gets `fusion.query.weight` [d, d], `fusion.query.bias` [d] and so on, the value
    projection without a bias. `owner` replaces `fusion` in the names where a graph has several.
    """

    def apply(source: str, op: str, output: str, *others: str) -> str:
        chain.value = source
        return chain.op(op, chain.free(output), *others)

    def projected(source: str, name: str, output: str) -> str:
        """Append one of the linears, the same for all members."""
        shapes: dict[str, Shape] = {"weight": (width, width), **({} if name == "value" else {"bias": (width,)})}
        chain.value = source
        return chain.owned("linear", f"{owner}.{name}", shapes, output=chain.free(output))

    if options.residual_before:
        added = [apply(addition, "add", f"{addition}_whole", residual) for addition in added]
    early = options.value and options.value_before_softmax
    values = [projected(addition, "value", f"{addition}_value") if early else addition for addition in added]
    chain.value = values[0]
    if len(added) > 1:  # the share of a single member is 1
        projected_query = projected(query, "query", "fusion_query") if options.query else query
        scores = []
        for addition in added:
            key = projected(addition, "key", f"{addition}_key") if options.key else addition
            score = apply(projected_query, "dot", f"{addition}_score", key)
            scores.append(chain.dropout(options.dropout, chain.free(f"{score}_dropped")))
        chain.value = scores[0]
        chain.op(_MIX, chain.free(_MIXED), *scores[1:], *values, attributes={"temperature": options.temperature})
    if options.value and not early:
        projected(chain.value, "value", "fusion_value")
    if not options.residual_before:
        apply(residual, "add", "result", chain.value)


def at_temperature(graph: AdapterGraph, temperature: float) -> AdapterGraph:
    """Return the graph of a fusion with another temperature; other graphs as they are."""
    nodes = tuple(
        replace(node, attributes={"temperature": temperature}) if (node.op, node.output) == (_MIX, _MIXED) else node
        for node in graph.nodes
    )
    return replace(graph, nodes=nodes)


def temperature_of(graph: AdapterGraph) -> float:
    """Return the temperature of a fusion; 1 for other graphs."""
    mixes = (node for node in graph.nodes if (node.op, node.output) == (_MIX, _MIXED))
    return next((node.attributes["temperature"] for node in mixes), 1.0)
