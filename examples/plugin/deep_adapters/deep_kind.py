"""Bottleneck adapters with a hidden layer: `h + U f(M f(D h))`, after the FFN."""

from dataclasses import dataclass
from typing import Annotated

from adapter_export.graph.chain import Chain
from adapter_export.graph.kinds.kind import Component, Kind, KindOption, LayerOptions, Maker, Places


@dataclass(frozen=True)
class DeepOptions(LayerOptions):
    """The width of the bottleneck."""

    deep_width: Annotated[int, KindOption("Width of both hidden layers.", least=1, sweeps="width")] = 16


def _kind(options: DeepOptions) -> Kind:
    chain = Chain("h")
    chain.linear("down", "d", "w")
    chain.activation("relu", "squeezed")
    chain.linear("middle", "w", "w")
    chain.activation("relu", "mixed")
    chain.linear("up", "w", "d", bias=False)
    delta, chain.value = chain.value, "h"
    chain.op("add", "result", delta)
    places = Places(("ffn",), leave_out=options.left_out())
    return Kind("deep", (Component("deep", chain.graph(), places, {"w": options.deep_width}),), width="w")


deep = Maker("deep", "`h + U f(M f(D h))` with ReLU, after the FFN", _kind, DeepOptions())
