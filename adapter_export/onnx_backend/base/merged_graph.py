"""ONNX graph with the weights of a merged adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base.external import in_memory, read_model, settle_external_data
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, OnnxBase

MERGED_KEY = "adapter_export.merged"
"""Metadata key of the record of a merged adapter, as JSON."""

_MOST_BYTES = 2**31 - 2**20
"""Maximum size of a graph in one file: protobuf's limit."""

_FIX = "merge into the model that it was exported from, and export that"


def write_merged(base: OnnxBase, tensors: Mapping[str, np.ndarray], record: Mapping[str, str], path: Path) -> None:
    """Write the graph of a base's file with new weights by name, and without its old fingerprint.

    Raises:
        BaseModelError: a weight is not an initializer, or the graph is too large for one file.
    """
    model = read_model(base.path, lambda reason: BaseModelError("cannot be read again", where=base.path, found=reason))
    settle_external_data(model, base.path)
    known = model.graph.initializers
    for name, array in tensors.items():
        value = known.get(name)
        if value is None or value.const_value is None:
            raise BaseModelError("stores a weight, but not as an initializer", where=f"{base.path}, `{name}`", fix=_FIX)
        value.const_value = ir.Tensor(np.ascontiguousarray(array, value.const_value.numpy().dtype), name=name)
    total = sum(value.const_value.nbytes for value in known.values() if value.const_value is not None)
    if total > _MOST_BYTES:
        raise BaseModelError(
            "is too large for one file",
            where=base.path,
            found=f"{total / 1e9:.1f} GB",
            expected="2 GB",
            fix=_FIX,
        )
    for value in known.values():
        if value.const_value is not None:
            value.const_value = in_memory(value.const_value)
    model.metadata_props.pop(FINGERPRINT_KEY, None)
    model.metadata_props[MERGED_KEY] = json.dumps(record, sort_keys=True)
    ir.save(model, path)
