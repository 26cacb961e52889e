from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from bank_rows import assert_rows_are_those_of_slots
from tiny_onnx import WIDTH, random_adapter, token_inputs

from adapter_export.errors import AdapterError, GraphError, NotNeutralError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.compose import adapter_fusion
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds import BottleneckOptions, Kind, classification_head, houlsby, parallel, pfeiffer
from adapter_export.graph.kinds.linear import changed_layer_graph
from adapter_export.graph.ops import POOLINGS
from adapter_export.graph.slot_form import repeated_zeros
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.bank_graph import bank_rows, insert_bank
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import PLAN_KEY, plan_slots, read_plan, slot_tensors, topology_key
from adapter_export.runtime.graphs import run_session

RELU, GELU = BottleneckOptions("relu"), BottleneckOptions("gelu")


def _names(plan: object) -> list[str]:
    return [slot.name for slot in plan.slots]  # type: ignore[attr-defined]


def _renamed(kind: Kind, name: str) -> Kind:
    return replace(kind, components=tuple(replace(part, graph_name=name) for part in kind.components))


class TestNames:
    def test_one_topology_needs_no_name(self, base: OnnxBase) -> None:
        plan = plan_slots([random_adapter("a", pfeiffer(RELU), base)], base.sites)
        assert _names(plan)[:4] == [
            f"adapter.layers.0.ffn.{name}" for name in ("down.weight", "down.bias", "up.weight", "up.bias")
        ]

    def test_two_topologies_at_one_site_have_their_names_in_between(self, base: OnnxBase) -> None:
        adapters = [random_adapter("a", houlsby(GELU), base), random_adapter("b", pfeiffer(RELU), base)]
        names = _names(plan_slots(adapters, base.sites))
        assert "adapter.layers.0.attention.down.weight" in names
        assert "adapter.layers.0.ffn.bottleneck_gelu.down.weight" in names
        assert "adapter.layers.0.ffn.bottleneck_relu.down.weight" in names

    def test_equal_names_of_different_topologies_are_numbered(self, base: OnnxBase) -> None:
        kinds = [_renamed(pfeiffer(BottleneckOptions(name)), "mine") for name in ("relu", "tanh")]
        adapters = [random_adapter(name, kind, base) for name, kind in zip("ab", kinds, strict=True)]
        graphs = {slot.graph for slot in plan_slots(adapters, base.sites).slots}
        assert graphs == {"mine", "mine_2"}

    def test_two_heads_are_named_by_their_topology(self, base: OnnxBase) -> None:
        first = classification_head("first")
        adapters = [
            random_adapter("a", pfeiffer(RELU), base, labels="xy"),
            random_adapter("b", pfeiffer(RELU), base, labels="xyz", head=first),
        ]
        heads = [name for name in _names(plan_slots(adapters, base.sites)) if ".head." in name]
        assert heads == [
            f"adapter.head.{graph}.classifier.{name}"
            for graph in ("first_token_linear", "mean_pool_linear")
            for name in ("weight", "bias")
        ]


class TestUnion:
    def test_widths_scaling_dropout_and_the_order_of_adapters_do_not_matter(self, base: OnnxBase) -> None:
        options = [RELU, BottleneckOptions("relu", scaling=4.0), BottleneckOptions("relu", dropout=0.1)]
        adapters = [random_adapter(f"a{i}", pfeiffer(one), base, bottleneck=i + 1) for i, one in enumerate(options)]
        one, other = plan_slots(adapters, base.sites), plan_slots(adapters[::-1], base.sites)
        assert one == other
        assert len({slot.graph for slot in one.slots}) == 1

    def test_axes_are_symbols_and_defaults_one_wide(self, base: OnnxBase) -> None:
        plan = plan_slots([random_adapter("a", parallel(RELU), base, labels="xyz")], base.sites)
        facts = {slot.name: (slot.axes, slot.neutral) for slot in plan.slots}
        assert facts["adapter.layers.0.ffn.down.weight"] == ((WIDTH, "b"), (WIDTH, 1))
        assert facts["adapter.layers.0.ffn.up.weight"] == (("b", WIDTH), (1, WIDTH))
        assert facts["adapter.head.classifier.weight"] == ((WIDTH, "classes"), (WIDTH, 1))

    def test_topology_ignores_the_names_of_values(self) -> None:
        def graph(name: str) -> AdapterGraph:
            nodes = (Node("linear", ("h",), name, {"weight": "w"}), Node("add", ("h", name), "sum"))
            return AdapterGraph(("h",), {"w": ("d", "d")}, nodes, "sum")

        assert topology_key(graph("one")) == topology_key(graph("other"))

    def test_an_attribute_is_part_of_the_topology(self) -> None:
        assert topology_key(houlsby(RELU).graph) != topology_key(houlsby(BottleneckOptions("leaky_relu")).graph)

    def test_the_digest_follows_the_topology(self, base: OnnxBase) -> None:
        plans = [
            plan_slots([random_adapter("a", kind, base, bottleneck=width)], base.sites)
            for kind, width in ((pfeiffer(RELU), 4), (pfeiffer(RELU), 8), (pfeiffer(GELU), 4))
        ]
        assert plans[0].digest == plans[1].digest != plans[2].digest


