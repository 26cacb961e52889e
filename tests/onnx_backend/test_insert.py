from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tiny_onnx import WIDTH, random_adapter, save_tiny, tiny_model, token_inputs

from adapter_export.errors import AdapterExportError, BaseModelError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.kinds import (
    BottleneckOptions,
    classification_head,
    houlsby,
    parallel,
    pfeiffer,
)
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.onnx_backend.base.external import in_memory
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots, site_values, verify_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

RELU, GELU = BottleneckOptions("relu"), BottleneckOptions("gelu")
LEVELS = ort.GraphOptimizationLevel
TOLERANCE = 2e-5

Run = Callable[..., dict[str, np.ndarray]]
"""Function that computes the outputs with an adapter or the base, on some inputs."""

INPUTS = token_inputs(5, 3, 1)


def _runner(base: OnnxBase, adapters: Sequence[Adapter]) -> Run:
    """Return a function that runs the exported graph of some adapters with plain feeds."""
    plan = plan_slots(adapters, base.sites)
    session = open_session(insert_slots(base, plan), base.folder)

    def run(adapter: Adapter | None, inputs: Mapping[str, np.ndarray] = INPUTS) -> dict[str, np.ndarray]:
        return run_session(session, {**inputs, **(slot_tensors(plan, adapter) if adapter else {})})

    return run


def _untouched(base: OnnxBase, inputs: dict[str, np.ndarray] = INPUTS) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(base.path), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.fixture(scope="module")
def mixed(base: OnnxBase) -> list[Adapter]:
    """Return adapters of different topologies, widths and numbers of classes."""
    return [
        random_adapter("houlsby8", houlsby(GELU), base, bottleneck=8, labels="abc"),
        random_adapter("houlsby64", houlsby(GELU), base, bottleneck=64, labels="ab"),
        random_adapter("pfeiffer", pfeiffer(BottleneckOptions("relu", scaling=0.5)), base, labels="abcd"),
        random_adapter("parallel", parallel(RELU), base, bottleneck=3),
        random_adapter("normed", houlsby(BottleneckOptions("silu", norm_before=True, norm_after=True)), base),
        random_adapter("first", pfeiffer(RELU), base, labels="abcde", head=classification_head("first")),
    ]


@pytest.fixture(scope="module")
def run_mixed(base: OnnxBase, mixed: list[Adapter]) -> Run:
    return _runner(base, mixed)


@pytest.fixture(scope="module")
def reference(base: OnnxBase) -> CutRunner:
    return CutRunner(base)


