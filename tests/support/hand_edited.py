"""Bottleneck adapters put into an ONNX graph by hand, with nothing of this package: what a bundle is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

_STEPS = (("MatMul", "down.weight"), ("Add", "down.bias"), ("Relu", None), ("MatMul", "up.weight"), ("Add", "up.bias"))


def with_bottlenecks(
    path: Path, places: Mapping[str, str], weights: Mapping[str, np.ndarray], biases: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """A graph in which every reader of `h` reads `h + U·relu(D·h)`.

    Args:
        path: the graph, as its maker left it.
        places: the name of `h` for each site.
        weights: `<site>.<parameter>`.
        biases: the weight that is still to be added to `h`, by site; the node that reads `h` loses it.
    """
    model = onnx.load(path)
    for site, h in places.items():
        bias = (biases or {}).get(site)
        for node in model.graph.node:
            for at, name in enumerate(node.input):
                node.input[at] = f"{h}/adapted" if name == h else "" if bias and name == bias else name
        made = [] if bias is None else [helper.make_node("Add", [h, bias], [f"{h}/whole"])]
        whole = value = h if bias is None else f"{h}/whole"
        for step, (op, parameter) in enumerate(_STEPS):
            read = [value]
            if parameter:
                read.append(f"{site}.{parameter}")
                model.graph.initializer.append(numpy_helper.from_array(weights[read[1]], read[1]))
            value = f"{h}/{step}"
            made.append(helper.make_node(op, read, [value]))
        made.append(helper.make_node("Add", [whole, value], [f"{h}/adapted"]))
        at = next(at for at, node in enumerate(model.graph.node) if h in node.output)
        for offset, node in enumerate(made, start=1):
            model.graph.node.insert(at + offset, node)
    return model


def run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
    """Run a graph as it is, unoptimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), dict(inputs))
