"""The layers of a base behind its sites: their weights and biases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapter_export.api.models.base import Base
    from adapter_export.numerics.merged_layers import Layer
    from adapter_export.sites.site import Site
    from adapter_export.sites.view import FlowNode


def layer_finder(base: Base) -> Callable[[Site], Layer | None]:
    """Return what finds the weight and the bias behind a site; none where the base does not show them as tensors."""
    import numpy as np

    from adapter_export.numerics.merged_layers import Layer
    from adapter_export.sites.linear_layers import layer_of
    from adapter_export.sites.site import LAYERS
    from adapter_export.sites.view import FlowIndex

    index, calls = FlowIndex(base.flow), Counter[str]()
    products: dict[str, FlowNode] = {}
    for node in index.nodes:
        if node.linear and node.weight is not None:
            calls[node.weight] += 1
            if (layer := layer_of(index, node)) is not None:
                products[layer.h] = node

    uses = _reader_counter(base)

    def at(site: Site) -> Layer | None:
        product = products.get(site.h) if site.role in LAYERS else None
        if product is not None:
            weight_name = product.weight or ""
        elif site.role == "embeddings":
            weight_name = f"{site.path}.weight"
        else:
            weight_name = "" if site.norm is None else site.norm.weight or ""
        bias_name = f"{weight_name.removesuffix('weight')}bias"
        if base.is_onnx and product is not None:
            bias_name = base.onnx.bias_behind(product.outputs[0]) or ""
        weight, bias = base.tensor(weight_name), base.tensor(bias_name)
        if weight is None or weight.ndim != (1 if product is None else 2):
            return None
        if product is not None:
            added = product.epilogue == "bias" or site.h != product.outputs[0]
            if added != (bias is not None):  # something is added that is not seen, or nothing is
                return None
        if base.is_onnx:
            in_first = product is not None and bool(base.onnx.holds_in_first(weight_name))
        else:  # `Conv1D` of transformers is no `linear`
            in_first = product is not None and product.op != "linear"
        return Layer(
            (weight_name, bias_name),
            (weight.T if in_first and not base.is_onnx else weight).astype(np.float64),
            None if bias is None else bias.astype(np.float64),
            max(calls[weight_name], uses(weight_name), 1) + site.other_calls,
            in_first,
        )

    return at


def _reader_counter(base: Base) -> Callable[[str], int]:
    """Return what counts the nodes that read a tensor of a base: a language head may have that of the embeddings."""
    if base.is_onnx:
        initializers = base.onnx.model.graph.initializers
        return lambda name: len(initializers[name].uses()) if name in initializers else 0
    from operator import attrgetter

    flat, counts = base.torch.flat, Counter[int]()
    for node in flat.graph.find_nodes(op="get_attr"):
        tensor = attrgetter(node.target)(flat)
        counts[tensor.data_ptr()] += len(node.users) if tensor.numel() else 0
    return lambda name: counts[attrgetter(name)(flat).data_ptr()] if name in base.torch.program.state_dict else 0
