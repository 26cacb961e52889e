"""Graphs that show their inner values: a bundle's graph site by site, and a base cut open at its sites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from adapter_export.graph.adapter import HEAD
from adapter_export.graph.graph import READABLE
from adapter_export.onnx_backend.base.base import OnnxBase
from adapter_export.onnx_backend.graft.editor import Graft
from adapter_export.onnx_backend.graft.insert import site_values
from adapter_export.onnx_backend.graft.sites import SiteGraft
from adapter_export.sites.edits import Place


def exposed(owner: str, value: str) -> str:
    """The output that shows a value of a site, such as `layers.0.ffn/h`, or `head/hidden`."""
    return f"{owner}/{value}"


def cut_input(site: str, replaced: str) -> str:
    """The input of a cut base that stands in the place of a site's `u`, `h` or `y`."""
    return f"cut.{site}.{replaced}"


def with_site_outputs(model: ir.Model) -> ir.Model:
    """A copy of a graph that `insert_slots` made, with more outputs, named by `exposed`.

    They show what `site_values` names.
    """
    graft = Graft.onto(model)
    for owner, names in site_values(model).items():
        for value, name in names.items():
            graft.expose(graft.value(name), exposed(owner, value))
    return graft.finish()


@dataclass(frozen=True)
class Cut:
    """A base cut open.

    Attributes:
        model: a copy of it in which the values of some sites are inputs, `cut_input(site, replaced)`. More outputs,
            named by `exposed`, show what an adapter may read there, computed from the inputs that come before it, and
            the final hidden state at `head/hidden`.
        places: where it is cut, in the order of evaluation, each with the outputs that show what is there: site values,
            and the tensors of the base's norm that a bound graph borrows.
    """

    model: ir.Model
    places: tuple[tuple[Place, tuple[str, ...]], ...]


def cut(base: OnnxBase, places: Iterable[Place]) -> Cut:
    """Cut a base open at some places.

    Raises:
        NoSitesError: what a site's layer reads cannot be replaced.
    """
    sites = SiteGraft(base)
    shown = []
    for site, replaced in sites.ordered(places):
        values = sites.values(site, READABLE[replaced])
        there = {**values, **sites.norm_tensors(site)}
        fed = cut_input(site.name, replaced)
        copy = ir.Node("", "Identity", [sites.graft.add_input(fed, values[replaced])], name=f"{fed}/copy")
        copy.outputs[0].name = f"{fed}/value"
        sites.replace(site, replaced, copy.outputs[0], [copy])
        for name, value in there.items():  # only now: what shows a value would read what is fed in its place
            sites.graft.expose(value, exposed(f"{site.name}.{replaced}", name))
        shown.append(((site, replaced), tuple(there)))
    sites.graft.expose(sites.graft.value(base.sites.final), exposed(HEAD, "hidden"))
    return Cut(sites.graft.finish(), tuple(shown))


def piece(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    """The part of a graph that computes some of its outputs; its inputs are those that this part reads.

    The weights are shared with the graph, not copied.
    """
    graph = ir.convenience.extract(model.graph, list(model.graph.inputs), list(outputs))
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
