"""Bottlenecks: a down-projection, an activation and an up-projection, added to what the base computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adapter_export.errors import UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph
from adapter_export.graph.kinds.kind import DEFAULT_BOTTLENECK, Component, Kind, Maker, Places, Share, Width
from adapter_export.graph.ops import Dim

Scaling = float | Literal["learned", "channel"]
"""The factor on the up-projection's output: a constant, one learned number, or one learned number per feature."""

Source = Literal["h", "x", "u", "y", "normed"]
"""The value that a bottleneck reads: a site value, or `normed`, which is `base_norm(h + x)`."""

_SYMBOLS = {"d": "p", "d_in": "p", "b": "q"}
"""The symbol of the n-th part of a width."""


@dataclass(frozen=True)
class PhmOptions:
    """Projections as sums of n Kronecker products (PHM layers; Zhang et al. 2021, §3; Mahabadi et al. 2021, §3).

    `n` divides both widths, `rank` is that of the factors of each product. With `shared_rule` all projections of the
    adapter have one rule [n, n, n], with `shared_weights` all places have the same factors.
    """

    n: int = 4
    rank: int = 1
    shared_rule: bool = True
    shared_weights: bool = False


@dataclass(frozen=True)
class BottleneckOptions:
    """The steps between the value that is read and the sum.

    `scaling`, `dropout` and a learned `gate`, one number per text, act on the up-projection's output. `norm_before` and
    `norm_after` are trainable layer norms around the projections. `drop_path` is the rate at which the whole bottleneck
    is left out for a row in training. Kronecker products (`phm`) always have biases.
    """

    activation: str = "gelu"
    scaling: Scaling = 1.0
    bias: bool = True
    norm_before: bool = False
    norm_after: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    gate: bool = False
    phm: PhmOptions | None = None


@dataclass(frozen=True)
class Wiring:
    """The connections of a bottleneck to the base.

    Its output is added to the `residual`: `h`, the `sum` h + x, or what it `read`; the sum stands for the site value
    `replaces`. With `residual_inside`, `norm_after` normalises the sum with the residual, not the output alone.
    """

    reads: Source = "h"
    residual: Literal["h", "sum", "read"] = "h"
    replaces: Literal["h", "y"] = "h"
    residual_inside: bool = False


def bottleneck(source: Source | str, options: BottleneckOptions) -> AdapterGraph:
    """`h + s·U(f(D v))` with `v` the site value named `source`.

    Parameters `down.weight` [d, b], `down.bias` [b], `up.weight` [b, d], `up.bias` [d] and, where the options ask for
    them, `norm_before.*` and `norm_after.*` [d], `scaling.weight` [1] or [d], `gate.weight` [d, 1], `gate.bias` [1].
    Raises `UsageError` for a value that an option cannot have.
    """
    return wired(Wiring(reads=source), options)  # type: ignore[arg-type]


def wired(wiring: Wiring, options: BottleneckOptions) -> AdapterGraph:
    """`r + s·U(f(D v))`, with `v` and `r` as the wiring says. Raises as `bottleneck`."""
    chain, read = Chain("h"), str(wiring.reads)
    if read == "normed" and wiring.replaces == "y":
        read = "y"  # the base's own `base_norm(h + x)`
    elif read == "normed":
        chain.op("add", "sum", "x")
        chain.op("base_norm", "normed")
    residual = read if wiring.residual == "read" else wiring.residual
    if residual == "sum" and not any(node.output == "sum" for node in chain.nodes):
        chain.value = "h"
        chain.op("add", "sum", "x")
    chain.value = read
    width = SITE_VALUES.get(read, SITE_VALUES["h"])[-1]
    shared = _projections(chain, width, options)
    if options.gate:
        chain.gate(read, width)
    inside = wiring.residual_inside and options.norm_after
    if inside:
        chain.op("add", "whole", residual)
    if options.norm_after:
        chain.layer_norm("norm_after", "d")
    if not inside:
        delta, chain.value = chain.value, residual
        chain.op("add", "result", delta)
    return chain.graph(wiring.replaces, shared)


