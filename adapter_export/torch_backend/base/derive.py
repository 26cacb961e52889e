"""Derive bases from others: with some of their layers, or with other weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, TensorArgument

from adapter_export.errors import BaseModelError, NoSitesError
from adapter_export.graph.adapter import BASE_HEAD, Adapter
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.tables import number_of
from adapter_export.torch_backend.base.torch_base import TorchBase, fingerprint


def with_weights(base: TorchBase, weights: Mapping[str, Tensor]) -> TorchBase:
    """Return the base with some weights replaced, by their names in the program; it has no base head."""
    own = base.program.state_dict
    state = {name: nn.Parameter(tensor.detach(), own[name].requires_grad) for name, tensor in weights.items()}
    return _of(base, deepcopy(base.program.graph_module), base.program.graph_signature, {**own, **state})


def with_merged_weights(
    base: TorchBase, tensors: Mapping[str, np.ndarray], head: Adapter | None, record: Mapping[str, str]
) -> TorchBase:
    """Return the base with the weights of a merged adapter, and a note about it.

    Args:
        base: the original base.
        tensors: new weights and biases by their names in the program.
        head: the adapter's head, which becomes the base head; `None` keeps the existing base head.
        record: `adapter`, `weights_sha256` and the fingerprint of the original `base`.
    """
    state = base.program.state_dict
    merged = with_weights(
        base, {name: torch.from_numpy(array.copy()).to(state[name].dtype) for name, array in tensors.items()}
    )
    kept = base.base_head if head is None else replace(head, name=BASE_HEAD, kind="base_head")
    said = f"`{record['adapter']}` (weights {record['weights_sha256'][:12]}…) was merged into {record['base'][:19]}…"
    return replace(
        merged,
        base_head=None if kept is None else replace(kept, base=merged.fingerprint),
        notes=(*base.notes, said),
    )


def with_layers(base: TorchBase, sites: SiteMap, layers: Sequence[int]) -> TorchBase:
    """Return the base with some of its layers, by number: the result of a dropped layer becomes its input.

    Unused weights are removed; the result has no base head.

    Raises:
        BaseModelError: a layer cannot be dropped, because its result and its input differ in shape, or another node
            reads its values.
    """
    module = deepcopy(base.program.graph_module)
    nodes = {node.name: node for node in module.graph.nodes}
    unused = {node for node in module.graph.find_nodes(op="placeholder") if not node.users}
    left_out = [layer for layer in layers_of(sites) if layer not in layers]
    expected = [(site.role, site.width) for site in sites.sublayers if site.layer in layers]
    for layer in left_out:
        start, end = (nodes[value] for value in ends_of(sites, layer))
        if _shape(start) != _shape(end):
            raise _needed(layer, f"a result {_shape(end)}", f"{_shape(start)}, the shape of its input")
        end.replace_all_uses_with(start)
        nodes = {name: start if node is end else node for name, node in nodes.items()}
    _erase_dead(module.graph)
    signature, state = _signature(module.graph, base.program, unused)
    cut = _of(base, module, signature, state)
    try:
        found_there = [(site.role, site.width) for site in discover(cut.flow).sublayers]
    except NoSitesError as error:
        raise _needed(left_out[0], error.what, "the kept layers") from error
    if found_there != expected:
        raise _needed(left_out[0], f"{number_of(len(found_there), 'sublayer')} without it", f"{len(expected)}")
    return cut


def layers_of(sites: SiteMap) -> list[int]:
    """Return the layers of a base, in order."""
    return list(dict.fromkeys(site.layer for site in sites.sublayers if site.layer is not None))


def ends_of(sites: SiteMap, layer: int) -> tuple[str, str]:
    """Return the values of the residual stream before and after a layer; the next layer reads the latter."""
    of_layer = [site for site in sites.sublayers if site.layer == layer]
    stream = of_layer[0].name.rpartition("layers.")[0]
    behind = [
        site for site in sites.sublayers if site.name.startswith(f"{stream}layers.{_number(of_layer[0].name) + 1}.")
    ]
    end = behind[0].x if behind else of_layer[-1].y
    assert of_layer[0].x is not None  # every sublayer has one
    assert end is not None
    return of_layer[0].x, end


def _number(name: str) -> int:
    """Return the number of a site's layer in its stream."""
    return int(name.rpartition("layers.")[2].partition(".")[0])


def _shape(node: fx.Node) -> list[str]:
    return list(map(str, node.meta["val"].shape))


def _needed(layer: int, found: str, expected: str) -> BaseModelError:
    return BaseModelError(f"layer {layer} of this base cannot be dropped", found=found, expected=expected)


def _erase_dead(graph: fx.Graph) -> None:
    """Erase nodes that no output depends on. Writes into a value are kept if that value is kept."""
    live: set[fx.Node] = set()

    def keep(node: fx.Node) -> None:
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one not in live:
                live.add(one)
                waiting += one.all_input_nodes

    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            keep(node)
    before = 0
    while before != len(live):
        before = len(live)
        for node in graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
                written = node.args[0] if node.args else None
                while isinstance(written, fx.Node) and written not in live and _is_view(written):
                    written = written.args[0]
                if written in live:
                    keep(node)
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view and bool(node.args)


def _signature(
    graph: fx.Graph, program: ExportedProgram, unused: set[fx.Node]
) -> tuple[ExportGraphSignature, dict[str, Tensor]]:
    """Return the signature and weights of a graph without unused ones; erases their placeholders."""
    specs, state = [], dict(program.state_dict)
    placeholders = graph.find_nodes(op="placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind != InputKind.USER_INPUT and not node.users and node not in unused:
            graph.erase_node(node)
            state.pop(str(spec.target), None)
        else:
            specs.append(spec)
    (result,) = graph.find_nodes(op="output")
    outputs = [
        replace(spec, arg=TensorArgument(value.name)) if isinstance(value, fx.Node) else spec
        for spec, value in zip(program.graph_signature.output_specs, result.args[0], strict=True)
    ]
    return ExportGraphSignature(specs, outputs), state


def _of(
    base: TorchBase, module: fx.GraphModule, signature: ExportGraphSignature, state: Mapping[str, Tensor]
) -> TorchBase:
    program = base.program
    exported = ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict=dict(state),
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        constants=program.constants,
        verifiers=program.verifiers,
    )
    return replace(base, program=exported, fingerprint=fingerprint(exported), base_head=None)
