"""Insert adapters into a copy of a base: nodes at its sites and heads that read overridable initializers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from adapter_export.errors import AdapterExportError, BaseModelError, FormatError
from adapter_export.format.manifest import SlotRecord
from adapter_export.graph.adapter import HEAD, PREFIX, Adapter
from adapter_export.graph.graph import BORROWED_WEIGHT, READABLE, bind_base_norm, needs_base_norm
from adapter_export.graph.tasks import PER_TOKEN
from adapter_export.numerics.evaluate_adapter import check_tokens
from adapter_export.numerics.prefix_inputs import prefixed_caches
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY, OnnxBase
from adapter_export.onnx_backend.onnx_lowering import Writer, emit
from adapter_export.onnx_backend.rewrite.past import PastRewrite
from adapter_export.onnx_backend.rewrite.surgery import NODE_SITE_KEY, GraphRewrite, SiteRewrite
from adapter_export.onnx_backend.slots import (
    PLAN_KEY,
    SLOT_PREFIX,
    TOPOLOGY_KEY,
    HeadSum,
    PrefixSlots,
    SlotGroup,
    SlotPlan,
    describe_plan,
    head_records,
    head_sums,
    plan_slots,
    slot_tensors,
)
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.sites.edits import Edit
from adapter_export.sites.site import Norm
from adapter_export.version import __version__
from adapter_export.words import argument

GRAPH_VERSION = "1.0.0"
"""Version of the conventions of an exported graph: names of slots and keys of `metadata_props`."""

VERSION_KEY = "adapter_export.format_version"
SITES_KEY = "adapter_export.sites"
"""Metadata key of the result of `site_values`, as JSON."""

NORMS_KEY = "adapter_export.norms"
"""Metadata key of the result of `site_norms`, as JSON."""

HEAD_OUTPUTS_KEY = "adapter_export.head_outputs"
"""Metadata key of the output of each topology of head, by the name of its graph, as JSON."""

NODE_GRAPH_KEY = "adapter_export.graph"
NODE_PATH_KEY = "adapter_export.torch_path"

_FLOAT = ir.TensorType(ir.DataType.FLOAT)

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Types in which a base may compute at a site."""