def _projections(chain: Chain, width: Dim, options: BottleneckOptions) -> tuple[str, ...]:
    """Append `s·U(f(D v))`, without the gate; returns the parameters that all places share."""
    if options.norm_before:
        chain.layer_norm("norm_before", width)
    shared = _projection(chain, "down", width, "b", options)
    chain.activation(options.activation)
    shared += _projection(chain, "up", "b", "d", options)
    chain.dropout(options.drop_path, "kept", "drop_path")
    if options.scaling == "learned":
        chain.owned("learned_scale", "scaling", {"weight": (1,)})
    elif options.scaling == "channel":
        chain.owned("scale_features", "scaling", {"weight": ("d",)})
    else:
        chain.scale(options.scaling)
    chain.dropout(options.dropout)
    return tuple(dict.fromkeys(shared))


def _projection(chain: Chain, name: str, width_in: Dim, width_out: Dim, options: BottleneckOptions) -> tuple[str, ...]:
    phm = options.phm
    if phm is not None and not options.bias:
        raise UsageError("projections of Kronecker products always have biases", fix="leave the option away")
    if phm is None:
        chain.linear(name, width_in, width_out, bias=options.bias)
        return ()
    left, right = (f"{name}.{side}" for side in ("left", "right"))
    rule, bias = "rule" if phm.shared_rule else f"{name}.rule", f"{name}.bias"
    roles = {"rule": rule, "left": left, "right": right, "bias": bias}
    part_in, part_out = _SYMBOLS[str(width_in)], _SYMBOLS[str(width_out)]
    chain.parameters |= {rule: ("n",) * 3, left: ("n", part_in, "k"), right: ("n", "k", part_out)}
    chain.parameters[bias] = (width_out,)
    chain.op("phm_linear", name, parameters=roles)
    return (*((rule,) if phm.shared_rule else ()), *((left, right) if phm.shared_weights else ()))


def bottleneck_widths(options: BottleneckOptions, width: Width = DEFAULT_BOTTLENECK) -> dict[str, Width]:
    """The widths of a bottleneck's symbols beside `d`, `width` being that of `b`."""
    if options.phm is None:
        return {"b": width}
    parts = {"p": Share("d", "n", exact=True), "q": Share("b", "n", exact=True)}
    return {"b": width, "n": options.phm.n, "k": options.phm.rank, **parts}


def bottleneck_maker(
    name: str,
    formula: str,
    wiring: Wiring,
    roles: tuple[str, ...],
    defaults: BottleneckOptions,
    *,
    width: Width = DEFAULT_BOTTLENECK,
    scheme: str = "small_normal",
) -> Maker[BottleneckOptions]:
    """A kind with a given wiring at sites of given roles; `width` is that of `b`, `scheme` draws the first weights."""

    def make(options: BottleneckOptions) -> Kind:
        widths = bottleneck_widths(options, width)
        component = Component(graph_name(wiring, options), wired(wiring, options), Places(roles), widths)
        return Kind(name, (component,), scheme)

    return Maker(name, formula, make, defaults)


def graph_name(wiring: Wiring, options: BottleneckOptions) -> str:
    """A name for the topology; what is folded away does not count."""
    family = {"h": "bottleneck", "u": "parallel", "x": "parallel_x", "y": "block", "normed": "normed"}[wiring.reads]
    if wiring.replaces == "y":
        family = {"normed": "block"}.get(wiring.reads, f"{family}_at_y")
    flags = {
        f"onto_{wiring.residual}": wiring.residual != ("read" if family == "block" else "h"),
        "norm_before": options.norm_before,
        "norm_after": options.norm_after,
        "over_sum": options.norm_after and wiring.residual_inside,
        "gate": options.gate,
        "phm": options.phm is not None,
        "no_bias": not options.bias and options.phm is None,
    }
    return "_".join([family, options.activation, *(name for name, there in flags.items() if there)])


houlsby = bottleneck_maker(
    "houlsby",
    "`h + s·U(f(D h))` after attention and after the FFN (Houlsby et al. 2019, §2.1, figure 2)",
    Wiring(),
    ("attention", "ffn"),
    BottleneckOptions("gelu"),
)
pfeiffer = bottleneck_maker(
    "pfeiffer",
    "`h + s·U(f(D h))` after the FFN alone (Pfeiffer et al. 2021, §3.1)",
    Wiring(),
    ("ffn",),
    BottleneckOptions("relu"),
)
parallel = bottleneck_maker(
    "parallel",
    "`h + s·U(f(D u))` beside the FFN, `u` what the FFN reads (He et al. 2022, §3.3, table 1)",
    Wiring(reads="u"),
    ("ffn",),
    BottleneckOptions("relu"),
)
