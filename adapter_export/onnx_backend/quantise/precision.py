"""Convert a base to another precision before slots are inserted, so that adapters are never quantized.

ONNX Runtime's tools do the arithmetic, one weight at a time: its quantizer of embeddings, that of `MatMulNBits`, and
the float16 converter. The result is a base like any other: it is written and opened, and its sites and outputs are
compared with the original.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.format.precision import Precision
from adapter_export.onnx_backend.base.flow import with_inferred_shapes
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics
from adapter_export.onnx_backend.base.weight_file import WeightFile
from adapter_export.onnx_backend.quantise.recipes import RECIPES
from adapter_export.onnx_backend.quantise.rewritten import rewrite_base
from adapter_export.tables import number_of
from adapter_export.words import argument


def convert_precision(base: OnnxBase, precision: Precision, folder: Path) -> OnnxBase:
    """Convert a float32 base to another precision, write it as `base.onnx` and `base.bin`, and open it.

    `int8` uses products of 8-bit integers, with a scale per token and per column of a weight. `int8-weights` and
    `int4-weights` have a scale per block of a column, and per token unless activations are float32. Fingerprint, inputs
    and outputs are unchanged. One weight at a time is in memory.

    Raises:
        BaseModelError: the base is not in float32, has nothing to quantize, or its sites are no longer found.
    """
    if precision.name == "fp32":
        return base
    precision_found = numerics(base.model).precision.name
    if precision_found != "fp32":
        raise BaseModelError(
            "is not in float32",
            where=base.path,
            found=precision_found,
            expected="a base in float32 for " + argument("base_precision", precision.name),
            fix="remove " + argument("base_precision") + " to keep its precision, or use the original float32 base",
        )

    def convert(model: ir.Model, weights: WeightFile) -> ir.Model:
        return RECIPES[precision.name](with_inferred_shapes(model), precision, weights)

    rewritten = rewrite_base(base, folder, f"in {precision.name}", convert)
    if numerics(rewritten.model).precision.name != precision.name:
        raise BaseModelError(
            "has no products that can be quantized",
            where=base.path,
            found=f"no product with an initializer among {number_of(len(base.model.graph), 'node')}",
            expected="`MatMul` or `Gemm` with an initializer",
            fix="keep the base in float32, or in float16",
        )
    return rewritten
