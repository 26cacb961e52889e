"""Triton's `config.pbtxt` of a graph whose adapters are fed with each call.

The fields are those of `inference.ModelConfig` (`protobuf/model_config.proto` in Triton's repository `common`). Its
ONNX Runtime backend takes overridable initializers as inputs with `optional: true`, where `max_batch_size` is 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from adapter_export.format.manifest import Axis, Manifest

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
        slots = [(tensor.name, tensor.axes) for tensor in manifest.bank.tensors]
    else:
        slots = [(slot.name, slot.axes) for slot in manifest.slots]
    given += [_tensor(slot, "float32", axes, optional=True) for slot, axes in slots]
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


def _tensor(name: str, dtype: str, axes: Sequence[Axis], *, optional: bool = False) -> str:
    dims = [axis if isinstance(axis, int) else _ANY for axis in axes]
    shape = f"dims: {dims}" if dims else "dims: [1] reshape { shape: [] }"
    return f"{{ name: {json.dumps(name)} data_type: {_TYPES[dtype]} {shape}{' optional: true' if optional else ''} }}"
