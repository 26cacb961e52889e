"""The torch lowering: every op as differentiable torch code, for training and as the float32 reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.graph import Node
from adapter_export.graph.interpret import Lowering

Values = tuple[Tensor, ...]
Owned = Mapping[str, Tensor]


def _elementwise(function: Callable[[Tensor], Tensor]) -> Lowering[Tensor]:
    return lambda _node, values, _owned: function(values[0])


def _linear(_: Node, values: Values, owned: Owned) -> Tensor:
    return F.linear(values[0], owned["weight"].T, owned.get("bias"))


def _leaky_relu(node: Node, values: Values, _: Owned) -> Tensor:
    return F.leaky_relu(values[0], node.attributes["slope"])


def _scale(node: Node, values: Values, _: Owned) -> Tensor:
    return values[0] * node.attributes["factor"]


def _dropout(node: Node, values: Values, _: Owned) -> Tensor:
    return F.dropout(values[0], node.attributes["rate"], training=True)


def _layer_norm(node: Node, values: Values, owned: Owned) -> Tensor:
    weight = owned["weight"]
    return F.layer_norm(values[0], tuple(weight.shape), weight, owned.get("bias"), node.attributes["epsilon"])


def _rms_norm(node: Node, values: Values, owned: Owned) -> Tensor:
    weight = owned["weight"]
    return F.rms_norm(values[0], tuple(weight.shape), weight, node.attributes["epsilon"])


def _mean_pool(_: Node, values: Values, __: Owned) -> Tensor:
    x, mask = values
    total = torch.matmul(mask.unsqueeze(1), x).squeeze(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


LOWERINGS: Mapping[str, Lowering[Tensor]] = {
    "linear": _linear,
    "relu": _elementwise(F.relu),
    "gelu": _elementwise(F.gelu),
    "gelu_tanh": _elementwise(lambda x: F.gelu(x, approximate="tanh")),
    "quick_gelu": _elementwise(lambda x: x * torch.sigmoid(1.702 * x)),
    "silu": _elementwise(F.silu),
    "tanh": _elementwise(torch.tanh),
    "sigmoid": _elementwise(torch.sigmoid),
    "leaky_relu": _leaky_relu,
    "identity": _elementwise(lambda x: x),
    "scale": _scale,
    "dropout": _elementwise(lambda x: x),
    "add": lambda _node, values, _owned: values[0] + values[1],
    "multiply": lambda _node, values, _owned: values[0] * values[1],
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "first_token": _elementwise(lambda x: x[:, 0]),
    "mean_pool": _mean_pool,
}
"""Every op at inference, where dropout does nothing."""

TRAINING_LOWERINGS: Mapping[str, Lowering[Tensor]] = {**LOWERINGS, "dropout": _dropout}
"""Every op in training, where dropout draws from torch's generator."""


def lowerings(*, training: bool) -> Mapping[str, Lowering[Tensor]]:
    """The ops in one of the two modes; a module passes its own `self.training`.

    Every value of a graph must have one dtype; a mask is cast to it by the caller.
    """
    return TRAINING_LOWERINGS if training else LOWERINGS
