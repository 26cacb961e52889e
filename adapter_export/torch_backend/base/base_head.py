"""Base head: the function of the final hidden state that the original model computes, verified against that model.

The graph of `torch.export` shows what a head computes, so no table of architectures is needed: its operations become
those of an adapter graph one by one, and a head with any other operation is rejected with the name of that operation.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, InputError
from adapter_export.format.axes import masks_of
from adapter_export.format.lengths import axis_lengths
from adapter_export.graph.adapter import BASE_HEAD, HEAD, Adapter, Head
from adapter_export.graph.graph import HEAD_VALUES, AdapterGraph, Node
from adapter_export.graph.ops import OPS, Dim, Shape
from adapter_export.graph.tasks import CLASSES, Task
from adapter_export.numerics.budget import budget, extent, product_error
from adapter_export.numerics.runner import measure_rounding
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.sites.discover import discover
from adapter_export.text import ending_token
from adapter_export.torch_backend.base.capture_module import settled
from adapter_export.torch_backend.base.example_inputs import Examples
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, first_line
from adapter_export.torch_backend.base.torch_base import TorchBase, base_of
from adapter_export.torch_backend.torch_lowering import POOLING_NAMESPACE
from adapter_export.torch_backend.torch_runner import TorchRunner
from adapter_export.words import quoted

_MOST_TOKENS = 16
"""Maximum length of inputs for verifying a head: it computes the same for every token, or for one of them."""

_LISTED = 20
"""Maximum number of weights named in a note."""


@dataclass(frozen=True)
class BaseHead:
    """Head of a complete model, with that model's results for some inputs; or the reason why there is none.

    `maker` is the origin of the head, such as a class of transformers; `reason` is set if it is not used; `notes` are
    assumptions.
    """

    maker: str
    head: Head | None = None
    weights: TracedHead | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    cases: Sequence[Mapping[str, Tensor]] = field(default=(), repr=False)
    results: Sequence[Tensor] = field(default=(), repr=False)

    def of(self, base: TorchBase, *, model: str, unused: Sequence[str]) -> tuple[Adapter | None, tuple[str, ...]]:
        """Return the head as an adapter of a base, if both together match the complete model; and notes.

        Args:
            base: the captured base.
            model: class of the base.
            unused: weights of the folder that the base does not have.
        """
        reason = self.reason
        if self.head is not None and self.weights is not None:
            tensors = {f"{HEAD}.{name}": tensor for name, tensor in self.weights.weights.items()}
            training = {"origin": {"library": "transformers", "model": self.maker}}
            adapter = Adapter(BASE_HEAD, "base_head", base.fingerprint, {}, {}, tensors, self.head, training)
            reason = self._deviates(base, adapter) or _ends_with_padding(base, self.weights.pad)
            if not reason:
                return adapter, tuple(f"the head of `{self.maker}`: " + note for note in self.notes)
        bare = self.maker in ("", model) or (self.maker.endswith("Model") and "Head" not in self.maker)
        if bare and not unused:
            return None, ()
        named = quoted(unused[:_LISTED])
        more = f" and {len(unused) - _LISTED} more" if len(unused) > _LISTED else ""
        weights = f", with the weights {named}{more}" if unused else ""
        what = f"the head of `{self.maker}`" if self.maker else "what follows the model"
        return None, (f"{what} is left out{weights}: " + (reason or "its task is unknown"),)

    def _deviates(self, base: TorchBase, adapter: Adapter) -> str:
        """Return the difference between base plus head and the complete model; empty if they match within rounding."""
        runner, size = TorchRunner(base), extent(base.flow)
        allowed = partial(budget, "float32", inner=size.inner, depth=size.depth)
        compared = 0
        for inputs, expected in zip(self.cases, self.results, strict=True):
            if set(inputs) != {record.name for record in base.inputs}:
                return f"with it, the model has different inputs: {', '.join(sorted(inputs))}"
            if not _takes(base, inputs):  # the base was captured for other lengths than the model accepts
                continue
            compared += 1
            model = runner.model(adapter)
            with torch.inference_mode():
                found = model.head(**inputs)
            if found.shape != expected.shape:
                return f"its result is {list(expected.shape)}, but {list(found.shape)} on the base"
            scale, distance = float(expected.abs().max()), float((found - expected).abs().max())
            if distance <= allowed(scale=scale).absolute:
                continue
            # a small sum of large terms has a larger rounding error
            arrays = {name: value.numpy() for name, value in inputs.items()}
            step = product_error("float32", inner=size.inner)
            moved = measure_rounding(
                runner.run, [arrays], adapter, sites=runner.sites, base=base.fingerprint, step=step
            )
            if not distance <= allowed(scale=scale, moved=moved[str(model.head_name)]).absolute:
                return f"on the base it computes something else (difference {distance:.2g}, scale {scale:.3g})"
        return "" if compared else "the model was not run at a length that the base accepts"


def _ends_with_padding(base: TorchBase, pad: int | None) -> str:
    """Return a reason if the tokenizer ends texts with the id that the model skips as padding; otherwise empty.

    The model reads the last token with another id, and the head the last token of the mask.
    """
    if pad is None or base.tokenizer is None:
        return ""
    reads = f"it reads the last token other than the padding id {pad}, but the tokenizer ends texts with that id"
    return reads if ending_token(base.tokenizer) == pad else ""


def _takes(base: TorchBase, inputs: Mapping[str, Tensor]) -> bool:
    """Return whether the base accepts inputs of these lengths."""
    return all(
        size in axis_lengths(axis, base.lengths)
        for record in base.inputs
        for axis, size in zip(record.axes, inputs[record.name].shape, strict=True)
    )


def base_head(
    whole: nn.Module,
    maker: str,
    outputs: Sequence[str],
    task_of: Callable[[int], tuple[Task | None, Sequence[str]]],
    examples: Examples | None,
) -> BaseHead:
    """Return the head of a complete model, whose results are `outputs`; several are the columns of one.

    `task_of` returns the task of a head, and notes, from its number of classes; `examples` are inputs of the model.
    Never
    raises for a head that cannot be used: the reason is in the result.
    """
    try:
        if examples is None:
            return BaseHead(maker, reason="the inputs of the model are not known")
        program, traced = traced_head(whole, outputs, examples)
        task, notes = task_of(traced.widths.get(CLASSES, 0))
        head = Head(traced.graph, traced.widths, task)
        cases, results = head_results(whole, program, traced, outputs)
    except InputError as error:  # drop the error's fix: the model is captured without the head
        return BaseHead(maker, reason=error.what + ("; found " + error.found if error.found else ""))
    except LIBRARY_ERRORS as error:  # for example, a head that requires a special token in every text
        return BaseHead(maker, reason=f"the complete model cannot compute an example; found {first_line(error)}")
    return BaseHead(maker, head, traced, notes=tuple(notes), cases=cases, results=results)


def head_results(
    whole: nn.Module, program: TorchBase, traced: TracedHead, outputs: Sequence[str]
) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Return inputs for a complete model, and its own results for them."""
    longest = min(program.max_tokens or _MOST_TOKENS, _MOST_TOKENS)
    drawn = input_cases(program.inputs, seed=0, lengths=program.lengths, max_tokens=longest)
    cases = [{name: torch.from_numpy(array) for name, array in traced.padded(case.arrays).items()} for case in drawn]
    with torch.inference_mode(), settled(whole):
        computed = [whole(**inputs) for inputs in cases]
    columns = [[values[name] for name in outputs] for values in computed]
    return cases, [torch.stack(one, -1) if len(one) > 1 else one[0] for one in columns]


