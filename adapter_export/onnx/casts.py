"""Between the types of a base and float32, in which adapters compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx.slots import SLOT_PREFIX

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
        turned = _typed_op(tape, "Cast", producer.inputs[0], {"to": to}, f"{full_name}.turned", to, owner)
        return _typed_op(tape, "Transpose", turned, producer.attributes, full_name, to, owner, value.shape)
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
