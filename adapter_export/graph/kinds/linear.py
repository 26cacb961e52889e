"""Kinds at linear layers: LoRA (Hu et al. 2022, §4.1) and IA3 (Liu et al. 2022, §3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapter_export.errors import UsageError, quoted
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.kind import Component, Kind, Maker, Places

DEFAULT_RANK = 8


@dataclass(frozen=True)
class LoraOptions:
    """Options of LoRA at the linear layers `on`, by their names or ends of names such as `attention.output`.

    The factor is `alpha/rank`, 1 without an alpha, with `rs_lora` `alpha/√rank` (Kalajdzievski 2023, §3); `ranks` and
    `alphas` override both for some of `on`. `bias` is that of the second matrix, `dropout` the rate on what the first
    one reads. `gate` replaces the factor by a learned number per text (AdapterHub).
    """

    on: tuple[str, ...] = ("query", "value")
    rank: int = DEFAULT_RANK
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rs_lora: bool = False
    bias: bool = False
    dropout: float = 0.0
    gate: bool = False

    def factor(self, name: str) -> float:
        """The factor of the product at one of `on`."""
        if self.gate:
            return 1.0
        rank = self.ranks.get(name, self.rank)
        alpha = self.alphas.get(name, rank if self.alpha is None else self.alpha)
        return alpha / (math.sqrt(rank) if self.rs_lora else rank)


def _lora_kind(options: LoraOptions) -> Kind:
    """One graph for each pair of rank and factor; raises `UsageError` for options that contradict each other."""
    if not options.on:
        raise UsageError("LoRA acts nowhere", expected="names of linear layers, such as `query,value`")
    strangers = sorted({*options.ranks, *options.alphas} - set(options.on))
    if strangers:
        raise UsageError(
            "a rank or an alpha is given for a layer at which LoRA does not act",
            found=quoted(strangers),
            expected=quoted(options.on),
        )
    for rank in (options.rank, *options.ranks.values()):
        if rank != int(rank):
            raise UsageError("the rank is a whole number", found=rank)
        if rank < 1:
            raise UsageError("the rank is too small", found=rank, expected="at least 1")
    groups: dict[tuple[int, float], list[str]] = {}
    for name in options.on:
        groups.setdefault((options.ranks.get(name, options.rank), options.factor(name)), []).append(name)
    factors = list(dict.fromkeys(factor for _, factor in groups))
    components = []
    for (rank, factor), names in groups.items():
        graph = lora_graph(factor, bias=options.bias, dropout=options.dropout, gate=options.gate)
        number = factors.index(factor) + 1
        flags = [flag for flag in ("bias", "gate") if getattr(options, flag)]
        graph_name = "_".join(["lora", *flags, *([str(number)] if number > 1 else [])])
        components.append(Component(graph_name, graph, Places(linears=tuple(names)), {"r": rank}))
    return Kind("lora", tuple(components), "kaiming_zero_up")


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
    "`h + (alpha/r)·B(A u)` at linear layers, `u` what the layer reads and `h` what it returns (Hu et al. 2022, §4.1)",
    _lora_kind,
    LoraOptions(),
)


@dataclass(frozen=True)
class Ia3Options:
    """The linear layers whose outputs (`on`) and whose inputs are multiplied, by their names or ends of names."""

    on: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ("ffn.down",)


def _ia3_kind(options: Ia3Options) -> Kind:
    """One graph for the outputs of layers and one for the inputs; raises `UsageError` for no layer, or one in both."""
    twice = sorted(set(options.on) & set(options.inputs))
    if twice or not (options.on or options.inputs):
        raise UsageError(
            "IA3 multiplies the output of a layer or its input",
            found=", ".join(f"`{name}` for both" for name in twice) or "neither",
            expected="different names of linear layers",
        )
    components = [
        Component(name, ia3_graph(value), Places(linears=linears))
        for name, value, linears in (("ia3", "h", options.on), ("ia3_input", "u", options.inputs))
        if linears
    ]
    return Kind("ia3", tuple(components))


def ia3_graph(value: str = "h") -> AdapterGraph:
    """`l⊙v` in the place of `v`, a layer's output `h` or its input `u`; `scaling.weight` is as wide as that."""
    chain = Chain(value)
    chain.owned("scale_features", "scaling", {"weight": ("d" if value == "h" else "d_in",)})
    return chain.graph(replaces=value)


ia3 = Maker(
    "ia3",
    "`l⊙h` in the place of keys and values, and `l⊙u` of what the FFN's last layer reads (Liu et al. 2022, §3.3)",
    _ia3_kind,
    Ia3Options(),
)