def traced_head(whole: nn.Module, outputs: Sequence[str], examples: Examples) -> tuple[TorchBase, TracedHead]:
    """Return the program of a complete model and its head; only the first layer if that suffices to show the head."""

    def trace() -> tuple[TorchBase, TracedHead]:
        program = base_of(whole, *examples)
        return program, trace_head(program, outputs, vectors=outputs == [EMBEDDING])

    with _first_layers(whole) as fewer:
        if fewer:
            with suppress(InputError, *LIBRARY_ERRORS):
                return trace()
    return trace()


@contextmanager
def _first_layers(model: nn.Module) -> Iterator[bool]:
    """Remove all layers of a transformers model except the first of each list; yields whether it had any."""
    lists = [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]
    deep = [
        (owner, name, child)
        for owner, name, child in lists
        if isinstance(child, nn.ModuleList)
        and len(child) > 1
        and all(isinstance(layer, GradientCheckpointingLayer) for layer in child)
    ]
    try:
        for owner, name, child in deep:
            setattr(owner, name, nn.ModuleList([child[0]]))
        yield bool(deep)
    finally:
        for owner, name, child in deep:
            setattr(owner, name, child)


EMBEDDING = "sentence_embedding"
"""Result of a model that returns vectors, as named by sentence-transformers."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a model by name; the head reads its transpose if it is `turned`."""

    name: str
    turned: bool = False