class TestResults:
    def test_graph_without_an_adapter_equals_the_base(self, base: OnnxBase, run_mixed: Run) -> None:
        found = run_mixed(None)
        np.testing.assert_allclose(found["hidden"], _untouched(base)["hidden"], rtol=0, atol=2e-6)
        np.testing.assert_array_equal(found["logits"], np.zeros((3, 1), np.float32))

    def test_each_adapter_of_a_mixed_graph_equals_itself_built_alone(
        self, base: OnnxBase, mixed: list[Adapter], run_mixed: Run
    ) -> None:
        for adapter in mixed:
            found, alone = run_mixed(adapter), _runner(base, [adapter])(adapter)
            for name, expected in alone.items():
                np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE, err_msg=adapter.name)

    @pytest.mark.parametrize("index", range(6))
    def test_each_adapter_agrees_with_the_float64_reference(
        self, mixed: list[Adapter], run_mixed: Run, reference: CutRunner, index: int
    ) -> None:
        found = run_mixed(mixed[index])
        for name, expected in reference.run(INPUTS, mixed[index]).items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("opset", [17, 20])
    def test_every_activation_works_at_old_and_new_opsets(self, tmp_path: Path, opset: int) -> None:
        base = open_onnx(save_tiny(tmp_path, tiny_model(opset=opset)))
        adapters = [random_adapter(name, houlsby(BottleneckOptions(name)), base) for name in ACTIVATIONS]
        run, reference, plain = _runner(base, adapters), CutRunner(base), _untouched(base)["hidden"]
        for adapter in adapters:
            found, expected = run(adapter)["hidden"], reference.run(INPUTS, adapter)["hidden"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=adapter.name)
            assert np.abs(found - plain).max() > 0.01, adapter.name

    @pytest.mark.parametrize("lengths", [(1,), (1, 1), (7,), (30, 2, 11)])
    def test_slots_match_the_reference_at_every_shape(
        self, mixed: list[Adapter], run_mixed: Run, reference: CutRunner, lengths: tuple[int, ...]
    ) -> None:
        inputs = token_inputs(*lengths)
        for adapter in mixed[:3]:
            found = run_mixed(adapter, inputs)
            for name, expected in reference.run(inputs, adapter).items():
                np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize("level", [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_ALL])
    def test_slots_match_the_reference_at_every_optimization_level(
        self, base: OnnxBase, mixed: list[Adapter], reference: CutRunner, level: ort.GraphOptimizationLevel
    ) -> None:
        plan = plan_slots(mixed, base.sites)
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(base.folder))
        data = ir.to_proto(insert_slots(base, plan)).SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for adapter in mixed:
            expected = reference.run(INPUTS, adapter)["hidden"]
            found = session.run(["hidden"], {**INPUTS, **slot_tensors(plan, adapter)})[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)

    def test_switching_back_is_exact(self, mixed: list[Adapter], run_mixed: Run) -> None:
        before = [run_mixed(adapter) for adapter in (None, *mixed)]
        after = [run_mixed(adapter) for adapter in (None, *mixed)]
        for one, other in zip(before, after, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


class TestSpecialBases:
    def test_h_may_be_an_output_and_then_shows_the_adapted_value(self, tmp_path: Path) -> None:
        base = open_onnx(save_tiny(tmp_path, tiny_model(more=f", float[batch, tokens, {WIDTH}] ffn0")))
        adapter = random_adapter("a", pfeiffer(RELU), base)
        model = insert_slots(base, plan_slots([adapter], base.sites))
        assert [value.name for value in model.graph.outputs] == ["hidden", "ffn0"]
        assert site_values(model)["layers.0.ffn"]["result_h"] == "ffn0"
        found = _runner(base, [adapter])(adapter)
        for name, expected in CutRunner(base).run(INPUTS, adapter).items():
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE)
        assert np.abs(found["ffn0"] - _untouched(base)["ffn0"]).max() > 0.01

    def test_logits_of_the_base_keep_their_name(self, tmp_path: Path) -> None:
        base = open_onnx(save_tiny(tmp_path, tiny_model(hidden="logits")))
        adapter = random_adapter("a", pfeiffer(RELU), base, labels="abc")
        found = _runner(base, [adapter])(adapter)
        assert found["logits"].shape == (3, 5, WIDTH)
        assert found["adapter_logits"].shape == (3, 3)
        expected = CutRunner(base).run(INPUTS, adapter)
        np.testing.assert_allclose(found["adapter_logits"], expected["adapter_logits"], rtol=0, atol=TOLERANCE)

    def test_an_inner_value_called_logits_steps_aside(self, tmp_path: Path) -> None:
        model = tiny_model()
        for node in model.graph.node:
            node.input[:] = ["logits" if name == "scores0" else name for name in node.input]
            node.output[:] = ["logits" if name == "scores0" else name for name in node.output]
        base = open_onnx(save_tiny(tmp_path, model))
        adapter = random_adapter("a", pfeiffer(RELU), base, labels="abc")
        assert _runner(base, [adapter])(adapter)["logits"].shape == (3, 3)

    @pytest.mark.parametrize("dtype", ["bool", "int32", "int64"])
    def test_the_mask_of_a_head_may_have_any_type(self, tmp_path: Path, dtype: str) -> None:
        inputs = f"int64[batch, tokens] input_ids, {dtype}[batch, tokens] attention_mask"
        base = open_onnx(save_tiny(tmp_path, tiny_model(inputs=inputs)))
        adapter = random_adapter("a", pfeiffer(RELU), base, labels="abc")
        given = {**INPUTS, "attention_mask": INPUTS["attention_mask"].astype(dtype)}
        found = _runner(base, [adapter])(adapter, given)["logits"]
        np.testing.assert_allclose(found, CutRunner(base).run(given, adapter)["logits"], rtol=0, atol=TOLERANCE)

    def test_a_head_on_a_base_without_a_mask_keeps_every_token(self, tmp_path: Path) -> None:
        model = tiny_model(inputs="int64[batch, tokens] input_ids", mask="bias = Identity(no_bias)")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "no_bias"))
        base = open_onnx(save_tiny(tmp_path, model))
        adapter = random_adapter("a", pfeiffer(RELU), base, labels="abc")
        inputs = {"input_ids": INPUTS["input_ids"]}
        found = _runner(base, [adapter])(adapter, inputs)
        weight, bias = (adapter.weights[f"head.classifier.{name}"] for name in ("weight", "bias"))
        expected = found["hidden"].mean(axis=1) @ weight + bias
        np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=TOLERANCE)

    def test_a_base_in_another_type_is_refused(self, tmp_path: Path) -> None:
        base = open_onnx(save_tiny(tmp_path))
        for value in (value for node in base.model.graph for value in node.outputs if value.name == "ffn0"):
            value.dtype = ir.DataType.DOUBLE
        with pytest.raises(BaseModelError, match="DOUBLE; expected FLOAT or FLOAT16"):
            insert_slots(base, plan_slots([random_adapter("a", pfeiffer(RELU), base)], base.sites))

    def test_a_graph_with_slots_gets_no_second_ones(self, base: OnnxBase) -> None:
        plan = plan_slots([random_adapter("a", pfeiffer(RELU), base)], base.sites)
        again = replace(base, model=insert_slots(base, plan))
        with pytest.raises(BaseModelError, match="already have slots"):
            insert_slots(again, plan)


