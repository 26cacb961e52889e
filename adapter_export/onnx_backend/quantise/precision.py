"""A base in another precision, made before the slots go in, so that nothing can quantise an adapter.

ONNX Runtime's own tools do it: dynamic quantisation, the quantiser of `MatMulNBits`, and the float16 converter. What
comes out is a base like any other: opened, its sites found again, and compared with those that were there before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from adapter_export.errors import BaseModelError, UsageError, argument
from adapter_export.format.manifest import Precision
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.base.numerics import numerics
from adapter_export.onnx_backend.quantise.rewrite import in_memory, write_rewritten

_BLOCK = 32
"""Weights that share one scale; the smallest block that `MatMulNBits` has, and the most exact."""

_FLOAT32_ACCURACY = 1
"""Of `MatMulNBits`: float32 activations. The default level differs from machine to machine by more than it saves."""

_SMALLEST_HALF, _LARGEST_HALF = 5.96e-8, 1e4
"""Weights of float16 are held within these. A mask of -1e4 is as good as -1e38, and two of them do not overflow."""

_PRODUCTS = ("MatMul", "Attention")
_LOOKUPS = ("Gather",)
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""Tells ONNX Runtime's quantiser that shapes are there, so that it does not ask for them in the log."""

_Convert = Callable[[onnx.ModelProto], onnx.ModelProto]

_QUANTISER_LOG = "%(asctime)s %(name)s [%(levelname)s] - %(message)s"

# take back what the quantiser's module does to the root logger when it is imported: all libraries would talk
for _handler in [each for each in logging.root.handlers if each.formatter and each.formatter._fmt == _QUANTISER_LOG]:
    logging.root.removeHandler(_handler)
    logging.root.setLevel(logging.WARNING)


def with_precision(base: OnnxBase, precision: Precision, folder: Path, *, int8_embeddings: bool = False) -> OnnxBase:
    """Write a base in another precision, and open it.

    Its fingerprint stays, since adapters that fit the base fit it as well. Its inputs and outputs stay float32. The
    weights of the base are in memory meanwhile.

    Args:
        base: a base in float32.
        precision: `fp16`; `int8`, dynamic quantisation per channel; `int8-weights` or `int4-weights`, float32 products
            with weights in blocks of 32; `fp32` is the base as it is.
        folder: where the files go, with the names `base.onnx` and `base.bin`.
        int8_embeddings: keep the embeddings in 8 bits beside weights of 8 or 4; `int8` does so in any case.

    Raises:
        UsageError: `int8_embeddings` with a precision of floats.
        BaseModelError: the base is not in float32, or has nothing to quantise, or its sites are no longer found.
    """
    if int8_embeddings and precision in ("fp32", "fp16"):
        raise UsageError("8-bit embeddings go with quantised weights", found=precision, fix="leave one of them out")
    if precision == "fp32":
        return base
    found = numerics(base.model).precision
    if found != "fp32":
        raise BaseModelError(
            "is not in float32 any more",
            where=base.path,
            found=found,
            expected=f"a base in float32 for {argument('base_precision', precision)}",
            fix=f"leave {argument('base_precision')} out to keep what it is, or give the base that it was made from",
        )
    with _quiet():
        proto = _CONVERSIONS[precision](_with_shapes(base))
        if int8_embeddings and precision != "int8":
            proto = _int8_tables(proto)
    made = write_rewritten(ir.from_proto(proto), base, folder, f"in {precision}")
    if numerics(made.model).precision != precision:
        raise BaseModelError(
            "has no products that can be quantised",
            where=base.path,
            found=f"none with a weight of its own among {len(base.model.graph)} nodes",
            expected="`MatMul` or `Gemm` with an initializer",
            fix="keep the base in float32, or in float16",
        )
    return made


def _half(proto: onnx.ModelProto) -> onnx.ModelProto:
    converted: onnx.ModelProto = convert_float_to_float16(
        proto,
        keep_io_types=True,
        disable_shape_infer=True,
        min_positive_val=_SMALLEST_HALF,
        max_finite_val=_LARGEST_HALF,
        node_block_list=_kept_in_float32(proto.graph),
    )
    return converted


def _kept_in_float32(graph: onnx.GraphProto) -> list[str]:
    """The names of products that read a transpose of the batch, and of those transposes.

    On a CPU, ONNX Runtime puts a cast between the two where they are float16, and then its MatmulTransposeFusion kills
    the process (seen with 1.32). torch's own `nn.TransformerEncoder` has them.
    """
    transposes, kept = {}, []
    for index, node in enumerate(graph.node):
        node.name = node.name or f"node_{index}"
        perm = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        if node.op_type == "Transpose" and (not perm or perm[0] != 0):
            transposes[node.output[0]] = node.name
    for node in graph.node:
        read = [transposes[name] for name in node.input if name in transposes]
        if read and node.op_type in ("MatMul", "Gemm"):
            kept += [node.name, *read]
    return kept


def _int8(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Embeddings, then products: at once, a product would read an embedding packed, around the residual stream."""
    return _dynamic(_int8_tables(proto), _PRODUCTS)


def _int8_tables(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Embeddings in 8 bits, unpacked behind the `Gather`, the packed rows under names that no later pass gives."""
    made = _dynamic(proto, _LOOKUPS)
    packed = {node.input[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    for node in made.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = f"{name}.packed" if name in packed else name
    return made


def _dynamic(proto: onnx.ModelProto, ops: tuple[str, ...]) -> onnx.ModelProto:
    """Dynamic quantisation of some operators; ONNX Runtime lacks the kernel for convolutions with signed weights."""
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            proto,
            path,
            op_types_to_quantize=list(ops),
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return onnx.load(path)


def _blockwise(bits: int) -> _Convert:
    def convert(proto: onnx.ModelProto) -> onnx.ModelProto:
        ONNXModel(proto).replace_gemm_with_matmul()
        config = DefaultWeightOnlyQuantConfig(
            block_size=_BLOCK, is_symmetric=False, accuracy_level=_FLOAT32_ACCURACY, bits=bits
        )
        quantizer = MatMulNBitsQuantizer(proto, algo_config=config)
        quantizer.process()
        made: onnx.ModelProto = quantizer.model.model
        return made

    return convert


_CONVERSIONS: dict[Precision, _Convert] = {
    "fp16": _half,
    "int8": _int8,
    "int8-weights": _blockwise(8),
    "int4-weights": _blockwise(4),
}


def _with_shapes(base: OnnxBase) -> onnx.ModelProto:
    """The whole base, with the shapes that are known: the operators of quantised graphs have no shape inference."""
    model = ShapeInferencePass(check_type=False, strict_mode=False)(in_memory(base)).model
    model.metadata_props.update([_PREPARED])
    return ir.to_proto(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log each node on the root logger's handlers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
