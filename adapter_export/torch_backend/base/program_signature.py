"""Inputs and outputs of an exported program: names, types, shapes, roles."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from adapter_export.errors import BaseModelError
from adapter_export.format.manifest import Axis, InputRecord, OutputRecord

_CONSTANT_INPUTS = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
_PASSED_ON = frozenset(
    {
        *("to", "_to_copy", "view", "_unsafe_view", "reshape", "contiguous", "clone", "alias", "detach"),
        *("expand", "squeeze", "unsqueeze", "flatten", "long", "int"),
    }
)
"""Ops that preserve indices."""


class Signature:
    """Inputs and outputs of a program, by their names for users.

    `axes` are the axis names of each input as given at capture; those of an unknown program come from their position:
    axis 0 is `batch`, axis 1 of an integer matrix `sequence`.

    Raises:
        BaseModelError: an input or output is not a tensor, or the program changes its own weights.
    """

    def __init__(self, program: ExportedProgram, axes: Mapping[str, Sequence[Axis]] | None = None) -> None:
        self._program = program
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._given = axes or {}
        self._symbols: dict[str, str] = {}
        _check_kinds(program)
        self._names = _input_names(program)
        for placeholder, name in self._names.items():
            self._name_axes(name, self._nodes[placeholder].meta["val"])

    def inputs(self) -> tuple[InputRecord, ...]:
        """Inputs, in the order of the program."""
        return tuple(self._input(placeholder, name) for placeholder, name in self._names.items())

    def outputs(self) -> tuple[OutputRecord, ...]:
        """Outputs, in the order of the program; one with the name of an input is called `<name>_output`."""
        values = [self._nodes[spec.arg.name].meta["val"] for spec in self._program.graph_signature.output_specs]
        # dict keys and indices joined by dots; without keys, `output`
        tree = pytree.tree_unflatten(list(range(len(values))), self._program.call_spec.out_spec)
        taken = set(self._names.values())
        names = [f"{name}_output" if name in taken else name for name in _leaf_names(tree, "")]
        if not names or len(names) != len(values) or len(set(names)) != len(names):
            raise _unusable("has outputs without distinct names", ", ".join(names) or "no outputs")
        return tuple(OutputRecord(name, _dtype(v), self.axes(v)) for name, v in zip(names, values, strict=True))

    def ranges(self) -> dict[str, tuple[int, int | None]]:
        """Minimum and maximum length of each dynamic axis, from torch's ranges and from position tables."""
        ranges_by_axis: dict[str, tuple[int, int | None]] = {}
        for symbol, axis in self._symbols.items():
            highest = list(_rows_of_positions(self._program.graph, symbol))
            ranges = self._program.range_constraints
            constraint = next((one for name, one in ranges.items() if str(name) == symbol), None)
            if constraint is not None and constraint.upper.is_Integer:
                highest.append(int(constraint.upper))
            low = int(constraint.lower) if constraint is not None and constraint.lower.is_Integer else 1
            ranges_by_axis[axis] = (low, min(highest, default=None))
        return ranges_by_axis

    def _name_axes(self, name: str, value: Tensor) -> None:
        axes = self._given.get(name, ())
        sizes: Sequence[Any] = value.shape
        for index, size in enumerate(sizes):
            if not isinstance(size, torch.SymInt):
                continue
            label: Axis = axes[index] if index < len(axes) else 0
            if isinstance(label, int):
                label = self._by_place(name, value, index)
            self._symbols.setdefault(str(size.node.expr), label)

    def _by_place(self, name: str, value: Tensor, index: int) -> str:
        matrix = value.dim() == 2 and not value.is_floating_point()
        label = "batch" if index == 0 else "sequence" if index == 1 and matrix else f"{name}_axis_{index}"
        # an axis whose length differs from the existing `sequence` needs another name
        return f"{name}_{label}" if label == "sequence" and label in self._symbols.values() else label

    def axes(self, value: Tensor) -> tuple[Axis, ...]:
        """Return the axes of a value of the program; dynamic ones have the names used for the inputs."""
        return tuple(size if isinstance(size, int) else self.renamed(str(size.node.expr)) for size in value.shape)

    def renamed(self, expression: str) -> str:
        """Return a size in terms of axis names: `2*s18` becomes `2*batch`."""
        return re.sub(r"\b[su]\d+\b", lambda match: self._symbols.get(match[0], match[0]), expression)

    def _input(self, placeholder: str, name: str) -> InputRecord:
        value = self._nodes[placeholder].meta["val"]
        limits = list(self._embedding_rows(self._nodes[placeholder]))
        if limits:
            return InputRecord(name, _dtype(value), self.axes(value), "ids", min(limits))
        role: Literal["mask", "values"] = "mask" if value.dim() == 2 and not value.is_floating_point() else "values"
        return InputRecord(name, _dtype(value), self.axes(value), role)

    def _embedding_rows(self, node: fx.Node) -> Iterator[int]:
        """Yield the number of rows of each weight that is indexed by this value."""
        for user in node.users:
            op = _op(user)
            if op == "embedding" and user.args[1] is node and isinstance(user.args[0], fx.Node):
                yield int(user.args[0].meta["val"].shape[0])
            elif op in _PASSED_ON and user.args[0] is node:
                yield from self._embedding_rows(user)


