"""The values of a base's sites on a copy of its graph: read as they are by now, and replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from adapter_export.graph.bind import BORROWED_BIAS, BORROWED_WEIGHT
from adapter_export.onnx.attention_bias import check_no_bias_behind, has_attention_bias, take_attention_bias
from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.casts import NODE_SITE_KEY
from adapter_export.onnx.flow import activations_of, flow_graph
from adapter_export.onnx.fused import UNNAMED_SUM, is_skip_norm, open_sum, sum_output, take_bias
from adapter_export.onnx.graft import Graft
from adapter_export.onnx.lowering import Writer
from adapter_export.onnx.parts import cut_part, join_part
from adapter_export.onnx.slots import SLOT_PREFIX
from adapter_export.sites.entrance import Entrance, entrance
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.order import Place, in_order, value_of
from adapter_export.sites.site import LAYERS, Site


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
        return maker is not None and maker.finish == "bias"

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
