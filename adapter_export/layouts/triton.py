"""What Triton runs: graphs, their `config.pbtxt`, and the adapters that calls send.

The fields are those of `inference.ModelConfig` (`protobuf/model_config.proto` in Triton's repository `common`). Its
ONNX Runtime backend takes overridable initializers as inputs with `optional: true`, where `max_batch_size` is 0. It
takes a call that has some of them and lacks others, too: so an adapter is one input, which is there or not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights
from adapter_export.errors import UsageError
from adapter_export.format.manifest import Axis, Manifest, SlotRecord

ADAPTER_INPUT = "adapter"
"""The input that holds all tensors of an adapter, float32 [numbers]."""

_TYPES = {
    **{f"float{bits}": f"TYPE_FP{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
    "bool": "TYPE_BOOL",
}
_ANY = -1


def model_config(manifest: Manifest, flavour: Literal["slots", "bank"], name: str) -> str:
    """Return the configuration of the graph `slots` or `bank`, in protobuf's text format.

    It is computed on the CPU, where the bundle's golden vectors were compared.
    """
    given = [_tensor(one.name, one.dtype, one.axes) for one in manifest.inputs]
    if flavour == "bank":
        assert manifest.bank is not None
        given.append(_tensor(manifest.bank.ids, "int64", ("batch",)))
    else:
        given.append(_tensor(ADAPTER_INPUT, "float32", ("numbers",), optional=True))
    results = [_tensor(one.name, one.dtype, one.axes) for one in manifest.outputs]
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"default_model_filename: {json.dumps(manifest.graphs[flavour])}",
        "max_batch_size: 0",
        *(f"input {one}" for one in given),
        *(f"output {one}" for one in results),
        "instance_group { kind: KIND_CPU }",
    ]
    return "\n".join(lines) + "\n"


def in_one(manifest: Manifest, tensors: Weights, where: str) -> np.ndarray:
    """Return the tensors of an adapter as one, float32 [numbers].

    In front is what depends on the adapter: for each slot of the manifest how many numbers it has, then, for slots with
    several axes that an adapter chooses, the lengths of these. Behind it are the tensors in the same order, row by row.

    Raises:
        UsageError: a tensor has so many numbers that no float32 holds how many.
    """
    ordered = [tensors[slot.name] for slot in manifest.slots]
    lengths = [
        tensor.shape[place]
        for slot, tensor in zip(manifest.slots, ordered, strict=True)
        for place in _chosen_together(slot)
    ]
    header = np.array([*(tensor.size for tensor in ordered), *lengths], np.int64)
    if header.max(initial=0) > 2**24:  # the integers that float32 has without gaps
        largest = max(zip(manifest.slots, ordered, strict=True), key=lambda pair: pair[1].size)[0].name
        raise UsageError(
            "is too large for Triton's one input", where=where, found=f"`{largest}`", expected="at most 2²⁴ numbers"
        )
    return np.concatenate([header.astype(np.float32), *(tensor.ravel() for tensor in ordered)])


def take_in_one(model: ir.Model, manifest: Manifest) -> None:
    """Make the slots of a graph parts of one overridable initializer, `ADAPTER_INPUT`; its default is neutral.

    Tensors of other lengths than the header says are an error of ONNX Runtime (`Split`, opset 13).
    """
    graph, slots = model.graph, manifest.slots
    neutral = {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in slots}
    default = in_one(manifest, neutral, "the base")
    given = ir.Value(
        name=ADAPTER_INPUT,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([f"{ADAPTER_INPUT}.numbers"]),
        const_value=ir.Tensor(default, name=ADAPTER_INPUT),
    )
    tape = ir.tape.Tape()

    def op(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        return tape.op(kind, inputs, attributes)

    def integers(*values: int) -> ir.Value:
        return tape.op("Constant", [], {"value_ints": list(values)})

    chosen = [(slot.name, place) for slot in slots for place in _chosen_together(slot)]
    last = len(slots) + len(chosen)
    header = op("Cast", op("Slice", given, integers(0), integers(last)), to=ir.DataType.INT64)
    sizes = op("Concat", integers(last), op("Slice", header, integers(0), integers(len(slots))), axis=0)
    parts = [ir.Value(name=f"{ADAPTER_INPUT}/header"), *(ir.Value(name=f"{slot.name}/numbers") for slot in slots)]
    tape.op_multi_out("Split", [given, sizes], {"axis": 0}, outputs=parts)
    for slot, part in zip(slots, parts[1:], strict=True):
        shape = integers(*(axis if isinstance(axis, int) else -1 for axis in slot.graph_axes))
        for place in _chosen_together(slot):
            at = len(slots) + chosen.index((slot.name, place))
            shape = op("ScatterElements", shape, integers(place), op("Slice", header, integers(at), integers(at + 1)))
        old = graph.initializers.pop(slot.name)
        graph.inputs.remove(old)
        new = ir.Value(name=slot.name, type=old.type, shape=old.shape)
        old.replace_all_uses_with(new)
        tape.op("Reshape", [part, shape], output=new)
    graph.inputs.append(given)
    graph.initializers[ADAPTER_INPUT] = given
    graph.insert_before(graph[0], tape.nodes)


def _chosen_together(slot: SlotRecord) -> list[int]:
    """Return the axes of a slot whose lengths its number of numbers does not tell: all that are free but the first."""
    return [place for place, axis in enumerate(slot.graph_axes) if isinstance(axis, str)][1:]


def _tensor(name: str, dtype: str, axes: Sequence[Axis], *, optional: bool = False) -> str:
    dims = [axis if isinstance(axis, int) else _ANY for axis in axes]
    shape = f"dims: {dims}" if dims else "dims: [1] reshape { shape: [] }"
    return f"{{ name: {json.dumps(name)} data_type: {_TYPES[dtype]} {shape}{' optional: true' if optional else ''} }}"
