"""A base as an ONNX file: opened without reading its weights, checked, described."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError
from onnx import helper
from onnx_ir.passes.common import InlinePass

from adapter_export.errors import BaseModelError, NoSitesError
from adapter_export.format.axes import masks_of, with_caches
from adapter_export.format.files import read_bytes
from adapter_export.format.manifest import Axis, InputRecord, OutputRecord
from adapter_export.onnx_backend.base.external import settle_external_data, sha256_of_tensor
from adapter_export.onnx_backend.base.observe import complete_shapes, small_cases
from adapter_export.onnx_backend.base.opset import OLDEST_OPSET, check_converted, open_sums, with_opset
from adapter_export.onnx_backend.lowering import MINIMUM_OPSET
from adapter_export.onnx_backend.slots import TOPOLOGY_KEY
from adapter_export.onnx_backend.view.flow import check_layers_are_visible, flow_graph, node_names
from adapter_export.onnx_backend.view.norms import check_biases
from adapter_export.runtime.graphs import FAILURES
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSites, sites_of
from adapter_export.sites.view import FlowGraph

# Whether ONNX Runtime has the operators of a graph.

_DOMAINS = ("ai.onnx", "com.microsoft")
"""What the domains of ONNX Runtime's operators begin with."""

_UNKNOWN = ("No Op registered for", "is not a registered function/op")
"""What ONNX Runtime says of an operator that it does not have."""


def check_operators(model: ir.Model, path: Path) -> None:
    """Refuse operators that ONNX Runtime does not have.

    Raises:
        BaseModelError: there are some, such as those that an exporter made up.
    """
    own = {(domain, name) for domain, name, *_ in model.functions}
    bodies = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    counts = Counter((node.domain, node.op_type) for nodes in bodies for node in nodes)
    missing = {key: count for key, count in counts.items() if key not in own and not _is_there(*key)}
    if missing:
        raise BaseModelError(
            "has operators that ONNX Runtime does not have",
            where=path,
            found=", ".join(
                f"{count} `{name}` of `{domain or 'ai.onnx'}`" for (domain, name), count in missing.items()
            ),
            expected="operators of the domains `ai.onnx` and `com.microsoft`",
            fix="export it again without operators of your own",
        )


def _is_there(domain: str, name: str) -> bool:
    """Whether the standard has an operator of this name, or else ONNX Runtime, which is asked with a graph of it."""
    if domain and not domain.startswith(_DOMAINS):
        return False
    if onnx.defs.has(name, domain="" if domain == "ai.onnx" else domain):
        return True
    x, y = (helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None) for value in "xy")
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], domain=domain)], "operator", [x], [y])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except FAILURES as error:  # it has too few inputs in any case
        return not any(words in str(error) for words in _UNKNOWN)
    return True


# The width of a decoder's caches where a graph leaves it open and its attention operators know it.

_QUERY, _KEY = 0, 1
_PAST, _PRESENT = (3, 4), (1, 2)
"""Inputs and outputs of `GroupQueryAttention` (com.microsoft, opset 1): past and present keys and values."""


def fix_cache_widths(graph: ir.Graph) -> None:
    """Give keys and values [batch, heads, tokens, width] that go in and come out their width.

    The builder of onnxruntime-genai leaves it open, because it halves where 4-bit numbers are packed. In caches of
    float32 it is that of one attention head.
    """
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            width = _head_width(node)
            for value in _caches(node):
                if width is not None and value.dtype == ir.DataType.FLOAT and value.shape is not None:
                    value.shape = ir.Shape([*value.shape[:-1], width])


def _head_width(node: ir.Node) -> int | None:
    """The width of one head: query, key and value lie side by side where there is no input for the key."""
    heads = node.attributes.get_int("num_heads", 0)
    packed = node.inputs[_KEY] is None
    parts = heads + 2 * node.attributes.get_int("kv_num_heads", 0) if packed else heads
    query = node.inputs[_QUERY]
    width = query.shape[-1] if query is not None and query.shape else None
    return width // parts if isinstance(width, int) and parts else None


