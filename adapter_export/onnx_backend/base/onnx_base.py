"""A base as an ONNX file: opened without reading its weights, validated and described, with its precision."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError
from adapter_export.format.axes import masks_of, with_caches
from adapter_export.format.lengths import Bounds, Lengths
from adapter_export.format.manifest import InputRecord, OutputRecord
from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.format.records import record_from_json
from adapter_export.onnx_backend.base.external import read_model, readable, settle_external_data, sha256_of_tensor
from adapter_export.onnx_backend.base.flow import check_layers_are_visible, flow_graph, node_names
from adapter_export.onnx_backend.base.length_probe import axes, equal_axes, length_limits, rename_axes
from adapter_export.onnx_backend.base.normalise import (
    check_operators,
    complete_shapes,
    convert_to_slot_opset,
    normalise,
    open_sums,
)
from adapter_export.onnx_backend.base.operators import LOOKUPS, check_biases
from adapter_export.onnx_backend.base.structure import check_structure
from adapter_export.onnx_backend.slots import TOPOLOGY_KEY
from adapter_export.safe_io.documents import parse_json
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSites, sites_of
from adapter_export.sites.view import HEAD_INPUT, FlowGraph, FlowIndex, FlowNode
from adapter_export.words import quoted

FINGERPRINT_KEY = "adapter_export.base_fingerprint"
"""Key of the base's fingerprint in `metadata_props`."""

LENGTHS_KEY = "adapter_export.lengths"
"""Key of the lengths of its axes in `metadata_props`: a `LengthsNote` as JSON."""

_RESHAPING = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_FUSED_LOOKUPS = ("EmbedLayerNormalization", "QEmbedLayerNormalization")
_FUSED_TABLES = {0: 2, 1: 4}
"""Inputs of com.microsoft's fused embeddings: the index of each table, by the index of its ids."""

_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention"})
"""Operators that compute one scale for a whole activation, [batch, tokens, d]: the rows of a batch share it."""

_INTEGER = frozenset({"MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm"})
"""Products of activations that are rounded to 8 bits."""

_MOST_ELEMENTS = 2**30
"""Maximum elements of an input along its fixed axes."""

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)

_INT8_ACCURACY = 4
"""Accuracy level at which `MatMulNBits` rounds its activations to 8 bits, block by block of one row."""


@dataclass(frozen=True)
class LengthsNote:
    """Lengths recorded in a graph that was exported from an archive; see `TorchBase`."""

    lengths: Mapping[str, Lengths]
    pads: bool


