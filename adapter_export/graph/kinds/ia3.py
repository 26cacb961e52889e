"""IA3: learned factors on the features of keys, values and the FFN's inner activations (Liu et al. 2022, §3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.errors import UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.kind import Component, Kind, Maker, Places


@dataclass(frozen=True)
class Ia3Options:
    """The linear layers whose outputs (`on`) and whose inputs are multiplied, by their names or ends of names."""

    on: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ("ffn.down",)


def _kind(options: Ia3Options) -> Kind:
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
    _kind,
    Ia3Options(),
)