def _caches(node: ir.Node) -> Iterator[ir.Value]:
    given = [node.inputs[at] for at in _PAST if at < len(node.inputs)]
    yield from (value for value in given if value is not None and value.is_graph_input())
    made = [node.outputs[at] for at in _PRESENT if at < len(node.outputs)]
    yield from (value for value in made if value.is_graph_output())


FINGERPRINT_KEY = "adapter_export.base_fingerprint"
"""Where in `metadata_props` the fingerprint of the base stands."""

_IR_VERSION = 10
"""The first with metadata on nodes, and the newest that onnxruntime 1.21 loads."""

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
        model: its graph; not to be changed, `onnx.insert` works on copies.
        fingerprint: of the weights, `sha256:<hex>`; where the file was exported from an archive, that of the archive.
        inputs: the data inputs.
        outputs: the outputs.
        opset: of the standard ONNX domain.
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
    sites: SiteMap
    notes: tuple[str, ...] = ()
    given: GivenSites | None = None

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

    def _tokens(self) -> Axis | None:
        """The axis of the tokens of the final hidden state, if it is known by a name that inputs have."""
        known = {axis for record in self.inputs for axis in record.axes if isinstance(axis, str)}
        values = (value for node in self.model.graph for value in node.outputs if value.name == self.sites.final)
        shape = next((value.shape for value in values), None)
        axis = None if shape is None or len(shape) != 3 else shape[1]
        name = axis if axis is None or isinstance(axis, int) else axis.value
        return name if name in known else None


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
    _check_has_no_slots(model, path)
    folder = settle_external_data(model, path)
    check_operators(model, path)
    _normalise(model)
    fingerprint = model.metadata_props.get(FINGERPRINT_KEY) or _fingerprint(model)
    inputs, outputs = _signature(model)
    check_layers_are_visible(model.graph)
    model, notes = _with_slot_opset(model, path, folder, inputs)
    open_sums(model.graph)
    complete_shapes(model, folder, inputs)
    flow = flow_graph(model)
    sites = sites_of(flow, "onnx", given)
    check_biases({name: node for node, name in node_names(model.graph).items()}, _with_found(sites, flow, given))
    opset = model.opset_imports[""]
    return OnnxBase(path, folder, model, fingerprint, inputs, outputs, opset, sites, notes, given)


def _with_found(sites: SiteMap, flow: FlowGraph, given: GivenSites | None) -> SiteMap:
    """With those that a site map leaves out: they own their biases all the same."""
    if given is None:
        return sites
    try:
        return replace(sites, sites=(*sites, *sites_of(flow, "onnx")))
    except NoSitesError:
        return sites


def axes(value: ir.Value) -> tuple[Axis, ...]:
    """The shape of a graph's input or output; an axis without a name gets one from its place."""
    shape = () if value.shape is None else value.shape
    return tuple(
        dim if isinstance(dim, int) else str(dim.value or f"{value.name}.{index}") for index, dim in enumerate(shape)
    )


def _signature(model: ir.Model) -> tuple[tuple[InputRecord, ...], tuple[OutputRecord, ...]]:
    return with_caches(
        [_input_record(value) for value in model.graph.inputs],
        [OutputRecord(_name(value), _dtype(value), axes(value)) for value in model.graph.outputs],
    )


