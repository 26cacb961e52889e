"""Torch reference: a base that runs with any adapter, arrays in and arrays out."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch.fx.node import Target
from torch.utils import _pytree as pytree

from adapter_export.errors import RequestError
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.prefix_inputs import Values, at_sites, with_prefix, without_prefix
from adapter_export.numerics.runner import Arrays, NodeValue, Undefined, site_result
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.fx_view import modules_of

_MOST_ATTACHED = 32
"""Models to keep: they share the base's weights, so each has only those of its adapter."""

_ROUNDED = 1e-5
"""Rounding allowed between two runs, relative to the largest value: kernels may depend on tensor addresses."""

_MOST_WIDENED = 2**24
"""Maximum numbers in a tensor that is also computed in float64: 128 MiB."""

_STEP = 2.0**-23
"""Relative error added to a node's inputs to measure its effect on the result."""

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class TorchRunner:
    """Computes the expected outputs of a bundle with torch; a `numerics.runner.Runner`.

    Each adapter is attached on first use, and the latest ones stay attached; adapters that differ only in weights share
    a model. Sites are detected by default; `allow_mismatch` accepts adapters trained on another base.

    Raises:
        NoSitesError: the base has no sites.
    """

    def __init__(self, base: TorchBase, *, sites: SiteMap | None = None, allow_mismatch: bool = False) -> None:
        self._base = base
        self.sites = discover(base.flow) if sites is None else sites
        self._allow_mismatch = allow_mismatch
        self._models: list[AdaptedModel] = []

    @property
    def description(self) -> str:
        """Library, version and type: `torch 2.13.0 float32`."""
        return f"torch {torch.__version__.partition('+')[0]} float32"

    @property
    def keeps_weights(self) -> bool:
        """True: torch has the base in memory."""
        return True

    def model(self, adapter: Adapter | None) -> AdaptedModel:
        """Return the base with an adapter attached; a later adapter that differs only in weights reuses the model.

        Raises:
            AdapterError: the adapter does not fit the base.
        """
        known = next((model for model in self._models if _are_alike(model.adapter, adapter)), None)
        if known is None:
            known = attach(self._base, adapter, sites=self.sites, allow_mismatch=self._allow_mismatch)
        else:
            self._models.remove(known)
            if adapter is not None and known.adapter is not adapter:
                known.adapter = adapter
                for name, tensor in known.tensors().items():
                    # a copy: the tensor must not share memory with the adapter's array
                    tensor.data = torch.tensor(adapter.weights[name])
        self._models = [*self._models[1 - _MOST_ATTACHED :], known]  # most recently used last; the first is evicted
        return known

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
        """Return all outputs of the base by name and, for an adapter with a head, its result.

        Raises:
            AdapterError: the adapter does not fit the base.
            RequestError: the inputs do not match the base.
        """
        model, tensors = self.model(at_sites(adapter)), self._tensors(inputs, adapter)
        with _inference():
            outputs = model(**tensors)
        return self._shown({name: value.numpy() for name, value in outputs.items()}, adapter)

    def find_undefined(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Undefined:
        """Return the elements of the outputs that change when attention without visible tokens returns other values."""
        model = self.model(at_sites(adapter))
        tensors = self._tensors(inputs, adapter)
        ordered = self._base.ordered(tensors)
        with _inference():
            if not _sees_nothing(model.body, ordered):
                return {}
            others, found = _Drawn(model.body).run(*ordered), model(**tensors)
        differ = {
            name: ((one - other).abs() > _ROUNDED * one.abs().max()).numpy()
            for (name, one), other in zip(found.items(), others, strict=False)  # the final hidden state follows
            if one.is_floating_point()
        }
        return self._shown({name: elements for name, elements in differ.items() if elements.any()}, adapter)

    def node_values(
        self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None, names: Collection[str], *, exactly: bool = True
    ) -> Iterator[NodeValue]:
        """Yield the values of nodes of the base's graph, and of adapters at their sites, in order of evaluation.

        Each is computed in float32 and, with `exactly`, in float64 from its float32 inputs. Values are released after
        their last use. Raises as `run`.
        """
        model, tensors = self.model(at_sites(adapter)), self._tensors(inputs, adapter)
        self._models.remove(model)  # so that no other adapter can reuse the model meanwhile
        walk = _Walk(model.body, exactly=exactly)
        walk.args_iter = iter(self._base.ordered(tensors))
        for node, name in _named(model):
            with _inference():
                found = walk.step(node, name if name in names else None)
            if found is not None:
                yield found
        self._models.append(model)

    def node_dtypes(self, adapter: Adapter | None) -> Mapping[str, str]:
        """Return the NumPy type of each value that `node_values` can yield, by name, without lengths of axes."""
        values = {
            name: node.meta.get("val") for node, name in _named(self.model(at_sites(adapter))) if node.op != "get_attr"
        }
        return {
            name: str(value.dtype).removeprefix("torch.") for name, value in values.items() if isinstance(value, Tensor)
        }

    def exact(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays | None:
        """Return all outputs of `run`, computed in float64; `None` if torch lacks a float64 operator."""
        model = self.model(at_sites(adapter))
        tensors = self._tensors(inputs, adapter)
        with suppress(RuntimeError, IndexError), torch.inference_mode():
            *outputs, _ = _Wide(model.body).run(*self._base.ordered(tensors))
            names = [record.name for record in self._base.outputs]
            names += [] if model.head_name is None else [model.head_name]
            return self._shown({name: value.numpy() for name, value in zip(names, outputs, strict=True)}, adapter)
        return None

    def _tensors(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> dict[str, Tensor]:
        """Return the inputs of the base, with the prefix of an adapter in its caches and mask."""
        return _tensors(with_prefix(inputs, adapter, self._base.inputs))

    def _shown(self, outputs: Mapping[str, Values], adapter: Adapter | None) -> dict[str, Values]:
        return without_prefix(outputs, adapter, self._base.inputs)


def _named(model: AdaptedModel) -> Iterator[tuple[fx.Node, str]]:
    """Yield the nodes of a model's graph; calls of an adapter are named after their results."""
    results = {
        f"adapter_layer_{at}": site_result(owner, layer.graph.replaces)
        for at, (owner, layer) in enumerate(model.owned.items())
    }
    for node in model.body.graph.nodes:
        yield node, results.get(str(node.target), node.name) if node.op == "call_module" else node.name


class _Wide(fx.Interpreter):
    """Computes a graph in float64, converting weights on access so that two copies of all are never in memory."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.rng: torch.Generator | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node from float64 values."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return _widened(getattr(self, n.op)(n.target, args, kwargs))

    def call_function(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator; an argument float32 becomes float64."""
        args, kwargs = pytree.tree_map(lambda each: torch.float64 if each is torch.float32 else each, (args, kwargs))
        return super().call_function(target, *_widened((args, kwargs)))

    def call_module(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an adapter's layer with its tensors in float64."""
        return deepcopy(self.fetch_attr(str(target))).double()(*_widened(args), **_widened(kwargs))


def _widened(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda one: one.double() if one.is_floating_point() else one, values)


class _Walk(fx.Interpreter):
    """Runs a graph node by node, and releases values after their last use."""

    def __init__(self, graph: fx.GraphModule, *, exactly: bool) -> None:
        super().__init__(graph)
        self._wide = _Wide(graph) if exactly else None
        self._generator = torch.Generator().manual_seed(0)

    def step(self, node: fx.Node, name: str | None) -> NodeValue | None:
        """Compute a node; return its value if it has a name and is a tensor."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        # first, because the operator may write into its inputs
        exact, reach = (None, None) if name is None else self._exactly(node, args, kwargs)
        vague = _of_no_token(args, kwargs) if name is not None and node.target is _ATTENTION else None
        value = self.env[node] = self.run_node(node)
        for dead in self.user_to_last_uses.get(node, ()):
            del self.env[dead]
        if name is None:
            return None
        if not isinstance(value, Tensor):
            return None
        return NodeValue(
            name,
            # a later operator may write into the tensor
            value.numpy().copy(),
            exact,
            reach,
            None if vague is None else vague.expand(value.shape).numpy(),
            next(reversed(modules_of(node).values()), None) or None,
            node.meta.get("stack_trace"),
        )

    def _exactly(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None]:
        """Return the node in float64, and the effect of relative errors of its input activations on it."""
        if self._wide is None:
            return None, None
        tensors = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        floats = [each for each in tensors if each.is_floating_point()]
        if node.op not in ("call_function", "call_module") or not floats:
            return None, None
        if max(each.numel() for each in floats) > _MOST_WIDENED:
            return None, None

        def disturbed(each: Tensor) -> Tensor:
            if not each.is_floating_point():
                return each
            signs = torch.randint(0, 2, each.shape, generator=self._generator) * 2 - 1
            return each.double() * (1 + _STEP * signs)

        call = getattr(self._wide, node.op)
        try:
            # clones, because the operator may write into its inputs
            exact = call(node.target, *pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs)))
            if not isinstance(exact, Tensor) or not exact.is_floating_point():
                return None, None
            moved = call(node.target, *pytree.tree_map_only(Tensor, disturbed, (args, kwargs)))
        except (RuntimeError, IndexError):  # torch lacks the operator in float64
            return None, None
        return exact.numpy(), ((moved - exact).abs() / _STEP).numpy()


def _of_no_token(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the queries of an attention that may see no token, [..., queries, 1]; `None` if all see one.

    Its mask is bool or added to the scores, [..., queries, tokens].
    """
    mask = _mask_of(args, kwargs)
    if mask is None:
        return None
    empty = ~mask.any(-1, keepdim=True) if mask.dtype == torch.bool else mask.isneginf().all(-1, keepdim=True)
    return empty if empty.any() else None


def _mask_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("attn_mask", args[3] if len(args) > 3 else None)


def _sees_nothing(module: fx.GraphModule, inputs: Sequence[Tensor]) -> bool:
    """Return whether a query of an attention may see no token; only the inputs of the masks are computed."""
    attentions = [node for node in module.graph.nodes if node.target is _ATTENTION]
    masks = [mask for node in attentions if isinstance(mask := _mask_of(node.args, node.kwargs), fx.Node)]
    needed, todo = set[fx.Node](), list(masks)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    walk = fx.Interpreter(module, garbage_collect_values=False)
    walk.args_iter = iter(inputs)
    for node in module.graph.nodes:
        if node in needed or node.op == "placeholder":
            walk.env[node] = walk.run_node(node)
    return any(_of_no_token((), {"attn_mask": walk.env[mask]}) is not None for mask in masks)


def _tensors(inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    # copies: a base may write into its inputs
    return {name: torch.from_numpy(np.array(value)) for name, value in inputs.items()}


@contextmanager
def _inference() -> Iterator[None]:
    """Compute without gradients; torch's errors become a `RequestError`."""
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, IndexError) as error:
        raise RequestError("the base cannot compute these inputs", found=str(error).partition("\n")[0]) from error


class _Drawn(fx.Interpreter):
    """Runs a graph in which attention returns random numbers where its mask allows no token."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._generator = torch.Generator().manual_seed(0)

    def call_function(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator."""
        result = super().call_function(target, args, kwargs)
        empty = _of_no_token(args, kwargs) if target is _ATTENTION else None
        if empty is None:
            return result
        return torch.where(empty, torch.randn(result.shape, generator=self._generator), result)


def node_values(base: TorchBase, inputs: Mapping[str, np.ndarray], names: Collection[str]) -> Arrays:
    """Compute the values of some nodes of a base's graph, by name; `RequestError` if it rejects the inputs."""
    values: Arrays = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            value = super().run_node(node)
            if node.name in names:
                values[node.name] = value.numpy().copy()
            return value

    with _inference():
        Keeping(base.flat).run(*base.ordered(_tensors(inputs)))
    return values


def _are_alike(first: Adapter | None, other: Adapter | None) -> bool:
    """Return whether two adapters differ only in their weights, but not in the meaning of their results."""
    if first is None or other is None or first is other:
        return first is other
    heads = [None if each.head is None else (each.head.graph, each.head.widths) for each in (first, other)]
    alike = first.graphs == other.graphs and first.placements == other.placements and heads[0] == heads[1]
    return alike and first.base == other.base