class TestTensors:
    def test_every_slot_is_filled_and_idle_ones_are_neutral(self, base: OnnxBase) -> None:
        one, other = random_adapter("a", houlsby(GELU), base), random_adapter("b", pfeiffer(RELU), base)
        plan = plan_slots([one, other], base.sites)
        tensors = slot_tensors(plan, other)
        assert set(tensors) == set(_names(plan))
        for slot in plan.slots:
            if slot.graph == "bottleneck_gelu":
                assert tensors[slot.name].shape == slot.neutral
                assert not tensors[slot.name].any()
            else:
                assert tensors[slot.name].any()

    def test_the_scaling_is_in_the_up_projection(self, base: OnnxBase) -> None:
        adapter = random_adapter("a", pfeiffer(BottleneckOptions("relu", scaling=4.0, dropout=0.5)), base)
        tensors = slot_tensors(plan_slots([adapter], base.sites), adapter)
        for name, factor in (("down.weight", 1), ("down.bias", 1), ("up.weight", 4), ("up.bias", 4)):
            expected = adapter.weights[f"layers.0.ffn.{name}"] * np.float32(factor)
            np.testing.assert_array_equal(tensors[f"adapter.layers.0.ffn.{name}"], expected)

    def test_factors_behind_dropout_are_folded(self, base: OnnxBase) -> None:
        nodes = (
            Node("linear", ("h",), "up", {"weight": "w"}),
            Node("dropout", ("up",), "dropped", attributes={"rate": 0.1}),
            Node("scale", ("dropped",), "scaled", attributes={"factor": 3.0}),
            Node("add", ("h", "scaled"), "sum"),
        )
        graph = AdapterGraph(("h",), {"w": ("d", "d")}, nodes, "sum")
        site = base.sites.sublayers[0].name
        weight = np.full((WIDTH, WIDTH), 0.5, np.float32)
        placement = {site: Placement("g", {"d": WIDTH})}
        adapter = Adapter("a", "custom", base.fingerprint, {"g": graph}, placement, {f"{site}.w": weight})
        tensors = slot_tensors(plan_slots([adapter], base.sites), adapter)
        np.testing.assert_array_equal(tensors[f"adapter.{site}.w"], weight * 3)

    def test_weights_that_overflow_with_their_factor_are_refused(self, base: OnnxBase) -> None:
        adapter = random_adapter("a", pfeiffer(BottleneckOptions("relu", scaling=1e38)), base)
        weights = {name: value * 100 for name, value in adapter.weights.items()}
        huge = replace(adapter, weights=weights)
        with pytest.raises(GraphError, match="exceed the range of float32"):
            slot_tensors(plan_slots([huge], base.sites), huge)

    def test_an_adapter_that_was_not_planned_is_refused(self, base: OnnxBase) -> None:
        plan = plan_slots([random_adapter("a", pfeiffer(RELU), base)], base.sites)
        with pytest.raises(AdapterError, match=r"no slots.*layers.0.attention"):
            slot_tensors(plan, random_adapter("b", houlsby(RELU), base))


class TestMisfits:
    def test_unknown_sites_and_other_widths_are_all_listed(self, base: OnnxBase) -> None:
        graph = pfeiffer(RELU).graph
        sizes = {"d": WIDTH + 1, "b": 2}
        placements = {"layers.0.ffn": Placement("g", sizes), "layers.9.ffn": Placement("g", sizes)}
        shapes = {
            f"{site}.{name}": shape for site in placements for name, shape in graph.parameter_shapes(sizes).items()
        }
        weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        adapter = Adapter("a", "custom", base.fingerprint, {"g": graph}, placements, weights)
        with pytest.raises(AdapterError) as caught:
            plan_slots([adapter], base.sites)
        assert "`layers.9.ffn`, which the base does not have" in str(caught.value)
        assert f"`d` = {WIDTH + 1} at `layers.0.ffn`, the base {WIDTH}" in str(caught.value)

    def test_a_graph_that_would_raise_values_to_powers_while_idle_is_refused(self, base: OnnxBase) -> None:
        nodes = (Node("relu_squared", ("h",), "s"), Node("multiply", ("s", "h"), "cube"))
        graph = AdapterGraph(("h",), {}, nodes, "cube")
        site = base.sites.sublayers[0].name
        adapter = Adapter("a", "custom", base.fingerprint, {"plain": graph}, {site: Placement("plain", {})}, {})
        with pytest.raises(NotNeutralError, match=r"adapter `a`, `layers.0.attention`.*a power of 3.*put a norm"):
            plan_slots([adapter], base.sites)


