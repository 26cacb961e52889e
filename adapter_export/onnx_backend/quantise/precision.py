"""A base in another precision, made before the slots go in, so that nothing can quantise an adapter.

ONNX Runtime's own tools do it: dynamic quantisation, the quantiser of `MatMulNBits`, and the float16 converter. What
they make is a base like any other: written, opened, and its sites and its outputs compared with those of before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from adapter_export.errors import BaseModelError, argument
from adapter_export.format.precision import Precision
from adapter_export.onnx_backend.base.flow import with_inferred_shapes
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics
from adapter_export.onnx_backend.quantise.recipes import RECIPES
from adapter_export.onnx_backend.quantise.rewritten import in_memory, write_rewritten


def with_precision(base: OnnxBase, precision: Precision, folder: Path) -> OnnxBase:
    """Write a base of float32 in another precision, as `base.onnx` and `base.bin`, and open it.

    `int8` are products of 8-bit integers, with a scale for each token and each column of a weight; `int8-weights` and
    `int4-weights` have a scale for each block of a column, and of a token unless activations are float32.
    Fingerprint, inputs and outputs stay. The weights of the base are in memory meanwhile.

    Raises:
        BaseModelError: the base is not in float32, or has nothing to quantise, or its sites are no longer found.
    """
    if precision.name == "fp32":
        return base
    found = numerics(base.model).precision.name
    if found != "fp32":
        raise BaseModelError(
            "is not in float32 any more",
            where=base.path,
            found=found,
            expected=f"a base in float32 for {argument('base_precision', precision.name)}",
            fix=f"leave {argument('base_precision')} out to keep what it is, or give the base that it was made from",
        )
    model = with_inferred_shapes(in_memory(base))
    model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # the quantiser need not ask for shapes
    with _quiet():
        proto = RECIPES[precision.name](ir.to_proto(model), precision)
    made = write_rewritten(ir.from_proto(proto), base, folder, f"in {precision.name}")
    if numerics(made.model).precision.name != precision.name:
        raise BaseModelError(
            "has no products that can be quantised",
            where=base.path,
            found=f"none with a weight of its own among {len(base.model.graph)} nodes",
            expected="`MatMul` or `Gemm` with an initializer",
            fix="keep the base in float32, or in float16",
        )
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log each node on the root logger's handlers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
