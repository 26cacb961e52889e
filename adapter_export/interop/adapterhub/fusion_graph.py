"""AdapterFusion as one graph: attention of each token over what bottlenecks add (Pfeiffer et al. 2021, §3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapter_export.graph.compose.attention import FIRST_TEMPERATURE, FusionOptions, attend
from adapter_export.graph.compose.merge import Merged, numbered
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.graph.kinds.bottleneck import BottleneckOptions, wired
from adapter_export.graph.ops import Dim

_FRONT = ("sum", "normed")


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
    chain = Merged("h")
    chain.nodes += branches[0].front
    reads = branches[0].reads
    if wiring.residual == "sum" and not branches[0].front:
        chain.op("add", "sum", "x")
    residual = {"h": "h", "sum": "sum", "read": reads}[wiring.residual]
    for branch in branches:
        chain.nodes += branch.nodes
        chain.parameters |= branch.parameters
    query = "h" if fusion.query_before_ln else reads
    attend(chain, fusion.options(), [branch.delta for branch in branches], query, residual)
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