@dataclass(frozen=True)
class OnnxBase:
    """A base whose large weights stay on disk in `folder`. Its model is not modified: rewrites work on copies.

    The fingerprint is that of the weights, `sha256:<hex>`, or of the archive that the file was exported from. `lengths`
    are valid lengths of its dynamic axes; `pads` is false if masked tokens are known to change the others. `notes` are
    the changes made for slots; `given_sites` are those of the site map that `sites` follow, if any.
    """

    path: Path
    folder: Path
    model: ir.Model
    fingerprint: str
    inputs: tuple[InputRecord, ...]
    outputs: tuple[OutputRecord, ...]
    opset: int
    flow: FlowGraph = field(repr=False)
    sites: SiteMap
    notes: tuple[str, ...] = ()
    given_sites: GivenSites | None = None
    lengths: Bounds = field(default_factory=dict)
    pads: bool = True

    @cached_property
    def index(self) -> FlowIndex:
        """Index of the dataflow graph."""
        return FlowIndex(self.flow)

    @cached_property
    def mask(self) -> str | None:
        """Input that marks the real tokens of the final hidden state; several candidates raise `BaseModelError`."""
        known = {axis for record in self.inputs for axis in record.axes if isinstance(axis, str)}
        values = (value for node in self.model.graph for value in node.outputs if value.name == self.sites.final)
        shape = next((value.shape for value in values), None)
        axis = None if shape is None or len(shape) != 3 else shape[1]
        name = axis if axis is None or isinstance(axis, int) else axis.value
        tokens = name if name in known else None
        masks = masks_of(self.inputs, tokens)
        of_two = tokens is None and any(site.role == "cross_attention" for site in self.sites)
        if len(masks) > 1 or (masks and of_two):
            raise BaseModelError(
                "has several inputs that could be the attention mask",
                where=self.path,
                found=quoted(masks),
                expected="one integer or bool input [batch, tokens] that is not used as ids",
                fix="export the base with one of them only",
            )
        return masks[0] if masks else None

    @property
    def has_modules(self) -> bool:
        """False: exporters transpose matrices."""
        return False

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a floating-point tensor by its name in the torch model; a matrix in the layout of `Linear`, [out, in].

        `None` if the base has no tensor with this name, or if its layout is unknown.
        """
        value = self.model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            return None
        tensor = readable(value.const_value).numpy()
        if tensor.dtype.name not in FLOAT_TYPES:
            return None
        if tensor.ndim != 2:
            return tensor
        in_first = self.holds_in_first(name)
        return None if in_first is None else tensor.T if in_first else tensor

    def table(self, name: str) -> np.ndarray | None:
        """Return a table of lookups by its name in the graph; `None` for integers."""
        value = self.model.graph.initializers.get(name)
        if value is None or value.const_value is None or not value.const_value.dtype.is_floating_point():
            return None
        table: np.ndarray = readable(value.const_value).numpy()
        return table

    def is_same(self, name: str, other: str) -> bool:
        """Return whether two names are those of one tensor."""
        return name == other

    @property
    def model_type(self) -> None:
        """`None`: a graph does not record its architecture."""

    @property
    def source(self) -> None:
        """`None`: a graph does not record a repository."""

    @property
    def tokenizer(self) -> None:
        """`None`: a graph has no tokenizer."""

    @property
    def texts(self) -> None:
        """`None`: a graph has no golden texts."""

    @property
    def media(self) -> None:
        """`None`: a graph has no preprocessing of images or audio."""

    @property
    def base_head(self) -> None:
        """`None`: a graph has no head besides its outputs."""

    @property
    def parameters(self) -> int:
        """Number of its floating-point weights."""
        tensors = (value.const_value for value in self.model.graph.initializers.values())
        return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())

    def layer_weight(self, name: str, product: FlowNode | None) -> tuple[np.ndarray | None, bool]:
        """Return the weight of a layer as [out, in], of a norm as [d], and whether the graph stores it as [in, out]."""
        weight = self.tensor(name)
        return weight, weight is not None and product is not None and bool(self.holds_in_first(name))

    def bias_name(self, weight: str, product: FlowNode | None) -> str:
        """Return the name of the bias of a layer or a norm; empty if it has none."""
        if product is None:
            return f"{weight.removesuffix('weight')}bias"
        return self.bias_behind(product.outputs[0]) or ""

    def readers(self, name: str) -> int:
        """Return the number of nodes that read a weight: a language head may share the embeddings'."""
        initializers = self.model.graph.initializers
        return len(initializers[name].uses()) if name in initializers else 0

    def bias_behind(self, product: str) -> str | None:
        """Return the name of the bias [out] of the linear layer with this product; `None` without a bias."""
        nodes = (node for node in self.model.graph if any(value.name == product for value in node.outputs))
        node = next(nodes, None)
        if node is None:
            return None
        adding = [node] if node.op_type == "Gemm" else [reader for reader, _ in node.outputs[0].uses()]
        if len(adding) != 1 or adding[0].op_type not in ("Gemm", "Add"):
            return None
        constants = (value for value in adding[0].inputs if value is not None and value.const_value is not None)
        return next((value.name for value in constants if value.shape is not None and len(value.shape) == 1), None)

    def holds_in_first(self, name: str) -> bool | None:
        """Return whether the graph stores a matrix as [in, out]; `None` if its layout is unknown."""
        layouts = _layouts(self.model.graph.initializers[name])
        return layouts.pop() if len(layouts) == 1 else None


def _layouts(matrix: ir.Value) -> set[bool | None]:
    """Return for each use of a matrix whether it is read as [in, out]; `None` if that is unknown."""
    layouts = set[bool | None]()
    for node, index in matrix.uses():
        if node.op_type in ("MatMul", "Gemm") and index == 1:
            layouts.add(not node.attributes.get_int("transB", 0))
        elif node.op_type == "Transpose":  # a product may transpose once more
            turned = tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0)
            layouts |= {None if layout is None else layout != turned for layout in _layouts(node.outputs[0])}
        else:
            layouts.add(None)
    return layouts


