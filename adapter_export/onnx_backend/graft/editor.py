"""Surgery on a copy of a base's graph: values looked up by name, replaced, made inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.slots import SLOT_PREFIX, first_free
from adapter_export.onnx_backend.view.flow import node_names

# Between the types of a base and float32, in which adapters compute.

NODE_SITE_KEY = "adapter_export.site"
"""Where in the metadata of a node stands the site that it was made for."""

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""What a base may compute in at a site."""


def check_floats(values: Mapping[str, ir.Value], where: str) -> None:
    """Refuse a base that computes in another type than float32 or float16 at a site.

    Raises:
        BaseModelError: it does.
    """
    other = {value.dtype.name for value in values.values() if value.dtype not in (None, *_TYPES)}
    if other:
        raise BaseModelError(
            "computes in a type that adapters do not have",
            where=f"site `{where}`",
            found=", ".join(sorted(other)),
            expected=" or ".join(kind.name for kind in _TYPES),
            fix="export the base in float32; `--base-precision` makes it smaller",
        )


def cast(tape: ir.tape.Tape, value: ir.Value, to: ir.DataType | None, owner: str, name: str) -> ir.Value:
    """The value in another type; itself where it has that type, or none that is known: most bases are float32."""
    if to is None or value.dtype in (None, to):
        return value
    full_name = f"{SLOT_PREFIX}{owner}/{name}.{to.name.lower()}"
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        # a `MatMul` of a cast of a transpose kills the process, in MatmulTransposeFusion of onnxruntime 1.32
        transposed = _typed_op(tape, "Cast", producer.inputs[0], {"to": to}, f"{full_name}.transposed", to, owner)
        return _typed_op(tape, "Transpose", transposed, producer.attributes, full_name, to, owner, value.shape)
    return _typed_op(tape, "Cast", value, {"to": to}, full_name, to, owner, value.shape)


def ones(tape: ir.tape.Tape, width: int, owner: str, name: str) -> ir.Value:
    """A constant [width], float32: the weight of a norm that has none."""
    full_name = f"{SLOT_PREFIX}{owner}/{name}"
    tensor = ir.tensor(np.ones(width, np.float32))
    output = ir.Value(name=full_name, type=ir.TensorType(tensor.dtype))
    metadata = {NODE_SITE_KEY: owner}
    return tape.op("Constant", (), {"value": tensor}, name=full_name, output=output, metadata_props=metadata)


def _typed_op(
    tape: ir.tape.Tape,
    op: str,
    value: ir.Value,
    attributes: Mapping[str, Any],
    name: str,
    kind: ir.DataType,
    owner: str,
    shape: ir.Shape | None = None,
) -> ir.Value:
    output = ir.Value(name=name, type=ir.TensorType(kind), shape=shape)
    plain = {key: each.value if isinstance(each, ir.Attr) else each for key, each in attributes.items()}
    return tape.op(op, [value], plain, name=name, output=output, metadata_props={NODE_SITE_KEY: owner})


