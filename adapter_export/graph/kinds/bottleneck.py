"""Bottlenecks: a down-projection, an activation and an up-projection, added to a value of the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from adapter_export.errors import UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph
from adapter_export.graph.kinds.kind import (
    DEFAULT_BOTTLENECK,
    Component,
    Kind,
    KindOption,
    LayerOptions,
    Maker,
    Places,
    RelativeWidth,
    Width,
    check_sublayers,
    per_layer,
)
from adapter_export.graph.ops import ACTIVATIONS, Dim
from adapter_export.words import argument

Scaling = float | Literal["learned", "channel"]
"""The factor on the up-projection's output: a constant, one learned number, or one learned number per feature."""

Source = Literal["h", "x", "u", "y", "normed"]
"""The value that a bottleneck reads: a site value, or `normed`, which is `base_norm(h + x)`."""

_SYMBOLS = {"d": "p", "d_in": "p", "b": "q"}
"""The symbol of the n-th part of a width."""


@dataclass(frozen=True)
class BottleneckOptions(LayerOptions):
    """The steps between the value that is read and the sum, where the bottleneck acts, and its width.

    `scaling`, `dropout` and the learned `gate` act on the up-projection's output. `sublayers`, `bottleneck` and
    `reduction_factor` are the kind's own where they are `None`.

    Projections are sums of Kronecker products (PHM layers; Zhang et al. 2021, §3; Mahabadi et al. 2021, §3) if
    `phm_dim` or `phm_rank` is given: `phm_dim` divides both widths, `phm_rank` is that of the factors of each product.
    They always have biases. With `phm_shared_rule` all projections of the adapter have one rule [n, n, n], with
    `phm_shared_weights` all places have the same factors.
    """

    activation: Annotated[
        str, KindOption("Activation between the projections.", choices=ACTIVATIONS, packed="required")
    ] = "gelu"
    scaling: Annotated[Scaling, KindOption("Factor on the up-projection's output.", packed="optional")] = 1.0
    no_bias: Annotated[bool, KindOption("Bottlenecks: projections without biases.")] = False
    norm_before: Annotated[bool, KindOption("Layer norm before the down-projection.")] = False
    norm_after: Annotated[bool, KindOption("Layer norm after the up-projection.")] = False
    dropout: Annotated[float, KindOption("Bottlenecks: dropout rate on the up-projection's output.")] = 0.0
    drop_path: Annotated[float, KindOption("Rate at which a row skips the bottleneck in training.")] = 0.0
    gate: Annotated[bool, KindOption("Learned gate, one number per text.")] = False
    phm_dim: Annotated[int | None, KindOption("Projections as sums of this many Kronecker products.", least=1)] = None
    phm_rank: Annotated[int | None, KindOption("Rank of the factors of Kronecker products.", least=1)] = None
    phm_shared_rule: bool = True
    phm_shared_weights: bool = False
    sublayers: Annotated[
        tuple[str, ...] | None,
        KindOption(
            "Sublayers of a bottleneck: `attention`, `cross_attention`, `ffn`, `decoder.ffn`; by kind.",
            sweeps="place",
            packed="optional",
        ),
    ] = None
    bottleneck: Annotated[
        int | None,
        KindOption("Width between the projections; by kind, 64 or a fraction of `d`.", least=1, sweeps="width"),
    ] = None
    reduction_factor: Annotated[
        float | Mapping[str, float] | None,
        KindOption("`d` over the width between the projections: `16`, `0=8,default=16` by layer."),
    ] = None

    @property
    def kronecker(self) -> tuple[int, int] | None:
        """The number of Kronecker products, 4 by default, and the rank of their factors, 1 by default, if asked for."""
        return None if self.phm_dim is None and self.phm_rank is None else (self.phm_dim or 4, self.phm_rank or 1)


