"""The lowerings agree: NumPy in float64 defines what an op means, and all others stay within the budget of their type.

Weights have a standard deviation of 0.2, so that no lowering can pass by doing nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from backends import (
    LEVELS,
    NEWEST_OPSET,
    draw_inputs,
    draw_parameters,
    everywhere,
    in_onnxruntime,
    in_process,
    in_torch,
    onnx_model,
    op_widths,
    session,
    single_op,
)
from hypothesis import given
from published import OPTIONS, PUBLISHED
from published import WIDTHS as KIND_WIDTHS
from random_graphs import WIDTHS, graphs, residual_graphs
from tiers import examples

from adapter_export.errors import GraphError, NotNeutralError
from adapter_export.graph import numpy_lowering as numpy_ops
from adapter_export.graph.graph import AdapterGraph, Node, interpret
from adapter_export.graph.kinds import KINDS, BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.numpy_lowering import BACKWARD
from adapter_export.graph.ops import ACTIVATIONS, LOWERED, OPS, POOLINGS
from adapter_export.graph.slot_form import fold_weights, inference_form, neutral_parameters, neutral_widths
from adapter_export.numerics.budget import graph_budget
from adapter_export.numerics.evaluate_adapter import evaluate, rounding_scale
from adapter_export.onnx_backend.onnx_lowering import MINIMUM_OPSET, Writer, emit, lowerings
from adapter_export.torch_backend import torch_lowering as torch_ops

SHAPES = ((1, 1), (3, 7), (2, 64))


def assert_agrees(graph: AdapterGraph, widths: dict[str, int], seed: int = 0) -> None:
    """Hold every backend against float64 on every shape; the scale is that of all shapes together."""
    rng = np.random.default_rng(seed)
    parameters = draw_parameters(graph, widths, rng)
    cases = [draw_inputs(graph, batch, tokens, widths["d"], rng) for batch, tokens in SHAPES]
    expected = [evaluate(graph, inputs, parameters) for inputs in cases]
    scale = max(np.abs(result).max() for result in expected)
    tokens = max(tokens for _, tokens in SHAPES)
    for backend in everywhere(graph):
        allowed = graph_budget(backend.dtype, graph, widths, scale=scale, tokens=tokens)
        message = f"{backend.name}: {allowed.reason}"
        for inputs, result in zip(cases, expected, strict=True):
            found = backend(inputs, parameters)
            assert (found.shape, found.dtype) == (result.shape, backend.dtype), backend.name
            np.testing.assert_allclose(found, result, rtol=0, atol=allowed.absolute, err_msg=message)


def test_every_op_has_every_lowering() -> None:
    onnx_ops = lowerings(Writer(ir.tape.Tape(), "place", MINIMUM_OPSET))
    for table in (numpy_ops.LOWERINGS, BACKWARD, torch_ops.LOWERINGS, torch_ops.TRAINING_LOWERINGS, onnx_ops):
        assert set(table) == set(LOWERED)
    trained = {op for op in LOWERED if torch_ops.TRAINING_LOWERINGS[op] is not torch_ops.LOWERINGS[op]}
    assert trained == {op for op in LOWERED if OPS[op].random}


@pytest.mark.parametrize("op", LOWERED)
@pytest.mark.parametrize(("width", "other"), [(1, 1), (33, 64), (384, 16)])
def test_an_op_is_the_same_everywhere(op: str, width: int, other: int) -> None:
    least = 8 if op in {"layer_norm", "rms_norm"} else 1  # over few features, a norm is a quotient of rounding errors
    assert_agrees(single_op(op), op_widths(max(width, least), other), seed=width)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_kind_is_the_same_everywhere(kind: str) -> None:
    assert_agrees(PUBLISHED[kind], KIND_WIDTHS)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_the_same_everywhere(option: str) -> None:
    assert_agrees(OPTIONS[option], KIND_WIDTHS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_bottleneck_is_the_same_everywhere(activation: str) -> None:
    assert_agrees(bottleneck("h", BottleneckOptions(activation=activation)), KIND_WIDTHS)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_is_the_same_everywhere(pooling: str) -> None:
    assert_agrees(classification_head(pooling), {"d": 24, "classes": 5})


def test_a_budget_does_not_let_a_missing_factor_through() -> None:
    graph = KINDS["houlsby"](BottleneckOptions(scaling=1.001)).graph
    unscaled = KINDS["houlsby"](BottleneckOptions()).graph
    widths, rng = {"d": 384, "b": 64}, np.random.default_rng(0)
    parameters, inputs = draw_parameters(graph, widths, rng), draw_inputs(graph, 1, 1, 384, rng)
    expected = evaluate(graph, inputs, parameters)
    allowed = graph_budget("float32", graph, widths, scale=np.abs(expected).max())
    assert np.abs(evaluate(unscaled, inputs, parameters) - expected).max() > 10 * allowed.absolute


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activations_do_not_overflow(op: str) -> None:
    inputs = {"h": np.tile(np.array([0.0, -0.0, 40.0, -40.0, 1e4, -1e4], np.float32)[:, None, None], (1, 1, 4))}
    expected = evaluate(single_op(op), inputs, {})
    assert np.isfinite(expected).all()
    for backend in everywhere(single_op(op)):
        np.testing.assert_allclose(backend(inputs, {}), expected, rtol=1e-6, atol=1e-6, err_msg=backend.name)


class TestFlattened:
    """A base that has rows and tokens on one axis would give these ops another meaning."""

    @pytest.mark.parametrize("op", ["gate", "mix"])
    def test_ops_that_need_separate_rows_refuse_flattened_tokens(self, op: str) -> None:
        graph, rng = single_op(op), np.random.default_rng(0)
        flat = {name: value[0] for name, value in draw_inputs(graph, 1, 6, 8, rng).items()}
        parameters = draw_parameters(graph, op_widths(8, 8), rng)
        for backend in in_process(graph):
            with pytest.raises(GraphError, match="has both on one axis; found 2 axes"):
                backend(flat, parameters)

    @pytest.mark.parametrize("op", ["gate", "mix"])
    def test_onnx_lowering_refuses_flattened_tokens_of_known_shape(self, op: str) -> None:
        graph = single_op(op)
        values = {
            name: ir.Value(name=name, shape=ir.Shape(("rows", 8)), type=ir.TensorType(ir.DataType.FLOAT))
            for name in (*graph.inputs, *graph.parameters)
        }
        with pytest.raises(GraphError, match="has both on one axis; found 2 axes"):
            emit(graph, values, values, Writer(ir.tape.Tape(), "place", 20))

    def test_rows_are_not_dropped_token_by_token(self) -> None:
        node = Node("drop_path", ("h",), "r", {}, {"rate": 0.5})
        with pytest.raises(GraphError, match="has both on one axis"):
            torch_ops.TRAINING_LOWERINGS["drop_path"](node, (torch.ones(6, 8),), {})


class TestTraining:
    """Dropout acts in training and only there."""

    VALUES = (torch.ones(100_000, dtype=torch.float64),)

    def run(self, *, training: bool, rate: float) -> torch.Tensor:
        graph = AdapterGraph(("h",), {}, (single_op("dropout").nodes[0],), "result")
        (node,) = graph.nodes
        node.attributes["rate"] = rate
        ops = torch_ops.TRAINING_LOWERINGS if training else torch_ops.LOWERINGS
        return interpret(graph, ops, {"h": self.VALUES[0]}, {})["result"]

    def test_dropout_does_nothing_at_inference(self) -> None:
        assert torch.equal(self.run(training=False, rate=0.4), self.VALUES[0])

    def test_dropout_drops_its_rate_and_keeps_the_mean(self) -> None:
        torch.manual_seed(0)
        result = self.run(training=True, rate=0.4)
        assert set(result.unique().tolist()) == {0.0, 1 / 0.6}
        assert (result == 0).double().mean().item() == pytest.approx(0.4, abs=0.01)

    def test_drop_path_drops_rows_as_a_whole(self) -> None:
        torch.manual_seed(0)
        values = torch.ones(20_000, 3, 2, dtype=torch.float64)
        node = Node("drop_path", ("h",), "r", {}, {"rate": 0.25})
        result = torch_ops.TRAINING_LOWERINGS["drop_path"](node, (values,), {})
        assert set(result.unique().tolist()) == {0.0, 1 / 0.75}
        assert torch.equal(result.amin((1, 2)), result.amax((1, 2)))
        assert (result == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
        assert torch.equal(torch_ops.LOWERINGS["drop_path"](node, (values,), {}), values)

    def test_all_other_ops_are_those_of_inference(self) -> None:
        different = {op for op in LOWERED if torch_ops.TRAINING_LOWERINGS[op] is not torch_ops.LOWERINGS[op]}
        assert different == {"dropout", "drop_path"}


class TestOnnxNodes:
    """The view of other tools on emitted graphs."""

    @pytest.mark.parametrize("opset", [17, 18, 20, 23])
    @pytest.mark.parametrize("op", LOWERED)
    def test_nodes_and_values_have_speaking_names(self, op: str, opset: int) -> None:
        graph = single_op(op)
        model = onnx_model(graph, opset)
        names = [node.name for node in model.graph.node]
        assert {name.split("/")[0] for name in names} == {"place"}
        assert {name.split("/")[1] for name in names} == {node.output for node in graph.nodes}
        assert len(set(names)) == len(names)
        assert [list(node.output) for node in model.graph.node] == [[name] for name in names]

    @pytest.mark.parametrize("op", ["identity", "dropout", "drop_path"])
    def test_inactive_ops_emit_no_nodes(self, op: str) -> None:
        tape, value = ir.tape.Tape(), ir.Value(name="h")
        assert emit(single_op(op), {"h": value}, {}, Writer(tape, "place", 20)) is value
        assert not tape.nodes

    def test_a_weight_feeds_its_product_and_a_bias_its_sum(self) -> None:
        product, add = onnx_model(single_op("linear"), 20).graph.node
        assert (product.op_type, list(product.input)) == ("MatMul", ["h", "weight"])
        assert (add.op_type, list(add.input)) == ("Add", ["place/result/product", "bias"])

    def test_every_node_carries_the_metadata(self) -> None:
        tape = ir.tape.Tape()
        graph = KINDS["houlsby"](BottleneckOptions(activation="gelu_tanh")).graph
        values = {name: ir.Value(name=name) for name in (*graph.inputs, *graph.parameters)}
        emit(graph, values, values, Writer(tape, "place", 18, {"site": "layers.0.ffn"}))
        assert all(node.metadata_props == {"site": "layers.0.ffn"} for node in tape.nodes)

    @pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.DOUBLE])
    def test_constants_have_the_type_of_the_values(self, dtype: ir.DataType) -> None:
        tape = ir.tape.Tape()
        value = ir.Value(name="h", type=ir.TensorType(dtype))
        result = emit(single_op("quick_gelu"), {"h": value}, {}, Writer(tape, "place", 20))
        assert {node.outputs[0].dtype for node in tape.nodes} == {dtype}
        assert result.dtype == dtype


class TestNeutral:
    """An idle slot changes nothing, at any optimisation level."""

    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("name", [*PUBLISHED, *OPTIONS])
    def test_idle_adapters_return_the_replaced_value(self, name: str, level: str) -> None:
        graph = inference_form({**PUBLISHED, **OPTIONS}[name])
        self.assert_idle(graph, level)

    @pytest.mark.parametrize("level", ["disabled", "all"])
    @pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
    def test_a_normed_bottleneck_can_lie_idle(self, norm: str, level: str) -> None:
        nodes = (
            Node("linear", ("h",), "down", {"weight": "down"}),
            Node(norm, ("down",), "normal", {"weight": "norm"}, {"epsilon": 1e-5}),
            Node("linear", ("normal",), "up", {"weight": "up"}),
            Node("add", ("h", "up"), "result"),
        )
        shapes = {"down": ("d", "b"), "norm": ("b",), "up": ("b", "d")}
        self.assert_idle(AdapterGraph(("h",), shapes, nodes, "result"), level)

    @pytest.mark.parametrize("level", ["disabled", "all"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_idle_bottlenecks_return_h_for_every_activation(self, activation: str, level: str) -> None:
        self.assert_idle(bottleneck("h", BottleneckOptions(activation=activation, norm_after=True)), level)

    @staticmethod
    def assert_idle(graph: AdapterGraph, level: str) -> None:
        parameters = neutral_parameters(graph, neutral_widths(graph, {"d": 16, "d_in": 16}))
        inputs = draw_inputs(graph, 2, 5, 16, np.random.default_rng(0))
        (result,) = session(onnx_model(graph, 20), level).run(None, {**inputs, **parameters})
        np.testing.assert_array_equal(result, inputs[graph.replaces])


class TestRandomGraphs:
    """Random graphs."""

    @staticmethod
    def sample(graph: AdapterGraph) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]:
        """Inputs, parameters and the largest value on the way, to which rounding errors are relative."""
        rng = np.random.default_rng(0)
        inputs, parameters = draw_inputs(graph, 2, 5, WIDTHS["d"], rng), draw_parameters(graph, WIDTHS, rng)
        wide = ({name: array.astype(np.float64) for name, array in group.items()} for group in (inputs, parameters))
        values = interpret(graph, numpy_ops.LOWERINGS, *wide)
        largest = max(1.0, *(np.abs(value).max() for value in values.values()))
        return inputs, parameters, max(largest, rounding_scale(graph, inputs, parameters))

    @staticmethod
    def exact(graph: AdapterGraph, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Round the values that folding multiplies, so that their float32 products are exact."""
        rounded = {}
        for node in graph.nodes:
            for name in node.parameters.values():
                if node.op in {"learned_scale", "scale_features"}:
                    rounded[name] = np.copysign(2.0 ** np.round(np.log2(np.abs(parameters[name]))), parameters[name])
                elif node.op == "phm_linear":
                    rounded[name] = np.round(8 * parameters[name]) / 8
        return {name: array.astype(np.float32) for name, array in rounded.items()}

    @given(graph=graphs())
    @examples(400)
    def test_torch_agrees_in_float64_and_folding_leaves_the_value_unchanged(self, graph: AdapterGraph) -> None:
        inputs, parameters, largest = self.sample(graph)
        expected = evaluate(graph, inputs, parameters)
        found = in_torch(graph, "float64")(inputs, parameters)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * largest)
        parameters |= self.exact(graph, parameters)
        found = evaluate(inference_form(graph), inputs, fold_weights(graph, parameters))
        np.testing.assert_allclose(found, evaluate(graph, inputs, parameters), rtol=0, atol=1e-12 * largest)

    @given(graph=graphs())
    @examples(120)
    def test_onnxruntime_agrees_in_float32(self, graph: AdapterGraph) -> None:
        inputs, parameters, largest = self.sample(graph)
        expected = evaluate(graph, inputs, parameters)
        for opset, level in ((17, "disabled"), (18, "all"), (NEWEST_OPSET, "basic")):
            (backend,) = in_onnxruntime(graph, opset, [level])
            found = backend(inputs, parameters)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest, err_msg=backend.name)

    @given(graph=residual_graphs())
    @examples(400)
    def test_neutral_parameters_give_h(self, graph: AdapterGraph) -> None:
        inputs, _, _ = self.sample(graph)
        try:
            neutral = neutral_parameters(graph, WIDTHS)
        except NotNeutralError:
            return
        np.testing.assert_array_equal(evaluate(graph, inputs, neutral), inputs[graph.replaces])
