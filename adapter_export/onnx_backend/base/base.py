"""A base as an ONNX file: opened without reading its weights, checked, described."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import BaseModelError, NoSitesError
from adapter_export.format.axes import masks_of, with_caches
from adapter_export.format.files import read_bytes
from adapter_export.format.manifest import Axis, InputRecord, OutputRecord
from adapter_export.onnx_backend.base.external import readable, settle_external_data, sha256_of_tensor
from adapter_export.onnx_backend.base.normalise import (
    check_operators,
    complete_shapes,
    normalise,
    open_sums,
    with_slot_opset,
)
from adapter_export.onnx_backend.slots import TOPOLOGY_KEY
from adapter_export.onnx_backend.view.flow import check_layers_are_visible, flow_graph, node_names
from adapter_export.onnx_backend.view.operators import check_biases
from adapter_export.sites.discover import discover
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSites, sites_of
from adapter_export.sites.view import FlowGraph

FINGERPRINT_KEY = "adapter_export.base_fingerprint"
"""The key of the base's fingerprint in `metadata_props`."""

_RESHAPING = frozenset({"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_LOOKUPS = {"Gather": ("axis", 0), "GatherBlockQuantized": ("gather_axis", 0)}
"""The ops that look rows up in a table, and the attribute with its axis and that attribute's default."""

_FUSED_LOOKUPS = frozenset({"EmbedLayerNormalization", "QEmbedLayerNormalization"})
_FUSED_TABLES = {0: 2, 1: 4}
"""Of com.microsoft's fused embeddings: the inputs with ids, and the input with the table of each."""

_WRAPPING = frozenset({"Cast", "Identity", "DequantizeLinear", "Mul"})


@dataclass(frozen=True)
class OnnxBase:
    """A base, its large weights still on disk.

    Attributes:
        path: the file.
        folder: where its external data lie; their locations are relative to it.
        model: its graph; not to be changed: surgery works on copies.
        fingerprint: of the weights, `sha256:<hex>`; where the file was exported from an archive, that of the archive.
        inputs: the data inputs.
        outputs: the outputs.
        opset: of the standard ONNX domain.
        flow: its graph as dataflow, read once.
        sites: where adapters can act.
        notes: what was changed so that slots can go in, for the user.
        given: the site map that `sites` follow, if there is one.
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
    given: GivenSites | None = None

    @cached_property
    def index(self) -> FlowIndex:
        """An index of the dataflow graph."""
        return FlowIndex(self.flow)

    @cached_property
    def mask(self) -> str | None:
        """The input that says which tokens of the final hidden state are real, if there is one.

        Raises:
            BaseModelError: there are several.
        """
        tokens = self._tokens()
        masks = masks_of(self.inputs, tokens)
        of_two = tokens is None and any(site.role == "cross_attention" for site in self.sites)
        if len(masks) > 1 or (masks and of_two):
            raise BaseModelError(
                "has several inputs that may be the attention mask",
                where=self.path,
                found=", ".join(f"`{name}`" for name in masks),
                expected="one integer or bool input [batch, tokens] that indexes no embedding",
                fix="export the base with one of them only",
            )
        return masks[0] if masks else None

    def tensor(self, name: str) -> np.ndarray | None:
        """A floating-point tensor by the name that its exporter gave it, which is that in the torch model.

        Returns:
            The tensor, a matrix as torch's `Linear` holds it, [out, in]; none where the base has none of this name, or
            where it is not clear which axis is which.
        """
        value = self.model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            return None
        tensor = readable(value.const_value).numpy()
        if tensor.dtype.name not in FLOAT_TYPES:
            return None
        if tensor.ndim != 2:
            return tensor
        layouts = {_reads_in_first(node, index) for node, index in value.uses()}
        return None if len(layouts) != 1 or None in layouts else tensor.T if layouts == {True} else tensor

    def _tokens(self) -> Axis | None:
        """The axis of the tokens of the final hidden state, if it is known by a name that inputs have."""
        known = {axis for record in self.inputs for axis in record.axes if isinstance(axis, str)}
        values = (value for node in self.model.graph for value in node.outputs if value.name == self.sites.final)
        shape = next((value.shape for value in values), None)
        axis = None if shape is None or len(shape) != 3 else shape[1]
        name = axis if axis is None or isinstance(axis, int) else axis.value
        return name if name in known else None


def _reads_in_first(node: ir.Node, index: int) -> bool | None:
    """Return whether a node reads a matrix as [in, out]; none for one of which it is not known."""
    if node.op_type == "MatMul" and index == 1:
        return True
    if node.op_type == "Gemm" and index == 1:
        transposed = node.attributes.get("transB")
        return transposed is None or not transposed.as_int()
    return False if node.op_type == "Transpose" else None


def open_onnx(path: Path, *, given: GivenSites | None = None) -> OnnxBase:
    """Open a base.

    Args:
        path: the file.
        given: sites that override or complete those that are found.

    Raises:
        FileError: the file cannot be read.
        BaseModelError: it is not an ONNX model, or it is that of a bundle; it is truncated, its external data are
            missing, truncated or outside of its folder, or its opset is too old.
        NoSitesError: no place for an adapter was found in it.
        UsageError: the given sites do not fit the graph.
    """
    model = _load(path)
    folder = settle_external_data(model, path)
    check_operators(model, path)
    normalise(model)
    fingerprint = model.metadata_props.get(FINGERPRINT_KEY) or _fingerprint(model)
    inputs, outputs = with_caches(
        [_input_record(value) for value in model.graph.inputs],
        [OutputRecord(value.name or "", _dtype(value), axes(value)) for value in model.graph.outputs],
    )
    check_layers_are_visible(model.graph)
    model, notes = with_slot_opset(model, path, folder, inputs)
    open_sums(model.graph)
    complete_shapes(model, folder, inputs)
    flow = flow_graph(model)
    sites = known = sites_of(flow, "onnx", given)
    with suppress(NoSitesError):  # sites that a site map leaves out own their biases all the same
        known = sites if given is None else replace(sites, sites=(*sites, *discover(flow)))
    check_biases({name: node for node, name in node_names(model.graph).items()}, known)
    opset = model.opset_imports[""]
    return OnnxBase(path, folder, model, fingerprint, inputs, outputs, opset, flow, sites, notes, given)


def axes(value: ir.Value) -> tuple[Axis, ...]:
    """The shape of a graph's input or output; an axis without a name gets one from its place."""
    shape = () if value.shape is None else value.shape
    return tuple(
        dim if isinstance(dim, int) else str(dim.value or f"{value.name}.{index}") for index, dim in enumerate(shape)
    )


def _load(path: Path) -> ir.Model:
    try:
        if not path.is_file() or path.stat().st_size == 0:  # an empty file is a valid empty message of protobuf
            raise ValueError(f"{len(read_bytes(path))} bytes")
        model = ir.load(path)
        if not len(model.graph) or not model.graph.outputs:
            raise ValueError("a graph without nodes or outputs")
    except (DecodeError, ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise BaseModelError(
            "is not an ONNX model, or is truncated",
            where=path,
            found=str(error).partition("\n")[0],
            expected="a model as `torch.onnx.export` or another exporter writes it",
            fix="export it again, or copy it again as a whole",
        ) from error
    if TOPOLOGY_KEY in model.metadata_props:  # it carries the fingerprint of its base, and would prove itself
        raise BaseModelError(
            "is a graph of a bundle, with adapters in it",
            where=path,
            expected="the base without them",
            fix="give the model that the bundle was built from",
        )
    return model


def _fingerprint(model: ir.Model) -> str:
    """The sha256 over the sorted facts of all weights, initializers or constant nodes; none is held in memory.

    It does not depend on where the weights lie, inside the file or beside it, nor on the order of anything.
    """
    values = [
        value
        for graph in model.graphs()
        for value in (
            *graph.initializers.values(),
            *(node.outputs[0] for node in graph if node.op_type == "Constant" and node.outputs),
        )
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter to others
        facts = sorted(pool.map(_fact, values))
    return f"sha256:{hashlib.sha256(''.join(facts).encode()).hexdigest()}"


def _fact(value: ir.Value) -> str:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return ""
    return f"{value.name} {tensor.dtype.name} {list(tensor.shape.numpy())} {sha256_of_tensor(tensor)}\n"


def _input_record(value: ir.Value) -> InputRecord:
    limits = list(_embedding_rows(value))
    integer = value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)
    record = InputRecord(value.name or "", _dtype(value), axes(value), "values")
    if limits:
        return replace(record, role="ids", limit=min(limits))
    return replace(record, role="mask") if integer and len(record.axes) == 2 else record


def _embedding_rows(value: ir.Value) -> Iterator[int]:
    """The number of rows of each weight that is indexed by this value."""
    for node, index in value.uses():
        if node.op_type in _LOOKUPS and index == 1 and node.attributes.get_int(*_LOOKUPS[node.op_type]) == 0:
            yield from _rows(node.inputs[0])
        elif node.op_type in _FUSED_LOOKUPS and index in _FUSED_TABLES:
            yield from _rows(node.inputs[_FUSED_TABLES[index]])
        elif node.op_type in _RESHAPING and index == 0:
            yield from _embedding_rows(node.outputs[0])


def _rows(table: ir.Value | None) -> Iterator[int]:
    while table is not None:
        producer = table.producer()
        if table.const_value is not None and len(table.const_value.shape) > 1:
            yield int(table.const_value.shape.numpy()[0])
            return
        table = producer.inputs[0] if producer is not None and producer.op_type in _WRAPPING else None


def _dtype(value: ir.Value) -> str:
    if value.dtype is None:
        raise BaseModelError(
            "has an input or output of unknown type",
            where=f"`{value.name}`",
            expected="a tensor with an element type",
            fix="run `onnx.shape_inference` over the model, or export it again",
        )
    return value.dtype.numpy().name
