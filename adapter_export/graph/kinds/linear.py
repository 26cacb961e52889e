"""Kinds at linear layers: LoRA (Hu et al. 2022, §4.1) and IA3 (Liu et al. 2022, §3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.kind import Component, Kind, KindOption, LayerOptions, Maker, Places, not_shown
from adapter_export.sites.site import SiteName
from adapter_export.words import argument, quoted

DEFAULT_RANK = 8
"""PEFT's default."""


@dataclass(frozen=True)
class LoraOptions(LayerOptions):
    """Options of LoRA. Numbers by name are those of the linear layers in `modules`, with `default` for the others.

    The factor is `alpha/rank`, 1 without an alpha, with `rs_lora` `alpha/√rank` (Kalajdzievski 2023, §3). `gate`
    replaces the factor by a learned number per text (AdapterHub).
    """

    modules: Annotated[
        tuple[str, ...],
        KindOption(
            "Linear layers, by their names or ends of names: `query`, `attention.output`.",
            sweeps="place",
            packed="optional",
        ),
    ] = ("query", "value")
    rank: Annotated[
        float | Mapping[str, float], KindOption("Rank of LoRA: `8`, `query=8,value=4`.", least=1, sweeps="width")
    ] = DEFAULT_RANK
    alpha: Annotated[
        float | Mapping[str, float] | None,
        KindOption("LoRA's factor is alpha/rank; 1 without an alpha.", packed="required"),
    ] = None
    rs_lora: Annotated[bool, KindOption("LoRA's factor is alpha/√rank.", packed="optional")] = False
    lora_bias: Annotated[bool, KindOption("Add a bias to LoRA's second matrix.")] = False
    dropout: Annotated[float, KindOption("LoRA: dropout rate on its input.")] = 0.0
    gate: Annotated[bool, KindOption("Learned gate, one number per text.")] = False

    def rank_of(self, name: str) -> int:
        """Return the rank at one of the layers; raises `UsageError` unless it is a whole number."""
        rank = _by_name(self.rank, name, DEFAULT_RANK)
        if rank != int(rank):
            raise UsageError(argument("rank") + " is a whole number", found=rank)
        return int(rank)

    def factor(self, name: str) -> float:
        """Return the factor of the product at one of the layers."""
        if self.gate:
            return 1.0
        rank = self.rank_of(name)
        alpha = rank if self.alpha is None else _by_name(self.alpha, name, rank)
        return alpha / (math.sqrt(rank) if self.rs_lora else rank)


def _by_name(numbers: float | Mapping[str, float], name: str, otherwise: float) -> float:
    return numbers.get(name, numbers.get("default", otherwise)) if isinstance(numbers, Mapping) else numbers


def _lora_kind(options: LoraOptions) -> Kind:
    """One graph for each pair of rank and factor; raises `UsageError` for options that contradict each other."""
    if not options.modules:
        raise UsageError("LoRA acts nowhere", expected="names of linear layers, such as `query,value`")
    named = {name for option in (options.rank, options.alpha) if isinstance(option, Mapping) for name in option}
    elsewhere = sorted(named - {*options.modules, "default"})
    if elsewhere:
        raise UsageError(
            "a rank or an alpha is given for a layer at which LoRA does not act",
            found=quoted(elsewhere),
            expected=quoted(options.modules),
        )
    groups: dict[tuple[int, float], list[str]] = {}
    for name in options.modules:
        groups.setdefault((options.rank_of(name), options.factor(name)), []).append(name)
    factors = list(dict.fromkeys(factor for _, factor in groups))
    components = []
    for (rank, factor), names in groups.items():
        graph = lora_graph(factor, bias=options.lora_bias, dropout=options.dropout, gate=options.gate)
        number = factors.index(factor) + 1
        parts = {"lora": True, "bias": options.lora_bias, "gate": options.gate, f"{number}": number > 1}
        graph_name = "_".join(part for part, is_set in parts.items() if is_set)
        places = Places(linears=tuple(names), leave_out=options.left_out())
        components.append(Component(graph_name, graph, places, {"r": rank}))
    return Kind("lora", tuple(components), "kaiming_zero_up", width="r")


_LORA_A = ".lora_A.weight"


