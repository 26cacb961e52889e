"""Recipes of precisions: the same numbers as ONNX Runtime's tools for whole graphs, and one weight in memory at a time.

A weight with two uses, such as a table that the language head transposes, is quantized for each.
"""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from building import in_precision
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from tiny_onnx import save_tiny, tiny_model, token_inputs

from adapter_export.format.precision import PrecisionName
from adapter_export.numerics.sample_inputs import loss_cases
from adapter_export.onnx_backend.base import weight_file
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.quantise.rewritten import deviations
from adapter_export.runtime.graphs import Arrays, run_session
from adapter_export.runtime.graphs import open_session as open_file

CHANGED: tuple[PrecisionName, ...] = ("fp16", "int8", "int8-weights", "int4-weights")


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def tied_model() -> onnx.ModelProto:
    """A transformer whose table is the language head, too."""
    model = tiny_model(more=", float[batch, tokens, 40] words")
    model.graph.node.extend(
        [
            onnx.helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            onnx.helper.make_node("MatMul", ["hidden", "turned"], ["words"]),
        ]
    )
    return model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return open_onnx(save_tiny(tmp_path_factory.mktemp("tied"), tied_model()))


def results(base: OnnxBase) -> Arrays:
    return run_session(open_session(base.model, base.folder), token_inputs(7, 5, 1))


class TestNumbers:
    @pytest.mark.parametrize(("precision", "bits"), [("int8-weights", 8), ("int4-weights", 4)])
    def test_quantized_weights_match_the_quantizer_of_onnxruntime(
        self, precision: PrecisionName, bits: int, base: OnnxBase, tmp_path: Path
    ) -> None:
        config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, accuracy_level=1, bits=bits)
        quantizer = MatMulNBitsQuantizer(onnx.load(base.path), algo_config=config)
        quantizer.process()
        expected = run_session(open_file(quantizer.model.model.SerializeToString()), token_inputs(7, 5, 1))
        made = in_precision(base, precision, new_folder(tmp_path / "made"), float32_activations=True)
        assert np.array_equal(results(made)["hidden"], expected["hidden"])

    def test_float16_graphs_match_the_converter_of_onnxruntime(self, base: OnnxBase, tmp_path: Path) -> None:
        whole = convert_float_to_float16(onnx.load(base.path), keep_io_types=True, max_finite_val=1e4)
        expected = run_session(open_file(whole.SerializeToString()), token_inputs(7, 5, 1))
        found = results(in_precision(base, "fp16", tmp_path))
        assert np.array_equal(found["hidden"], expected["hidden"])

    def test_int8_tables_match_the_quantizer_of_onnxruntime(self, base: OnnxBase, tmp_path: Path) -> None:
        path = tmp_path / "dynamic.onnx"
        quantize_dynamic(base.path, path, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
        expected = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
        made = in_precision(base, "int8", new_folder(tmp_path / "made")).model.graph.initializers
        for name in ("table_quantized", "table_scale", "table_zero_point"):
            found = made[name].const_value
            assert found is not None
            assert np.array_equal(found.numpy(), expected[name])

    @pytest.mark.parametrize("precision", CHANGED)
    def test_do_not_depend_on_the_parts_that_are_read(
        self, precision: PrecisionName, tied: OnnxBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        embeddings = {"int8_embeddings": True} if "weights" in precision else {}
        written = []
        for name, size in (("whole", 2**24), ("parts", 300)):
            monkeypatch.setattr(weight_file, "_PART_BYTES", size)
            made = in_precision(tied, precision, new_folder(tmp_path / name), **embeddings)
            written.append((made.folder / "base.bin").read_bytes())
        assert written[0] == written[1]


class TestTiedEmbeddings:
    @pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights"])
    def test_tied_embeddings_are_quantized_for_each_use(
        self, precision: PrecisionName, tied: OnnxBase, tmp_path: Path
    ) -> None:
        made = in_precision(tied, precision, tmp_path, int8_embeddings=precision != "int8")
        ops = Counter(node.op_type for node in made.model.graph)
        assert ops["MatMulIntegerToFloat" if precision == "int8" else "MatMulNBits"] == 6 * 2 + 1
        assert (ops["Transpose"], numerics(made.model).precision.embeddings) == (2, "int8")  # those of attention
        initializers = made.model.graph.initializers.values()
        floats = [value for value in initializers if value.dtype is not None and value.dtype.numpy() == np.float32]
        shapes = [value.shape for value in floats if value.shape is not None and value.name is not None]
        assert all(40 not in shape for shape in shapes if len(shape) == 2 and 16 in shape)
        for each in deviations(tied, made, loss_cases(tied.inputs, tied.lengths)):
            assert each.cosine > 0.9

    @pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
    def test_tied_float32_embeddings_are_shared(self, precision: PrecisionName, tied: OnnxBase, tmp_path: Path) -> None:
        made = in_precision(tied, precision, tmp_path)
        ops = Counter(node.op_type for node in made.model.graph)
        assert (ops["MatMulNBits"], ops["Transpose"]) == (6 * 2, 2 + 1)

    def test_tied_embeddings_read_by_a_sum_keep_their_floats(self, tmp_path: Path) -> None:
        model = tiny_model(more=", float[40, 16] sums")
        model.graph.node.append(onnx.helper.make_node("Add", ["table", "one"], ["sums"]))
        base = open_onnx(save_tiny(tmp_path, model))
        made = in_precision(base, "int8", new_folder(tmp_path / "made"))
        assert np.array_equal(results(made)["sums"], results(base)["sums"])


@pytest.mark.extended
@pytest.mark.parametrize("precision", CHANGED)
def test_one_weight_at_a_time_is_in_memory(precision: PrecisionName, tmp_path: Path) -> None:
    """NumPy reports its arrays to tracemalloc, but not those on mapped files; the largest weight has 8 MiB of 64."""
    base = open_onnx(save_tiny(tmp_path, tiny_model(width=1024)))
    out = new_folder(tmp_path / "made")
    tracemalloc.start()
    try:
        in_precision(base, precision, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * (tmp_path / "tiny.onnx.data").stat().st_size
