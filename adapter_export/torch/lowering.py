"""The torch lowering: every op as differentiable torch code, for training and as the float32 reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.graph import Node
from adapter_export.graph.interpret import Lowering
from adapter_export.graph.op_check import check_three_axes

Values = tuple[Tensor, ...]
Owned = Mapping[str, Tensor]


def _elementwise(function: Callable[[Tensor], Tensor]) -> Lowering[Tensor]:
    return lambda _node, values, _owned: function(values[0])


def _linear(_: Node, values: Values, owned: Owned) -> Tensor:
    return F.linear(values[0], owned["weight"].T, owned.get("bias"))


def _phm_linear(_: Node, values: Values, owned: Owned) -> Tensor:
    blocks = torch.einsum("iac,ipq->apcq", owned["rule"], owned["left"] @ owned["right"])
    weight = blocks.flatten(2).flatten(0, 1)
    return F.linear(values[0], weight.T, owned["bias"])


def _leaky_relu(node: Node, values: Values, _: Owned) -> Tensor:
    return F.leaky_relu(values[0], node.attributes["slope"])


def _scale(node: Node, values: Values, _: Owned) -> Tensor:
    return values[0] * node.attributes["factor"]


def _weighted(_: Node, values: Values, owned: Owned) -> Tensor:
    return values[0] * owned["weight"]


def _keep_first_half(_: Node, values: Values, __: Owned) -> Tensor:
    (x,) = values
    kept, other = x.tensor_split([x.shape[-1] // 2], dim=-1)
    return torch.cat([kept, torch.zeros_like(other)], -1)


def _keep_second_half(_: Node, values: Values, __: Owned) -> Tensor:
    (x,) = values
    other, kept = x.tensor_split([x.shape[-1] // 2], dim=-1)
    return torch.cat([torch.zeros_like(other), kept], -1)


def _gate(node: Node, values: Values, _: Owned) -> Tensor:
    check_three_axes(node.op, node.output, values[0].ndim)
    return values[0] * values[1].mean(1, keepdim=True)


def _dropout(node: Node, values: Values, _: Owned) -> Tensor:
    return F.dropout(values[0], node.attributes["rate"], training=True)


def _drop_path(node: Node, values: Values, _: Owned) -> Tensor:
    (x,) = values
    check_three_axes(node.op, node.output, x.ndim)
    kept = 1 - node.attributes["rate"]
    rows = x.new_empty(x.shape[0], 1, 1).bernoulli_(kept)
    return x * rows / kept


def _dot(_: Node, values: Values, __: Owned) -> Tensor:
    return (values[0] * values[1]).sum(-1, keepdim=True)


def _mix(node: Node, values: Values, owned: Owned) -> Tensor:
    check_three_axes(node.op, node.output, values[0].ndim)
    weights = owned["weights"].T[:, :, None, None]  # [N, rows, 1, 1], beside values [N, batch, tokens, width]
    return (weights * torch.stack(values)).sum(0)


def _softmax_mix(node: Node, values: Values, _: Owned) -> Tensor:
    count = len(values) // 2
    shares = torch.softmax(torch.stack(values[:count]) / node.attributes["temperature"], 0)
    return (shares * torch.stack(values[count:])).sum(0)


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
    "phm_linear": _phm_linear,
    "relu": _elementwise(F.relu),
    "gelu": _elementwise(F.gelu),
    "gelu_tanh": _elementwise(lambda x: F.gelu(x, approximate="tanh")),
    "quick_gelu": _elementwise(lambda x: x * torch.sigmoid(1.702 * x)),
    "silu": _elementwise(F.silu),
    "tanh": _elementwise(torch.tanh),
    "sigmoid": _elementwise(torch.sigmoid),
    "leaky_relu": _leaky_relu,
    "relu6": _elementwise(F.relu6),
    "relu_squared": _elementwise(lambda x: F.relu(x).square()),
    "mish": _elementwise(F.mish),
    "elu": _elementwise(F.elu),
    "identity": _elementwise(lambda x: x),
    "scale": _scale,
    "learned_scale": _weighted,
    "scale_features": _weighted,
    "keep_first_half": _keep_first_half,
    "keep_second_half": _keep_second_half,
    "gate": _gate,
    "dropout": _elementwise(lambda x: x),
    "drop_path": _elementwise(lambda x: x),
    "add": lambda _node, values, _owned: values[0] + values[1],
    "multiply": lambda _node, values, _owned: values[0] * values[1],
    "dot": _dot,
    "mix": _mix,
    "softmax_mix": _softmax_mix,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "l2_normalise": _elementwise(lambda x: F.normalize(x, dim=-1, eps=1e-12)),
    "first_token": _elementwise(lambda x: x[:, 0]),
    "mean_pool": _mean_pool,
}
"""Every op at inference, where dropout and drop path do nothing."""

TRAINING_LOWERINGS: Mapping[str, Lowering[Tensor]] = {**LOWERINGS, "dropout": _dropout, "drop_path": _drop_path}
"""Every op in training, where dropout and drop path draw from torch's generator."""


def lowerings(*, training: bool) -> Mapping[str, Lowering[Tensor]]:
    """The ops in one of the two modes; a module passes its own `self.training`.

    Every value of a graph must have one dtype; a mask is cast to it by the caller.
    """
    return TRAINING_LOWERINGS if training else LOWERINGS
