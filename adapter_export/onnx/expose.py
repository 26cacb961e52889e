"""Graphs that show their inner values: a bundle's graph site by site, and a base cut open at its sites."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from adapter_export.graph.adapter import HEAD
from adapter_export.onnx.base import OnnxBase
from adapter_export.onnx.graft import Graft
from adapter_export.onnx.insert import site_values


def exposed(owner: str, value: str) -> str:
    """The output that shows a value of a site, such as `layers.0.ffn/h`, or `head/hidden`."""
    return f"{owner}/{value}"


def cut_input(site: str) -> str:
    """The input of a cut base that stands for a site's adapted value."""
    return f"cut.{site}"


def with_site_outputs(model: ir.Model) -> ir.Model:
    """A copy of a graph that `insert_slots` made, with more outputs, named by `exposed`.

    For each site with slots they show `h`, `x`, `u` and `result`, [batch, tokens, d]; for the head `hidden`, what it
    reads. Its logits are an output already.
    """
    graft = Graft.onto(model)
    for owner, names in site_values(model).items():
        for value, name in names.items():
            graft.expose(graft.value(name), exposed(owner, value))
    return graft.finish()


def cut(base: OnnxBase) -> ir.Model:
    """A copy of a base in which every site's adapted value is an input, `cut_input(site)`.

    More outputs, named by `exposed`, show `h`, `x` and `u` of each site, computed from the inputs of the sites before
    it, and the final hidden state at `head/hidden`.
    """
    graft = Graft.onto(base.model)
    for site in base.sites.sublayers:
        values = graft.site_values(site)
        _cut_at(graft, values["h"], cut_input(site.name))
        for value, shown in values.items():
            graft.expose(shown, exposed(site.name, value))
    graft.expose(graft.value(base.sites.final), exposed(HEAD, "hidden"))
    return graft.finish()


def piece(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    """The part of a graph that computes some of its outputs; its inputs are those that this part reads.

    The weights are shared with the graph, not copied.
    """
    graph = ir.convenience.extract(model.graph, list(model.graph.inputs), list(outputs))
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _cut_at(graft: Graft, value: ir.Value, name: str) -> None:
    """A node between the new input and its readers: where `value` is an output, the node's result takes its name."""
    copy = ir.Node("", "Identity", [graft.add_input(name, value)], name=f"{name}/copy")
    copy.outputs[0].name = f"{name}/value"
    graft.replace(value, copy.outputs[0], [copy])
