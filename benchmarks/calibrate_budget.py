"""Compare the deviation of float32 computations from float64 with the bounds of `adapter_export.numerics.budget`.

Run: python benchmarks/calibrate_budget.py [--seeds 12]

Every line is the worst of many random networks; `used` is the measured part of the allowance, and `needed` the
constant ACCUMULATION with which all of it would have been used. The last line is what the constant rests on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

from adapter_export.dtypes import FLOAT_TYPES, Array
from adapter_export.graph import numpy_lowering as numpy_ops
from adapter_export.graph.graph import AdapterGraph, Node, interpret
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.numerics.budget import ACCUMULATION, ROUNDING, budget
from adapter_export.numerics.evaluate_adapter import evaluate, rounding_scale
from adapter_export.onnx_backend.onnx_lowering import Writer, emit
from adapter_export.torch_backend import torch_lowering as torch_ops

WEIGHT_STD = 0.2
PRODUCT_STD = 4.0
OPSET = 20
WIDTHS = (32, 384, 1024, 4096)
BOTTLENECKS = (1, 16, 256)
SHAPES = ((1, 1), (3, 7), (2, 64))
STACKS = (2, 6, 12, 24)
EPSILON = FLOAT_TYPES["float32"].epsilon

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Trial:
    """The worst deviation of one network in one backend, in units of eps·scale."""

    family: str
    backend: str
    inner: int
    depth: int
    deviation: float

    @property
    def used(self) -> float:
        return self.deviation * EPSILON / budget("float32", inner=self.inner, depth=self.depth, scale=1.0).absolute

    @property
    def needed(self) -> float:
        return (self.deviation / math.sqrt(self.depth) - ROUNDING) / math.sqrt(self.inner)


def numpy_float32(graph: AdapterGraph, inputs: Arrays, parameters: Arrays) -> Array:
    return interpret(graph, numpy_ops.LOWERINGS, inputs, parameters)[graph.result]


def torch_float32(graph: AdapterGraph, inputs: Arrays, parameters: Arrays) -> Array:
    tensors = [{name: torch.from_numpy(array) for name, array in group.items()} for group in (inputs, parameters)]
    with torch.inference_mode():
        return interpret(graph, torch_ops.LOWERINGS, *tensors)[graph.result].numpy()


def onnxruntime_float32(graph: AdapterGraph, inputs: Arrays, parameters: Arrays) -> Array:
    feeds = inputs | parameters
    values = {
        name: ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(array.shape))
        for name, array in feeds.items()
    }
    tape = ir.tape.Tape()
    result = emit(graph, values, values, Writer(tape, "network", OPSET))
    onnx_graph = ir.Graph([*values.values()], [result], nodes=tape.nodes, opset_imports={"": OPSET}, name="network")
    model = ir.to_proto(ir.Model(onnx_graph, ir_version=10)).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    (found,) = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    return np.asarray(found)


BACKENDS = {"numpy": numpy_float32, "torch": torch_float32, "onnxruntime": onnxruntime_float32}


def draw(graph: AdapterGraph, widths: Mapping[str, int], rng: np.random.Generator) -> Arrays:
    """Standard deviation 0.2, less for wide layers: values into an activation then have one of 4 at most."""
    shapes = graph.parameter_shapes(widths)
    stds = {name: min(WEIGHT_STD, PRODUCT_STD / math.sqrt(shape[0])) for name, shape in shapes.items()}
    return {name: rng.normal(0, stds[name], shape).astype(np.float32) for name, shape in shapes.items()}


def trials_of(
    family: str, graph: AdapterGraph, widths: Mapping[str, int], inner: int, depth: int, rng: np.random.Generator
) -> Iterator[Trial]:
    """One network on inputs of every shape; the scale is that of all of them together, as the budget asks."""
    parameters = draw(graph, widths, rng)
    cases = [draw_inputs(graph, (*shape, widths["d"]), rng) for shape in SHAPES]
    expected = [evaluate(graph, inputs, parameters) for inputs in cases]
    scale = max(rounding_scale(graph, inputs, parameters) for inputs in cases)
    for backend, compute in BACKENDS.items():
        for inputs, result in zip(cases, expected, strict=True):
            worst = float(np.abs(compute(graph, inputs, parameters) - result).max())
            yield Trial(family, backend, inner, depth, worst / (scale * EPSILON))


def draw_inputs(graph: AdapterGraph, shape: tuple[int, ...], rng: np.random.Generator) -> Arrays:
    values = {"mask": np.ones(shape[:2], np.float32)}
    return {name: values.get(name, rng.standard_normal(shape).astype(np.float32)) for name in graph.inputs}


def activations(rng: np.random.Generator) -> Iterator[Trial]:
    for op in ACTIVATIONS:
        attributes = {"slope": 0.01} if op == "leaky_relu" else {}
        graph = AdapterGraph(("h",), {}, (Node(op, ("h",), "result", {}, attributes),), "result")
        for width in WIDTHS:
            yield from trials_of("activation", graph, {"d": width}, 1, 1, rng)


def adapters(rng: np.random.Generator) -> Iterator[Trial]:
    for width in WIDTHS:
        for bottleneck_width in BOTTLENECKS:
            for activation in ACTIVATIONS:
                graph = bottleneck("h", BottleneckOptions(activation=activation))
                widths = {"d": width, "b": bottleneck_width}
                yield from trials_of("adapter", graph, widths, max(widths.values()), 2, rng)


def adapters_with_norms(rng: np.random.Generator) -> Iterator[Trial]:
    for width in WIDTHS:
        for before in (True, False):
            graph = bottleneck("h", BottleneckOptions(norm_before=before, norm_after=not before))
            yield from trials_of("adapter with a norm", graph, {"d": width, "b": 64}, max(width, 64), 3, rng)


def heads(rng: np.random.Generator) -> Iterator[Trial]:
    for width in WIDTHS:
        for pooling in ("mean", "first"):
            graph = classification_head(pooling)
            yield from trials_of("head", graph, {"d": width, "classes": 6}, max(width, 64), 2, rng)


def options(rng: np.random.Generator) -> Iterator[Trial]:
    """Bottlenecks with a gate and a factor per feature, and with projections of Kronecker products."""
    gated = bottleneck("h", BottleneckOptions(gate=True, scaling="channel"))
    products = bottleneck("h", BottleneckOptions(phm_rank=4))
    for width in WIDTHS:
        widths = {"d": width, "b": 32, "n": 4, "p": width // 4, "k": 4, "q": 8}
        yield from trials_of("gated adapter", gated, widths, max(width, 64), 4, rng)
        yield from trials_of("Kronecker products", products, widths, width, 6, rng)


def fusions(rng: np.random.Generator) -> Iterator[Trial]:
    """Attention over three values by dot products, sharp and blunt."""
    for width in WIDTHS:
        for temperature in (0.1, 1.0, 50.0):
            names = ("h", "x", "y")
            scores = tuple(Node("dot", ("h", name), f"s_{name}") for name in names)
            inputs = (*(node.output for node in scores), *names)
            mixed = Node("softmax_mix", inputs, "result", {}, {"temperature": temperature})
            graph = AdapterGraph(names, {}, (*scores, mixed), "result", replaces="y")
            yield from trials_of("fusion", graph, {"d": width}, width, 5, rng)


def stack(layers: int) -> AdapterGraph:
    """`layers` adapters one after the other, each followed by a norm, as one graph."""
    one = bottleneck("h", BottleneckOptions(norm_after=False)).nodes
    norm = Node("layer_norm", ("result",), "h", {"weight": "norm.weight", "bias": "norm.bias"}, {"epsilon": 1e-5})
    nodes, shapes = [], {}
    template = {"down.weight": ("d", "b"), "down.bias": ("b",), "up.weight": ("b", "d"), "up.bias": ("d",)}
    template |= {"norm.weight": ("d",), "norm.bias": ("d",)}
    for layer in range(layers):
        shapes.update({f"{layer}.{name}": shape for name, shape in template.items()})
        for node in (*one, norm):
            inputs = tuple(
                ("h" if layer == 0 else f"{layer - 1}.h") if v == "h" else f"{layer}.{v}" for v in node.inputs
            )
            parameters = {role: f"{layer}.{name}" for role, name in node.parameters.items()}
            nodes.append(Node(node.op, inputs, f"{layer}.{node.output}", parameters, node.attributes))
    return AdapterGraph(("h",), shapes, tuple(nodes), f"{layers - 1}.h")


def stacks(rng: np.random.Generator) -> Iterator[Trial]:
    for layers in STACKS:
        for width in (64, 384, 1024):
            graph = stack(layers)
            yield from trials_of(f"stack of {layers:2d}", graph, {"d": width, "b": 64}, max(width, 64), 3 * layers, rng)


FAMILIES = (activations, adapters, adapters_with_norms, options, fusions, heads, stacks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12, help="networks drawn per line (default 12)")
    arguments = parser.parse_args()
    worst: dict[tuple[str, str, int], Trial] = {}
    print(f"{'network':22}{'backend':14}{'inner':>6}{'depth':>6}{'deviation':>16}{'used':>8}{'needed':>8}")
    for family in FAMILIES:
        for seed in range(arguments.seeds):
            for trial in family(np.random.default_rng(seed)):
                key = (trial.family, trial.backend, trial.inner)
                worst[key] = max(worst.get(key, trial), trial, key=lambda one: one.used)
    for trial in worst.values():
        print(
            f"{trial.family:22}{trial.backend:14}{trial.inner:6}{trial.depth:6}{trial.deviation:8.2f} eps·scale"
            f"{trial.used:8.2f}{max(trial.needed, 0):8.3f}"
        )
    needed = max(trial.needed for trial in worst.values() if trial.inner > 1)
    print(f"\nlargest part used: {max(trial.used for trial in worst.values()):.2f}")
    print(f"ACCUMULATION needed: {needed:.3f}, is {ACCUMULATION}")


if __name__ == "__main__":
    main()
