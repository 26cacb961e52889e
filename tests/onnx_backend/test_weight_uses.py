"""Weights of a graph as ONNX Runtime uses them: quantized by its quantizers, dequantized by its kernels."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
    QuantFormat,
    RTNWeightOnlyQuantConfig,
)

from adapter_export.errors import BaseModelError
from adapter_export.numerics.weight_match import StoredRows, WeightUse, match_weights
from adapter_export.onnx_backend.base.weight_uses import weight_uses

K, N = 112, 12
"""Width of four blocks of 32, the last one shorter."""


def product(weight: np.ndarray) -> onnx.ModelProto:
    """Return a graph with one product."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        product (float[rows, {K}] x) => (float[rows, {N}] y) {{ y = MatMul(x, weight) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    model.graph.node[0].name = "product"
    return model


def default(*, bits: int = 4, block: int = 32, symmetric: bool = True) -> DefaultWeightOnlyQuantConfig:
    return DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits, accuracy_level=1)


CONFIGS = {
    "symmetric": default(),
    "with zero points": default(symmetric=False),
    "blocks of 16": default(block=16),
    "8 bits": default(bits=8),
    "8 bits with zero points": default(bits=8, symmetric=False),
    "rtn": RTNWeightOnlyQuantConfig(),
    "k-quant": KQuantWeightOnlyQuantConfig(),
    "dequantized apart": DefaultWeightOnlyQuantConfig(quant_format=QuantFormat.QDQ, is_symmetric=False),
}


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.2, (K, N)).astype(np.float32)


