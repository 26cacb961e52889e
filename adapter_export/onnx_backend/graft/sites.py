"""The values of a base's sites on a copy of its graph: read as they are by now, and replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence, Set

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.graph.bind import BORROWED_BIAS, BORROWED_WEIGHT
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.graft.editor import NODE_SITE_KEY, Graft
from adapter_export.onnx_backend.lowering import Writer
from adapter_export.onnx_backend.slots import SLOT_PREFIX
from adapter_export.onnx_backend.view.flow import activations_of, flow_graph
from adapter_export.onnx_backend.view.norms import UNNAMED_SUM, is_skip_norm, open_sum, sum_output, take_bias
from adapter_export.sites.edits import Entrance, Place, entrance, in_order, value_of
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import LAYERS, Site
from adapter_export.sites.view import Dim

# Biases of linear layers inside the operators that read those layers: given back to them, or refused.
#
# ONNX Runtime's fused attentions add one vector to what they read, [d of queries + d of keys + d of values], which was
# fused into them from the layers before them. So its parts belong to the outputs `h` of these layers.

_AT = {"MultiHeadAttention": 3, "PackedMultiHeadAttention": 3, "DecoderMaskedMultiHeadAttention": 10}
"""The attentions of com.microsoft that have such a bias, and which of their inputs it is."""

_OPERANDS = 3
"""The first inputs are query, key and value."""

_PASSED = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Cast", "Identity"}) | {
    *("Gather", "Concat", "Mul", "Div"),
}
"""What may stand between a layer and the operator with its bias."""

_UNBIASED = ("Normalization", "Linear", "BiasGelu", "FastGelu")
"""How the names of operators end that read vectors which are factors or scales, or biases that can be taken out."""


def has_attention_bias(node: ir.Node) -> bool:
    """Whether it is a fused attention with a bias of what it reads."""
    at = _AT.get(node.op_type) if node.domain == "com.microsoft" else None
    return at is not None and at < len(node.inputs) and node.inputs[at] is not None


def take_attention_bias(node: ir.Node, writer: Writer) -> list[tuple[ir.Value, ir.Value]]:
    """Take the bias out of a fused attention, which reads sums with its parts instead.

    Args:
        node: the attention.
        writer: writes what cuts the bias, and the sums; the caller puts them before the attention.

    Returns:
        What was read before, and the sum that is read now, for query, key and value.

    Raises:
        BaseModelError: these are not three values of known width that nobody else reads.
    """
    at = _AT[node.op_type]
    read, bias = [value for value in node.inputs[:_OPERANDS] if value is not None], node.inputs[at]
    widths = [_width(value) for value in read]
    if len(set(read)) < _OPERANDS or None in widths or any(len(value.uses()) != 1 for value in read):
        raise hidden_bias(node)
    assert bias is not None  # the caller has looked
    sums, start = [], 0
    for place, (value, width) in enumerate(zip(read, widths, strict=True)):
        assert width is not None
        ends = (
            writer.integers(f"{place}/{name}", [number]) for name, number in (("start", start), ("end", start + width))
        )
        part = writer.op(f"{place}/part", "Slice", (bias, *ends))
        total = writer.op(f"{place}/sum", "Add", (value, part))
        total.shape = value.shape
        sums.append((value, total))
        node.replace_input_with(place, total)
        start += width
    node.replace_input_with(at, None)
    return sums


def check_no_bias_behind(h: ir.Value, activations: Set[str]) -> None:
    """Refuse a layer's output to which an operator behind it adds a bias that cannot be taken out.

    Args:
        h: the output.
        activations: those of the graph, by name.

    Raises:
        BaseModelError: there is such an operator.
    """
    width = _width(h) or 0
    for node in _behind(h):
        if has_attention_bias(node) or _may_add(node, width, activations):
            raise hidden_bias(node)


def hidden_bias(node: ir.Node) -> BaseModelError:
    """The refusal of a layer whose bias cannot be given back to it."""
    return BaseModelError(
        "adds the bias of a linear layer before it, so that the layer's output cannot be had with its bias",
        where=f"`{node.name or node.outputs[0].name}`, {node.op_type}",
        expected="an `Add` for the bias, or query, key and value of three layers that nobody else reads",
        fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
    )


def _behind(value: ir.Value) -> Iterator[ir.Node]:
    """The operators that read a value, moved or scaled at most."""
    for node in dict.fromkeys(use.node for use in value.uses()):
        yield node
        if node.op_type in _PASSED and not node.domain:
            for output in node.outputs:
                yield from _behind(output)


def _may_add(node: ir.Node, width: int, activations: Set[str]) -> bool:
    """Whether an operator that is not of the standard reads a trained vector that may be a bias of this width."""
    if node.domain in ("", "ai.onnx") or node.op_type.endswith(_UNBIASED):
        return False
    vectors = [value for value in node.inputs if value is not None and value.name not in activations]
    return any(value.shape is not None and len(value.shape) == 1 and (_width(value) or 0) >= width for value in vectors)


def _width(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    return last if isinstance(last, int) else None


# A part of a fused layer's output: cut out of it, and put back among the others.

_SAME = 0
"""The length in a new shape that stands for the old one."""


def cut_part(whole: ir.Value, site: Site, shape: Sequence[Dim], writer: Writer) -> ir.Value:
    """The features of a part, [..., width].

    Args:
        whole: the fused layer's output.
        site: the part.
        shape: that of the output.
        writer: gets the nodes.
    """
    ((start, end),) = site.parts.values()
    blocks = _in_blocks(whole, site, shape, "h/blocks", writer)
    part = _slice(blocks, start, end, "h", writer)
    if site.blocks > 1:
        part = _reshaped(part, [*_outer(shape), site.width], "h/flat", writer)
    part.shape = None if whole.shape is None else ir.Shape([*whole.shape[:-1], site.width])
    return part


def join_part(whole: ir.Value, part: ir.Value, site: Site, shape: Sequence[Dim], writer: Writer) -> ir.Value:
    """The fused layer's output with other features in the place of a part; the arguments are those of `cut_part`."""
    ((start, end),) = site.parts.values()
    width = shape[-1]
    assert isinstance(width, int)  # a site's values have one
    blocks = _in_blocks(whole, site, shape, "whole/blocks", writer)
    middle = _in_blocks(part, site, shape, "whole/part", writer)
    ends = [(0, start, "whole/before"), (end, width // site.blocks, "whole/behind")]
    before, behind = ([_slice(blocks, *bounds, writer)] if bounds[0] < bounds[1] else [] for bounds in ends)
    joined = writer.op("whole", "Concat", (*before, middle, *behind), {"axis": -1})
    return _reshaped(joined, [*_outer(shape), width], "whole/flat", writer) if site.blocks > 1 else joined


def _outer(shape: Sequence[Dim]) -> list[int]:
    return [_SAME] * (len(shape) - 1)


def _in_blocks(value: ir.Value, site: Site, shape: Sequence[Dim], name: str, writer: Writer) -> ir.Value:
    """[..., blocks, features of a block]; the value itself where there is one block."""
    return value if site.blocks == 1 else _reshaped(value, [*_outer(shape), site.blocks, -1], name, writer)


def _reshaped(value: ir.Value, shape: Sequence[int], name: str, writer: Writer) -> ir.Value:
    return writer.op(name, "Reshape", (value, writer.integers(f"{name}/shape", shape)))


def _slice(value: ir.Value, start: int, end: int, name: str, writer: Writer) -> ir.Value:
    """The features [start, end) of the last axis."""
    bounds = (writer.integers(f"{name}/{edge}", [at]) for edge, at in (("start", start), ("end", end), ("axis", -1)))
    return writer.op(name, "Slice", (value, *bounds))


class SiteGraft:
    """A copy of a base's graph on which the values of sites are replaced.

    Places are to be worked on in the order that `ordered` gives.

    Args:
        base: the base; it stays as it is.

    Attributes:
        graft: the copy.
    """

    def __init__(self, base: OnnxBase) -> None:
        self.graft = Graft.onto(base.model)
        self._base = base
        self._index = FlowIndex(flow_graph(base.model))
        self._activations = activations_of(base.model.graph)
        self._names = {node: name for name, node in self.graft.nodes.items()}
        self._origins = {value: name for name, value in self.graft.values.items()}
        self._sums = {site.h: site.residual for site in base.sites.sublayers if site.residual is not None}
        self._entrances: dict[str, Entrance] = {}
        self._cut_parts: dict[str, list[ir.Node]] = {}
        self._inputs: dict[str, ir.Value] = {}

    def ordered(self, places: Iterable[Place]) -> list[Place]:
        """Places in the order of evaluation."""
        return in_order(places, self._index)

    def values(self, site: Site, names: Collection[str]) -> dict[str, ir.Value]:
        """What now stands for some of a site's values `h`, `x`, `u` and `y`, of those that it has.

        What is fused into the operator behind one of them is taken out there first: a bias of `h`, and the norm of a
        sum that is `y`.
        """
        there = [name for name in names if getattr(site, name) is not None]
        if "h" in there or "y" in there:
            self._take_out_bias(site)
        if "y" in there:
            self._open_sum(site)
        return {name: self._value(site, name) for name in there}

    def norm_tensors(self, site: Site) -> dict[str, ir.Value]:
        """The trained tensors [d] of the norm before `y`, by the names that bound graphs have for them."""
        names = {} if site.norm is None else {BORROWED_WEIGHT: site.norm.weight, BORROWED_BIAS: site.norm.bias}
        return {borrowed: self.graft.value(name) for borrowed, name in names.items() if name is not None}

    def replace(self, site: Site, replaced: str, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Let `new` stand for a site's value; `nodes` compute it.

        In the place of `h` and of `y` everyone reads it, in the place of `u` this layer alone. A part of a fused layer
        is put back among the others.

        Raises:
            NoSitesError: nothing in the layer reads `u`.
        """
        if site.role == "part":
            self._replace_part(site, new, nodes)
            return
        old = self._input(site) if replaced == "u" else self.graft.value(value_of(site, replaced))
        if new is old:
            return
        self._origins[new] = self._origins[old]
        if replaced != "u":
            self.graft.replace(old, new, nodes)
            return
        self.graft.insert(nodes, old)
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        self._redirect(old, new, self._entrance(site))
        self._inputs[site.name] = new

    def _value(self, site: Site, name: str) -> ir.Value:
        if name == "u":
            return self._input(site)
        whole = self.graft.value(getattr(site, name))
        if site.role != "part":
            return whole
        writer = self._part_writer(site)
        part = cut_part(whole, site, self._index.flow.shapes[site.h], writer)
        self._cut_parts[site.name] = list(writer.tape.nodes)
        return part

    def _replace_part(self, site: Site, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
        whole = self.graft.value(site.h)
        writer = self._part_writer(site)
        joined = join_part(whole, new, site, self._index.flow.shapes[site.h], writer)
        self._origins[joined] = self._origins[whole]
        self.graft.replace(whole, joined, [*self._cut_parts.pop(site.name), *nodes, *writer.tape.nodes])

    def _part_writer(self, site: Site) -> Writer:
        metadata = {NODE_SITE_KEY: site.name}
        return Writer(ir.tape.Tape(), f"{SLOT_PREFIX}{site.name}", self._base.opset, metadata)

    def _entrance(self, site: Site) -> Entrance:
        if site.name not in self._entrances:
            self._entrances[site.name] = entrance(self._index, site)
        return self._entrances[site.name]

    def _input(self, site: Site) -> ir.Value:
        """What now stands for `u`: what was put there, or what a sublayer around a linear layer made of it."""
        assert site.u is not None
        if site.name in self._inputs or site.role not in LAYERS:
            return self._inputs.get(site.name) or self.graft.value(site.u)
        within = self._entrance(site)
        node: ir.Node | None = self.graft.nodes[within.reader]
        value = None
        for name in within.back:
            assert node is not None
            value = next(read for read in node.inputs if read is not None and self._origins.get(read) == name)
            node = value.producer()
        assert value is not None
        return value

    def _redirect(self, old: ir.Value, new: ir.Value, within: Entrance) -> None:
        """Let the layer read `new`; what prepares `old` for others as well gets a copy that prepares `new`."""
        for node in dict.fromkeys(node for node, _ in old.uses()):
            if self._names.get(node) in within.readers:
                _reread(node, old, new)
            elif self._names.get(node) in within.copied:
                copy = self._copy(node, old, new)
                for output, copied in zip(node.outputs, copy.outputs, strict=True):
                    self._redirect(output, copied, within)

    def _copy(self, node: ir.Node, old: ir.Value, new: ir.Value) -> ir.Node:
        outputs = [
            ir.Value(name=self.graft.free_name(f"{output.name}.copy"), type=output.type, shape=output.shape)
            for output in node.outputs
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            [new if value is old else value for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            outputs=outputs,
            name=outputs[0].name,
            metadata_props=dict(node.metadata_props),
        )
        self.graft.model.graph.insert_after(node, copy)
        self._names[copy] = self._names[node]
        self._origins.update((made, self._origins[value]) for value, made in zip(node.outputs, outputs, strict=True))
        return copy

    def _take_out_bias(self, site: Site) -> None:
        """Add a bias of `h` that is fused into what reads it to `h` itself."""
        bare = self.graft.value(site.h)
        behind = self._fused_behind(site.h, bare)
        if behind is not None and has_attention_bias(behind):
            self._take_out_attention_bias(site, behind)
            return
        bias = None if behind is None else take_bias(behind)
        if behind is None or bias is None:
            if site.role in LAYERS and not self._has_own_bias(site):
                check_no_bias_behind(bare, self._activations)
            return
        name = self.graft.take_name(f"{SLOT_PREFIX}{site.name}/h")
        whole = ir.Value(name=name, type=bare.type, shape=bare.shape)
        self.graft.model.graph.insert_before(behind, ir.Node("", "Add", [bare, bias], outputs=[whole], name=name))
        _reread(behind, bare, whole)
        self.graft.values[site.h] = whole
        self._origins[whole] = site.h

    def _take_out_attention_bias(self, site: Site, attention: ir.Node) -> None:
        """Add a bias of queries, keys and values that is fused into what reads them to the outputs of their layers."""
        tape = ir.tape.Tape()
        prefix = self.graft.free_name(f"{SLOT_PREFIX}{site.name}/bias")
        sums = take_attention_bias(attention, Writer(tape, prefix, self._base.opset))
        self.graft.add_before(attention, tape.nodes)
        for bare, whole in sums:
            self._origins[whole] = self._origins[bare]
            for name in [name for name, value in self.graft.values.items() if value is bare]:
                self.graft.values[name] = whole

    def _has_own_bias(self, site: Site) -> bool:
        maker = self._index.producer(site.h)
        return maker is not None and maker.epilogue == "bias"

    def _fused_behind(self, h: str, bare: ir.Value) -> ir.Node | None:
        """The operator that may hold the bias of `h`: the residual sum of a sublayer, or the only one that reads it."""
        if h in self._sums:
            return self.graft.nodes[self._sums[h]]
        readers = {node for node, _ in bare.uses()}
        only = readers.pop() if len(readers) == 1 else None
        return None if only is None or is_skip_norm(only) else only

    def _open_sum(self, site: Site) -> None:
        """Write out a sum that is fused with the norm behind it, where the sum itself is the block's output."""
        assert site.y is not None
        known = self.graft.values.get(site.y)
        node = self.graft.nodes.get(site.y.removesuffix(UNNAMED_SUM)) if known is None else known.producer()
        if node is not None and is_skip_norm(node) and (known is None or known.name == sum_output(node)):
            total = open_sum(node)
            if known is None:
                total.name = self.graft.take_name(site.y)
            self.graft.values[site.y] = total
            self._origins[total] = site.y


def _reread(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)
