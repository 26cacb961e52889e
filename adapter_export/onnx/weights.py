"""A model and its weights on disk: one file for all large weights, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx.external import readable

WEIGHTS_FILE = "base.bin"

_RUNTIME_DOMAIN = "com.microsoft"

_EMBEDDED_BYTES = 1024
"""Smaller tensors stay in the graph's own file."""


def write_model(model: ir.Model, path: Path) -> None:
    """Write a graph, and the weights of its base beside it in `base.bin`; the slots stay in the graph's file.

    The weights are streamed: not the whole base is in memory at any time. The model refers to the new file afterwards.

    Raises:
        BaseModelError: the graph breaks a rule of ONNX.
        OSError: the operating system refused a write.
    """
    overridable = {value.name for value in model.graph.inputs}
    values = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None and value.name not in overridable
    ]
    large = [value for value in values if _is_large(value)]
    tensors = [readable(value.const_value) for value in large if value.const_value is not None]
    written = ir.external_data.convert_tensors_to_external(tensors, path.parent, WEIGHTS_FILE)
    for value, tensor in zip(large, written, strict=True):
        value.const_value = tensor
    for value in values:
        if value not in large and isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _embedded(value.const_value)
    ir.save(model, path)
    _check(path)


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > _EMBEDDED_BYTES


def _embedded(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(np.array(readable(tensor).numpy()), dtype=tensor.dtype, name=tensor.name)


def _check(path: Path) -> None:
    try:
        with _checkable(path) as file:
            onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        raise BaseModelError(
            "breaks a rule of ONNX",
            where=path.name,
            found=str(error).partition("\n")[0],
            fix="check the base with `onnx.checker`; if it passes, report this",
        ) from error


@contextmanager
def _checkable(path: Path) -> Iterator[Path]:
    """The file, or for a while a copy of it in which every operator stands in the domain that it belongs to.

    ONNX Runtime has operators of its own in the standard domain (`SimplifiedLayerNormalization`), and tools write them.
    """
    model = onnx.load(path, load_external_data=False)
    own = [node for node in model.graph.node if not node.domain and not onnx.defs.has(node.op_type)]
    if not own:
        yield path
        return
    for node in own:
        node.domain = _RUNTIME_DOMAIN
    if all(known.domain != _RUNTIME_DOMAIN for known in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(_RUNTIME_DOMAIN, 1))
    copy = path.with_name(f".{path.name}.check")
    try:
        onnx.save(model, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)