@dataclass
class Graft:
    """A copy of a graph on which is worked.

    Attributes:
        model: the copy.
        values: its values by the names that they have in the original; a replaced one gives what replaced it.
        nodes: its nodes by the names that discovery gives them.
        names: every name that is taken.
    """

    model: ir.Model
    values: dict[str, ir.Value]
    nodes: dict[str, ir.Node]
    names: set[str] = field(default_factory=set)

    @classmethod
    def onto(cls, original: ir.Model) -> Graft:
        """Copy a graph; the weights are shared with it, not copied."""
        model = original.clone()
        graph = model.graph
        own = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        values = {value.name: value for value in own if value.name}
        inner = {value.name for node in graph.all_nodes() for value in node.outputs if value.name}
        nodes = {name: node for node, name in node_names(graph).items()}
        return cls(model, values, nodes, set(values) | inner)

    def value(self, name: str) -> ir.Value:
        """What now stands for a value of the base."""
        return self.values[name]

    def vacate(self, name: str) -> None:
        """Give an inner value of the base that has this name another one."""
        value = self.values.get(name)
        if value is not None and not value.is_graph_output() and not value.is_graph_input():
            value.name = first_free(f"{name}.base", self.names)
            self.names = self.names - {name} | {value.name}

    def take_name(self, name: str) -> str:
        """Reserve a name.

        Raises:
            BaseModelError: a value of the base has it.
        """
        if name in self.names:
            raise BaseModelError(
                "has a value with a name that the exported graph needs",
                found=f"`{name}`",
                expected="no value whose name begins with `adapter.` or `cut.`",
                fix="rename it in the base; is this a graph that has slots already?",
            )
        self.names.add(name)
        return name

    def free_name(self, name: str) -> str:
        """Reserve a name that is not taken: this one, or this one with a number."""
        return self.take_name(first_free(name, self.names))

    def add_slot(self, name: str, shape: ir.Shape, default: ir.TensorProtocol) -> ir.Value:
        """A new initializer that is an input as well, and so can be overridden."""
        value = ir.Value(name=self.take_name(name), shape=shape, type=ir.TensorType(default.dtype), const_value=default)
        self.model.graph.inputs.append(value)
        self.model.graph.register_initializer(value)
        return value

    def add_typed_input(self, name: str, dtype: ir.DataType, axes: Sequence[int | str]) -> ir.Value:
        """A new data input."""
        value = ir.Value(name=self.take_name(name), shape=ir.Shape(axes), type=ir.TensorType(dtype))
        self.model.graph.inputs.append(value)
        return value

    def add_input(self, name: str, like: ir.Value) -> ir.Value:
        """A new data input with the type and the shape of another value."""
        value = ir.Value(name=self.take_name(name), shape=like.shape, type=like.type)
        self.model.graph.inputs.append(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Let everyone who reads `old` read `new`, but the `nodes` that compute `new`, which go in behind `old`.

        An output of the graph keeps its name: `old` gets another one.
        """
        if new is old:
            return
        self.insert(nodes, old)
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        for node, index in [use for use in old.uses() if use.node not in nodes]:
            node.replace_input_with(index, new)
        if old.is_graph_output():
            self._hand_over_output(old, new)
        for name in [name for name, value in self.values.items() if value is old]:
            self.values[name] = new

    def insert(self, nodes: Sequence[ir.Node], behind: ir.Value) -> None:
        """Put nodes behind a value."""
        producer = behind.producer()
        first = next(iter(self.model.graph), None)
        if producer is not None:
            self.model.graph.insert_after(producer, nodes)
        elif first is not None:
            self.model.graph.insert_before(first, nodes)
        self._take_names(nodes)

    def add_before(self, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
        """Put nodes before one."""
        self.model.graph.insert_before(node, nodes)
        self._take_names(nodes)

    def append_output(self, tape: ir.tape.Tape, value: ir.Value, name: str, shape: ir.Shape) -> None:
        """Put the nodes of a tape at the end, and make a value an output of this name."""
        self.model.graph.extend(tape.nodes)
        self._take_names(tape.nodes)
        value.name, value.shape = self.take_name(name), shape
        self.model.graph.outputs.append(value)

    def expose(self, value: ir.Value, name: str) -> None:
        """Make a copy of a value an output of this name, so that the value keeps its own."""
        output = ir.Value(name=self.take_name(name), type=value.type, shape=value.shape)
        if output.type is None:
            output.type = ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.append(ir.Node("", "Identity", [value], outputs=[output], name=name))
        self.model.graph.outputs.append(output)

    def finish(self) -> ir.Model:
        """Bring the nodes into the order of evaluation."""
        self.model.graph.sort()
        return self.model

    def _take_names(self, nodes: Collection[ir.Node]) -> None:
        for node in nodes:
            for value in node.outputs:
                if value.name:
                    self.take_name(value.name)

    def _hand_over_output(self, old: ir.Value, new: ir.Value) -> None:
        for index, output in enumerate(self.model.graph.outputs):
            if output is old:
                self.model.graph.outputs[index] = new
        name = old.name
        assert name is not None  # an output has a name
        old.name = first_free(f"{name}.base", self.names)
        new.name = name
        self.names.add(old.name)
