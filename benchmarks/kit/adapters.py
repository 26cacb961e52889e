"""Random adapters, and a graph that computes what one computes, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.kinds import classification_head, houlsby
from adapter_export.graph.slot_form import fold_weights, inference_form
from adapter_export.graph.tasks import Task
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.onnx_lowering import Writer, emit

LABELS = ("a", "b", "c", "d", "e", "f")

_STD = 0.05
"""Standard deviation of random weights: it does not affect times, and deep stacks of large weights overflow."""


def random_houlsby(name: str, base: OnnxBase, bottleneck: int, seed: int, lowest: int = 0) -> Adapter:
    """A Houlsby adapter at every sublayer of a base from layer `lowest` on, with a head of six classes."""
    kind, head = houlsby(), classification_head()
    layers = {site.name: site.layer or 0 for site in base.sites.sublayers}
    everywhere = kind.with_widths(b=bottleneck).placements(base.sites)
    placements = {site: placement for site, placement in everywhere.items() if layers[site] >= lowest}
    head_widths = {"d": base.sites.width, "classes": len(LABELS)}
    shapes = {
        f"{site}.{parameter}": shape
        for site, placement in placements.items()
        for parameter, shape in kind.graph.parameter_shapes(placement.widths).items()
    }
    shapes |= {f"{HEAD}.{parameter}": shape for parameter, shape in head.parameter_shapes(head_widths).items()}
    rng = np.random.default_rng(seed)
    weights = {key: (rng.standard_normal(shape) * _STD).astype(np.float32) for key, shape in shapes.items()}
    return Adapter(
        name,
        kind.name,
        base.fingerprint,
        kind.graphs,
        placements,
        weights,
        Head(head, head_widths, Task("single_label", LABELS)),
    )


def arithmetic_alone(adapter: Adapter, base: OnnxBase) -> ir.Model:
    """Return a graph of an adapter without the base: its sites, one after the other, then its head.

    Its inputs are `h`, float32 [batch, tokens, width], and `mask`, float32 [batch, tokens]; its weights are constants.
    """
    width, graph_inputs = base.sites.width, []
    for name, axes in (("h", ["batch", "tokens", width]), ("mask", ["batch", "tokens"])):
        graph_inputs.append(ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(axes)))
    hidden, mask = graph_inputs
    tape, constants, outputs = ir.tape.Tape(), [], []
    for owner, graph, _ in adapter.components():
        folded = fold_weights(graph, adapter.parameters(owner))
        own = {name: _constant(f"{owner}.{name}", tensor) for name, tensor in folded.items()}
        constants += own.values()
        form, writer = inference_form(graph), Writer(tape, owner, base.opset)
        if owner == HEAD:
            outputs.append(emit(form, {"hidden": hidden, "mask": mask}, own, writer))
        else:
            hidden = emit(form, {"h": hidden}, own, writer)
    graph = ir.Graph(
        graph_inputs,
        [hidden, *outputs],
        nodes=tape.nodes,
        initializers=constants,
        opset_imports={"": base.opset},
        name="arithmetic",
    )
    return ir.Model(graph, ir_version=10)


def _constant(name: str, tensor: np.ndarray) -> ir.Value:
    return ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(tensor.shape),
        const_value=ir.Tensor(tensor, name=name),
    )