@pytest.fixture(scope="module")
def model(base: OnnxBase, mixed: list[Adapter]) -> ir.Model:
    return insert_slots(base, plan_slots(mixed, base.sites))


class TestGraph:
    def test_the_base_is_not_changed(self, base: OnnxBase, mixed: list[Adapter]) -> None:
        before = ir.to_proto(base.model).SerializeToString()
        insert_slots(base, plan_slots(mixed, base.sites))
        assert ir.to_proto(base.model).SerializeToString() == before

    def test_the_slots_alone_are_overridable(self, base: OnnxBase, mixed: list[Adapter], model: ir.Model) -> None:
        slots = [slot.name for slot in plan_slots(mixed, base.sites).slots]
        inputs = [value.name for value in model.graph.inputs]
        assert inputs == ["input_ids", "attention_mask", *slots]
        assert {name for name in inputs if name in model.graph.initializers} == set(slots)

    def test_one_name_of_an_axis_is_one_width(self, model: ir.Model) -> None:
        shapes = {value.name: str(value.shape) for value in model.graph.inputs}
        assert shapes["adapter.layers.0.attention.bottleneck_gelu.up.weight"] == (
            f"[layers.0.attention.bottleneck_gelu.b,{WIDTH}]"
        )
        assert shapes["adapter.layers.1.ffn.parallel_relu.down.bias"] == "[layers.1.ffn.parallel_relu.b]"

    def test_one_head_has_plain_classes(self, base: OnnxBase) -> None:
        plan = plan_slots([random_adapter("a", pfeiffer(RELU), base, labels="ab")], base.sites)
        model = insert_slots(base, plan)
        assert str(model.graph.outputs[-1].shape) == "[batch,classes]"
        assert str(model.graph.initializers["adapter.head.classifier.weight"].shape) == f"[{WIDTH},classes]"

    def test_graph_metadata_name_base_heads_and_sites(
        self, base: OnnxBase, mixed: list[Adapter], model: ir.Model
    ) -> None:
        props = model.metadata_props
        assert props["adapter_export.base_fingerprint"] == base.fingerprint
        assert props["adapter_export.topology"] == plan_slots(mixed, base.sites).digest
        assert json.loads(props["adapter_export.head_outputs"]) == {
            "first_token_linear": "logits",
            "mean_pool_linear": "logits",
        }
        assert json.loads(props["adapter_export.sites"])["layers.0.ffn"]["h"] == "ffn0"

    def test_adapter_nodes_name_their_site_and_topology(self, model: ir.Model) -> None:
        nodes = [node for node in model.graph if any(value.name.startswith("adapter.") for value in node.outputs)]
        facts = {
            (node.metadata_props["adapter_export.site"], node.metadata_props.get("adapter_export.graph"))
            for node in nodes
        }
        assert ("layers.1.ffn", "parallel_relu") in facts
        assert len(nodes) > 50

    def test_the_checker_of_onnx_passes(self, model: ir.Model) -> None:
        whole = model.clone()
        for value in whole.graph.initializers.values():
            value.const_value = in_memory(value.const_value)
        onnx.checker.check_model(ir.to_proto(whole), full_check=True)

    def test_ir_version_and_opset_load_in_old_runtimes(self, model: ir.Model) -> None:
        assert 4 <= model.ir_version <= 10
        assert model.opset_imports[""] == 17

    def test_graph_keeps_module_paths_and_drops_stack_traces(self, tmp_path: Path) -> None:
        source = tiny_model()
        for node in source.graph.node:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', 'net', 'net.{node.output[0]}', 'x']")
            node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/someone/model.py"')
        base = open_onnx(save_tiny(tmp_path, source))
        model = insert_slots(base, plan_slots([random_adapter("a", pfeiffer(RELU), base)], base.sites))
        assert b"/home/someone" not in ir.to_proto(model).SerializeToString()
        paths = {node.metadata_props.get("adapter_export.torch_path") for node in model.graph}
        assert "net.down0" in paths


