"""Torch lowering: every op as differentiable code, for training and as the float32 reference, and graphs as layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.graph.compose.attention import at_temperature, temperature_of
from adapter_export.graph.graph import (
    BORROWED_BIAS,
    BORROWED_WEIGHT,
    AdapterGraph,
    Lowering,
    Node,
    bind_base_norm,
    interpret,
)
from adapter_export.graph.ops import INDEX_BASE, POOLINGS, check_three_axes
from adapter_export.numerics.evaluate_adapter import BORROWED
from adapter_export.sites.site import Norm

Values = tuple[Tensor, ...]
Owned = Mapping[str, Tensor]


def _elementwise(function: Callable[[Tensor], Tensor]) -> Lowering[Tensor]:
    return lambda _node, values, _owned: function(values[0])


def _linear(_: Node, values: Values, owned: Owned) -> Tensor:
    return F.linear(values[0], owned["weight"].T, owned.get("bias"))


def _phm_linear(_: Node, values: Values, owned: Owned) -> Tensor:
    blocks = torch.einsum("iac,ipq->apcq", owned["rule"], owned["left"] @ owned["right"])
    return F.linear(values[0], blocks.flatten(2).flatten(0, 1).T, owned["bias"])


def _lookup(_: Node, values: Values, owned: Owned) -> Tensor:
    return F.embedding(values[0].long(), owned["weight"])


def _indices(owned: Owned) -> Tensor:
    """Return the indices in float64, which has all of them."""
    return INDEX_BASE * owned["high"].detach().double() + owned["low"].detach().double()


def _one_hot(_: Node, values: Values, owned: Owned) -> Tensor:
    return (values[0].double().unsqueeze(-1) == _indices(owned)).to(owned["high"].dtype)


def _scatter(_: Node, values: Values, owned: Owned) -> Tensor:
    (x, like), indices = values, _indices(owned)
    is_feature = (indices >= 0) & (indices < like.shape[-1]) & (indices == indices.floor())
    places = torch.where(is_feature, indices, 0).long()
    return torch.zeros_like(like).index_add(-1, places, x * is_feature)


def _weighted(_: Node, values: Values, owned: Owned) -> Tensor:
    return values[0] * owned["weight"]


def _keep_half(kept: int) -> Lowering[Tensor]:
    def keep(_: Node, values: Values, __: Owned) -> Tensor:
        halves = values[0].tensor_split([values[0].shape[-1] // 2], dim=-1)
        return torch.cat([half if place == kept else torch.zeros_like(half) for place, half in enumerate(halves)], -1)

    return keep


def _gate(node: Node, values: Values, _: Owned) -> Tensor:
    check_three_axes(node.op, node.output, values[0].ndim)
    return values[0] * values[1].mean(1, keepdim=True)


def _drop_path(node: Node, values: Values, _: Owned) -> Tensor:
    (x,) = values
    check_three_axes(node.op, node.output, x.ndim)
    kept = 1 - node.attributes["rate"]
    return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(kept) / kept


def _mix(node: Node, values: Values, owned: Owned) -> Tensor:
    check_three_axes(node.op, node.output, values[0].ndim)
    weights = owned["weights"].T[:, :, None, None]  # [N, rows, 1, 1], to match values [N, batch, tokens, width]
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


def _last_token(_: Node, values: Values, __: Owned) -> Tensor:
    x, mask = values
    last = mask.shape[1] - 1 - (mask != 0).flip(1).to(torch.int32).argmax(1, keepdim=True)
    found = torch.take_along_dim(x, last.unsqueeze(-1), 1).squeeze(1)
    return torch.where(mask.gather(1, last) != 0, found, 0)


def _max_pool(_: Node, values: Values, __: Owned) -> Tensor:
    x, mask = values
    kept = (mask != 0).unsqueeze(-1)
    return torch.where(kept.any(1), x.masked_fill(~kept, -torch.inf).max(1).values, 0)


def _weighted_mean_pool(node: Node, values: Values, owned: Owned) -> Tensor:
    x, mask = values
    return _mean_pool(node, (x, mask * mask.cumsum(1)), owned)


LOWERINGS: Mapping[str, Lowering[Tensor]] = {
    "linear": _linear,
    "phm_linear": _phm_linear,
    "lookup": _lookup,
    "one_hot": _one_hot,
    "scatter": _scatter,
    "relu": _elementwise(F.relu),
    "gelu": _elementwise(F.gelu),
    "gelu_tanh": _elementwise(lambda x: F.gelu(x, approximate="tanh")),
    "quick_gelu": _elementwise(lambda x: x * torch.sigmoid(1.702 * x)),
    "silu": _elementwise(F.silu),
    "tanh": _elementwise(torch.tanh),
    "sigmoid": _elementwise(torch.sigmoid),
    "leaky_relu": lambda node, values, _owned: F.leaky_relu(values[0], node.attributes["slope"]),
    "relu6": _elementwise(F.relu6),
    "relu_squared": _elementwise(lambda x: F.relu(x).square()),
    "log_relu": _elementwise(lambda x: torch.log1p(F.relu(x))),
    "mish": _elementwise(F.mish),
    "elu": _elementwise(F.elu),
    "identity": _elementwise(lambda x: x),
    "scale": lambda node, values, _owned: values[0] * node.attributes["factor"],
    "learned_scale": _weighted,
    "scale_features": _weighted,
    "keep_first_half": _keep_half(0),
    "keep_second_half": _keep_half(1),
    "gate": _gate,
    "dropout": _elementwise(lambda x: x),
    "drop_path": _elementwise(lambda x: x),
    "add": lambda _node, values, _owned: values[0] + values[1],
    "multiply": lambda _node, values, _owned: values[0] * values[1],
    "dot": lambda _node, values, _owned: (values[0] * values[1]).sum(-1, keepdim=True),
    "mix": _mix,
    "softmax_mix": _softmax_mix,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "l2_normalise": _elementwise(lambda x: F.normalize(x, dim=-1, eps=1e-12)),
    "first_token": _elementwise(lambda x: x[:, 0]),
    "mean_pool": _mean_pool,
    "last_token": _last_token,
    "max_pool": _max_pool,
    "weighted_mean_pool": _weighted_mean_pool,
}
"""Every op at inference, where dropout and drop path do nothing."""

TRAINING_LOWERINGS: Mapping[str, Lowering[Tensor]] = {
    **LOWERINGS,
    "dropout": lambda node, values, _owned: F.dropout(values[0], node.attributes["rate"], training=True),
    "drop_path": _drop_path,
}
"""Every op in training, where dropout and drop path draw from torch's generator."""


