"""Changed layers and norms, placed at the sites of a base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from adapter_export.graph.chain import Chain
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds.linear import changed_layer_graph, lora_graph
from adapter_export.plugins.formats.importers.peft.methods.method import Change, Matrix
from adapter_export.plugins.formats.importers.tensor_map import Recipe, TensorMap
from adapter_export.sites.site import LAYERS, Site, SiteMap


def norm_sites(sites: SiteMap) -> dict[str, tuple[Site, str]]:
    """Return the site of each norm after a sum or the embeddings by path, and the site value of its result."""
    norms = {site.path: (site, "h") for site in sites.of_roles(("embeddings",)) if site.path is not None}
    for site in sites.sublayers:
        if site.norm is not None and site.norm.weight is not None:
            norms[site.norm.weight.removesuffix(".weight")] = (site, "y")
    return norms


def place_change(mapped: TensorMap, path: str, site: Site, change: Change, base_bias: np.ndarray | None) -> int:
    """Place a change of a layer's weight and bias; return the bytes of a dense matrix.

    The layer's output contains `base_bias`, which is scaled with it: the difference is added.
    """
    bias, base_bias = change.bias, np.zeros(site.width) if base_bias is None else base_bias
    shift = (base_bias if bias is None else bias) - (base_bias if change.scale is None else change.scale * base_bias)
    dense, scaled, shifted = change.dense is not None, change.scale is not None, bool(shift.any())
    parts: dict[str, Matrix] = {}
    if change.dense is not None:
        parts["delta.weight"] = change.dense.T
    elif change.up is not None and change.down is not None:
        parts |= {"lora_A.weight": change.down.T, "lora_B.weight": change.up.T}
    else:
        parts |= {"lora_A.weight": np.zeros((site.width_in, 1)), "lora_B.weight": np.zeros((1, site.width))}
    if change.scale is not None:
        parts["scaling.weight"] = change.scale
    if shifted:
        parts["delta.bias" if dense else "lora_B.bias"] = shift
    name = "_".join(["scaled"] * scaled + ["delta" if dense else "lora"] + ["bias"] * shifted)
    graph = changed_layer_graph(scale=scaled, dense=dense, bias=shifted)
    widths = {"d": site.width, "d_in": site.width_in, "r": 0 if dense else parts["lora_A.weight"].shape[1]}
    fits = all(parts[name].shape == shape for name, shape in graph.parameter_shapes(widths).items())
    if not fits:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
        mapped.fault(f"the tensors of `{path}` make {shapes}, which does not fit {site.width_in} to {site.width}")
        return 0
    recipes = {name: Recipe((), partial(np.asarray, part)) for name, part in parts.items()}
    mapped.place(site, name, graph, recipes, widths, {})
    return 4 * site.width * site.width_in if dense else 0


def place_norm(
    mapped: TensorMap, site: Site, value: str, before: Mapping[str, Matrix], after: Mapping[str, Matrix]
) -> None:
    """Place a trained norm after the base's norm: `w'/w ⊙ v + (b' − b·w'/w)`; `weight` and perhaps `bias` of both."""
    scale = after["weight"] / before["weight"]
    recipes = {"scaling.weight": Recipe((), lambda: scale)}
    if "bias" in after:
        recipes |= _bias_alone(site.width, after["bias"] - before["bias"] * scale)
    name = f"norm_{value}" + ("_bias" if "bias" in after else "")
    graph = _behind_value(value, scale=True, bias="bias" in after)
    mapped.place(site, name, graph, recipes, {"d": site.width, "d_in": site.width_in, "r": 1}, {})


def place_shift(mapped: TensorMap, site: Site, value: str, shift: np.ndarray) -> None:
    """Place a single bias.

    At a linear layer it uses the graph of LoRA with zero matrices; elsewhere the graph reads the value that it
    replaces.
    """
    linear = site.role in LAYERS
    name = "lora_bias" if linear else f"shift_{value}"
    graph = lora_graph(1.0, bias=True) if linear else _behind_value(value, scale=False, bias=True)
    recipes = _bias_alone(site.width_in if linear else site.width, shift)
    mapped.place(site, name, graph, recipes, {"d": site.width, "d_in": site.width_in, "r": 1}, {})


def _behind_value(value: str, *, scale: bool, bias: bool) -> AdapterGraph:
    """Return the graph of `s⊙v + B(A v)` for `v`, with a bias on B; without `scale` or `bias`, that part is absent."""
    chain = Chain(value)
    if bias:
        chain.linear("lora_A", "d", "r", bias=False)
        chain.linear("lora_B", "r", "d")
    delta, chain.value = chain.value, value
    if scale:
        chain.owned("scale_features", "scaling", {"weight": ("d",)}, output="scaled")
    if bias:
        chain.op("add", "result", delta)
    return chain.graph(replaces=value)


def _bias_alone(width_in: int, bias: np.ndarray) -> dict[str, Recipe]:
    """Return a LoRA of rank 1 with zero matrices, to place a bias in the slots of a LoRA with bias."""
    return {
        "lora_A.weight": Recipe((), lambda: np.zeros((width_in, 1))),
        "lora_B.weight": Recipe((), lambda: np.zeros((1, len(bias)))),
        "lora_B.bias": Recipe((), lambda: bias),
    }
