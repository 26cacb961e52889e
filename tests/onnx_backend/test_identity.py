"""The fingerprint of an ONNX base depends only on its weights, not on their storage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_onnx import tiny_model

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx


def _inside(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "another_name"
    onnx.save(model, path)
    return path


def _one_file_each(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    return path


def _shuffled(model: onnx.ModelProto, folder: Path) -> Path:
    tensors = list(model.graph.initializer)
    random.Random(1).shuffle(tensors)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    model.doc_string, model.producer_name = "saved again", "somebody else"
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="other.bin", size_threshold=0)
    return path


def _typed_fields(model: onnx.ModelProto, folder: Path) -> Path:
    """Store numbers in `float_data` instead of bytes in `raw_data`."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor).ravel().tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, list(tensor.dims), values))
    return _inside(model, folder)


@pytest.mark.parametrize("store", [_inside, _one_file_each, _shuffled, _typed_fields])
def test_fingerprint_survives_another_storage_of_the_weights(
    base: OnnxBase, tmp_path: Path, store: Callable[[onnx.ModelProto, Path], Path]
) -> None:
    assert open_onnx(store(tiny_model(), tmp_path)).fingerprint == base.fingerprint


def test_weights_in_constant_nodes_count(tmp_path: Path) -> None:
    """Some exporters write weights as nodes."""
    found = set()
    for scale in (1.0, 2.0):
        model = tiny_model()
        (index,) = [i for i, tensor in enumerate(model.graph.initializer) if tensor.name == "l0_up"]
        tensor = numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[index]) * np.float32(scale))
        del model.graph.initializer[index]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["l0_up"], value=tensor))
        found.add(open_onnx(_inside(model, tmp_path)).fingerprint)
    assert len(found) == 2


def test_one_bit_of_a_weight_changes_the_fingerprint(base: OnnxBase, tmp_path: Path) -> None:
    model = tiny_model()
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "l1_down"]
    data = bytearray(tensor.raw_data)
    data[17] ^= 1
    tensor.raw_data = bytes(data)
    assert open_onnx(_inside(model, tmp_path)).fingerprint != base.fingerprint