class ParameterBinding:
    """Binds the parameters of adapters to slots, which are overridable initializers, for one adapter at a time."""

    stacked = False
    """As `Writer.stacked`: whether the tensors have a leading axis of adapters."""

    def __init__(self, rewrite: GraphRewrite) -> None:
        self.rewrite = rewrite
        self._slots: dict[str, ir.Value] = {}

    def parameters(self, group: SlotGroup, _writer: Writer, /) -> Mapping[str, ir.Value]:
        """Return the tensors of a group, by parameter; tensors that several sites share are registered once."""
        neutral = group.neutral()
        for record in group.records():
            if record.name not in self._slots:
                shape = ir.Shape([group.axis_name(axis, record.parameter) for axis in record.graph_axes])
                tensor = ir.Tensor(neutral[record.parameter], name=record.name)
                self._slots[record.name] = self.rewrite.add_slot(record.name, shape, tensor)
        return {record.parameter: self._slots[record.name] for record in group.records()}

    def rows(self, _writer: Writer, /) -> ir.Value | None:
        """Return the row of each request in tables of lookups, [batch], if these have all adapters."""
        return None

    def enter(self, value: ir.Value, _name: str, _writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:  # noqa: ARG002
        """Reshape a value of the base, [batch, tokens, width] or [tokens, batch, width], for the adapter's nodes."""
        return value

    def leave(self, result: ir.Value, _like: ir.Value, _writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:  # noqa: ARG002
        """Reshape the replacement to match the base's value."""
        return result

    def mask(self, mask: ir.Value, _writer: Writer, /) -> ir.Value:
        """Return the attention mask as numbers [batch, tokens] for the nodes of heads."""
        return mask

    def head(self, _head: HeadSum, result: ir.Value, _writer: Writer, /) -> ir.Value:
        """Reshape the result of the heads of one output to match that output."""
        return result

    def prefix(self, slots: PrefixSlots, _writer: Writer, /) -> Mapping[str, ir.Value]:
        """Return the tensors of a prefix by their slots: the length [1], and keys and values without a batch."""
        for record in slots.records():
            shape = ir.Shape([f"{PREFIX}.{axis}" if isinstance(axis, str) else axis for axis in record.graph_axes])
            tensor = ir.Tensor(np.zeros(record.neutral, np.float32), name=record.name)
            self._slots[record.name] = self.rewrite.add_slot(record.name, shape, tensor)
        return {record.name: self._slots[record.name] for record in slots.records()}


def insert_slots(base: OnnxBase, plan: SlotPlan) -> ir.Model:
    """Return the base's graph with slots for every adapter of the plan; raises as `insert`.

    If no slot is overridden, it computes the same as the base, and the outputs of heads are meaningless.
    """
    model = insert(base, plan, ParameterBinding)
    verify_slots(model, plan.slots)
    return model


def baked(model: ir.Model, plan: SlotPlan, adapter: Adapter) -> ir.Model:
    """Return a copy of a graph with slots in which an adapter is constant, so that ONNX Runtime may fold it."""
    copy = model.clone()
    for name, tensor in slot_tensors(plan, adapter).items():
        slot = copy.graph.initializers[name]
        slot.const_value = ir.Tensor(np.ascontiguousarray(tensor), name=name)
        # the neutral default may be narrower
        slot.shape = ir.Shape(tensor.shape)
        copy.graph.inputs.remove(slot)
    return copy


def without_slots(base: OnnxBase, adapter: Adapter) -> ir.Model:
    """Return the base's graph with an adapter as constants: a plain model, without slots in its metadata."""
    plan = plan_slots([adapter], base.sites)
    model = baked(insert_slots(base, plan), plan, adapter)
    for key in (TOPOLOGY_KEY, PLAN_KEY, VERSION_KEY, SITES_KEY, NORMS_KEY, HEAD_OUTPUTS_KEY):
        model.metadata_props.pop(key, None)
    return model


def insert(base: OnnxBase, plan: SlotPlan, bind: Callable[[GraphRewrite], ParameterBinding]) -> ir.Model:
    """Return the base's graph with the nodes of all adapters of a plan; `bind` provides their tensors.

    Raises:
        BaseModelError: the base does not compute in float32 or float16, has a reserved name, has several inputs
            that may be the mask of a head, or a mask that covers more than the head reads.
        AdapterError: the base takes no prefix, or another one.
    """
    places = {(site.name, group.graph.replaces): site for site in base.sites for group in plan.at(site.name)}
    rewrite = SiteRewrite(base, ((site, replaced) for (_, replaced), site in places.items()))
    insertion = _Insertion(base, rewrite, bind(rewrite))
    for edit in rewrite.edits:
        insertion.adapt(edit, [group for group in plan.at(edit.site.name) if group.graph.replaces == edit.replaced])
    sums = head_sums(plan, [record.name for record in base.outputs])
    if sums:
        insertion.add_heads(sums)
    if plan.prefix is not None:
        insertion.add_prefix(plan.prefix)
    model = rewrite.finish()
    insertion.describe(model, plan, sums)
    return model


class _Insertion:
    """State of one insertion into a graph."""

    def __init__(self, base: OnnxBase, rewrite: SiteRewrite, binding: ParameterBinding) -> None:
        self._base = base
        self._rewrite = rewrite
        self._binding = binding
        self._values: dict[str, dict[str, ir.Value]] = {}
        self._norms: dict[str, Norm] = {}

    def adapt(self, edit: Edit, groups: Sequence[SlotGroup]) -> None:
        """Insert adapter nodes after one of a site's values; each group reads the result of the previous one.

        They compute in float32; if the base does not, casts surround them.
        """
        site, replaced = edit.site, edit.replaced
        read = self._rewrite.site_values(edit, READABLE[replaced])
        ids = {"u"} if site.role == "lookup" else set[str]()
        _check_floats({name: value for name, value in read.items() if name not in ids}, site.name)
        shape = read[replaced].shape
        for group in groups:
            check_tokens(group.graph, site, None if shape is None else len(shape))
        tape = ir.tape.Tape()
        writer = self._writer(tape, site.name, site.path)
        place = "" if replaced == "h" else f"{replaced}/"
        inputs = {}
        # sorted, so that each build writes the same bytes
        for name in sorted({replaced}.union(*(group.graph.inputs for group in groups))):
            if name in ids:
                inputs[name] = read[name]
                continue
            value = _cast(read[name], ir.DataType.FLOAT, f"{place}{name}", writer)
            inputs[name] = self._binding.enter(value, f"{place}{name}", writer, sequence_first=site.sequence_first)
        norm = self._norm(edit, place, writer) if any(needs_base_norm(group.graph) for group in groups) else {}
        for group in groups:
            inside = self._writer(tape, site.name, site.path, group)
            parameters = {**self._binding.parameters(group, inside), **norm}
            inputs[replaced] = emit(bind_base_norm(group.graph, site.norm), inputs, parameters, inside)
        left = self._binding.leave(inputs[replaced], read[replaced], writer, sequence_first=site.sequence_first)
        result = _cast(left, read[replaced].dtype, f"{place}result", writer)
        self._rewrite.carry_out(edit, result, tape.nodes)
        self._values[site.name] = {**read, **self._values.get(site.name, {}), result_of(replaced): result}

    def _norm(self, edit: Edit, place: str, writer: Writer) -> dict[str, ir.Value]:
        """Return the tensors of the base's own norm, in float32."""
        site, tensors = edit.site, self._rewrite.norm_tensors(edit.site)
        self._values.setdefault(site.name, {}).update(tensors)
        if site.norm is not None:
            self._norms[site.name] = site.norm
            if site.norm.weight is None:
                # `LayerNormalization` requires a weight
                ones = ir.tensor(np.ones(site.width, np.float32))
                tensors[BORROWED_WEIGHT] = writer.constant(f"{place}{BORROWED_WEIGHT}.ones", ones)
        return {name: _cast(value, ir.DataType.FLOAT, f"{place}{name}", writer) for name, value in tensors.items()}

    def add_heads(self, sums: Sequence[HeadSum]) -> None:
        """Insert the heads after the final hidden state; results that share an output are added."""
        tape = ir.tape.Tape()
        writer = self._writer(tape, HEAD, None)
        hidden = self._rewrite.value(self._base.sites.final)
        _check_floats({"hidden": hidden}, HEAD)
        plain = _cast(hidden, ir.DataType.FLOAT, "hidden", writer)
        inputs = {"hidden": self._binding.enter(plain, "hidden", writer)}
        if any("mask" in group.graph.inputs for head in sums for group in head.groups):
            inputs["mask"] = self._binding.mask(self._mask(plain, writer), writer)
        self._values[HEAD] = {"hidden": hidden}
        for head in sums:
            writer = self._writer(tape, HEAD, None)
            results = []
            for group in head.groups:
                inside = self._writer(tape, HEAD, None, group)
                results.append(emit(group.graph, inputs, self._binding.parameters(group, inside), inside))
            total, *rest = results
            for index, value in enumerate(rest):
                total = writer.op(f"{head.output}/sum_{index}", "Add", (total, value), type=_FLOAT)
            result = self._binding.head(head, total, writer)
            self._rewrite.vacate(head.output)
            self._rewrite.append_output(tape, result, head.output, _head_axes(hidden, head))
            tape = ir.tape.Tape()

    def add_prefix(self, slots: PrefixSlots) -> None:
        """Put keys and values before the caches, and remove them from the caches that the graph returns."""
        caches = prefixed_caches(self._base.inputs, slots.shapes)
        writer = self._writer(ir.tape.Tape(), PREFIX, None)
        tensors = self._binding.prefix(slots, writer)
        past = PastRewrite(self._rewrite, writer, tensors[slots.length], self._binding.stacked)
        for record, axis in caches.items():
            past.prepend(record, axis, tensors[slots.slot(record.name)])
        past.finish(next(record for record in self._base.inputs if record.role == "mask"))

    def _mask(self, hidden: ir.Value, writer: Writer) -> ir.Value:
        """Return the mask as numbers [batch, tokens]; a base without a mask keeps every token."""
        if any(record.role == "cache" for record in self._base.inputs):
            raise BaseModelError(
                "has a cache, and its mask covers past tokens, which a head cannot read",
                where=self._base.path,
                expected="a mask of the current tokens only, for a head that pools them",
                fix="capture the bare model: " + argument("bare", True),
            )
        if self._base.mask is not None:
            return writer.op("mask", "Cast", (self._rewrite.value(self._base.mask),), {"to": _FLOAT.dtype}, type=_FLOAT)
        shape = writer.op("shape", "Shape", (hidden,), {"start": 0, "end": 2}, type=ir.TensorType(ir.DataType.INT64))
        ones = ir.tensor([1.0], ir.DataType.FLOAT)
        return writer.op("mask", "ConstantOfShape", (shape,), {"value": ones}, type=_FLOAT)

    def _writer(self, tape: ir.tape.Tape, owner: str, path: str | None, group: SlotGroup | None = None) -> Writer:
        """Return a writer for the nodes of a group, or for those around all groups of one place."""
        metadata = {NODE_SITE_KEY: owner} | ({} if path is None else {NODE_PATH_KEY: path})
        if group is None:
            return Writer(tape, f"{SLOT_PREFIX}{owner}", self._base.opset, metadata)
        metadata[NODE_GRAPH_KEY] = group.graph_name
        writer = Writer(tape, group.prefix, self._base.opset, metadata, stacked=self._binding.stacked)
        return replace(writer, rows=self._binding.rows(writer) if group.graph.reads_ids else None)

    def describe(self, model: ir.Model, plan: SlotPlan, sums: Sequence[HeadSum]) -> None:
        """Record the contents of a graph in its metadata."""
        names = {owner: {key: value.name for key, value in values.items()} for owner, values in self._values.items()}
        model.producer_name, model.producer_version = "adapter-export", __version__
        metadata = model.metadata_props
        metadata[FINGERPRINT_KEY], metadata[VERSION_KEY] = self._base.fingerprint, GRAPH_VERSION
        metadata[SITES_KEY] = json.dumps(names, sort_keys=True)
        describe_plan(model, plan)
        if self._norms:
            norms = {site: asdict(norm) for site, norm in self._norms.items()}
            metadata[NORMS_KEY] = json.dumps(norms, sort_keys=True)
        if sums:
            outputs = {head.graph: head.output for head in head_records(sums)}
            metadata[HEAD_OUTPUTS_KEY] = json.dumps(outputs, sort_keys=True)
        for node in model.graph.all_nodes():
            # traces contain folders of the machine that exported the base
            node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)


def _check_floats(values: Mapping[str, ir.Value], where: str) -> None:
    """Reject a base that computes at a site in a type other than float32 or float16."""
    other = {value.dtype.name for value in values.values() if value.dtype not in (None, *_FLOATS)}
    if other:
        raise BaseModelError(
            "computes in a type that adapters do not support",
            where=f"site `{where}`",
            found=", ".join(sorted(other)),
            expected=" or ".join(kind.name for kind in _FLOATS),
            fix="export the base in float32; " + argument("base_precision") + " can then reduce its precision",
        )


def _cast(value: ir.Value, to: ir.DataType | None, name: str, writer: Writer) -> ir.Value:
    """Return the value in another type; unchanged if it has that type, or if its type is unknown: usually float32."""
    if to is None or value.dtype in (None, to):
        return value
    name, kind = f"{name}.{to.name.lower()}", ir.TensorType(to)
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        # a `MatMul` of a cast of a transpose crashes MatmulTransposeFusion of onnxruntime 1.32
        before = writer.op(f"{name}.transposed", "Cast", (producer.inputs[0],), {"to": to}, type=kind)
        perm = producer.attributes.get_ints("perm")
        result = writer.op(name, "Transpose", (before,), {} if perm is None else {"perm": list(perm)})
    else:
        result = writer.op(name, "Cast", (value,), {"to": to}, type=kind)
    result.shape = value.shape
    return result


def _head_axes(hidden: ir.Value, head: HeadSum) -> ir.Shape:
    """Return the axes of a head's output; different outputs need different axis names: one name, one length."""
    known = [dim if isinstance(dim, int) else dim.value for dim in hidden.shape or ()]
    named = zip((*known, None, None), ("batch", "tokens"), strict=False)
    leading = [name if axis is None else axis for axis, name in named]
    last = head.groups[0].axis_name(head.width) if len(head.groups) == 1 else head.width
    if isinstance(last, str) and len(head.groups) > 1 and head.output != "logits":
        last = f"{head.output}.{last}"
    return ir.Shape([*(leading if head.result in PER_TOKEN else leading[:1]), last])


def verify_slots(model: ir.Model, slots: Sequence[SlotRecord]) -> None:
    """Compare an exported graph with its plan: every slot is overridable, and feeds its operation unchanged.

    Raises:
        AdapterExportError: a later step changed the graph, which is a bug.
    """
    inputs = {value.name for value in model.graph.inputs}
    names = {slot.name for slot in slots}
    faults = [fault for slot in slots for fault in _faults(model.graph, slot, slot.name in inputs)]
    # an overridable weight of the base could be replaced by an adapter's file
    extra = [name for name in model.graph.initializers if name in inputs and name not in names]
    faults += [f"`{name}` can be overridden, but is not a slot" for name in extra]
    if faults:
        what = "the exported graph does not match the slot plan (internal error)"
        raise AdapterExportError(what, found="; ".join(faults))


def _faults(graph: ir.Graph, slot: SlotRecord, is_input: bool) -> Iterator[str]:
    value = graph.initializers.get(slot.name)
    if value is None or not is_input:
        yield f"`{slot.name}` cannot be overridden"
        return
    tensor = value.const_value
    if tensor is None or tuple(tensor.shape.numpy()) != slot.neutral or tensor.dtype != ir.DataType.FLOAT:
        yield f"`{slot.name}` has a default other than {list(slot.neutral)} float32"
    sizes = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
    if sizes != [axis if isinstance(axis, int) else None for axis in slot.graph_axes]:
        yield f"`{slot.name}` has shape {value.shape}"
    uses = [(node.op_type, index) for node, index in value.uses()]
    rearranging = ("Cast", "Transpose", "Identity")  # would copy the tensor in every run
    if not uses or any(op in rearranging or (op == "MatMul" and index != 1) for op, index in uses):
        yield f"`{slot.name}` feeds {uses or 'nothing'}"


def site_values(model: ir.Model) -> dict[str, dict[str, str]]:
    """Return the names of values by site, in a graph made by `insert_slots`.

    For a site with slots: the values of the base that its adapters may read, of `h`, `x`, `u` and `y`; their
        replacements, by `result_of`; and the base's tensors that its adapters borrow. The value of the `head`, if any,
        is `hidden`.
    """
    with parsing(partial(_no_note, SITES_KEY)):
        document: Any = parse_json(model.metadata_props.get(SITES_KEY, "{}").encode(), SITES_KEY)
        return {site: {str(key): str(name) for key, name in values.items()} for site, values in document.items()}


def _no_note(key: str, reason: str) -> FormatError:
    fix = "build the bundle again"
    return FormatError("has malformed metadata", where=f"`metadata_props`, `{key}`", found=reason, fix=fix)


def result_of(replaced: str) -> str:
    """Return the key of the replacement of a value in `site_values`."""
    return f"result_{replaced}"


def site_norms(model: ir.Model) -> dict[str, Norm]:
    """Return the norms of the base that adapters apply, by site, in a graph made by `insert_slots`."""
    with parsing(partial(_no_note, NORMS_KEY)):
        norms: Any = parse_json(model.metadata_props.get(NORMS_KEY, "{}").encode(), NORMS_KEY)
        return {site: Norm(**norm) for site, norm in norms.items()}


def exposed(owner: str, value: str) -> str:
    """Return the output that exposes a value of a site, such as `layers.0.ffn/h`, or `head/hidden`."""
    return f"{owner}/{value}"


def with_site_outputs(model: ir.Model) -> ir.Model:
    """Return a copy of a graph made by `insert_slots` that outputs the values of `site_values`, named by `exposed`."""
    rewrite = GraphRewrite(model)
    for owner, names in site_values(model).items():
        for value, name in names.items():
            rewrite.expose(rewrite.value(name), exposed(owner, value))
    return rewrite.finish()
