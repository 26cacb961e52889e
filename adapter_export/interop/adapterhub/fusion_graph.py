"""AdapterFusion as one graph: attention of each token over what bottlenecks add (Pfeiffer et al. 2021, §3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.graph.kinds.bottleneck import BottleneckOptions, wired
from adapter_export.graph.kinds.chain import Chain
from adapter_export.graph.ops import Dim

FIRST_TEMPERATURE = 50.0
"""What the scores are divided by in the library's first forward pass, where the config asks for a temperature."""

_FRONT = ("sum", "normed")
_SITE_DIMS = ("d", "d_in")


@dataclass(frozen=True)
class FusionConfig:
    """`AdapterFusionConfig` by its own names; the last four have no effect on what is computed."""

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


@dataclass(frozen=True)
class Fused:
    """The graph of a fusion.

    Attributes:
        graph: its parameters are those of its members under their labels, and those of the fusion under `fusion`.
        reads: the value that the members read.
    """

    graph: AdapterGraph
    reads: str


def fusion_graph(fusion: FusionConfig, members: Mapping[str, BottleneckConfig]) -> Fused:
    """`r + Σᵢ pᵢ·V uᵢ`, `p = softmax(Q q · K uᵢ / T)`, `uᵢ` what the i-th member adds (`BertFusion.forward`).

    The config of the last member decides what all of them read and what the residual is (`compose_fuse`).

    Args:
        fusion: the config of the fusion layer.
        members: the configs of the members by their labels, in their order.

    Raises:
        UsageError: a config contradicts itself.
    """
    last = list(members.values())[-1]
    wiring = replace(last.wiring(), residual_inside=False)
    branches = [
        _branch(label, number, wired(replace(wiring, residual="h"), _inside(config)))
        for number, (label, config) in enumerate(members.items(), 1)
    ]
    chain = Chain("h")
    chain.nodes += branches[0].front
    reads = branches[0].reads
    if wiring.residual == "sum" and not branches[0].front:
        chain.op("add", "sum", "x")
    residual = {"h": "h", "sum": "sum", "read": reads}[wiring.residual]
    for branch in branches:
        chain.nodes += branch.nodes
        chain.parameters |= branch.parameters
    _attend(chain, fusion, [branch.delta for branch in branches], "h" if fusion.query_before_ln else reads, residual)
    shared = tuple(name for branch in branches for name in branch.shared)
    return Fused(chain.graph(wiring.replaces, shared), reads)


def _inside(config: BottleneckConfig) -> BottleneckOptions:
    """Up to the scaling: what comes behind it has no effect in a fusion."""
    return replace(config.options(), gate=False, norm_after=False, dropout=0.0)


@dataclass(frozen=True)
class _Branch:
    front: tuple[Node, ...]
    nodes: tuple[Node, ...]
    parameters: dict[str, tuple[Dim, ...]]
    shared: tuple[str, ...]
    delta: str
    reads: str


def _branch(label: str, number: int, graph: AdapterGraph) -> _Branch:
    """A bottleneck without its last sum, under names of its own; what stands before it is common to all."""
    front = tuple(node for node in graph.nodes if node.output in _FRONT)
    rest = graph.nodes[len(front) : -1]
    made = {node.output: f"{label}_{node.output}" for node in rest}

    def renamed(node: Node) -> Node:
        inputs = tuple(made.get(name, name) for name in node.inputs)
        roles = {role: f"{label}.{name}" for role, name in node.parameters.items()}
        return replace(node, inputs=inputs, output=made[node.output], parameters=roles)

    parameters = {
        f"{label}.{name}": tuple(numbered(dim, number) for dim in shape) for name, shape in graph.parameters.items()
    }
    shared = tuple(f"{label}.{name}" for name in graph.shared)
    return _Branch(front, tuple(map(renamed, rest)), parameters, shared, made[rest[-1].output], rest[0].inputs[0])


def numbered(dim: Dim, number: int) -> Dim:
    """A member's symbol among those of the others; the site's own are common."""
    return dim if isinstance(dim, int) or dim in _SITE_DIMS else f"{dim}{number}"


def _attend(chain: Chain, fusion: FusionConfig, deltas: list[str], query: str, residual: str) -> None:
    if fusion.residual_before:
        deltas = [_added(chain, delta, residual) for delta in deltas]
    asked = _projected(chain, query, "fusion_query", "query") if fusion.query else query
    keys = [_projected(chain, one, f"{one}_key", "key") if fusion.key else one for one in deltas]
    early = fusion.value and fusion.value_before_softmax
    values = [_projected(chain, one, f"{one}_value", "value", bias=False) if early else one for one in deltas]
    scores = [_scored(chain, asked, key, f"{one}_score") for key, one in zip(keys, deltas, strict=True)]
    chain.value = scores[0]
    temperature = FIRST_TEMPERATURE if fusion.temperature else 1.0
    chain.op("softmax_mix", "mixed", *scores[1:], *values, attributes={"temperature": temperature})
    if fusion.value and not fusion.value_before_softmax:
        _projected(chain, "mixed", "fusion_value", "value", bias=False)
    if not fusion.residual_before:
        delta, chain.value = chain.value, residual
        chain.op("add", "result", delta)


def _added(chain: Chain, delta: str, residual: str) -> str:
    chain.value = delta
    return chain.op("add", f"{delta}_whole", residual)


def _projected(chain: Chain, source: str, output: str, name: str, *, bias: bool = True) -> str:
    """A linear of the fusion; one and the same for all members."""
    roles = {role: f"fusion.{name}.{role}" for role in (("weight", "bias") if bias else ("weight",))}
    chain.parameters |= {full: ("d", "d") if role == "weight" else ("d",) for role, full in roles.items()}
    chain.value = source
    return chain.op("linear", output, parameters=roles)


def _scored(chain: Chain, query: str, key: str, output: str) -> str:
    chain.value = query
    return chain.op("dot", output, key)