class TestIdleMatrices:
    """An idle full matrix is one column of zeros, which ONNX Runtime broadcasts."""

    @pytest.fixture
    def adapters(self, base: OnnxBase) -> list[Adapter]:
        pair = [random_adapter(name, pfeiffer(RELU), base, bottleneck=3) for name in "ab"]
        fused = adapter_fusion(*pair, name="fused")
        graph = changed_layer_graph(dense=True, scale=True, bias=True)
        shapes = {"delta.weight": (WIDTH, WIDTH), "delta.bias": (WIDTH,), "scaling.weight": (WIDTH,)}
        rng = np.random.default_rng(0)
        weights = {f"layers.0.attention.query.{name}": rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
        weights = {name: tensor.astype(np.float32) for name, tensor in weights.items()}
        placements = {"layers.0.attention.query": Placement("delta", {"d": WIDTH, "d_in": WIDTH})}
        return [*pair, fused, Adapter("delta", "any", base.fingerprint, {"delta": graph}, placements, weights)]

    def test_the_files_of_others_hold_a_column(self, base: OnnxBase, adapters: list[Adapter]) -> None:
        plan = plan_slots(adapters, base.sites)
        full = {slot.name: slot for slot in plan.slots if slot.graph_axes != slot.axes}
        parameters = {slot.parameter for slot in full.values()}
        names = ("query.weight", "query.bias", "key.weight", "key.bias", "value.weight")
        assert parameters == {"delta.weight", "delta.bias", *(f"fusion.{name}" for name in names)}
        for adapter in adapters:
            for name, tensor in slot_tensors(plan, adapter).items():
                if name in full:
                    acts = adapter.name == ("delta" if "delta" in full[name].parameter else "fused")
                    assert tensor.shape == (full[name].axes if acts else full[name].neutral)
                    assert tensor.shape[-1] == (WIDTH if acts else 1)

    def test_adapters_compute_the_same_beside_idle_matrices(self, base: OnnxBase, adapters: list[Adapter]) -> None:
        together, inputs = plan_slots(adapters, base.sites), token_inputs(5, 3)
        session = open_session(insert_slots(base, together), base.folder)
        bank = open_session(insert_bank(base, together, bank_rows(together, (), adapters)), base.folder)
        plain = run_session(session, dict(inputs))["hidden"]
        for row, adapter in enumerate(adapters, 1):
            alone = plan_slots([adapter], base.sites)
            own = open_session(insert_slots(base, alone), base.folder)
            wanted = run_session(own, {**inputs, **slot_tensors(alone, adapter)})["hidden"]
            found = run_session(session, {**inputs, **slot_tensors(together, adapter)})["hidden"]
            in_row = run_session(bank, {**inputs, "adapter_ids": np.full(2, row)})["hidden"]
            assert np.abs(wanted - plain).max() > 0.05
            np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
            np.testing.assert_allclose(in_row, wanted, rtol=0, atol=2e-5)

    def test_idle_matrices_read_by_another_matrix_stay(self) -> None:
        nodes = (
            Node("linear", ("u",), "first", {"weight": "v"}),
            Node("linear", ("first",), "second", {"weight": "w"}),
            Node("scale", ("second",), "scaled", attributes={"factor": 2.0}),
            Node("add", ("h", "scaled"), "sum"),
        )
        graph = AdapterGraph(("h", "u"), {"v": ("d_in", "d"), "w": ("d", "d")}, nodes, "sum")
        assert repeated_zeros(graph, ("d", "d_in")) == {"w"}
        bent = (nodes[0], Node("relu", ("first",), "bent"), Node("add", ("h", "bent"), "sum"))
        graph = AdapterGraph(("h", "u"), {"v": ("d_in", "d")}, bent, "sum")
        assert not repeated_zeros(graph, ("d", "d_in"))

    def test_a_graph_of_an_older_release_keeps_its_slots(self, base: OnnxBase, adapters: list[Adapter]) -> None:
        plan = plan_slots(adapters, base.sites)
        older = replace(plan, groups=tuple(replace(group, short=False) for group in plan.groups))
        model = insert_slots(base, older)
        assert {len(group) for group in json.loads(model.metadata_props[PLAN_KEY])["groups"]} == {5}
        again = read_plan(model, "model")
        assert again == older
        assert again.digest != plan.digest
        assert all(slot.graph_axes == slot.axes for slot in again.slots)
        assert read_plan(insert_slots(base, plan), "model") == plan


def test_rows_of_a_bank_support_every_pooling(base: OnnxBase) -> None:
    """Padding on either side, and within a row: each row pools the tokens of its mask."""
    adapters = [
        random_adapter(name, pfeiffer(RELU), base, labels="a", head=classification_head(name)) for name in POOLINGS
    ]
    inputs = token_inputs(6, 6, 6, 6)
    inputs["attention_mask"] = np.array([[1] * 6, [1] * 3 + [0] * 3, [0] * 4 + [1] * 2, [0, 1, 0, 1, 0, 0]])
    # a head's sum over 6 tokens of width 16 in float32, 6 · 16 · 2**-24, after two layers
    assert_rows_are_those_of_slots(base, adapters, inputs, tolerance=1e-5)
