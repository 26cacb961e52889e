"""Any graph of the language in a bank: it gives the same result as separately, or is rejected."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from backends import draw_parameters
from hypothesis import event, given
from random_graphs import WIDTHS, residual_graphs
from tiers import examples
from tiny_onnx import save_tiny, tiny_model, token_inputs

from adapter_export.errors import AdapterError, AdapterExportError, NotNeutralError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.bank_graph import bank_rows, insert_bank
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import head_sums, plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

SITE = "layers.1.ffn"
NARROW = {**WIDTHS, "b": 2, "c": 3}
INPUTS = token_inputs(4, 2, 3, 1, seed=1)


@pytest.fixture(scope="module")
def narrow_base(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return open_onnx(save_tiny(tmp_path_factory.mktemp("bank"), tiny_model(width=WIDTHS["d"])))


def adapter(name: str, graph: AdapterGraph, widths: Mapping[str, int], base: OnnxBase) -> Adapter:
    own = {symbol: widths[symbol] for symbol in graph.symbols()}
    drawn = draw_parameters(graph, own, np.random.default_rng([*name.encode()]))
    weights = {f"{SITE}.{key}": tensor.astype(np.float32) for key, tensor in drawn.items()}
    return Adapter(name, "any", base.fingerprint, {"any": graph}, {SITE: Placement("any", own)}, weights)


def pair(graph: AdapterGraph, base: OnnxBase) -> list[Adapter]:
    """Return a wide and a narrow adapter, or two of equal width if a Kronecker product fixes the widths."""
    try:
        other = adapter("other", graph, NARROW, base)
    except AdapterExportError:
        other = adapter("other", graph, WIDTHS, base)
    return [adapter("one", graph, WIDTHS, base), other]


@examples(60)
@given(residual_graphs())
def test_a_bank_gives_what_slots_give(narrow_base: OnnxBase, graph: AdapterGraph) -> None:
    adapters = pair(graph, narrow_base)
    try:
        plan = plan_slots(adapters, narrow_base.sites)
        rows = bank_rows(plan, head_sums(plan, ["hidden"]), adapters)
    except (AdapterError, NotNeutralError) as error:
        event(type(error).__name__)
        return
    event("compared")
    slots = open_session(insert_slots(narrow_base, plan), narrow_base.folder)
    tensors = [{}, *(slot_tensors(plan, each) for each in adapters)]
    expected = np.stack(
        [run_session(slots, {**INPUTS, **tensors[at]})["hidden"][row] for row, at in enumerate((0, 1, 2, 1))]
    )
    bank = open_session(insert_bank(narrow_base, plan, rows), narrow_base.folder)
    found = run_session(bank, {**INPUTS, "adapter_ids": np.array([0, 1, 2, 1])})["hidden"]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def inner(op: str, **attributes: float) -> AdapterGraph:
    """Return `h + B(op(A h))` with a separate width between the two, over which the op works."""
    roles = ("weight", "bias") if op == "layer_norm" else ("weight",) if op == "rms_norm" else ()
    nodes = (
        Node("linear", ("h",), "down", {"weight": "down.weight"}),
        Node("relu", ("down",), "cut"),
        Node(op, ("cut",), "within", {role: f"within.{role}" for role in roles}, attributes),
        Node("tanh", ("within",), "bent"),
        Node("linear", ("bent",), "up", {"weight": "up.weight"}),
        Node("add", ("h", "up"), "result"),
    )
    own = {f"within.{role}": ("b",) for role in roles}
    return AdapterGraph(("h",), {"down.weight": ("d", "b"), "up.weight": ("b", "d"), **own}, nodes, "result")


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("layer_norm", {"epsilon": 1e-5}),
        ("rms_norm", {"epsilon": 1e-5}),
        ("keep_first_half", {}),
        ("keep_second_half", {}),
    ],
)
def test_ops_over_the_whole_bottleneck_refuse_padding(
    narrow_base: OnnxBase, op: str, attributes: dict[str, float]
) -> None:
    graph = inner(op, **attributes)
    wide, narrow = adapter("wide", graph, {**WIDTHS, "b": 6}, narrow_base), adapter("n", graph, NARROW, narrow_base)
    plan = plan_slots([wide, narrow], narrow_base.sites)
    with pytest.raises(AdapterError, match="cannot share a bank with a wider one") as raised:
        bank_rows(plan, head_sums(plan, ["hidden"]), [wide, narrow])
    assert 'variants=["slots", "inputs"]' in str(raised.value)
    equal = adapter("equal", graph, {**WIDTHS, "b": 6}, narrow_base)
    assert bank_rows(plan, head_sums(plan, ["hidden"]), [wide, equal]).names == (None, "wide", "equal")


@pytest.mark.parametrize("op", ["l2_normalise", "sigmoid", "gelu"])
def test_ops_on_single_features_accept_padding(narrow_base: OnnxBase, op: str) -> None:
    graph = inner(op)
    both = [adapter("wide", graph, {**WIDTHS, "b": 6}, narrow_base), adapter("n", graph, NARROW, narrow_base)]
    plan = plan_slots(both, narrow_base.sites)
    assert bank_rows(plan, head_sums(plan, ["hidden"]), both).names == (None, "wide", "n")
