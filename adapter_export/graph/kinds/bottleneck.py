"""Bottlenecks: `h` plus a down-projection, an activation and an up-projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapter_export.errors import UsageError
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.kinds.kind import DEFAULT_BOTTLENECK, Kind, KindPart, Places
from adapter_export.graph.ops import ACTIVATIONS, OPS, Dim, Shape

_LEAKY_RELU_SLOPE = 0.01
_LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class BottleneckOptions:
    """What the bottleneck kinds have in common.

    Attributes:
        activation: one of `ACTIVATIONS`.
        scaling: the factor on the up-projection's output.
        bias: whether the two projections have biases.
        norm_before: a trainable layer norm before the down-projection.
        norm_after: a trainable layer norm after the up-projection.
        dropout: the rate on the up-projection's output, in training.
    """

    activation: str = "gelu"
    scaling: float = 1.0
    bias: bool = True
    norm_before: bool = False
    norm_after: bool = False
    dropout: float = 0.0


def houlsby(options: BottleneckOptions | None = None) -> Kind:
    """`h + s·U(f(D h))` after attention and after the FFN (Houlsby et al. 2019, §2.1, figure 2)."""
    return _kind("houlsby", "h", options or BottleneckOptions(activation="gelu"), ("attention", "ffn"))


def pfeiffer(options: BottleneckOptions | None = None) -> Kind:
    """`h + s·U(f(D h))` after the FFN alone (Pfeiffer et al. 2021, §3.1)."""
    return _kind("pfeiffer", "h", options or BottleneckOptions(activation="relu"), ("ffn",))


def parallel(options: BottleneckOptions | None = None) -> Kind:
    """`h + s·U(f(D u))` beside the FFN, `u` what the FFN reads (He et al. 2022, §3.3, table 1)."""
    return _kind("parallel", "u", options or BottleneckOptions(activation="relu"), ("ffn",))


def _kind(name: str, source: str, options: BottleneckOptions, roles: tuple[str, ...]) -> Kind:
    graph_name = _graph_name("bottleneck" if source == "h" else "parallel", options)
    part = KindPart(graph_name, bottleneck(source, options), Places(roles), {"b": DEFAULT_BOTTLENECK})
    return Kind(name, (part,))


def bottleneck(source: str, options: BottleneckOptions) -> AdapterGraph:
    """`h + s·U(f(D v))` with `v` the site value named `source`.

    Parameters `down.weight` [d, b], `down.bias` [b], `up.weight` [b, d], `up.bias` [d] and, where the options ask for
    them, `norm_before.*` and `norm_after.*`.

    Raises:
        UsageError: an option has a value that it cannot have.
    """
    _check(options)
    width = SITE_VALUES[source][-1]
    chain = _Chain(source)
    if options.norm_before:
        chain.norm("norm_before", width)
    chain.linear("down", width, "b", options.bias)
    slope = {"slope": _LEAKY_RELU_SLOPE} if options.activation == "leaky_relu" else {}
    chain.op(options.activation, "activated", attributes=slope)
    chain.linear("up", "b", "d", options.bias)
    if options.scaling != 1.0:
        chain.op("scale", "scaled", attributes={"factor": options.scaling})
    if options.dropout:
        chain.op("dropout", "dropped", attributes={"rate": options.dropout})
    if options.norm_after:
        chain.norm("norm_after", "d")
    chain.nodes.append(Node("add", ("h", chain.value), "result"))
    inputs = tuple(dict.fromkeys(("h", source)))
    return AdapterGraph(inputs, chain.parameters, tuple(chain.nodes), "result")


def classification_head(pooling: str = "mean") -> AdapterGraph:
    """`W·pool(hidden) + b`: logits [batch, classes] from the final hidden state.

    Args:
        pooling: `mean` over the tokens that the mask keeps, or the `first` token.
    """
    pools = {"mean": ("mean_pool", ("hidden", "mask")), "first": ("first_token", ("hidden",))}
    if pooling not in pools:
        raise UsageError("unknown pooling", found=f"`{pooling}`", expected=" or ".join(f"`{name}`" for name in pools))
    op, inputs = pools[pooling]
    classify = Node("linear", ("pooled",), "logits", {"weight": "classifier.weight", "bias": "classifier.bias"})
    parameters: dict[str, Shape] = {"classifier.weight": ("d", "classes"), "classifier.bias": ("classes",)}
    return AdapterGraph(inputs, parameters, (Node(op, inputs, "pooled"), classify), "logits")


class _Chain:
    """Nodes one after the other, each reading the one before."""

    def __init__(self, value: str) -> None:
        self.value = value
        self.nodes: list[Node] = []
        self.parameters: dict[str, Shape] = {}

    def op(
        self,
        op: str,
        output: str,
        parameters: Mapping[str, str] | None = None,
        attributes: Mapping[str, float] | None = None,
    ) -> None:
        self.nodes.append(Node(op, (self.value,), output, parameters or {}, attributes or {}))
        self.value = output

    def linear(self, name: str, width_in: Dim, width_out: Dim, bias: bool) -> None:
        roles = {"weight": f"{name}.weight"}
        self.parameters[f"{name}.weight"] = (width_in, width_out)
        if bias:
            roles["bias"] = f"{name}.bias"
            self.parameters[f"{name}.bias"] = (width_out,)
        self.op("linear", name, roles)

    def norm(self, name: str, width: Dim) -> None:
        roles = {"weight": f"{name}.weight", "bias": f"{name}.bias"}
        self.parameters.update(dict.fromkeys(roles.values(), (width,)))
        self.op("layer_norm", name, roles, {"epsilon": _LAYER_NORM_EPSILON})


def _graph_name(family: str, options: BottleneckOptions) -> str:
    norms = [name for name in ("norm_before", "norm_after") if getattr(options, name)]
    return "_".join([family, options.activation, *norms, *([] if options.bias else ["no_bias"])])


def _check(options: BottleneckOptions) -> None:
    if options.activation not in ACTIVATIONS:
        raise UsageError("unknown activation", found=f"`{options.activation}`", expected=", ".join(ACTIVATIONS))
    if options.dropout not in OPS["dropout"].attributes["rate"]:
        raise UsageError("a dropout rate is a probability below 1", found=options.dropout, expected="0 ≤ rate < 1")
    if options.scaling not in OPS["scale"].attributes["factor"]:
        raise UsageError("the scaling is not a finite number", found=options.scaling)