def _behind_a_transpose(model: ir.Model) -> None:
    slot = model.graph.initializers["adapter.layers.0.ffn.up.weight"]
    ((product, _),) = slot.uses()
    turned = ir.Node("", "Transpose", [slot])
    turned.outputs[0].name = "turned"
    model.graph.insert_before(product, turned)
    product.replace_input_with(1, turned.outputs[0])


def _no_input(model: ir.Model) -> None:
    """Remove a slot from the inputs, as `optimize_for_ort` does."""
    model.graph.inputs.remove(model.graph.initializers["adapter.layers.0.ffn.up.weight"])


def _wider_default(model: ir.Model) -> None:
    value = model.graph.initializers["adapter.layers.0.ffn.up.weight"]
    value.const_value = ir.tensor(np.zeros((2, WIDTH), np.float32), name=value.name)


def _base_weight_open(model: ir.Model) -> None:
    model.graph.inputs.append(model.graph.initializers["l0_up"])


class TestVerify:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (_behind_a_transpose, r"up.weight` feeds \[\('Transpose', 0\)\]"),
            (_no_input, "up.weight` cannot be overridden"),
            (_wider_default, "a default other than"),
            (_base_weight_open, "`l0_up` can be overridden, but is not a slot"),
        ],
    )
    def test_a_change_to_a_slot_is_found(
        self, base: OnnxBase, change: Callable[[ir.Model], None], message: str
    ) -> None:
        plan = plan_slots([random_adapter("a", pfeiffer(RELU), base)], base.sites)
        model = insert_slots(base, plan)
        verify_slots(model, plan.slots)
        change(model)
        with pytest.raises(AdapterExportError, match=message):
            verify_slots(model, plan.slots)


def test_an_adapter_at_one_site_leaves_the_others_alone(base: OnnxBase) -> None:
    graph = pfeiffer(RELU).graph
    sizes = {"d": WIDTH, "b": 4}
    rng = np.random.default_rng(0)
    weights = {
        f"layers.1.attention.{name}": (rng.standard_normal(shape) * 0.2).astype(np.float32)
        for name, shape in graph.parameter_shapes(sizes).items()
    }
    placement = {"layers.1.attention": Placement("g", sizes)}
    adapter = Adapter("a", "custom", base.fingerprint, {"g": graph}, placement, weights)
    model = insert_slots(base, plan_slots([adapter], base.sites))
    assert list(site_values(model)) == ["layers.1.attention"]
    found = _runner(base, [adapter])(adapter)["hidden"]
    np.testing.assert_allclose(found, CutRunner(base).run(INPUTS, adapter)["hidden"], rtol=0, atol=TOLERANCE)