def _shown(tensors: Mapping[str, np.ndarray], stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the linear layers, their ranks, biases and gates.

    Raises `AdapterError` if the tensors contain no LoRA, or ranks differ where one is required; `UsageError` if an
    alpha is missing.
    """
    called = stated.get("modules")
    ranks: dict[str, set[int]] = {}
    for name, tensor in tensors.items():
        site = SiteName.parse(name.removesuffix(_LORA_A))
        if name.endswith(_LORA_A) and tensor.ndim == 2:
            # a layer outside of all sublayers is named in full, others by the ends of their names
            whole = site.layer is None
            ends = [end for end in called or () if site.place == end or (not whole and site.place.endswith(f".{end}"))]
            ranks.setdefault(ends[0] if ends else site.place, set()).add(tensor.shape[1])
    if not ranks:
        raise AdapterError(
            "the tensors contain no LoRA",
            found=", ".join(list(tensors)[:3]) or "no tensors",
            expected="`layers.0.attention.query.lora_A.weight` [d_in, r] and `lora_B.weight` [r, d]",
        )
    several = {place: sizes for place, sizes in ranks.items() if len(sizes) > 1}
    if several:
        raise AdapterError(
            "LoRA's rank differs by layer, so that one alpha means several factors",
            found="; ".join(f"`{place}` {sorted(sizes)}" for place, sizes in several.items()),
            expected="one rank for each name of a linear layer",
            fix="pad the smaller ones with zeros, and scale `lora_B` to the factor of the larger rank",
        )
    modules, alpha = tuple(called or ranks), stated["alpha"]
    if isinstance(alpha, Mapping) and "default" not in alpha and not set(modules) <= set(alpha):
        raise not_shown("lora", "alpha")
    return {
        "modules": modules,
        "rank": {name: rank for name, (rank,) in ranks.items() if name in modules},
        "lora_bias": any(name.endswith(".lora_B.bias") for name in tensors),
        "gate": any(name.endswith(".gate.weight") for name in tensors),
    }


def lora_graph(factor: float, *, bias: bool = False, dropout: float = 0.0, gate: bool = False) -> AdapterGraph:
    """`h + factor·B(A dropout(u))`, or with a gate `h + g·B(A dropout(u))`, `g` the mean over tokens of σ(W_g u + b_g).

    Parameters `lora_A.weight` [d_in, r], `lora_B.weight` [r, d], with a bias `lora_B.bias` [d], with a gate
    `gate.weight` [d_in, 1] and `gate.bias` [1]. Raises `UsageError` for a factor that is not finite, or a rate not in
    [0, 1).
    """
    chain = Chain("u")
    chain.dropout(dropout)
    chain.linear("lora_A", "d_in", "r", bias=False)
    chain.linear("lora_B", "r", "d", bias=bias)
    chain.scale(factor)
    if gate:
        chain.gate("u", "d_in")
    delta, chain.value = chain.value, "h"
    chain.op("add", "result", delta)
    return chain.graph()


def changed_layer_graph(*, scale: bool = False, dense: bool = False, bias: bool = False) -> AdapterGraph:
    """Any other weight and bias of a linear layer: `s⊙h + B(A u) + c`, or `s⊙h + D u + c`.

    Parameters `scaling.weight` [d] with `scale`, `delta.weight` [d_in, d] where it is `dense`, else `lora_A.weight`
    [d_in, r] and `lora_B.weight` [r, d]; the bias is that of `delta` or `lora_B`.
    """
    chain = Chain("u")
    if dense:
        chain.linear("delta", "d_in", "d", bias=bias)
    else:
        chain.linear("lora_A", "d_in", "r", bias=False)
        chain.linear("lora_B", "r", "d", bias=bias)
    delta, chain.value = chain.value, "h"
    if scale:
        chain.owned("scale_features", "scaling", {"weight": ("d",)}, output="scaled")
    chain.op("add", "result", delta)
    return chain.graph()


lora = Maker(
    "lora",
    "`h + (alpha/r)·B(A u)` at linear layers, `u` the input and `h` the output of the layer (Hu et al. 2022, §4.1)",
    _lora_kind,
    LoraOptions(),
    _shown,
)


@dataclass(frozen=True)
class Ia3Options(LayerOptions):
    """The linear layers whose outputs and whose inputs are multiplied, by their names or ends of names."""

    modules: Annotated[
        tuple[str, ...],
        KindOption("IA3: the linear layers whose outputs it multiplies.", sweeps="place", packed="optional"),
    ] = ("key", "value")
    scaled_inputs: Annotated[
        tuple[str, ...], KindOption("Linear layers whose inputs IA3 multiplies.", packed="optional")
    ] = ("ffn.down",)


def _ia3_kind(options: Ia3Options) -> Kind:
    """One graph for the outputs of layers and one for the inputs; raises `UsageError` for no layer, or one in both."""
    twice = sorted(set(options.modules) & set(options.scaled_inputs))
    if twice or not (options.modules or options.scaled_inputs):
        raise UsageError(
            "IA3 multiplies the output of a layer or its input",
            found=", ".join(f"`{name}` for both" for name in twice) or "neither",
            expected="different names of linear layers",
        )
    components = [
        Component(name, ia3_graph(value), Places(linears=linears, leave_out=options.left_out()))
        for name, value, linears in (("ia3", "h", options.modules), ("ia3_input", "u", options.scaled_inputs))
        if linears
    ]
    return Kind("ia3", tuple(components))


def ia3_graph(value: str = "h") -> AdapterGraph:
    """Make `l⊙v`, which replaces `v`: a layer's output `h` or its input `u`. `scaling.weight` has the width of `v`."""
    chain = Chain(value)
    chain.owned("scale_features", "scaling", {"weight": ("d" if value == "h" else "d_in",)})
    return chain.graph(replaces=value)


ia3 = Maker(
    "ia3",
    "`l⊙h` replaces keys and values, and `l⊙u` replaces the input of the FFN's last layer (Liu et al. 2022, §3.3)",
    _ia3_kind,
    Ia3Options(),
)
