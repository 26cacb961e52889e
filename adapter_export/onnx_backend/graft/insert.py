"""Put slots into a copy of a base: adapter nodes at its sites, reading initializers that can be overridden."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import onnx_ir as ir

from adapter_export.errors import AdapterExportError, BaseModelError
from adapter_export.format.manifest import SlotRecord
from adapter_export.graph.adapter import HEAD
from adapter_export.graph.bind import BORROWED_WEIGHT, needs_base_norm
from adapter_export.graph.graph import READABLE
from adapter_export.numerics.fit import bound_to, check_tokens
from adapter_export.onnx_backend.base.base import FINGERPRINT_KEY, OnnxBase
from adapter_export.onnx_backend.graft.editor import NODE_SITE_KEY, Graft, cast, check_floats, ones
from adapter_export.onnx_backend.graft.sites import SiteGraft
from adapter_export.onnx_backend.lowering import Writer, emit
from adapter_export.onnx_backend.slots import (
    SLOT_PREFIX,
    HeadSum,
    SlotGroup,
    SlotPlan,
    describe_plan,
    head_graphs,
    head_sums,
)
from adapter_export.sites.site import Norm, Site
from adapter_export.version import __version__

# An exported graph held against its plan: every slot can be overridden, and feeds its operation as it is.

_REARRANGING = frozenset({"Cast", "Transpose", "Identity"})
"""What a tensor that is stored as it is used does not need; it would be copied in every run."""


def verify_slots(model: ir.Model, slots: Sequence[SlotRecord]) -> None:
    """Hold an exported graph against its plan.

    Raises:
        AdapterExportError: it is not so. Whoever changed the graph after the slots went in has a bug.
    """
    inputs = {value.name for value in model.graph.inputs}
    names = {slot.name for slot in slots}
    faults = [fault for slot in slots for fault in _faults(model.graph, slot, slot.name in inputs)]
    extra = [name for name in model.graph.initializers if name in inputs and name not in names]
    faults += [f"`{name}` can be overridden and is no slot" for name in extra]
    if faults:
        raise AdapterExportError("the exported graph is not what was planned", found="; ".join(faults))


def _faults(graph: ir.Graph, slot: SlotRecord, is_input: bool) -> Iterator[str]:
    value = graph.initializers.get(slot.name)
    if value is None or not is_input:
        yield f"`{slot.name}` cannot be overridden"
        return
    tensor = value.const_value
    if tensor is None or tuple(tensor.shape.numpy()) != slot.neutral or tensor.dtype != ir.DataType.FLOAT:
        yield f"`{slot.name}` has another default than {list(slot.neutral)} float32"
    sizes = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
    if sizes != [axis if isinstance(axis, int) else None for axis in slot.axes]:
        yield f"`{slot.name}` has shape {value.shape}"
    uses = [(node.op_type, index) for node, index in value.uses()]
    if not uses or not all(_is_direct(op, index) for op, index in uses):
        yield f"`{slot.name}` feeds {uses or 'nothing'}"


def _is_direct(op: str, index: int) -> bool:
    """Whether an operator computes with its input as it is; weights are [in, out], and so the second factor."""
    return op not in _REARRANGING and (op != "MatMul" or index == 1)


# Where the nodes of adapters get their tensors from, and how the base's values come to them and go back.


class Supply(Protocol):
    """One way of putting adapters into a graph.

    Attributes:
        stacked: whether the tensors have an axis of adapters before their own: [adapters, in, out] for weights, and
            [adapters, 1, width] for vectors. A head then keeps the axis of the tokens, with length 1.
    """

    stacked: bool

    def parameters(self, group: SlotGroup, writer: Writer, /) -> Mapping[str, ir.Value]:
        """The tensors of a group, by parameter."""
        ...

    def enter(self, value: ir.Value, name: str, writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:
        """A value [batch, tokens, width] of the base, or [tokens, batch, width], as the adapter's nodes read it."""
        ...

    def leave(self, result: ir.Value, like: ir.Value, writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:
        """What the adapter's nodes computed in the place of a value of the base, in that value's shape."""
        ...

    def mask(self, mask: ir.Value, writer: Writer, /) -> ir.Value:
        """The attention mask as numbers [batch, tokens] as the nodes of heads read it."""
        ...

    def head(self, head: HeadSum, result: ir.Value, writer: Writer, /) -> ir.Value:
        """What the heads of one output computed, in the shape of that output."""
        ...


class SlotSupply:
    """Slots: inputs of the graph that are initializers as well, for one adapter at a time."""

    stacked = False

    def __init__(self, graft: Graft) -> None:
        self._graft = graft
        self._shared: dict[str, ir.Value] = {}

    def parameters(self, group: SlotGroup, _writer: Writer, /) -> Mapping[str, ir.Value]:
        """The slots of a group; what several sites share is registered once."""
        neutral = group.neutral()
        slots = {}
        for record in group.records():
            if record.name in self._shared:
                slots[record.parameter] = self._shared[record.name]
                continue
            shape = ir.Shape([group.axis_name(axis, record.parameter) for axis in record.axes])
            tensor = ir.Tensor(neutral[record.parameter], name=record.name)
            slots[record.parameter] = self._graft.add_slot(record.name, shape, tensor)
            if record.parameter in group.graph.shared:
                self._shared[record.name] = slots[record.parameter]
        return slots

    def enter(self, value: ir.Value, _name: str, _writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:  # noqa: ARG002
        """As it is."""
        return value

    def leave(self, result: ir.Value, _like: ir.Value, _writer: Writer, /, *, sequence_first: bool = False) -> ir.Value:  # noqa: ARG002
        """As it is."""
        return result

    def mask(self, mask: ir.Value, _writer: Writer, /) -> ir.Value:
        """As it is."""
        return mask

    def head(self, _head: HeadSum, result: ir.Value, _writer: Writer, /) -> ir.Value:
        """As it is."""
        return result


GRAPH_VERSION = "1.0.0"
"""The version of the conventions of an exported graph: names of slots and keys of `metadata_props`."""

VERSION_KEY = "adapter_export.format_version"
SITES_KEY = "adapter_export.sites"
"""JSON: what `site_values` gives."""

NORMS_KEY = "adapter_export.norms"
"""JSON: what `site_norms` gives."""

HEAD_OUTPUTS_KEY = "adapter_export.head_outputs"
"""JSON: the output of each topology of head, by the name of its graph."""

NODE_GRAPH_KEY = "adapter_export.graph"
NODE_PATH_KEY = "adapter_export.torch_path"

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def insert_slots(base: OnnxBase, plan: SlotPlan) -> ir.Model:
    """The base's graph with a slot for everything that an adapter of the plan needs.

    With no slot overridden it computes what the base computes; what its heads then give means nothing.

    Raises:
        BaseModelError: as `insert`.
    """
    model = insert(base, plan, SlotSupply)
    verify_slots(model, plan.slots)
    return model


def insert(base: OnnxBase, plan: SlotPlan, supply: Callable[[Graft], Supply]) -> ir.Model:
    """The base's graph with the nodes of all adapters of a plan.

    Args:
        base: the base.
        plan: what acts where.
        supply: gives the nodes their tensors, in the copy of the graph that it is given.

    Raises:
        BaseModelError: the base computes in another type than float32 or float16, has a name that the adapters need,
            has several inputs that may be the mask of a head, or one that covers more than the head reads.
    """
    sites = SiteGraft(base)
    insertion = _Insertion(base, sites, supply(sites.graft))
    places = {(site.name, group.graph.replaces): site for site in base.sites for group in plan.at(site.name)}
    for site, replaced in sites.ordered((site, replaced) for (_, replaced), site in places.items()):
        insertion.adapt(site, replaced, [group for group in plan.at(site.name) if group.graph.replaces == replaced])
    sums = head_sums(plan, [record.name for record in base.outputs])
    if sums:
        insertion.add_heads(sums)
    model = sites.graft.finish()
    _describe(model, base, plan, sums, insertion)
    return model


def site_values(model: ir.Model) -> dict[str, dict[str, str]]:
    """The names of values in a graph that `insert_slots` made.

    Returns:
        For each site with slots the values of the base that its adapters may read, of `h`, `x`, `u` and `y`; what
        stands in the place of one of them, by `result_of`; and the base's tensors that its adapters borrow. For the
        `head`, if there is one, `hidden`.
    """
    values: dict[str, dict[str, str]] = json.loads(model.metadata_props.get(SITES_KEY, "{}"))
    return values


def result_of(replaced: str) -> str:
    """What `site_values` calls the value that stands in the place of another."""
    return f"result_{replaced}"


def site_norms(model: ir.Model) -> dict[str, Norm]:
    """The norms of the base that adapters apply in a graph that `insert_slots` made, by site."""
    norms = json.loads(model.metadata_props.get(NORMS_KEY, "{}"))
    return {site: Norm(**norm) for site, norm in norms.items()}


@dataclass
class _Insertion:
    """The work on one graph.

    Attributes:
        base: the base.
        sites: the copy of its graph that is changed.
        supply: gives the tensors of adapters.
        values: what `site_values` will name.
        norms: what `site_norms` will give.
    """

    base: OnnxBase
    sites: SiteGraft
    supply: Supply
    values: dict[str, dict[str, ir.Value]] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)

    @property
    def graft(self) -> Graft:
        """The copy of the graph that is changed."""
        return self.sites.graft

    def adapt(self, site: Site, replaced: str, groups: Sequence[SlotGroup]) -> None:
        """Put adapter nodes behind one of a site's values, each group reading the result of the one before.

        They compute in float32; where the base does not, casts stand around them.
        """
        read = self.sites.values(site, READABLE[replaced])
        check_floats(read, site.name)
        shape = read[replaced].shape
        for group in groups:
            check_tokens(group.graph, site, None if shape is None else len(shape))
        tape = ir.tape.Tape()
        needed = {replaced}.union(*(group.graph.inputs for group in groups))
        place = "" if replaced == "h" else f"{replaced}/"
        at_site = self._site_writer(tape, site.name, site.path)
        inputs = {
            name: cast(tape, read[name], ir.DataType.FLOAT, site.name, f"{place}{name}") for name in sorted(needed)
        }
        enter, sequence_first = self.supply.enter, site.sequence_first
        inputs = {
            name: enter(value, f"{place}{name}", at_site, sequence_first=sequence_first)
            for name, value in inputs.items()
        }
        norm = self._norm(tape, site, place) if any(needs_base_norm(group.graph) for group in groups) else {}
        for group in groups:
            graph, writer = bound_to(group.graph, site.norm), self._writer(tape, group, site.path)
            parameters = {**self.supply.parameters(group, writer), **norm}
            inputs[replaced] = emit(graph, inputs, parameters, writer)
        left = self.supply.leave(inputs[replaced], read[replaced], at_site, sequence_first=sequence_first)
        result = cast(tape, left, read[replaced].dtype, site.name, f"{place}result")
        self.sites.replace(site, replaced, result, tape.nodes)
        self.values[site.name] = {**read, **self.values.get(site.name, {}), result_of(replaced): result}

    def _norm(self, tape: ir.tape.Tape, site: Site, place: str) -> dict[str, ir.Value]:
        """The tensors of the base's own norm, in float32."""
        tensors = self.sites.norm_tensors(site)
        if site.norm is not None:
            self.norms[site.name] = site.norm
        self.values.setdefault(site.name, {}).update(tensors)
        if site.norm is not None and site.norm.weight is None:
            tensors[BORROWED_WEIGHT] = ones(tape, site.width, site.name, f"{place}{BORROWED_WEIGHT}.ones")
        return {
            name: cast(tape, value, ir.DataType.FLOAT, site.name, f"{place}{name}") for name, value in tensors.items()
        }

    def add_heads(self, sums: Sequence[HeadSum]) -> None:
        """Put the heads behind the final hidden state; the results of those that share an output are added up."""
        tape = ir.tape.Tape()
        hidden = self.graft.value(self.base.sites.final)
        check_floats({"hidden": hidden}, HEAD)
        plain = cast(tape, hidden, ir.DataType.FLOAT, HEAD, "hidden")
        at_head = self._site_writer(tape, HEAD, None)
        inputs = {"hidden": self.supply.enter(plain, "hidden", at_head)}
        if any("mask" in group.graph.inputs for head in sums for group in head.groups):
            inputs["mask"] = self.supply.mask(self._mask(tape, plain), at_head)
        self.values[HEAD] = {"hidden": hidden}
        for head in sums:
            result = self._head(tape, head, inputs)
            self.graft.vacate(head.output)
            self.graft.append_output(tape, result, head.output, _head_axes(hidden, head))
            tape = ir.tape.Tape()

    def _head(self, tape: ir.tape.Tape, head: HeadSum, inputs: Mapping[str, ir.Value]) -> ir.Value:
        results = []
        for group in head.groups:
            writer = self._writer(tape, group, None)
            results.append(emit(group.graph, inputs, self.supply.parameters(group, writer), writer))
        return self.supply.head(head, _sum(tape, head.output, results), self._site_writer(tape, HEAD, None))

    def _mask(self, tape: ir.tape.Tape, hidden: ir.Value) -> ir.Value:
        """The mask as numbers [batch, tokens]; a base without a mask keeps every token."""
        if any(record.role == "cache" for record in self.base.inputs):
            raise BaseModelError(
                "has a cache, and its mask covers the tokens before as well as those that a head reads",
                where=self.base.path,
                expected="a mask of the tokens alone, for a head that averages over them",
                fix="capture the base without its cache",
            )
        if self.base.mask is not None:
            return _head_op(tape, "mask", "Cast", [self.graft.value(self.base.mask)], to=ir.DataType.FLOAT)
        shape = _head_op(tape, "shape", "Shape", [hidden], start=0, end=2)
        shape.dtype = ir.DataType.INT64
        return _head_op(tape, "mask", "ConstantOfShape", [shape], value=ir.tensor([1.0], ir.DataType.FLOAT))

    def _writer(self, tape: ir.tape.Tape, group: SlotGroup, path: str | None) -> Writer:
        metadata = {**_node_metadata(group.owner, path), NODE_GRAPH_KEY: group.graph_name}
        return Writer(tape, group.prefix, self.base.opset, metadata, stacked=self.supply.stacked)

    def _site_writer(self, tape: ir.tape.Tape, owner: str, path: str | None) -> Writer:
        """For what stands around all groups of one place."""
        return Writer(tape, f"{SLOT_PREFIX}{owner}", self.base.opset, _node_metadata(owner, path))


def _node_metadata(owner: str, path: str | None) -> dict[str, str]:
    return {NODE_SITE_KEY: owner} | ({} if path is None else {NODE_PATH_KEY: path})


def _describe(model: ir.Model, base: OnnxBase, plan: SlotPlan, sums: Sequence[HeadSum], insertion: _Insertion) -> None:
    values = {owner: {name: _name(value) for name, value in there.items()} for owner, there in insertion.values.items()}
    model.producer_name, model.producer_version = "adapter-export", __version__
    model.metadata_props.update(
        {
            FINGERPRINT_KEY: base.fingerprint,
            VERSION_KEY: GRAPH_VERSION,
            SITES_KEY: json.dumps(values, sort_keys=True),
        }
    )
    describe_plan(model, plan)
    if insertion.norms:
        norms = {site: asdict(norm) for site, norm in insertion.norms.items()}
        model.metadata_props[NORMS_KEY] = json.dumps(norms, sort_keys=True)
    if sums:
        model.metadata_props[HEAD_OUTPUTS_KEY] = json.dumps(head_graphs(sums), sort_keys=True)
    for node in model.graph.all_nodes():
        node.metadata_props.pop(_STACK_TRACE, None)


def _sum(tape: ir.tape.Tape, name: str, values: Sequence[ir.Value]) -> ir.Value:
    total, *rest = values
    for index, value in enumerate(rest):
        total = _head_op(tape, f"{name}/sum_{index}", "Add", [total, value])
    return total


def _head_axes(hidden: ir.Value, head: HeadSum) -> ir.Shape:
    """The axes of a head's output; one name means one size in a graph, so those of different outputs differ."""
    leading = [_axis(hidden, index, name) for index, name in enumerate(("batch", "tokens"))]
    last = head.groups[0].axis_name(head.width) if len(head.groups) == 1 else head.width
    if isinstance(last, str) and len(head.groups) > 1 and head.output != "logits":
        last = f"{head.output}.{last}"
    return ir.Shape([*(leading if head.result == "token_logits" else leading[:1]), last])


def _axis(value: ir.Value, index: int, default: str) -> int | str:
    axis = value.shape[index] if value.shape is not None and len(value.shape) > index else None
    known = axis if isinstance(axis, int) else getattr(axis, "value", None)
    return default if known is None else known


def _head_op(tape: ir.tape.Tape, name: str, op: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
    """A node that all heads share."""
    full_name = f"{SLOT_PREFIX}{HEAD}/{name}"
    output = ir.Value(name=full_name, type=ir.TensorType(ir.DataType.FLOAT))
    return tape.op(op, inputs, attributes, name=full_name, output=output, metadata_props={NODE_SITE_KEY: HEAD})


def _name(value: ir.Value) -> str:
    assert value.name is not None  # every value of a loaded graph and of a writer has one
    return value.name