def _rows_of_positions(graph: fx.Graph, length: str) -> Iterator[int]:
    """Yield the number of rows of each weight that is indexed by the numbers from 0 to a length."""
    for node in graph.nodes:
        if _op(node) == "embedding":
            index = node.args[1]
            while _op(index) in _PASSED_ON:
                index = index.args[0]
            if _op(index) == "arange" and str(index.meta["val"].shape[0]) == length:
                yield int(node.args[0].meta["val"].shape[0])


def _op(node: fx.Node) -> str:
    """Return the name of an operator without namespace and overload."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def changed_values(program: ExportedProgram) -> Iterator[str]:
    """Yield the names of weights and inputs that a program writes into; weights as in the module."""
    for output in program.graph_signature.output_specs:
        if output.kind != OutputKind.USER_OUTPUT:
            yield str(output.target)
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target is not None}
    for node in program.graph.nodes:
        changed = _changed_in_place(node)
        if changed is not None:
            yield targets.get(changed.name, changed.name)


def _check_kinds(program: ExportedProgram) -> None:
    for spec in program.graph_signature.input_specs:
        if spec.kind not in _CONSTANT_INPUTS and not isinstance(spec.arg, TensorArgument):
            raise _unusable("has an input that is not a tensor", f"`{spec.arg.name}`")
    for name in changed_values(program):
        raise _unusable("changes its own weights or inputs when it runs", f"`{name}`")
    for output in program.graph_signature.output_specs:
        if not isinstance(output.arg, TensorArgument):
            raise _unusable("returns a value that is not a tensor", f"`{getattr(output.arg, 'value', None)}`")
    for node in program.graph.nodes:
        if _is_random(node):
            raise BaseModelError(
                "is random in `eval` mode: each run draws new numbers",
                where=f"`{node.name}`",
                found=f"`{_op(node)}`",
                expected="a deterministic model",
                fix="remove it from the model, or make its result an input, and capture it again",
            )


def _is_random(node: fx.Node) -> bool:
    """Return whether an op draws random numbers; dropout at rate 0 or outside of training does not."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    given = {one.name: one.default_value for one in target._schema.arguments}
    given |= dict(zip(names, node.args, strict=False)) | node.kwargs
    return all(given.get(name, True) for name in ("train", "training", "p", "dropout_p"))


def _changed_in_place(node: fx.Node) -> fx.Node | None:
    """Return the weight or input that an op writes into, directly or through a view of it."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    arguments = zip(node.target._schema.arguments, node.args, strict=False)
    written = [value for schema, value in arguments if schema.alias_info is not None and schema.alias_info.is_write]
    roots = (_root(value) for value in written if isinstance(value, fx.Node))
    return next((root for root in roots if root.op == "placeholder"), None)


def _root(node: fx.Node) -> fx.Node:
    """Return the node that a view shows."""
    while isinstance(node.target, torch._ops.OpOverload) and isinstance(node.args[0], fx.Node):
        aliases = any(value.alias_info is not None for value in node.target._schema.returns)
        source = node.args[0]
        if not aliases or source.meta["val"].dtype != node.meta["val"].dtype:
            return node
        node = source
    return node


def _unusable(what: str, found: str) -> BaseModelError:
    return BaseModelError(
        what,
        found=found,
        expected="a model in `eval` mode that takes and returns tensors",
        fix="wrap the model so that it does, and save it with `ae.capture`",
    )


def _input_names(program: ExportedProgram) -> dict[str, str]:
    """Return the arguments' names by placeholder, followed by keys and indices inside containers, joined by dots.

    Unknown names of arguments or keys are replaced by torch's own.
    """
    specs = program.graph_signature.input_specs
    placeholders = [spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT]
    args, kwargs = pytree.tree_unflatten(placeholders, program.call_spec.in_spec)
    known = program.module_call_graph[0].signature
    forward = (known.forward_arg_names if known is not None else None) or []
    arguments = [*zip(forward, args, strict=False), *kwargs.items()]
    names = [leaf for name, value in arguments for leaf in _leaf_names(value, name)]
    return dict(zip(placeholders, names if len(names) == len(placeholders) else placeholders, strict=True))


def _leaf_names(value: Any, prefix: str) -> Iterator[str]:
    if not isinstance(value, Mapping | tuple | list):
        yield prefix or "output_0"
        return
    for key, member in value.items() if isinstance(value, Mapping) else enumerate(value):
        first = key if isinstance(key, str) else f"output_{key}"
        yield from _leaf_names(member, f"{prefix}.{key}" if prefix else first)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