@dataclass(frozen=True)
class TracedHead:
    """A model's head as a function of the final hidden state: its graph, the widths of its symbols, its tensors.

    `sources` are the tensors of the model that make those of the head; a constant of the program has none. A model that
    finds the last token by ids, and not by the mask, reads `ids`, in which `pad` is the padding id.
    """

    graph: AdapterGraph
    widths: Mapping[str, int]
    weights: Weights
    ids: str = ""
    mask: str = ""
    pad: int | None = None
    sources: Mapping[str, StoredTensor] = field(default_factory=dict)

    def padded(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return inputs with the padding id exactly where the mask hides tokens."""
        if self.pad is None:
            return arrays
        ids, other = arrays[self.ids], 1 if self.pad == 0 else 0
        return {**arrays, self.ids: np.where(arrays[self.mask] == 0, self.pad, np.where(ids == self.pad, other, ids))}


def trace_head(whole: TorchBase, outputs: Sequence[str], *, vectors: bool = False) -> TracedHead:
    """Return the head that computes these outputs of a model; several are its columns, such as start and end.

    Linear layers are named `dense_1` … and, unless the result is a vector, the last one `classifier`, as in
    `head_graph`, so that equal heads share their slots.

    Raises:
        NoSitesError: the model has no final hidden state.
        AdapterError: the head has an operation that the head language lacks; the error names it.
    """
    module, names = whole.flat, [record.name for record in whole.outputs]
    missing = [name for name in outputs if name not in names]
    if missing:
        raise AdapterError(
            "the model's outputs differ from those of its class", found=quoted(names), expected=quoted(outputs)
        )
    final = discover(whole.flow).final
    masks = masks_of(whole.inputs, whole.axes(final)[1])
    (returned,) = module.graph.find_nodes(op="output")
    values = dict(zip(names, returned.all_input_nodes, strict=True))
    return _Translator(module, final, masks[0] if len(masks) == 1 else None).head(
        [values[name] for name in outputs], vectors=vectors
    )


_ACTIVATIONS = {
    **{name: name for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "relu6", "mish", "elu")},
    "gelu_tanh": "gelu_tanh",
}
_SAME = frozenset({"contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "view", "reshape"})
_SAME |= {"expand", "flatten", "unsafe_view", "_unsafe_view", "type_as"}
"""Operations that have no effect if shape and type are unchanged."""

_OF_MASKS = frozenset({"unsqueeze", "expand", "expand_as", "to", "_to_copy", "type_as", "contiguous", "clone"})
"""Operations that preserve a mask."""

_UNIT = 1e-12
"""Minimum length that `l2_normalise` divides by."""


class _Translator:
    """Translates the nodes after the final hidden state in a model's graph into those of a head's graph."""

    def __init__(self, module: fx.GraphModule, final: str, mask: str | None) -> None:
        self._module, self._mask = module, mask
        (node,) = (node for node in module.graph.nodes if node.name == final)
        self._names = {final: "hidden", _through(node).name: "hidden"}
        self._dims: dict[str, Dim] = {"hidden": HEAD_VALUES["hidden"][-1]}
        self._nodes: list[Node] = []
        self._parameters: dict[str, Shape] = {}
        self._weights: Weights = {}
        self._read: dict[int, tuple[np.ndarray, StoredTensor]] = {}  # by the identity of an array
        self._sources: dict[str, StoredTensor] = {}
        self._widths: dict[str, int] = {"d": int(node.meta["val"].shape[-1])}
        self._ids, self._pad = "", cast("int | None", None)

    def head(self, outputs: Sequence[fx.Node], *, vectors: bool) -> TracedHead:
        result = self._value(outputs[0] if len(outputs) == 1 else self._joined(outputs))
        linears = [node.output for node in self._nodes if node.op == "linear"]
        named = not vectors and bool(linears) and self._dims[linears[-1]] == self._dims[result]
        return self._renamed(result, {linears[-1]: "classifier", str(self._dims[result]): CLASSES} if named else {})

    def _renamed(self, result: str, names: Mapping[str, str]) -> TracedHead:
        def parameter(name: str) -> str:
            owner, _, role = name.rpartition(".")
            return f"{names.get(owner, owner)}.{role}"

        nodes = tuple(
            Node(
                node.op,
                tuple(names.get(name, name) for name in node.inputs),
                names.get(node.output, node.output),
                {role: parameter(name) for role, name in node.parameters.items()},
                node.attributes,
            )
            for node in self._nodes
        )
        shapes = {
            parameter(name): tuple(names.get(dim, dim) if isinstance(dim, str) else dim for dim in shape)
            for name, shape in self._parameters.items()
        }
        read = {name for node in nodes for name in node.inputs}
        inputs = tuple(name for name in HEAD_VALUES if name in read)
        graph = AdapterGraph(inputs, shapes, nodes, names.get(result, result))
        widths = {names.get(symbol, symbol): width for symbol, width in self._widths.items()}
        return TracedHead(
            graph,
            {symbol: widths[symbol] for symbol in graph.symbols()},
            {parameter(name): tensor for name, tensor in self._weights.items()},
            self._ids,
            self._mask or "",
            self._pad,
            {parameter(name): source for name, source in self._sources.items()},
        )

    def _joined(self, outputs: Sequence[fx.Node]) -> fx.Node:
        """Return the value whose columns, in this order, are the outputs."""
        columns = [self._column(node) for node in outputs]
        source = columns[0][0]
        if columns != [(source, index) for index in range(_size(source, -1))]:
            raise _unknown(outputs[0], "outputs that are not columns of one value")
        return source

    def _column(self, node: fx.Node) -> tuple[fx.Node, int]:
        node = _through(node)
        if _op(node) == "squeeze" and node.args[1] in (-1, [-1], 2, [2]):
            node = _through(_first(node))
        if node.target is operator.getitem:
            split = _first(node)
            if _op(split) == "split" and split.args[1] == 1 and _last_axis(split, 2):
                return _through(_first(split)), cast(int, node.args[1])
        if _op(node) == "select" and _last_axis(node, 1):
            return _through(_first(node)), cast(int, node.args[2])
        raise _unknown(node)

    def _value(self, node: fx.Node) -> str:
        """Return the name of a node's value in the head's graph."""
        node = _through(node) if node.name not in self._names else node
        if node.name not in self._names:
            op = _op(node)
            known = _RULES.get(op)
            if node.op != "call_function" or (known is None and op not in _ACTIVATIONS):
                raise _unknown(node)
            self._names[node.name] = self._activation(node) if known is None else known(self, node)
        return self._names[node.name]

    def _add(
        self,
        op: str,
        *inputs: str,
        tensors: Mapping[str, np.ndarray] | None = None,
        attributes: Mapping[str, float] | None = None,
    ) -> str:
        """Append an op; its tensors are `<output>.<role>`."""
        stem = {"linear": "dense", "layer_norm": "norm"}.get(op, op)
        output = f"{stem}_{1 + sum(node.op == op for node in self._nodes)}"
        read = self._dims[inputs[0]]
        dims: dict[str, tuple[Dim, ...]] = {"weight": (read,), "bias": (read,)}
        width = read
        if op == "linear":
            width = f"e{output.removeprefix('dense_')}"
            dims = {"weight": (read, width), "bias": (width,)}
            assert tensors is not None
            self._widths[width] = tensors["weight"].shape[1]
        for role, tensor in (tensors or {}).items():
            self._parameters[f"{output}.{role}"] = dims[role]
            self._weights[f"{output}.{role}"] = np.ascontiguousarray(tensor, np.float32)
            if id(tensor) in self._read:
                self._sources[f"{output}.{role}"] = self._read[id(tensor)][1]
        roles = {role: f"{output}.{role}" for role in tensors or {}}
        self._nodes.append(Node(op, inputs, output, roles, attributes or {}))
        self._dims[output] = width
        return output

    def _tensor(self, node: Any) -> np.ndarray | None:
        """Return a weight of the model, transposed if the graph transposes it; `None` for any other value."""
        if not isinstance(node, fx.Node):
            return None
        if _op(node) in {"t", "transpose", "permute", "numpy_T"} and node.meta["val"].dim() == 2:
            return self._turned(_first(node))
        if node.op != "get_attr":
            return None
        value = operator.attrgetter(str(node.target))(self._module)
        if not isinstance(value, torch.Tensor):
            return None
        return self._known(value.detach().numpy(), StoredTensor(str(node.target)))

    def _known(self, tensor: np.ndarray, source: StoredTensor) -> np.ndarray:
        self._read[id(tensor)] = tensor, source
        return tensor

    def _activation(self, node: fx.Node) -> str:
        op, attributes = _op(node), {}
        if op == "gelu" and node.kwargs.get("approximate", "none") == "tanh":
            op = "gelu_tanh"
        if op == "leaky_relu":
            attributes = {"slope": float(node.args[1]) if len(node.args) > 1 else 0.01}  # type: ignore[arg-type]
        if op == "elu" and len(node.args) > 1 and node.args[1] != 1:
            raise _unknown(node)
        return self._add(op, self._value(_first(node)), attributes=attributes)

    def _linear(self, node: fx.Node) -> str:
        source, weight, *rest = node.args
        return self._product(node, source, self._turned(weight), rest[0] if rest else None)

    def _matmul(self, node: fx.Node) -> str:
        return self._product(node, node.args[0], self._tensor(node.args[1]), None)

    def _addmm(self, node: fx.Node) -> str:
        bias, source, weight = node.args[:3]
        if node.kwargs:
            raise _unknown(node)
        return self._product(node, source, self._tensor(weight), bias)

    def _turned(self, weight: Any) -> np.ndarray | None:
        tensor = self._tensor(weight)
        if tensor is None:
            return None
        source = self._read[id(tensor)][1]
        return self._known(tensor.T, replace(source, turned=not source.turned))

    def _product(self, node: fx.Node, source: Any, weight: np.ndarray | None, bias: Any) -> str:
        offset = self._tensor(bias)
        if weight is None or weight.ndim != 2 or (bias is not None and offset is None):
            raise _unknown(node)
        tensors = {"weight": weight} | ({} if offset is None else {"bias": offset})
        return self._add("linear", self._value(source), tensors=tensors)

    def _sum(self, node: fx.Node) -> str:
        """Translate the addition of a bias to a product, or of two values."""
        first, other = node.args[:2]
        if node.kwargs or not isinstance(first, fx.Node) or not isinstance(other, fx.Node):
            raise _unknown(node)
        product = _through(first)
        if self._tensor(other) is not None and _op(product) in {"matmul", "mm"} and len(product.users) == 1:
            return self._product(node, product.args[0], self._tensor(product.args[1]), other)
        return self._add("add", self._value(first), self._value(other))

    def _times(self, node: fx.Node) -> str:
        first, other = node.args[:2]
        if not isinstance(first, fx.Node):
            first, other = other, first
        assert isinstance(first, fx.Node)
        if isinstance(other, int | float):
            return self._add("scale", self._value(first), attributes={"factor": float(other)})
        if not isinstance(other, fx.Node):
            raise _unknown(node)
        for value, weight in ((first, other), (other, first)):
            tensor = self._tensor(weight)
            if tensor is not None and tensor.shape == (_size(value, -1),):
                return self._add("scale_features", self._value(value), tensors={"weight": tensor})
        return self._add("multiply", self._value(first), self._value(other))

    def _divided(self, node: fx.Node) -> str:
        """Translate a division by a number, of a masked sum by its count, or of a vector by its length."""
        above, below = node.args[:2]
        assert isinstance(above, fx.Node)
        if isinstance(below, int | float) and below:
            return self._add("scale", self._value(above), attributes={"factor": 1 / below})
        if not isinstance(below, fx.Node):
            raise _unknown(node)
        pooled = self._masked_sum(above)
        if pooled is not None and self._is_count(below):
            return self._add("mean_pool", self._value(pooled), "mask")
        if self._is_length(below, above):
            return self._add("l2_normalise", self._value(above))
        raise _unknown(node)

    def _masked_sum(self, node: fx.Node) -> fx.Node | None:
        """Return the value that a node sums over the tokens of the mask; `None` for other nodes."""
        node = _through(node)
        product = _through(_first(node)) if _sums_tokens(node) else node
        if _op(product) != "mul" or product is node:
            return None
        one, other = product.args[:2]
        pairs = [(one, other), (other, one)]
        return next((value for value, mask in pairs if isinstance(value, fx.Node) and self._is_mask(mask)), None)

    def _is_mask(self, node: Any) -> bool:
        while isinstance(node, fx.Node) and _op(node) in _OF_MASKS:
            node = node.args[0]
        return isinstance(node, fx.Node) and node.op == "placeholder" and node.name == self._mask

    def _is_count(self, node: fx.Node) -> bool:
        """Return whether it is the number of tokens in the mask, clamped to a minimum of up to 1."""
        node = _through(node)
        if _op(node) in {"clamp", "clamp_min"}:
            least = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
            if not isinstance(least, int | float) or least > 1 or len(node.args) > 2 or "max" in node.kwargs:
                return False
            node = _through(_first(node))
        if _op(node) == "unsqueeze":
            node = _through(_first(node))
        return _sums_tokens(node) and self._is_mask(_first(node))

    def _is_length(self, node: fx.Node, vector: fx.Node) -> bool:
        if _op(node) in {"expand_as", "expand"}:
            node = _first(node)
        if _op(node) not in {"clamp", "clamp_min"} or node.args[1:] != (_UNIT,) or node.kwargs:
            return False
        norm = _first(node)
        if _op(norm) not in {"linalg_vector_norm", "norm"} or _through(_first(norm)) is not _through(vector):
            return False
        order, axes, kept = (*norm.args[1:], *[None] * 3)[:3]
        axis = axes[0] if isinstance(axes, list | tuple) and len(axes) == 1 else None
        return order in (2, 2.0) and kept is True and axis in (-1, vector.meta["val"].dim() - 1)

    def _selected(self, node: fx.Node) -> str:
        source = _through(_first(node))
        if node.args[1:] != (1, 0) or source.meta["val"].dim() != 3:
            raise _unknown(node)
        return self._add("first_token", self._value(source))

    def _indexed(self, node: fx.Node) -> str:
        """Translate the last token of each row, pooled before the ops that act on each token separately.

        transformers computes `x[arange(batch), (arange(tokens) * (ids != pad)).argmax(-1)]` in `modeling_layers.py`.
        """
        source, places = node.args
        rows, last = places if isinstance(places, list | tuple) and len(places) == 2 else (None, None)
        if self._mask is None or self._nodes or not (_counts(rows) and isinstance(last, fx.Node)):
            raise _unknown(node)
        last = _through(last)
        product = _through(_first(last)) if _op(last) == "argmax" and _last_axis(last, 1) else last
        factors = [_uncast(one) for one in product.args] if _op(product) == "mul" else []
        kept = [one for one in factors if _op(one) == "ne"]
        if len(kept) != 1 or not any(_counts(one) for one in factors):
            raise _unknown(node)
        ids, pad = kept[0].args
        if not (isinstance(ids, fx.Node) and ids.op == "placeholder" and isinstance(pad, int)):
            raise _unknown(node)
        self._ids, self._pad = ids.name, pad
        self._names = dict.fromkeys(self._names, self._add("last_token", "hidden", "mask"))
        return self._value(cast(fx.Node, source))

    def _logarithm(self, node: fx.Node) -> str:
        """Translate log(1 + max(x, 0))."""
        positive = _through(_first(node))
        if _op(positive) != "relu":
            raise _unknown(node)
        return self._add("log_relu", self._value(_first(positive)))

    def _pooled(self, node: fx.Node) -> str:
        """Translate an operator of `pooling_operator`, whose name is that of the op."""
        op, (source, mask) = str(node.target).split(".")[1], node.args
        if not (isinstance(source, fx.Node) and self._is_mask(mask)):
            raise _unknown(node)
        return self._add(op, self._value(source), *["mask"][: OPS[op].arity.least - 1])

    def _squeezed(self, node: fx.Node) -> str:
        """Translate the first token, sliced as a text of one token."""
        cut = _through(_first(node))
        if _op(cut) != "slice" or tuple(cut.args[1:]) != (1, 0, 1) or node.args[1] not in (1, [1]):
            raise _unknown(node)
        return self._add("first_token", self._value(_first(cut)))

    def _mean(self, node: fx.Node) -> str:
        """Translate the mean over the tokens, which equals a masked mean if no token can be padding."""
        source, axes, *rest = node.args
        kept = rest[0] if rest else node.kwargs.get("keepdim", False)
        assert isinstance(source, fx.Node)
        if self._mask is not None or axes not in ([1], 1) or kept or source.meta["val"].dim() != 3:
            raise _unknown(node)
        return self._add("mean_pool", self._value(source), "mask")

    def _normed(self, node: fx.Node) -> str:
        source, shape, weight, bias, epsilon = (*node.args, *(None, None, 1e-5)[len(node.args) - 2 :])[:5]
        assert isinstance(shape, list | tuple)
        tensors = {"weight": np.ones(tuple(shape), np.float32) if weight is None else self._tensor(weight)}
        if bias is not None:
            tensors["bias"] = self._tensor(bias)
        present = {role: tensor for role, tensor in tensors.items() if tensor is not None and len(shape) == 1}
        if len(present) != len(tensors) or not isinstance(source, fx.Node):
            raise _unknown(node)
        return self._add(
            "layer_norm",
            self._value(source),
            tensors=present,
            attributes={"epsilon": float(epsilon)},  # type: ignore[arg-type]
        )

    def _dropped(self, node: fx.Node) -> str:
        rate = float(node.args[1])  # type: ignore[arg-type]
        value = self._value(_first(node))
        return self._add("dropout", value, attributes={"rate": rate}) if rate else value


_RULES: Mapping[str, Callable[[_Translator, fx.Node], str]] = {
    "linear": _Translator._linear,
    "addmm": _Translator._addmm,
    "matmul": _Translator._matmul,
    "mm": _Translator._matmul,
    "add": _Translator._sum,
    "mul": _Translator._times,
    "div": _Translator._divided,
    "select": _Translator._selected,
    "index": _Translator._indexed,
    POOLING_NAMESPACE: _Translator._pooled,
    "log1p": _Translator._logarithm,
    "squeeze": _Translator._squeezed,
    "mean": _Translator._mean,
    "layer_norm": _Translator._normed,
    "dropout": _Translator._dropped,
}
"""Translation of each torch operator into the head's graph."""


def _op(node: fx.Node) -> str:
    """Return the name of a torch operator without overload, or the namespace of another; empty for non-operators.

    An operator that writes into its input is the one that returns a new tensor, if nothing else reads that input.
    """
    if node.op != "call_function":
        return ""
    name = str(node.target).removeprefix("aten.").partition(".")[0]
    in_place = name.endswith("_") and not name.endswith("__")
    source = node.args[0] if in_place and node.args else None
    return name.removesuffix("_") if isinstance(source, fx.Node) and len(source.users) == 1 else name


def _first(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise _unknown(node)
    return source


def _through(node: fx.Node) -> fx.Node:
    """Return the first node before a chain of nodes that pass its value through."""
    while _op(node) in _SAME | {"slice"} and _unchanged(node):
        node = _first(node)
    return node


def _unchanged(node: fx.Node) -> bool:
    source = _first(node)
    if _op(node) == "slice":
        _, _, start, end, step = (*node.args, *(0, 0, sys.maxsize, 1)[len(node.args) - 1 :])[:5]
        return bool(start in (0, None) and end in (sys.maxsize, None) and step == 1)
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    alike = [str(size) for size in before.shape] == [str(size) for size in after.shape]
    return alike and before.dtype is after.dtype


def _sums_tokens(node: fx.Node) -> bool:
    return _op(node) == "sum" and len(node.args) > 1 and node.args[1] in ([1], 1, (1,))


def _uncast(node: Any) -> fx.Node:
    while _op(node) in {"to", "_to_copy", "type_as"}:
        node = _first(node)
    return cast(fx.Node, node)


def _counts(node: Any) -> bool:
    """Return whether it is the range 0 … n − 1."""
    return isinstance(node, fx.Node) and _op(node) == "arange" and len(node.args) == 1


def _size(node: fx.Node, axis: int) -> int:
    return int(node.meta["val"].shape[axis])


def _last_axis(node: fx.Node, place: int) -> bool:
    axis = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    return axis in (-1, _first(node).meta["val"].dim() - 1)


def _unknown(node: fx.Node, what: str | None = None) -> AdapterError:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", ""))[0] if stack else ""
    found = f"`{node.target}`" if node.op == "call_function" else f"`{node.name}`, which is not a hidden state"
    return AdapterError(
        "the head has an operation that the head language lacks",
        where=f"`{path}`" if path else None,
        found=what or found,
    )
