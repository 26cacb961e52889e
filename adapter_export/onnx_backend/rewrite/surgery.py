"""Edit a copy of a base's graph: look up values by name, replace them as planned, add inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from adapter_export.errors import BaseModelError, NoSitesError
from adapter_export.graph.graph import BORROWED_BIAS, BORROWED_WEIGHT, first_free
from adapter_export.onnx_backend.base.flow import activations_of, node_names
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.base.operators import UNNAMED_SUM, is_skip_norm, sum_output
from adapter_export.onnx_backend.onnx_lowering import Writer
from adapter_export.onnx_backend.rewrite import fused
from adapter_export.onnx_backend.slots import SLOT_PREFIX
from adapter_export.sites.edits import Edit, Place, Ref, Rewiring, plan_edits
from adapter_export.sites.site import LAYERS, Site
from adapter_export.sites.view import Dim, Piece

NODE_SITE_KEY = "adapter_export.site"
"""Metadata key on a node for the site that it was made for."""


class GraphRewrite:
    """An editable copy of a graph, `model`; it shares the weights of the original.

    Attributes:
        values: replacements of the original's values.
        nodes: its nodes, by the names used in discovery.
        names: all reserved value names.
    """

    def __init__(self, original: ir.Model) -> None:
        self.model = original.clone()
        graph = self.model.graph
        of_graph = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        self.values: dict[Ref, ir.Value] = {}
        self._refs: dict[ir.Value, list[Ref]] = {}
        for value in of_graph:
            if value.name:
                self._bind(Ref(value.name), value)
        self.nodes = {Ref(name): node for node, name in node_names(graph).items()}
        inner = {value.name for node in graph.all_nodes() for value in node.outputs if value.name}
        self.names = {ref.name for ref in self.values} | inner

    def value(self, name: str) -> ir.Value:
        """Return the replacement of a value of the original."""
        return self.values[Ref(name)]

    def vacate(self, name: str) -> None:
        """Rename an inner value of the base that has this name."""
        value = self.values.get(Ref(name))
        if value is not None and not value.is_graph_output() and not value.is_graph_input():
            value.name = self.free_name(f"{name}.base")
            self.names.discard(name)

    def take_name(self, name: str) -> str:
        """Reserve a name; `BaseModelError` if a value of the base has it."""
        if name in self.names:
            raise BaseModelError(
                "has a value with a reserved name",
                found=f"`{name}`",
                expected="no value with the prefix `adapter.` or `cut.`",
                fix="rename it in the base; does this graph already have slots?",
            )
        self.names.add(name)
        return name

    def free_name(self, name: str) -> str:
        """Reserve an unused name: this one, or this one with a number."""
        return self.take_name(first_free(name, self.names))

    def add_slot(self, name: str, shape: ir.Shape, default: ir.TensorProtocol) -> ir.Value:
        """Add an initializer that is also an input, and so can be overridden."""
        value = self.add_input(name, ir.TensorType(default.dtype), shape)
        value.const_value = default
        self.model.graph.register_initializer(value)
        return value

    def add_input(self, name: str, type: ir.TypeProtocol | None, shape: ir.Shape | None) -> ir.Value:
        """Add a data input."""
        value = ir.Value(name=self.take_name(name), shape=shape, type=type)
        self.model.graph.inputs.append(value)
        return value

    def append_output(self, tape: ir.tape.Tape, value: ir.Value, name: str, shape: ir.Shape) -> None:
        """Append the nodes of a tape, and make a value an output with this name."""
        self.model.graph.extend(tape.nodes)
        self._take_names(tape.nodes)
        value.name, value.shape = self.take_name(name), shape
        self.model.graph.outputs.append(value)

    def expose(self, value: ir.Value, name: str) -> None:
        """Make a copy of a value an output with this name, so that the value keeps its own."""
        kind = value.type or ir.TensorType(ir.DataType.FLOAT)
        output = ir.Value(name=self.take_name(name), type=kind, shape=value.shape)
        self.model.graph.append(ir.Node("", "Identity", [value], outputs=[output], name=name))
        self.model.graph.outputs.append(output)

    def insert(self, nodes: Sequence[ir.Node], behind: ir.Value) -> None:
        """Insert nodes after a value."""
        producer, first = behind.producer(), next(iter(self.model.graph), None)
        if producer is not None:
            self.model.graph.insert_after(producer, nodes)
        elif first is not None:
            self.model.graph.insert_before(first, nodes)
        self._take_names(nodes)

    def replace(self, old: ir.Value, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Redirect all readers of `old` to `new`, except the `nodes` that compute `new`, inserted after `old`.

        An output of the graph keeps its name: `old` is renamed.
        """
        self.insert(nodes, old)
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        for node, index in [use for use in old.uses() if use.node not in nodes]:
            node.replace_input_with(index, new)
        if old.is_graph_output():
            name = old.name
            assert name is not None  # every output has a name
            for index, output in enumerate(self.model.graph.outputs):
                if output is old:
                    self.model.graph.outputs[index] = new
            old.name, new.name = self.free_name(f"{name}.base"), name
        self._rebind(old, new)

    def replace_output(self, old: ir.Value, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Make `new`, which `nodes` compute from `old`, the output of the graph; other readers keep `old`."""
        name = old.name
        assert name is not None  # every output has a name
        self.insert(nodes, old)
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        for index, output in enumerate(self.model.graph.outputs):
            if output is old:
                self.model.graph.outputs[index] = new
        old.name, new.name = self.free_name(f"{name}.base"), name

    def finish(self) -> ir.Model:
        """Sort the nodes into order of evaluation."""
        self.model.graph.sort()
        return self.model

    def _bind(self, ref: Ref, value: ir.Value) -> None:
        self.values[ref] = value
        self._refs.setdefault(value, []).append(ref)

    def _rebind(self, old: ir.Value, new: ir.Value) -> None:
        for ref in self._refs.pop(old, []):
            if self.values[ref] is old:
                self._bind(ref, new)

    def _take_names(self, nodes: Collection[ir.Node]) -> None:
        for value in [value for node in nodes for value in node.outputs if value.name]:
            self.take_name(value.name or "")


class SiteRewrite(GraphRewrite):
    """Editable copy of a base's graph, for the planned `edits` of some places, in order."""

    def __init__(self, base: OnnxBase, places: Iterable[Place]) -> None:
        super().__init__(base.model)
        self.edits = plan_edits(base.index, places)
        self._base = base
        self._activations = activations_of(base.model.graph)
        self._sums = {site.h: site.residual for site in base.sites.sublayers if site.residual is not None}
        self._cuts: dict[str, list[ir.Node]] = {}

    def site_values(self, edit: Edit, names: Collection[str]) -> dict[str, ir.Value]:
        """Return the current values of some of a site's `h`, `x`, `u` and `y`, if it has them.

        First extracts a bias of `h` that is fused into a later operator, and the sum `y` from a fused norm. The output
        of a fused layer is sliced to the features of this site.
        """
        available = [name for name in names if name in edit.values]
        if "h" in available or "y" in available:
            self._take_out_bias(edit.site)
        if "y" in available:
            self._open_sum(edit.values["y"])
        values_of_site = {name: self.values[edit.values[name]] for name in available}
        if edit.piece is not None:
            writer = self._writer(edit.site)
            values_of_site["h"] = _cut(values_of_site["h"], edit.piece, self._base.flow.shapes[edit.site.h], writer)
            self._cuts[edit.site.name] = list(writer.tape.nodes)
        return values_of_site

    def norm_tensors(self, site: Site) -> dict[str, ir.Value]:
        """Return the trained tensors [d] of the norm before `y`, by their names in bound graphs."""
        names = {} if site.norm is None else {BORROWED_WEIGHT: site.norm.weight, BORROWED_BIAS: site.norm.bias}
        return {borrowed: self.value(name) for borrowed, name in names.items() if name is not None}

    def carry_out(self, edit: Edit, new: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Replace an edit's value by `new`, which `nodes` compute.

        Raises:
            NoSitesError: the input of the layer is computed and read inside one operator.
        """
        old = self.values[edit.values[edit.replaced]]
        if edit.piece is not None:
            writer = self._writer(edit.site)
            new = _join(old, new, edit.piece, self._base.flow.shapes[edit.site.h], writer)
            nodes = [*self._cuts.pop(edit.site.name), *nodes, *writer.tape.nodes]
        if new is old:
            return
        if edit.replaced != "u":
            self.replace(old, new, nodes)
            return
        self.insert(nodes, old)
        new.shape, new.type = new.shape or old.shape, new.type or old.type
        self._bind(edit.result, new)
        for rewiring in edit.rewirings:
            self._rewire(rewiring, edit.site)

    def _rewire(self, rewiring: Rewiring, site: Site) -> None:
        old, new, node = self.values[rewiring.old], self.values[rewiring.new], self.nodes.get(rewiring.node)
        results = [] if node is None else [value for value in node.outputs if value.name]
        is_whole = len(rewiring.outputs) in (0, len(results))  # a sum fused with its norm is two nodes in the view
        if node is None or old not in node.inputs or not is_whole:
            raise NoSitesError(
                "the input of a layer cannot be replaced separately",
                where=f"site `{site.name}`",
                found=f"`{rewiring.node.name}` computes and reads it",
                fix="use an adapter that replaces the output `h` there",
            )
        if not rewiring.outputs:
            _reread(node, old, new)
            return
        outputs = [
            ir.Value(name=self.free_name(f"{value.name}.copy"), type=value.type, shape=value.shape)
            for value in node.outputs
        ]
        read = [new if value is old else value for value in node.inputs]
        copy = ir.Node(node.domain, node.op_type, read, list(node.attributes.values()), outputs=outputs)
        copy.name, copy.overload = outputs[0].name, node.overload
        copy.metadata_props.update(node.metadata_props)
        self.model.graph.insert_after(node, copy)
        self.nodes[rewiring.node._replace(layer=rewiring.new.layer)] = copy
        copied = (outputs[node.outputs.index(value)] for value in results)
        for name, value in zip(rewiring.outputs, copied, strict=True):
            self._bind(Ref(name, rewiring.new.layer), value)

    def _writer(self, site: Site) -> Writer:
        return Writer(ir.tape.Tape(), f"{SLOT_PREFIX}{site.name}", self._base.opset, {NODE_SITE_KEY: site.name})

    def _take_out_bias(self, site: Site) -> None:
        """Add a bias of `h` that is fused into its residual sum, or into its only reader, to `h`."""
        bare = self.value(site.h)
        if site.h in self._sums:
            behind: ir.Node | None = self.nodes[Ref(self._sums[site.h])]
        else:
            readers = {node for node, _ in bare.uses()}
            behind = readers.pop() if len(readers) == 1 else None
            behind = None if behind is None or is_skip_norm(behind) else behind
        if behind is not None and fused.has_attention_bias(behind):
            tape, prefix = ir.tape.Tape(), self.free_name(f"{SLOT_PREFIX}{site.name}/bias")
            sums = fused.take_attention_bias(behind, Writer(tape, prefix, self._base.opset))
            self.model.graph.insert_before(behind, tape.nodes)
            self._take_names(tape.nodes)
            for read, whole in sums:
                self._rebind(read, whole)
            return
        bias = None if behind is None else fused.take_bias(behind)
        if behind is None or bias is None:
            maker = self._base.index.producer(site.h)
            if site.role in LAYERS and (maker is None or maker.epilogue != "bias"):
                fused.check_no_bias_behind(bare, self._activations)
            return
        name = self.take_name(f"{SLOT_PREFIX}{site.name}/h")
        whole = ir.Value(name=name, type=bare.type, shape=bare.shape)
        self.model.graph.insert_before(behind, ir.Node("", "Add", [bare, bias], outputs=[whole], name=name))
        _reread(behind, bare, whole)
        self._bind(Ref(site.h), whole)

    def _open_sum(self, y: Ref) -> None:
        """Expand a sum that is fused with the next norm, if the sum is the block's output."""
        known = self.values.get(y)
        node = self.nodes.get(Ref(y.name.removesuffix(UNNAMED_SUM))) if known is None else known.producer()
        if node is not None and is_skip_norm(node) and (known is None or known.name == sum_output(node)):
            self._bind(y, fused.open_sum(node))
            if known is None:
                self.values[y].name = self.take_name(y.name)


def _reread(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)


def _cut(whole: ir.Value, piece: Piece, shape: Sequence[Dim], writer: Writer) -> ir.Value:
    """Return the features of a piece of a fused layer's output [..., width]; `shape` is that of the output."""
    width = (piece.end - piece.start) * piece.blocks
    features = _slice(_in_blocks(whole, piece, shape, "h/blocks", writer), piece.start, piece.end, "h", writer)
    if piece.blocks > 1:
        features = _reshape(features, [*[0] * (len(shape) - 1), width], "h/flat", writer)
    features.shape = None if whole.shape is None else ir.Shape([*whole.shape[:-1], width])
    return features


def _join(whole: ir.Value, new: ir.Value, piece: Piece, shape: Sequence[Dim], writer: Writer) -> ir.Value:
    """Return the fused layer's output with the features of a piece replaced; arguments as for `_cut`."""
    assert isinstance(shape[-1], int)  # the width of a site's values is known
    blocks = _in_blocks(whole, piece, shape, "whole/blocks", writer)
    parts = [_in_blocks(new, piece, shape, "whole/part", writer)]
    if piece.start:
        parts.insert(0, _slice(blocks, 0, piece.start, "whole/before", writer))
    if piece.end < shape[-1] // piece.blocks:
        parts.append(_slice(blocks, piece.end, shape[-1] // piece.blocks, "whole/behind", writer))
    joined = writer.op("whole", "Concat", parts, {"axis": -1})
    return _reshape(joined, [*[0] * (len(shape) - 1), shape[-1]], "whole/flat", writer) if piece.blocks > 1 else joined


def _in_blocks(value: ir.Value, piece: Piece, shape: Sequence[Dim], name: str, writer: Writer) -> ir.Value:
    """Reshape to [..., blocks, features of a block]; return the value unchanged if there is one block."""
    if piece.blocks == 1:
        return value
    return _reshape(value, [*[0] * (len(shape) - 1), piece.blocks, -1], name, writer)


def _reshape(value: ir.Value, shape: Sequence[int], name: str, writer: Writer) -> ir.Value:
    """Reshape a value; an axis of length 0 in `shape` keeps its length."""
    return writer.op(name, "Reshape", (value, writer.integers(f"{name}/shape", shape)))


def _slice(value: ir.Value, start: int, end: int, name: str, writer: Writer) -> ir.Value:
    """Return the features [start, end) of the last axis."""
    bounds = (writer.integers(f"{name}/{edge}", [at]) for edge, at in (("start", start), ("end", end), ("axis", -1)))
    return writer.op(name, "Slice", (value, *bounds))
