"""Split a bank below its first adapter: the lower part is computed once per text for any number of adapters.

The crossing values are found by dependency analysis. Values that do not depend on adapters could all be computed below;
those that depend on trained weights are, if their batch axis is known. Masks, positions and shapes are computed again
above, from copied input rows, so their number of rows is correct.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from adapter_export.errors import BaseModelError
from adapter_export.format.manifest import BankRecord, OutputRecord
from adapter_export.onnx_backend.base import operators
from adapter_export.onnx_backend.base.flow import activations_of, all_read, has_shapes, with_inferred_shapes
from adapter_export.onnx_backend.base.length_probe import axes
from adapter_export.onnx_backend.onnx_lowering import Writer
from adapter_export.onnx_backend.rewrite.surgery import GraphRewrite
from adapter_export.words import argument

ROWS_INPUT = "input_rows"

_ROWS_AXIS = "rows"
"""First axis of the upper graph's outputs."""

_WITHOUT = "leave `fanout` out of " + argument("variants")


@dataclass(frozen=True)
class Fanout:
    """A bank as two graphs, which share their weights with it.

    Attributes:
        prefix: from the data inputs, of any number of texts, to `values`; independent of adapters.
        upper: from the data inputs, `values`, and for each output row the text (`input_rows`, int64 [rows]) and the
            adapter (`adapter_ids`, int64 [rows]), to the outputs of the bank.
        values: outputs of `prefix` and inputs of `upper`; one axis of each has the name of the batch.
    """

    prefix: ir.Model
    upper: ir.Model
    values: tuple[OutputRecord, ...]


def cut_bank(bank: ir.Model, record: BankRecord) -> Fanout:
    """Split the graph of a bank below its first adapter.

    Raises:
        BaseModelError: there is no trained layer below the first adapter, or the batch axis of a crossing value is
            unknown.
    """
    whole = bank if has_shapes(bank.graph) else with_inferred_shapes(bank)
    for inferred, recorded in zip(whole.graph.outputs, bank.graph.outputs, strict=True):
        inferred.shape = recorded.shape  # recorded shapes, which the manifest repeats
    bank_inputs = {tensor.name for tensor in record.tensors} | {record.ids}
    batch = next(str(axes(value)[0]) for value in whole.graph.inputs if value.name == record.ids)
    crossing = _crossing(whole.graph, bank_inputs, batch)
    if not crossing:
        raise BaseModelError(
            "has no trained layer below the first adapter, so nothing can be shared",
            fix=_WITHOUT + ", or use adapters that act in upper layers only",
        )
    prefix = _prefix(whole, bank_inputs, crossing)
    return Fanout(prefix, _upper(whole, bank_inputs, crossing, batch), crossing_values(prefix))


def crossing_values(prefix: ir.Model) -> tuple[OutputRecord, ...]:
    """Return the values that the lower part of a bank passes to the upper one."""
    return tuple(
        OutputRecord(value.name or "", (value.dtype or ir.DataType.FLOAT).numpy().name, axes(value))
        for value in prefix.graph.outputs
    )


def _crossing(graph: ir.Graph, bank_inputs: Collection[str], batch: str) -> dict[str, int]:
    """Return the values to compute below, in order of evaluation, and the batch axis of each.

    `bank_inputs` are the inputs of the bank, on which everything above depends.
    """
    above = _depending(graph, {value for value in graph.inputs if value.name in bank_inputs})
    trained = _depending(graph, {value for value in _matrices(graph) if value not in above})
    computed = activations_of(graph)
    costly = {value for value in trained - above if value.name in computed and value.producer() is not None}
    waiting = [value for node in graph if not above.isdisjoint(node.outputs) for value in all_read(node)]
    waiting.extend(graph.outputs)
    seen: set[ir.Value] = set()
    axes: dict[ir.Value, int] = {}
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in seen or value in above or node is None:
            continue
        seen.add(value)
        axis = _batch_axis(value, batch) if value in costly else None
        if axis is not None:
            axes[value] = axis
        elif value in costly and _multiplies(node):
            raise BaseModelError(
                "does not record the batch axis of a value below the first adapter",
                where=f"`{value.name}`, which `{node.op_type}` computes",
                found=value.shape,
                expected=f"one axis `{batch}`",
                fix=_WITHOUT + ", or export the base again with shapes that have a separate batch axis",
            )
        else:
            waiting.extend(all_read(node))
    return {value.name or "": axes[value] for node in graph for value in node.outputs if value in axes}