def rows_of(use: WeightUse) -> StoredRows:
    """Return all rows, read in two parts."""
    parts = [use.read(0, 5), use.read(5, use.rows)]
    arrays = [(part.values, np.broadcast_to(part.half, part.values.shape)) for part in parts]
    return StoredRows(*(np.concatenate(each) for each in zip(*arrays, strict=True)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_dequantized_weights_are_those_of_onnxruntime_and_within_their_rounding(config, weight):
    quantizer = MatMulNBitsQuantizer(product(weight), block_size=32, algo_config=config)
    quantizer.process()
    model = quantizer.model.model
    (use,) = weight_uses(ir.from_proto(model))
    assert (use.rows, use.width) == (N, K)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (computed,) = session.run(None, {"x": np.eye(K, dtype=np.float32)})
    # a product with the identity adds zeros to one number, which is exact; but ONNX Runtime may subtract the zero point
    # after multiplying with the scale, two roundings of at most 255 steps of 1 / 255 of the range of 1.4
    np.testing.assert_allclose(rows_of(use).values, computed.T, rtol=0, atol=2 * 1.4 * 2.0**-24)
    (found,) = match_weights([use], [_trained(weight)], "model")
    assert 0.4 < found.steps <= 0.5
    assert found.saturated < weight.size / 10
    moved = weight.copy()
    moved[40, 7] += found.deviation * 4  # two steps
    with pytest.raises(BaseModelError, match="1 of 1,344 differ"):
        match_weights([use], [_trained(moved)], "model")


@pytest.mark.parametrize("config", ["symmetric", "with zero points", "8 bits"])
def test_numbers_halfway_between_steps_match_either_step(config):
    """They may round either way in float32, which adds the zero point to the quotient."""
    steps = np.concatenate([np.arange(-7, 7) + 0.5, [-8, 8]])
    halfway = np.outer(np.resize(steps, K), np.linspace(0.001, 0.02, N)).astype(np.float32)
    is_end = np.resize(np.abs(steps) == 8, K)[:, None]  # determines the scale
    beside = [np.where(is_end, halfway, np.nextafter(halfway, np.float32(sign))) for sign in (-9, 9)]
    for numbers in (halfway, *beside):
        quantizer = MatMulNBitsQuantizer(product(numbers), block_size=32, algo_config=CONFIGS[config])
        quantizer.process()
        (use,) = weight_uses(ir.from_proto(quantizer.model.model))
        match_weights([use], [_trained(numbers)], "model")


def _trained(weight: np.ndarray) -> WeightUse:
    return WeightUse("w", N, K, lambda start, end: StoredRows(weight.T[start:end], np.zeros((1, 1), np.float32)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_floats_are_within_half_a_unit_in_the_last_place(dtype, weight):
    weight = np.concatenate([weight, -np.logspace(-9, 1, K * N, base=2, dtype=np.float32).reshape(K, N)], 1)
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        product (float[rows, {K}] x) => (float[rows, {2 * N}] y) {{ y = MatMul(x, weight) }}"""
    )
    graph = ir.from_proto(model)
    graph.graph.register_initializer(
        ir.Value(name="weight", const_value=ir.tensor(weight.astype(dtype), name="weight"))
    )
    graph.graph.node(0).replace_input_with(1, graph.graph.initializers["weight"])
    (use,) = weight_uses(graph)
    trained = WeightUse("w", 2 * N, K, lambda s, e: StoredRows(weight.T[s:e], np.zeros((1, 1), np.float32)))
    (found,) = match_weights([use], [trained], "model")
    assert found.stored == np.dtype(dtype).name
    assert (found.steps == 0) == (dtype is np.float32)
    assert found.steps <= 0.5
    off = WeightUse("w", 2 * N, K, lambda s, e: StoredRows(np.nextafter(weight.T[s:e], 2), trained.read(s, e).half))
    if dtype is np.float32:
        with pytest.raises(BaseModelError, match=r"2,688 of 2,688 differ"):
            match_weights([use], [off], "model")


@pytest.mark.parametrize("zeros", [True, False])
def test_a_table_in_blocks_is_that_of_onnxruntime(zeros):
    rng, rows = np.random.default_rng(1), 10
    arrays = {
        "table": rng.integers(0, 256, (rows, 16), dtype=np.uint8),
        "scales": rng.normal(0, 0.2, (rows, 2)).astype(np.float32),
        "zeros": rng.integers(0, 256, (rows, 1), dtype=np.uint8),
    }
    read = "table, ids, scales, zeros" if zeros else "table, ids, scales"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        lookup (int64[n] ids) => (float[n, 32] y) {{
            y = com.microsoft.GatherBlockQuantized <block_size = 16, gather_axis = 0, quantize_axis = 1> ({read})
        }}"""
    )
    names = read.replace("ids, ", "").split(", ")
    model.graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in names)
    (use,) = weight_uses(ir.from_proto(model))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(rows_of(use).values, session.run(None, {"ids": np.arange(rows)})[0])


def test_positions_and_single_numbers_are_no_weights(tmp_path: Path):
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        turn (float[1, 2, n, 8] x, int64[1, n] at) => (float[1, 2, n, 8] z) {
            y = com.microsoft.RotaryEmbedding(x, at, cos, sin)
            z = Mul(y, scale)
        }"""
    )
    shapes = {"cos": (16, 4), "sin": (16, 4), "scale": (1,)}
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(s, np.float32), name) for name, s in shapes.items())
    assert weight_uses(ir.from_proto(model)) == []


def test_a_weight_that_is_computed_in_another_way_is_refused(weight):
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        product (float[rows, {K}] x) => (float[rows, {N}] y) {{
            sum = Add(weight, weight)
            y = MatMul(x, sum)
        }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    with pytest.raises(
        BaseModelError, match=r"`sum`: has a weight that cannot be compared.*found `Add` before `MatMul`"
    ):
        weight_uses(ir.from_proto(model))


def test_zero_points_of_a_wrong_number_are_refused(weight):
    quantizer = MatMulNBitsQuantizer(product(weight), algo_config=CONFIGS["with zero points"])
    quantizer.process()
    model = quantizer.model.model
    (zeros,) = (tensor for tensor in model.graph.initializer if "zero" in tensor.name)
    for shape, found in (((13,), "13 numbers"), ((N, 1), "4 scales and 2 zero points per row of 112")):
        zeros.CopyFrom(numpy_helper.from_array(np.zeros(shape, np.uint8), zeros.name))
        with pytest.raises(BaseModelError, match=f"has a weight that cannot be compared.*found {found}"):
            weight_uses(ir.from_proto(model))
