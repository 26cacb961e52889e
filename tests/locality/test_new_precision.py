"""A precision is a row in the format, a recipe, and how a graph in it is recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiny_onnx import random_adapter, save_tiny

import adapter_export as ae
from adapter_export.graph.kinds import houlsby
from adapter_export.onnx_backend.base.onnx_base import open_onnx

if TYPE_CHECKING:
    from conftest import TrialChange

RECIPE = '''"""Weights of products in 16 bits, widened before each product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adapter_export.onnx_backend.base.weight_file import array_of
from adapter_export.onnx_backend.quantise.graph_edits import (
    add_node,
    constant_matrix,
    drop_unused_weights,
    tensor_of,
)


def _stored_in_float16(model, precision, weights):
    halves = {}
    for node in [node for node in model.graph if node.op_type in ("MatMul", "Gemm")]:
        weight = constant_matrix(node.inputs[1])
        if weight is None:
            continue
        if weight not in halves:
            narrow = array_of(tensor_of(weight)).astype(np.float16)
            halves[weight] = weights.add(model.graph, f"{weight.name}.half", narrow)
        node.replace_input_with(1, add_node(node, "Cast", [halves[weight]], to=ir.DataType.FLOAT.value))
    drop_unused_weights(model)
    return model


RECIPES = {"fp16-weights": _stored_in_float16}
'''
OLD_FLOATS = '    floats: PrecisionName = "fp16" if half else "fp32"\n'
NEW_FLOATS = """    halves = (value for graph in model.graphs() for value in graph.initializers.values())
    readers = {node.op_type for value in halves if value.dtype == ir.DataType.FLOAT16 for node, _ in value.uses()}
    widened, half = half and readers == {"Cast"}, half and readers != {"Cast"}
    floats: PrecisionName = "fp16-weights" if widened else "fp16" if half else "fp32"
"""


def test_a_precision_touches_three_files(trial: TrialChange) -> None:
    names = '"fp32", "fp16", "int8", "int8-weights", "int4-weights"]'
    trial.edit("format/precision.py", names, names.replace('"fp16", ', '"fp16", "fp16-weights", '))
    row = '    "fp16": _Choices("float16", ("float16",), ("float16",)),\n'
    new = row + '    "fp16-weights": _Choices("16-bit weights", ("float32",), ("float32",)),\n'
    trial.edit("format/precision.py", row, new)
    trial.add("onnx_backend/quantise/recipes/float16_weights.py", RECIPE)
    trial.edit("onnx_backend/base/onnx_base.py", OLD_FLOATS, NEW_FLOATS)
    base = open_onnx(save_tiny(trial.folder))
    ae.save(random_adapter("a", houlsby(), base, labels="xy"), trial.folder / "a")
    build = ("build", base.path, "--adapters", "a", "--base-precision", "fp16-weights", "-o", "bundle")
    assert trial.json(*build)["manifest"]["base_precision"] == "fp16-weights"
    found = trial.json("check", "bundle", "--against", base.path)
    assert "16-bit weights" in found["reference"]
    assert trial.touched == [
        "format/precision.py",
        "onnx_backend/quantise/recipes/float16_weights.py",
        "onnx_backend/base/onnx_base.py",
    ]