def _depending(graph: ir.Graph, starts: Collection[ir.Value]) -> set[ir.Value]:
    """Return some values, and all values computed from them."""
    reached = set(starts)
    for node in graph:
        if not reached.isdisjoint(all_read(node)):
            reached.update(node.outputs)
    return reached


def _matrices(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the constants with two or more axes: trained weights, and occasionally a position table."""
    for value in (*graph.initializers.values(), *(node.outputs[0] for node in graph if node.op_type == "Constant")):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and len(tensor.shape) > 1:
            yield value


def _multiplies(node: ir.Node) -> bool:
    """Return whether a node computes with trained matrices."""
    op = node.op_type
    return op in operators.FACTORS or op in operators.CONVOLUTIONS or op.endswith("Attention")


def _batch_axis(value: ir.Value, batch: str) -> int | None:
    dims = [] if value.shape is None else [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return dims.index(batch) if dims.count(batch) == 1 else None


def _crossed(name: str) -> str:
    """Return the name of a value where it crosses from one graph to the other."""
    return f"prefix.{name}"


def _prefix(whole: ir.Model, bank_inputs: Collection[str], crossing: Collection[str]) -> ir.Model:
    model = whole.clone()
    graph = model.graph
    by_name = {value.name: value for node in graph for value in node.outputs}
    graph.outputs[:] = [by_name[name] for name in crossing]
    graph.inputs[:] = [value for value in graph.inputs if value.name not in bank_inputs]
    for value in graph.outputs:
        value.name = _crossed(value.name or "")
    RemoveUnusedNodesPass()(model)
    return model


def _upper(whole: ir.Model, bank_inputs: Collection[str], crossing: Mapping[str, int], batch: str) -> ir.Model:
    """Return the nodes above, on rows copied from the data inputs and from crossing values."""
    rewrite = GraphRewrite(whole)
    graph = rewrite.model.graph
    data = [value for value in graph.inputs if value.name not in bank_inputs]
    by_name = {value.name: value for node in graph for value in node.outputs}
    rows = rewrite.add_input(ROWS_INPUT, ir.TensorType(ir.DataType.INT64), ir.Shape([_ROWS_AXIS]))
    replacements = [(value, value, 0) for value in data]
    for name, axis in crossing.items():
        below = by_name[name]
        replacements.append((below, rewrite.add_input(_crossed(name), below.type, below.shape), axis))
    for value in (*by_name.values(), *(value for value in graph.inputs if value.name in bank_inputs)):
        _count_rows(value, batch)
    writer = Writer(ir.tape.Tape(), ROWS_INPUT, whole.opset_imports[""])
    # a negative row would count from the end; ONNX Runtime rejects an index beyond the last row
    none, zero = writer.integers("none", int(np.iinfo(np.int64).max)), writer.integers("zero", 0)
    negative = writer.op("negative", "Less", (rows, zero), type=ir.TensorType(ir.DataType.BOOL))
    checked = writer.op("checked", "Where", (negative, none, rows), type=rows.type)
    for below, source, axis in replacements:
        uses, name = list(below.uses()), below.name or ""
        copied = writer.op(name, "Gather", (source, checked), {"axis": axis}, type=source.type)
        for node, at in uses:
            node.replace_input_with(at, copied)
        for at, output in enumerate(graph.outputs):
            if output is below:
                graph.outputs[at], copied.shape = copied, below.shape
                below.name, copied.name = rewrite.free_name(f"{name}.below"), name
    graph.insert_before(next(iter(graph)), writer.tape.nodes)
    RemoveUnusedNodesPass()(rewrite.model)
    return rewrite.model


def _count_rows(value: ir.Value, batch: str) -> None:
    """Rename the batch axis of a shape to rows, and clear it if it is part of a sum or product."""
    if value.shape is not None:
        names = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        named = [_ROWS_AXIS if name == batch else name for name in names]
        value.shape = ir.Shape([None if isinstance(name, str) and batch in name else name for name in named])
