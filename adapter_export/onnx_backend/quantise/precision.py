"""A base in another precision, made before the slots go in, so that nothing can quantise an adapter.

ONNX Runtime's own tools do it: dynamic quantisation, the quantiser of `MatMulNBits`, and the float16 converter. What
they make is a base like any other: written, opened, and its sites and its outputs compared with those of before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError, NothingComparedError, UsageError, argument
from adapter_export.format.manifest import Precision
from adapter_export.numerics.budget import budget, extent
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base import external
from adapter_export.onnx_backend.base.flow import with_inferred_shapes
from adapter_export.onnx_backend.base.normalise import correct_shapes
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, OnnxBase, numerics, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues

_FLOAT32_LEVEL, _INT8_LEVEL = 1, 4
"""Accuracy levels of `MatMulNBits`: how it takes activations. Without one, machines differ by more than that saves."""

_SMALLEST_BLOCK, _LARGEST_BLOCK = 32, 64
"""Weights of `MatMulNBits` that share one scale: what is most exact, and what is fastest beside 8-bit activations.

In larger ones (with 4 bits, in those above 32) tokens are multiplied two by two, and the last of an odd number by
another kernel: what rounding to 8 bits makes of that difference moves a token by a hundredth."""

_LARGEST_ACTIVATION, _ZERO = 127, 128
_LARGEST_WEIGHT = 63
"""Processors without VNNI add up two products of bytes in 16 bits, and cut off what does not fit: 2 x 255 x 63 does."""

_TINY = 1e-30

_AXES_OF_MAX_OPSET = 18
"""From this opset on, the axes of `ReduceMax` and `ReduceMean` are an input."""

_SMALLEST_HALF, _LARGEST_HALF = 5.96e-8, 1e4
"""Weights of float16 are kept between these. A mask of -1e4 is as good as -1e38, and two of them do not overflow."""


_QUANTISER_LOG = "%(asctime)s %(name)s [%(levelname)s] - %(message)s"

# undo what the quantiser's module does to the root logger on import: all libraries would write to it
for _handler in [each for each in logging.root.handlers if each.formatter and each.formatter._fmt == _QUANTISER_LOG]:
    logging.root.removeHandler(_handler)
    logging.root.setLevel(logging.WARNING)


def with_precision(
    base: OnnxBase,
    precision: Precision,
    folder: Path,
    *,
    int8_embeddings: bool = False,
    float32_activations: bool = False,
) -> OnnxBase:
    """Write a base of float32 in another precision, as `base.onnx` and `base.bin`, and open it.

    `int8` are products of 8-bit integers, with a scale for each token and each column of a weight; `int8-weights` and
    `int4-weights` have a scale for each block of a column, and of a token unless `float32_activations` keeps it as it
    is. `int8_embeddings` keeps the embeddings in 8 bits beside such weights; `int8` does so in any case.
    Fingerprint, inputs and outputs stay. The weights of the base are in memory meanwhile.

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
    model = with_inferred_shapes(in_memory(base))
    model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"  # the quantiser need not ask for shapes
    with _quiet():
        proto = ir.to_proto(model)
        if precision == "fp16":
            proto = _half(proto)
        elif precision == "int8":
            proto = _int8(proto)
        else:
            proto = _blockwise(proto, 8 if precision == "int8-weights" else 4, exact=float32_activations)
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
    """Products of integers, with a scale for each token and for each column of a weight.

    The scale of a token (ZeroQuant, Yao et al. 2022, §4.1) is computed from it alone, so the rows of a batch do not
    depend on each other; `DynamicQuantizeLinear` has one for all of them. Its tables are in 8 bits as well.
    """
    proto = _int8_tables(proto)
    ONNXModel(proto).replace_gemm_with_matmul()
    graph, opset = proto.graph, next(one.version for one in proto.opset_import if not one.domain)
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    constants = {
        "int8.axis": np.array([-1]),
        "int8.tiny": np.array(_TINY, np.float32),
        "int8.step": np.array(1 / _LARGEST_ACTIVATION, np.float32),
        "int8.zero": np.array(_ZERO, np.uint8),
    }
    nodes: list[onnx.NodeProto] = []
    rounded: set[str] = set()
    for node in graph.node:
        x, weight = node.input if node.op_type == "MatMul" else ("", "")
        if weight not in weights or x in weights:
            nodes.append(node)
            continue
        if x not in rounded:
            rounded.add(x)
            nodes += _rounded(x, opset)
        if f"{weight}.int8" not in constants:
            matrix = numpy_helper.to_array(weights[weight])
            steps = np.abs(matrix).max(0) / np.float32(_LARGEST_WEIGHT)
            steps[steps == 0] = 1
            constants |= {f"{weight}.int8": np.rint(matrix / steps).astype(np.int8), f"{weight}.step": steps}
        inputs = [f"{x}.int8", f"{weight}.int8", "int8.step", f"{weight}.step", "int8.zero"]
        product = onnx.helper.make_node("MatMulIntegerToFloat", inputs, node.output, domain="com.microsoft")
        product.metadata_props.extend(node.metadata_props)
        nodes += _multiplied(product, f"{x}.largest", graph)
    _replace_nodes(graph, nodes, constants)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return proto