def open_onnx(path: Path, *, given_sites: GivenSites | None = None) -> OnnxBase:
    """Open a base; `given_sites` override or complete the detected ones.

    Raises:
        FileError: the file cannot be read.
        BaseModelError: it is not an ONNX model that can be a base, or its external data are missing.
        NoSitesError: no place for an adapter was found in it.
        UsageError: the given sites do not fit the graph.
    """
    model = _load(path)
    check_structure(model, path)
    folder = settle_external_data(model, path)
    check_operators(model, path)
    normalise(model)
    fingerprint = model.metadata_props.get(FINGERPRINT_KEY) or _fingerprint(model)
    inputs, outputs = _interface(model)
    same: dict[str, str] = {}
    # our exports record their axes, and axes of caches are known from the returned caches
    if FINGERPRINT_KEY not in model.metadata_props and not any(record.role == "cache" for record in inputs):
        same = equal_axes(model, folder, inputs)
    if same:
        rename_axes(model, same)
        inputs, outputs = _interface(model)
    check_layers_are_visible(model.graph)
    model, notes = convert_to_slot_opset(model, folder, inputs)
    open_sums(model.graph)
    complete_shapes(model, folder, inputs)
    head_input = next((record.name for record in outputs if record.name == HEAD_INPUT), None)
    flow = replace(flow_graph(model), head_input=head_input)
    sites = known = sites_of(flow, "onnx", given_sites)
    with suppress(NoSitesError):  # biases belong to detected sites even if the site map omits them
        known = sites if given_sites is None else replace(sites, sites=(*sites, *discover(flow)))
    check_biases({name: node for node, name in node_names(model.graph).items()}, known)
    notes += tuple(f"axis `{axis}` always equals `{other}`, found by test runs" for axis, other in same.items())
    opset, known_lengths = model.opset_imports[""], _lengths(model, path, (*inputs, *outputs))
    return OnnxBase(
        path,
        folder,
        model,
        fingerprint,
        inputs,
        outputs,
        opset,
        flow,
        sites,
        notes,
        given_sites,
        known_lengths.lengths,
        known_lengths.pads,
    )


def probe_lengths(base: OnnxBase) -> OnnxBase:
    """Return a base with lengths found by test runs, for a file that does not state them."""
    limits = length_limits(base.model, base.folder, base.inputs)
    lengths = {axis: Lengths(least, most) for axis, (least, most) in limits.items() if (least, most) != (1, None)}
    return replace(base, lengths=lengths)


def _lengths(model: ir.Model, path: Path, records: Sequence[InputRecord | OutputRecord]) -> LengthsNote:
    """Return the lengths recorded in an archive's graph; empty for other graphs."""
    text = model.metadata_props.get(LENGTHS_KEY)
    if text is None:
        return LengthsNote({}, True)
    where = f"{path}, metadata `{LENGTHS_KEY}`"
    note = record_from_json(LengthsNote, parse_json(text.encode(), where), where)
    axes = {axis for record in records for axis in record.axes if isinstance(axis, str)}
    return LengthsNote({axis: lengths for axis, lengths in note.lengths.items() if axis in axes}, note.pads)


def _interface(model: ir.Model) -> tuple[tuple[InputRecord, ...], tuple[OutputRecord, ...]]:
    return with_caches(
        [_input_record(value) for value in model.graph.inputs],
        [OutputRecord(value.name or "", _dtype(value), axes(value)) for value in model.graph.outputs],
    )


def _load(path: Path) -> ir.Model:
    model = read_model(path, partial(_no_model, path))
    if not len(model.graph) or not model.graph.outputs:
        raise _no_model(path, "a graph without nodes or outputs")
    if TOPOLOGY_KEY in model.metadata_props:  # it has its base's fingerprint, and would be compared with itself
        raise BaseModelError(
            "is the graph of a bundle, with adapters",
            where=path,
            expected="the base without adapters",
            fix="use the model that the bundle was built from",
        )
    return model


def _no_model(path: Path, reason: str) -> BaseModelError:
    return BaseModelError(
        "is not an ONNX model, or is truncated",
        where=path,
        found=reason,
        expected="a model written by `torch.onnx.export` or another exporter",
        fix="export it again, or copy it again completely",
    )