def _load(path: Path) -> ir.Model:
    _check_readable(path)
    try:
        model = ir.load(path)
    except (DecodeError, ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise _not_onnx(path, str(error).partition("\n")[0]) from error
    if not len(model.graph) or not model.graph.outputs:
        raise _not_onnx(path, "a graph without nodes or outputs")
    return model


def _check_readable(path: Path) -> None:
    """An empty file is a valid empty message of protobuf."""
    if not path.is_file() or path.stat().st_size == 0:
        found = read_bytes(path)
        raise _not_onnx(path, f"{len(found)} bytes")


def _not_onnx(path: Path, found: str) -> BaseModelError:
    return BaseModelError(
        "is not an ONNX model, or is truncated",
        where=path,
        found=found,
        expected="a model as `torch.onnx.export` or another exporter writes it",
        fix="export it again, or copy it again as a whole",
    )


def _with_slot_opset(
    model: ir.Model, path: Path, folder: Path, inputs: Sequence[InputRecord]
) -> tuple[ir.Model, tuple[str, ...]]:
    """The model in an opset that slots can be written in, and what was done for that."""
    opset = model.opset_imports.get("", 0)
    if opset >= MINIMUM_OPSET:
        return model, ()
    if opset < OLDEST_OPSET:
        raise BaseModelError(
            "is of an opset that is too old for slots",
            where=path,
            found=f"opset {opset}",
            expected=f"opset {OLDEST_OPSET} or newer",
            fix=f"export it again with `opset_version={MINIMUM_OPSET}`",
        )
    converted = with_opset(model, MINIMUM_OPSET)
    converted.metadata_props.update(model.metadata_props)
    converted.ir_version = _IR_VERSION
    check_converted(model, converted, folder, small_cases(inputs)[0])
    return converted, (f"converted from opset {opset} to {MINIMUM_OPSET}, which slots need; its outputs are unchanged",)


def _check_has_no_slots(model: ir.Model, path: Path) -> None:
    """A graph of a bundle carries the fingerprint of its base, and must not be taken for it: it would prove itself."""
    if TOPOLOGY_KEY in model.metadata_props:
        raise BaseModelError(
            "is a graph of a bundle, with adapters in it",
            where=path,
            expected="the base without them",
            fix="give the model that the bundle was built from",
        )


def _normalise(model: ir.Model) -> None:
    """Make the base's own weights constants, so that the overridable initializers of a build are its slots alone.

    Caches get their widths, and nodes lose inputs that are left out at their ends.
    """
    model.ir_version = _IR_VERSION
    if model.functions:
        InlinePass()(model)
    fix_cache_widths(model.graph)
    for node in model.graph.all_nodes():
        while node.inputs and node.inputs[-1] is None:  # older runtimes know fewer optional inputs of an operator
            node.resize_inputs(len(node.inputs) - 1)
    for value in [value for value in model.graph.inputs if value.is_initializer()]:
        model.graph.inputs.remove(value)


def _fingerprint(model: ir.Model) -> str:
    """The sha256 over the sorted facts of all weights, initializers or constant nodes; none is held in memory.

    It does not depend on where the weights lie, inside the file or beside it, nor on the order of anything.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves the interpreter to others
        facts = sorted(pool.map(_fact, (value for graph in model.graphs() for value in _weights(graph))))
    for fact in facts:
        digest.update(fact.encode())
    return f"sha256:{digest.hexdigest()}"


def _weights(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    yield from (node.outputs[0] for node in graph if node.op_type == "Constant" and node.outputs)


def _fact(value: ir.Value) -> str:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return ""
    return f"{value.name} {tensor.dtype.name} {list(tensor.shape.numpy())} {sha256_of_tensor(tensor)}\n"


def _input_record(value: ir.Value) -> InputRecord:
    limits = list(_embedding_rows(value))
    integer = value.dtype is not None and (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL)
    record = InputRecord(_name(value), _dtype(value), axes(value), "values")
    if limits:
        return InputRecord(record.name, record.dtype, record.axes, "ids", min(limits))
    if integer and len(record.axes) == 2:
        return InputRecord(record.name, record.dtype, record.axes, "mask")
    return record


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


def _name(value: ir.Value) -> str:
    assert value.name is not None  # the deserialiser names every value
    return value.name


def _dtype(value: ir.Value) -> str:
    if value.dtype is None:
        raise BaseModelError(
            "has an input or output of unknown type",
            where=f"`{value.name}`",
            expected="a tensor with an element type",
            fix="run `onnx.shape_inference` over the model, or export it again",
        )
    return value.dtype.numpy().name
