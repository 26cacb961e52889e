"""IA3: learned factors on the features of keys, values and the FFN's inner activations (Liu et al. 2022, §3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from adapter_export.errors import UsageError
from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.kind import Component, Kind, Maker, Places


@dataclass(frozen=True)
class Ia3Options:
    """What IA3 can vary.

    Attributes:
        on: the linear layers whose outputs are multiplied, by their names or ends of names.
        inputs: those whose inputs are multiplied.
    """

    on: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ("ffn.down",)


def _kind(options: Ia3Options) -> Kind:
    """One part for the outputs of layers and one for the inputs.

    Raises:
        UsageError: no linear layer is named, or one twice.
    """
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
    """`l⊙v` in the place of `v`, the site value `h` or `u`. Parameter `scaling.weight`, as wide as `v`.

    Args:
        value: `h`, the layer's output, or `u`, its input.
    """
    chain = Chain(value)
    chain.owned("scale_features", "scaling", {"weight": ("d" if value == "h" else "d_in",)})
    return chain.graph(replaces=value)


ia3 = Maker(
    "ia3",
    "`l⊙h` in the place of keys and values, and `l⊙u` of what the FFN's last layer reads (Liu et al. 2022, §3.3)",
    _kind,
    Ia3Options(),
)