def _fingerprint(model: ir.Model) -> str:
    """Return the SHA-256 over the sorted facts of all weights, initializers or constant nodes, streaming large ones.

    It depends neither on the location of the weights, inside the file or outside, nor on their order.
    """
    values = [
        value
        for graph in model.graphs()
        for value in (
            *graph.initializers.values(),
            *(node.outputs[0] for node in graph if node.op_type == "Constant" and node.outputs),
        )
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the GIL
        facts = sorted(pool.map(_fact, values))
    return f"sha256:{hashlib.sha256(''.join(facts).encode()).hexdigest()}"


def _fact(value: ir.Value) -> str:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return ""
    return f"{value.name} {tensor.dtype.name} {list(tensor.shape.numpy())} {sha256_of_tensor(tensor)}\n"


def _input_record(value: ir.Value) -> InputRecord:
    limits = list(embedding_rows(value))
    integer = value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)
    record = InputRecord(value.name or "", _dtype(value), axes(value), "values")
    fixed = math.prod(axis for axis in record.axes if isinstance(axis, int))
    if fixed > _MOST_ELEMENTS:
        raise BaseModelError(
            "has an input that does not fit into memory",
            where=f"`{record.name}`",
            found=f"{list(record.axes)}",
            expected=f"at most {_MOST_ELEMENTS:,} elements per row",
            fix="export the model again",
        )
    if limits:
        return replace(record, role="ids", limit=min(limits))
    return replace(record, role="mask") if integer and len(record.axes) == 2 else record


def embedding_rows(value: ir.Value) -> Iterator[int]:
    """Yield the number of rows of each weight that is indexed by this value."""
    same = [value]
    for alias in same:
        for node, index in alias.uses():
            if node.op_type in LOOKUPS and index == 1 and node.attributes.get_int(*LOOKUPS[node.op_type]) == 0:
                yield from _rows(node.inputs[0])
            elif node.op_type in _FUSED_LOOKUPS and index in _FUSED_TABLES:
                yield from _rows(node.inputs[_FUSED_TABLES[index]])
            elif node.op_type in _RESHAPING and index == 0:
                same.append(node.outputs[0])


def _rows(table: ir.Value | None) -> Iterator[int]:
    while table is not None:
        producer = table.producer()
        if table.const_value is not None and len(table.const_value.shape) > 1:
            yield int(table.const_value.shape.numpy()[0])
            return
        if producer is None or producer.op_type not in ("Cast", "Identity", "DequantizeLinear", "Mul"):
            return
        table = producer.inputs[0]


def _dtype(value: ir.Value) -> str:
    if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
        raise BaseModelError(
            "has an input or output of unknown type",
            where=f"`{value.name}`",
            expected="a tensor with an element type",
            fix="run `onnx.shape_inference` over the model, or export it again",
        )
    return value.dtype.numpy().name


@dataclass(frozen=True)
class Numerics:
    """Precision of a graph.

    Attributes:
        precision: precision of its products; the coarsest for a graph of mixed precision.
        batch_invariant: whether a row's result does not depend on other rows, within rounding.
    """

    precision: Precision
    batch_invariant: bool


def numerics(model: ir.Model) -> Numerics:
    """Determine the precision of a graph from its operators."""
    nodes = list(model.graph.all_nodes())
    ops = {node.op_type for node in nodes}
    integer = not ops.isdisjoint(_DYNAMIC | _INTEGER)
    levels = [node.attributes.get_int("accuracy_level", 0) for node in nodes if node.op_type == "MatMulNBits"]
    rounds = integer or _INT8_ACCURACY in levels
    weights = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    half = any(tensor is not None and tensor.dtype == ir.DataType.FLOAT16 for tensor in weights)
    bits = min((width for node in nodes for width in _weight_bits(node)), default=None)
    tables = any(node.op_type == "Gather" and _dtype_of_first(node) in _BYTES for node in nodes)
    floats: PrecisionName = "fp16" if half else "fp32"
    packed: PrecisionName = "int8-weights" if bits is not None and bits > 4 else "int4-weights"
    stored: Literal["float16", "float32"] = "float16" if half else "float32"
    precision = Precision(
        name="int8" if integer else floats if bits is None else packed,
        activations="uint8" if rounds else stored,
        embeddings="int8" if tables else stored,
    )
    return Numerics(precision, batch_invariant=ops.isdisjoint(_DYNAMIC))


def _weight_bits(node: ir.Node) -> Iterator[int]:
    """Yield the bits of a weight that is unpacked for a product, but not of lookup tables."""
    if node.op_type == "MatMulNBits":
        yield node.attributes.get_int("bits", 4)
    elif node.op_type == "DequantizeLinear" and (dtype := _dtype_of_first(node)) is not None:
        yield 4 if dtype in (ir.DataType.INT4, ir.DataType.UINT4) else 8


def _dtype_of_first(node: ir.Node) -> ir.DataType | None:
    """Return the type of a node's first input if that is a weight."""
    tensor = None if node.inputs[0] is None else node.inputs[0].const_value
    return None if tensor is None else tensor.dtype