POOLING_NAMESPACE = "adapter_export"
"""Namespace of pooling operators, which appear in a program as `adapter_export.last_token.default`."""


@cache
def pooling_operator(pooling: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a pooling of [batch, tokens, width] and the mask [batch, tokens] as a single torch operator.

    `torch.export` keeps custom operators, so that readers of the program find the pooling by name.
    """
    row = POOLINGS[pooling]
    node, lowering = Node(row.name, ("hidden", "mask")[: row.arity.least], "pooled"), LOWERINGS[row.name]

    def pool(hidden: Tensor, mask: Tensor) -> Tensor:
        values = (hidden, mask.to(hidden.dtype))[: row.arity.least]
        return lowering(node, values, {}).clone()  # an operator must not return a view of its input

    schema = "(Tensor hidden, Tensor mask) -> Tensor"
    operator = torch.library.custom_op(f"{POOLING_NAMESPACE}::{row.name}", pool, mutates_args=(), schema=schema)
    operator.register_fake(lambda hidden, _mask: hidden.new_empty(hidden.shape[0], hidden.shape[2]))
    return operator


class GraphLayer(nn.Module):
    """A graph with its tensors as parameters.

    It computes in the type of its parameters and returns the type of the first value that it reads, so that a
    half-precision base may have a float32 adapter. `owner` is the site at which it acts, or `head`; `norm` the one
    before the site's `y`, with its tensors named as in the base's FX graph; `borrows` are the base's tensors that are
    passed after the values of `graph.inputs`. While it is `idle`, it changes nothing.

    Raises:
        GraphError: the graph applies the base's norm, which could not be read.
    """

    def __init__(
        self, owner: str, graph: AdapterGraph, tensors: Mapping[str, nn.Parameter], norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.owner = owner
        self.graph = graph
        self.idle = False
        self._bound = bind_base_norm(graph, norm)
        names = {} if norm is None else {BORROWED_WEIGHT: norm.weight, BORROWED_BIAS: norm.bias}
        self._borrowed = [name for name in BORROWED if name in self._bound.parameters and names[name] is not None]
        self.borrows = tuple(str(names[name]) for name in self._borrowed)
        # a list, not a dict: parameter names contain dots, which torch does not allow
        self._tensors = nn.ParameterList(tensors[name] for name in graph.parameters)

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in the graph."""
        return dict(zip(self.graph.parameters, self._tensors, strict=True))

    def set_temperature(self, temperature: float) -> None:
        """Change the temperature of a fusion; no effect on other graphs."""
        if temperature_of(self.graph) != temperature:
            self.graph, self._bound = (at_temperature(graph, temperature) for graph in (self.graph, self._bound))

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the graph's result from the values of `graph.inputs`, in that order, and then those of `borrows`.

        An idle layer returns the value that its result would replace.
        """
        if self.idle:
            return values[self.graph.inputs.index(self.graph.replaces)]
        site_values, base_tensors = values[: len(self.graph.inputs)], values[len(self.graph.inputs) :]
        tensors: dict[str, Tensor] = dict(self.named_tensors())
        dtype = next((tensor.dtype for tensor in tensors.values()), values[0].dtype)
        ids = {"u"} if self.graph.reads_ids else set[str]()  # whole numbers, which half precision would round
        read = {
            name: value if name in ids else value.to(dtype)
            for name, value in zip(self.graph.inputs, site_values, strict=True)
        }
        tensors |= {name: tensor.to(dtype) for name, tensor in zip(self._borrowed, base_tensors, strict=True)}
        if BORROWED_WEIGHT in self._bound.parameters:
            tensors.setdefault(BORROWED_WEIGHT, values[0].new_ones(values[0].shape[-1], dtype=dtype))
        ops = TRAINING_LOWERINGS if self.training else LOWERINGS
        result = interpret(self._bound, ops, read, tensors)[self._bound.result]
        return result.to(values[0].dtype) if values[0].is_floating_point() else result

    def extra_repr(self) -> str:
        """Return the place where it acts, and its ops."""
        return f"{self.owner}: {' -> '.join(node.op for node in self.graph.nodes)}"
