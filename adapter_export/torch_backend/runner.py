"""The torch reference: a base that runs with any adapter, arrays in and arrays out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.node import Target

from adapter_export.errors import RequestError
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import Arrays, Undefined
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.base import TorchBase
from adapter_export.torch_backend.view import flow_graph

_MOST_ATTACHED = 32

_ROUNDED = 1e-5
"""What rounding may change, of the largest value, between two runs: kernels may depend on where tensors lie."""


class TorchRunner:
    """Computes with torch what a bundle must compute; a `numerics.runner.Runner`.

    Each adapter is attached when it is first asked for; the latest ones stay so. Sites are found if not given;
    `allow_mismatch` takes adapters that were trained on another base.

    Raises:
        NoSitesError: the base has no sites.
    """

    def __init__(self, base: TorchBase, *, sites: SiteMap | None = None, allow_mismatch: bool = False) -> None:
        self._base = base
        self.sites = discover(flow_graph(base.module())) if sites is None else sites
        self._allow_mismatch = allow_mismatch
        self._models: dict[int, AdaptedModel] = {}

    @property
    def description(self) -> str:
        """What computes: `torch 2.13.0 float32`."""
        return f"torch {torch.__version__.partition('+')[0]} float32"

    @property
    def keeps_weights(self) -> bool:
        """It does: torch has the base in memory."""
        return True

    def model(self, adapter: Adapter | None) -> AdaptedModel:
        """The base with an adapter attached; AdapterError if it does not fit."""
        known = self._models.pop(id(adapter), None)
        if known is None:
            # the model holds the adapter, so that its id is not given to another one
            known = attach(self._base, adapter, sites=self.sites, allow_mismatch=self._allow_mismatch)
        self._models[id(adapter)] = known  # behind all others, the first of which goes
        if len(self._models) > _MOST_ATTACHED:
            del self._models[next(iter(self._models))]
        return known

    def _compute(self, adapter: Adapter | None, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs; an adapter that differs from an attached one in its weights alone lends its weights to that."""
        for known in self._models.values():
            if adapter is not None and known.adapter is not None and _differ_in_weights(known.adapter, adapter):
                places = {id(tensor): name for name, tensor in known.named_parameters()}
                lent = {
                    places[id(own)]: torch.from_numpy(adapter.weights[name]) for name, own in known.tensors().items()
                }
                outputs: dict[str, Tensor] = functional_call(known, lent, kwargs=dict(inputs))
                return outputs
        found: dict[str, Tensor] = self.model(adapter)(**inputs)
        return found

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
        """All outputs of the base by name and, for an adapter with a head, the result of its task.

        Raises:
            AdapterError: the adapter does not fit the base.
            RequestError: the inputs are not those of the base.
        """
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        with _inference():
            outputs = self._compute(adapter, tensors)
        return {name: value.numpy() for name, value in outputs.items()}

    def undefined(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Undefined:
        """The elements of the outputs that change when attention that may see no token returns something else."""
        model = self.model(adapter)
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
        drawn = _Drawn(model.body)
        with _inference():
            others = drawn.run(*self._base.ordered(tensors))
            found = model(**tensors) if drawn.any else {}
        differ = {
            name: ((one - other).abs() > _ROUNDED * one.abs().max()).numpy()
            for (name, one), other in zip(found.items(), others, strict=False)  # behind them is the final hidden state
            if one.is_floating_point()
        }
        return {name: elements for name, elements in differ.items() if elements.any()}


@contextmanager
def _inference() -> Iterator[None]:
    """Compute without gradients; what torch refuses is a `RequestError`."""
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, IndexError) as error:
        raise RequestError("the base cannot compute these inputs", found=str(error).partition("\n")[0]) from error


class _Drawn(torch.fx.Interpreter):
    """Runs a graph in which attention returns random numbers where its mask allows no token; `any` says whether."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.any = False
        self._generator = torch.Generator().manual_seed(0)

    def call_function(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator; that of attention has its mask, bool or added to the scores, [..., queries, tokens]."""
        result = super().call_function(target, args, kwargs)
        if target is not torch.ops.aten.scaled_dot_product_attention.default:
            return result
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        if mask is None:
            return result
        empty = ~mask.any(-1) if mask.dtype == torch.bool else mask.isneginf().all(-1)
        if not empty.any():
            return result
        self.any = True
        return torch.where(empty[..., None], torch.randn(result.shape, generator=self._generator), result)


def node_values(base: TorchBase, inputs: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    """Compute the values of some nodes of a base's graph, by their names; `RequestError` if it takes no such inputs."""
    found: Arrays = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            value = super().run_node(node)
            if node.name in names:
                found[node.name] = value.numpy().copy()
            return value

    tensors = {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}
    try:
        with torch.inference_mode():
            Keeping(base.module()).run(*base.ordered(tensors))
    except (RuntimeError, IndexError) as error:
        raise RequestError("the base cannot compute these inputs", found=str(error).partition("\n")[0]) from error
    return found


def _differ_in_weights(one: Adapter, other: Adapter) -> bool:
    """Return whether two adapters are one with two sets of weights: all else they share, as copies do."""
    alike = one.graphs is other.graphs and one.placements is other.placements and one.head is other.head
    return alike and one is not other and one.base == other.base