def _rounded(x: str, opset: int) -> Iterator[onnx.NodeProto]:
    """Write the largest absolute value of each token of `x`, [..., 1], and `x` as integers relative to it.

    `ReduceMax` of ONNX Runtime passes over NaN. The mean does not, and is never above the largest value.
    """
    node = onnx.helper.make_node
    axes: list[str] = ["int8.axis"] if opset >= _AXES_OF_MAX_OPSET else []
    attributes: dict[str, Any] = {} if axes else {"axes": [-1]}
    yield node("Abs", [x], [f"{x}.absolute"])
    yield node("ReduceMax", [f"{x}.absolute", *axes], [f"{x}.max"], keepdims=1, **attributes)
    yield node("ReduceMean", [f"{x}.absolute", *axes], [f"{x}.mean"], keepdims=1, **attributes)
    yield node("Max", [f"{x}.max", f"{x}.mean", "int8.tiny"], [f"{x}.largest"])
    yield node("Div", [x, f"{x}.largest"], [f"{x}.relative"])
    yield node("QuantizeLinear", [f"{x}.relative", "int8.step", "int8.zero"], [f"{x}.int8"])


def _multiplied(product: onnx.NodeProto, factor: str, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Write a product, and that times a factor for each token, under the name that the product had."""
    result, plain = product.output[0], f"{product.output[0]}.product"
    for value in [value for value in (*graph.value_info, *graph.output) if value.name == result]:
        recorded = graph.value_info.add()  # ONNX infers no shape of this domain's operators
        recorded.CopyFrom(value)
        recorded.name = plain
    product.output[0] = plain
    yield product
    yield onnx.helper.make_node("Mul", [plain, factor], [result])


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray]) -> None:
    """Put other nodes into a graph, with those of its constants and of new ones that they read."""
    del graph.node[:]
    graph.node.extend(nodes)
    read = set(_read(graph))
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items() if name in read)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that a graph reads, also inside the branches of an `If` and the bodies of loops."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


def _int8_tables(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Embeddings in 8 bits, unpacked behind the `Gather`, the packed rows under names that no later pass gives."""
    with TemporaryDirectory(prefix="adapter-export-") as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            proto,
            path,
            op_types_to_quantize=["Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        made = onnx.load(path)
    packed = {node.input[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    for node in made.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = f"{name}.packed" if name in packed else name
    return made


def _blockwise(proto: onnx.ModelProto, bits: int, *, exact: bool) -> onnx.ModelProto:
    """Weights in blocks; activations in 8 bits, too, block by block of one token, unless they are to be exact.

    ONNX Runtime passes over NaN where it rounds them. So what it computes is multiplied by 1 + 0·Σx, which is 1 or NaN.
    """
    ONNXModel(proto).replace_gemm_with_matmul()
    multiplied = {node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    rows = [tensor.dims[0] for tensor in proto.graph.initializer if tensor.name in multiplied and len(tensor.dims) == 2]
    narrowest = min(rows, default=1)
    wide = 1 << max(narrowest, 1).bit_length() - 1  # a column is filled up with zeros to a whole block
    config = DefaultWeightOnlyQuantConfig(
        block_size=_SMALLEST_BLOCK if exact or bits < 8 else min(max(wide, _SMALLEST_BLOCK), _LARGEST_BLOCK),
        is_symmetric=False,
        accuracy_level=_FLOAT32_LEVEL if exact else _INT8_LEVEL,
        bits=bits,
    )
    quantizer = MatMulNBitsQuantizer(proto, algo_config=config)
    quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    if exact:
        return made
    nodes: list[onnx.NodeProto] = []
    summed: set[str] = set()
    for node in made.graph.node:
        if node.op_type != "MatMulNBits":
            nodes.append(node)
            continue
        x = node.input[0]
        if x not in summed:
            summed.add(x)
            nodes += [
                onnx.helper.make_node("ReduceSum", [x, "finite.axis"], [f"{x}.sum"], keepdims=1),
                onnx.helper.make_node("Mul", [f"{x}.sum", "finite.zero"], [f"{x}.zero"]),
                onnx.helper.make_node("Add", [f"{x}.zero", "finite.one"], [f"{x}.finite"]),
            ]
        nodes += _multiplied(node, f"{x}.finite", made.graph)
    zero, one = np.zeros((), np.float32), np.ones((), np.float32)
    numbers = {"finite.axis": np.array([-1]), "finite.zero": zero, "finite.one": one}
    _replace_nodes(made.graph, nodes, numbers)
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


def in_memory(base: OnnxBase) -> ir.Model:
    """A copy of a base that holds its weights."""
    model = base.model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = external.in_memory(value.const_value)
    return model


def write_rewritten(model: ir.Model, base: OnnxBase, folder: Path, done: str) -> OnnxBase:
    """Write a rewritten base into a folder as `base.onnx` and `base.bin`, and open it.

    It keeps the fingerprint, so that adapters of the base fit it, the site map, and the module paths of its sites,
    which tools that rewrite graphs drop. `done` says in messages what was done to it, such as `optimised`.
    `BaseModelError`: its inputs, outputs or sites are no longer those of the base.
    """
    model.graph.sort()  # the float16 converter puts the casts of inputs at the end
    model.metadata_props.clear()
    model.metadata_props.update({**base.model.metadata_props, FINGERPRINT_KEY: base.fingerprint})
    path = folder / "base.onnx"
    ir.save(model, path, external_data="base.bin", size_threshold_bytes=external.EMBEDDED_BYTES)
    written = external.read_model(path, partial(BaseModelError, "is not an ONNX model", where=path))
    if correct_shapes(written, folder, base.inputs):
        ir.save(written, path)
    made = _opened(path, base, done)
    facts = {
        "inputs": (made.inputs, base.inputs),
        "outputs": (made.outputs, base.outputs),
        "sites": tuple(
            tuple((site.name, site.role, site.width) for site in sites.sublayers) for sites in (made.sites, base.sites)
        ),
    }
    for what, (found, expected) in facts.items():
        if found != expected:
            raise BaseModelError(
                f"has other {what} when it is {done}",
                where=base.path,
                found=", ".join(map(str, found)) or "none",
                expected=", ".join(map(str, expected)),
                fix="build it without that, and report this with the base",
            )
    paths = {site.name: site.path for site in base.sites}
    # a layer outside of all sublayers has its name of its path, and is known by its value where that is lost
    outside = {(site.h, site.width_in): site for site in base.sites.sites if site.is_outside}
    again = [outside.get((site.h, site.width_in)) if site.is_outside else site for site in made.sites.sites]
    sites = tuple(
        replace(site, name=known.name, path=paths.get(known.name, site.path))
        for site, known in zip(made.sites.sites, again, strict=True)
        if known is not None
    )
    return replace(made, sites=replace(made.sites, sites=sites), lengths=base.lengths)


def _opened(path: Path, base: OnnxBase, done: str) -> OnnxBase:
    """Open what was rewritten, with the site map of the base where it has one."""
    if base.given is None:
        return open_onnx(path)
    try:
        found = open_onnx(path).sites
    except NoSitesError:
        found = None
    try:
        return open_onnx(path, given=_remapped(base, base.given, found))
    except UsageError as error:
        raise BaseModelError(
            f"has lost a value that the site map names when it is {done}",
            where=error.where,
            found=error.found,
            expected=error.expected,
            fix="build it without that, or give other values in the site map",
        ) from error


def _remapped(base: OnnxBase, given: GivenSites, rewritten: SiteMap | None) -> GivenSites:
    """The site map of a base as it reads in the graph that the base was rewritten as.

    Quantisers and fusions keep the names of values that they do not fuse away. Where a site is found in both graphs,
    its values may have other names, and what is found says which. So a given site that is made of values of a found
    one follows it, and other values keep their names; what is not there is refused when the sites are looked up.
    """
    try:
        found = discover(base.flow)
    except NoSitesError:
        found = None
    before = {site.name: site for site in found or ()}
    after = {site.name: site for site in rewritten or ()}
    names: dict[str | None, str] = {
        getattr(before[name], key): new
        for name in before.keys() & after.keys()
        for key in ("h", "x", "u", "y")
        if (new := getattr(after[name], key)) is not None
    }
    if found and rewritten:
        names[found.final] = rewritten.final
    sites: dict[str, GivenSite | None] = {}
    for name, site in given.sites.items():
        if site is None and name in after:
            sites[name] = None
        if site is not None:
            old = site.values["onnx"]
            x, u, y = (names.get(value, value) for value in (old.x, old.u, old.y))
            sites[name] = replace(site, values={"onnx": SiteValues(names.get(old.h, old.h), x, u, y)})
    return replace(given, sites=sites, final={"onnx": names.get(base.sites.final, base.sites.final)})


@dataclass(frozen=True)
class Deviation:
    """The largest difference of an element of an output of a rewritten base from that of the base it was made of.

    `scale` is the output's largest absolute value, `allowed` what two correct computations in the precision of the base
    that it was made of may differ by.
    """

    output: str
    absolute: float
    scale: float
    allowed: float


def deviations(base: OnnxBase, made: OnnxBase, cases: Sequence[InputCase]) -> list[Deviation]:
    """Run a base and what was made of it on the same inputs, and compare each output of floats."""
    if not cases:
        raise NothingComparedError("the rewritten base was not compared with the base: there are no inputs")
    before, after = open_session(base.model, base.folder), open_session(made.model, made.folder)
    pairs = [(run_session(before, case.arrays), run_session(after, case.arrays)) for case in cases]
    size, stored = extent(base.flow), numerics(base.model).stored
    inner = max(size.inner, *(length for case in cases for array in case.arrays.values() for length in array.shape))
    found = []
    for name in (record.name for record in base.outputs if record.dtype in FLOAT_TYPES):
        absolute = max(float(np.abs(new[name] - old[name]).max(initial=0)) for old, new in pairs)
        scale = max(float(np.abs(old[name]).max(initial=0)) for old, _ in pairs)
        dtype = pairs[0][0][name].dtype.name
        allowed = budget(dtype, inner=inner, depth=size.depth, scale=scale, rounded_to=stored)
        found.append(Deviation(name, absolute, scale, allowed.absolute))
    return found
