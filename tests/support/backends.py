"""Every way in which a graph can be computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from adapter_export.graph import numpy_lowering as numpy_ops
from adapter_export.graph.graph import HEAD_VALUES, SITE_VALUES, AdapterGraph, Node, interpret
from adapter_export.graph.ops import OPS, POOLINGS
from adapter_export.onnx_backend.onnx_lowering import Writer, emit
from adapter_export.torch_backend import torch_lowering as torch_ops

Arrays = Mapping[str, np.ndarray]
Compute = Callable[[Arrays, Arrays], np.ndarray]

NEWEST_OPSET = 23 if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 23) else 22
"""The newest that the installed onnxruntime runs."""

OPSETS = (17, 18, 20, NEWEST_OPSET)

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
ATTRIBUTES = {"slope": 0.3, "factor": 1.7, "rate": 0.5, "epsilon": 1e-5, "temperature": 0.7}


@dataclass(frozen=True)
class Prepared:
    """A graph in one backend: a name for messages, the type in which it is computed, and how."""

    name: str
    dtype: str
    compute: Compute = field(repr=False)

    def __call__(self, inputs: Arrays, parameters: Arrays) -> np.ndarray:
        return self.compute(*(_as_type(self.dtype, group) for group in (inputs, parameters)))


def _as_type(dtype: str, arrays: Arrays) -> Arrays:
    return {name: array.astype(dtype) for name, array in arrays.items()}


def in_numpy(graph: AdapterGraph) -> Prepared:
    def compute(inputs: Arrays, parameters: Arrays) -> np.ndarray:
        return interpret(graph, numpy_ops.LOWERINGS, inputs, parameters)[graph.result]

    return Prepared("numpy-float32", "float32", compute)


def in_torch(graph: AdapterGraph, dtype: str) -> Prepared:
    def compute(*groups: Arrays) -> np.ndarray:
        tensors = ({name: torch.from_numpy(array) for name, array in group.items()} for group in groups)
        with torch.inference_mode():
            return interpret(graph, torch_ops.LOWERINGS, *tensors)[graph.result].numpy()

    return Prepared(f"torch-{dtype}", dtype, compute)


def in_onnxruntime(graph: AdapterGraph, opset: int, levels: Iterable[str]) -> Iterator[Prepared]:
    """One model at several levels of optimisation."""
    model = onnx_model(graph, opset)
    for level in levels:
        running = session(model, level)

        def compute(inputs: Arrays, parameters: Arrays, running: ort.InferenceSession = running) -> np.ndarray:
            return np.asarray(running.run(None, {**inputs, **parameters})[0])

        yield Prepared(f"onnx-{opset}-{level}", "float32", compute)


def in_process(graph: AdapterGraph) -> tuple[Prepared, ...]:
    """The backends that compute op by op."""
    return in_numpy(graph), in_torch(graph, "float32"), in_torch(graph, "float64")


def everywhere(graph: AdapterGraph) -> Iterator[Prepared]:
    """A graph in every backend, each prepared once."""
    yield from in_process(graph)
    for opset in OPSETS:
        yield from in_onnxruntime(graph, opset, LEVELS)


def onnx_model(graph: AdapterGraph, opset: int) -> onnx.ModelProto:
    """The graph with its inputs and its parameters as inputs, every axis symbolic."""
    shapes = {**SITE_VALUES, **HEAD_VALUES}
    ids = {"u": ("batch", "tokens")} if graph.reads_ids else {}
    inputs = {name: _value(name, {**shapes, **ids}[name]) for name in graph.inputs}
    parameters = {name: _value(name, shape) for name, shape in graph.parameters.items()}
    tape = ir.tape.Tape()
    result = emit(graph, inputs, parameters, Writer(tape, "place", opset))
    if result in inputs.values():
        result = tape.op("Identity", (result,), name="place/result", output=_value("place/result", ()))
    result.shape = ir.Shape(graph.shapes()[graph.result])
    body = ir.Graph(
        [*inputs.values(), *parameters.values()], [result], nodes=tape.nodes, opset_imports={"": opset}, name="one"
    )
    model = ir.to_proto(ir.Model(body, ir_version=10))
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model: onnx.ModelProto, level: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _value(name: str, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def single_op(op: str) -> AdapterGraph:
    """Return the graph of a single op, with all of its parameters."""
    spec = OPS[op]
    if op in _SINGLE:
        return _SINGLE[op]
    inputs = ("u",) if spec.of_ids else ("h", "x")[: spec.arity.least]
    widths = {**_WIDTHS, "in": "d_in" if spec.of_ids else "d"}
    parameters = {one.role: tuple(widths.get(dim, dim) for dim in one.shape) for one in spec.parameters}
    return AdapterGraph(inputs, parameters, (_node(op, inputs, parameters),), "result")


def _node(op: str, inputs: tuple[str, ...], roles: Iterable[str] = ()) -> Node:
    attributes = {name: ATTRIBUTES[name] for name in OPS[op].attributes}
    return Node(op, inputs, "result", {role: role for role in roles}, attributes)


def _to_one_number(source: str, name: str) -> Node:
    return Node("linear", (source,), name, {"weight": f"{name}.weight"})


_WIDTHS = {"in": "d", "out": "b"}
_SINGLE = {
    **{
        row.name: AdapterGraph(("hidden", "mask"), {}, (_node(row.name, ("hidden", "mask")),), "result")
        for row in POOLINGS.values()
        if row.arity.least > 1
    },
    "gate": AdapterGraph(
        ("h", "x"), {"g.weight": ("d", 1)}, (_to_one_number("x", "g"), _node("gate", ("h", "g"))), "result"
    ),
    "scatter": AdapterGraph(
        ("h", "x"),
        {"s.weight": ("d", "indices"), "high": ("indices",), "low": ("indices",)},
        (
            Node("linear", ("x",), "s", {"weight": "s.weight"}),
            _node("scatter", ("s", "h"), ["high", "low"]),
        ),
        "result",
    ),
    "mix": AdapterGraph(("h", "x"), {"weights": ("rows", 3)}, (_node("mix", ("h", "x", "h"), ["weights"]),), "result"),
    "softmax_mix": AdapterGraph(
        ("h", "x"),
        {"s.weight": ("d", 1), "t.weight": ("d", 1)},
        (_to_one_number("h", "s"), _to_one_number("x", "t"), _node("softmax_mix", ("s", "t", "h", "x"))),
        "result",
    ),
}
"""Graphs of ops whose inputs are not only site values."""


def op_widths(d: int, b: int) -> dict[str, int]:
    """A number for every symbol of the graphs of single ops."""
    n = math.gcd(d, b)
    return {"d": d, "d_in": d, "indices": min(d, 3), "b": b, "n": n, "p": d // n, "q": b // n, "k": 2, "rows": 1}


def draw_parameters(graph: AdapterGraph, widths: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Normal with standard deviation 0.2, float32: never near the identity; indices are the first ones."""
    parameters = {
        name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in graph.parameter_shapes(widths).items()
    }
    roles = [(role, name) for node in graph.nodes for role, name in node.parameters.items()]
    for role, name in roles:
        if role in ("high", "low"):
            parameters[name] = np.arange(len(parameters[name]), dtype=np.float32) * (role == "low")
    return parameters


def draw_inputs(
    graph: AdapterGraph, batch: int, tokens: int, width: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Standard normal values; the mask leaves out about a third of the tokens, and all of the last row of several."""
    inputs = {name: rng.standard_normal((batch, tokens, width)).astype(np.float32) for name in graph.inputs}
    if graph.reads_ids:
        inputs["u"] = rng.integers(0, width, (batch, tokens)).astype(np.float32)
    if "mask" in inputs:
        inputs["mask"] = (rng.random((batch, tokens)) < 0.67).astype(np.float32)
        inputs["mask"][1:][-1:] = 0
    return inputs