@dataclass(frozen=True)
class Wiring:
    """The connections of a bottleneck to the base.

    Its output is added to the `residual`: `h`, the `sum` h + x, or what it `read`; the sum replaces the site value
    `replaces`. With `residual_inside`, `norm_after` normalises the sum with the residual, not just the output.
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
    """`r + s·U(f(D v))`, with `v` and `r` from the wiring. For errors see `bottleneck`."""
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
    if options.kronecker is None:
        chain.linear(name, width_in, width_out, bias=not options.no_bias)
        return ()
    if options.no_bias:
        raise UsageError("projections of Kronecker products always have biases", fix="omit " + argument("no_bias"))
    left, right = (f"{name}.{side}" for side in ("left", "right"))
    rule, bias = "rule" if options.phm_shared_rule else f"{name}.rule", f"{name}.bias"
    roles = {"rule": rule, "left": left, "right": right, "bias": bias}
    part_in, part_out = _SYMBOLS[str(width_in)], _SYMBOLS[str(width_out)]
    chain.parameters |= {rule: ("n",) * 3, left: ("n", part_in, "k"), right: ("n", "k", part_out)}
    chain.parameters[bias] = (width_out,)
    chain.op("phm_linear", name, parameters=roles)
    return (*((rule,) if options.phm_shared_rule else ()), *((left, right) if options.phm_shared_weights else ()))


def bottleneck_widths(options: BottleneckOptions, width: Width = DEFAULT_BOTTLENECK) -> dict[str, Width]:
    """Return the widths of a bottleneck's symbols beside `d`, `width` being that of `b` where the options have none."""
    if options.bottleneck is not None and options.reduction_factor is not None:
        both = argument("bottleneck") + " and " + argument("reduction_factor")
        raise UsageError(both + " exclude each other", fix="give one of them")
    if options.reduction_factor is not None:
        width = per_layer(options.reduction_factor)
    widths = {"b": width if options.bottleneck is None else options.bottleneck}
    if options.kronecker is None:
        return widths
    parts = {"p": RelativeWidth("d", "n", exact=True), "q": RelativeWidth("b", "n", exact=True)}
    return {**widths, **dict(zip("nk", options.kronecker, strict=True)), **parts}


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
    """Return a kind with a wiring at sites of given roles; `width` is the width of `b`, `scheme` the initializer."""

    def make(options: BottleneckOptions) -> Kind:
        chosen = roles if options.sublayers is None else check_sublayers(options.sublayers)
        places, widths = Places(chosen, leave_out=options.left_out()), bottleneck_widths(options, width)
        component = Component(graph_name(wiring, options), wired(wiring, options), places, widths)
        return Kind(name, (component,), scheme, width="b")

    return Maker(name, formula, make, defaults, _shown)


def _shown(tensors: Mapping[str, np.ndarray], _: Mapping[str, Any]) -> dict[str, Any]:
    """Biases, norms, gates, Kronecker products and a learned scaling."""

    def has(*ends: str) -> bool:
        return any(name.endswith(ends) for name in tensors)

    shown: dict[str, Any] = {
        "no_bias": not has(".down.bias", ".up.bias"),
        "norm_before": has(".norm_before.weight"),
        "norm_after": has(".norm_after.weight"),
        "gate": has(".gate.weight"),
    }
    if has(".left", ".right"):
        shown["phm_dim"] = 4  # only its being there counts: `pack` takes all widths from the shapes
        shown["phm_shared_rule"] = not has(".down.rule", ".up.rule")
        shown["phm_shared_weights"] = any(re.fullmatch(r"shared\..+\.(left|right)", name) for name in tensors)
    elif has(".down.weight"):
        shown["phm_dim"] = shown["phm_rank"] = None
    shapes = {tensor.shape for name, tensor in tensors.items() if name.endswith(".scaling.weight")}
    if shapes:
        shown["scaling"] = "learned" if shapes == {(1,)} else "channel"
    return shown


def graph_name(wiring: Wiring, options: BottleneckOptions) -> str:
    """Return a name for the topology, without the parts that are folded away."""
    family = {"h": "bottleneck", "u": "parallel", "x": "parallel_x", "y": "block", "normed": "normed"}[wiring.reads]
    if wiring.replaces == "y":
        family = {"normed": "block"}.get(wiring.reads, f"{family}_at_y")
    flags = {
        f"onto_{wiring.residual}": wiring.residual != ("read" if family == "block" else "h"),
        "norm_before": options.norm_before,
        "norm_after": options.norm_after,
        "over_sum": options.norm_after and wiring.residual_inside,
        "gate": options.gate,
        "phm": options.kronecker is not None,
        "no_bias": options.no_bias,
    }
    return "_".join([family, options.activation, *(name for name, is_set in flags.items() if is_set)])


houlsby = bottleneck_maker(
    "houlsby",
    "`h + s·U(f(D h))` after attention and after the FFN (Houlsby et al. 2019, §2.1, figure 2)",
    Wiring(),
    ("attention", "ffn"),
    BottleneckOptions("gelu"),
)
pfeiffer = bottleneck_maker(
    "pfeiffer",
    "`h + s·U(f(D h))` after the FFN only (Pfeiffer et al. 2021, §3.1)",
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
