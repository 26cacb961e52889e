"""Decoders with a cache, as hand-made ONNX graphs: widths, inputs of heads, requirements on outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from replacing import adapter_at, scaled_plus
from tiny_decoder import HEADS, WIDTH, cached_graph, open_cached
from tiny_onnx import random_adapter

from adapter_export.errors import BaseModelError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, classification_head, houlsby
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

HOULSBY = houlsby(BottleneckOptions("relu"))


def build(base: OnnxBase, out: Path, adapter: Adapter) -> None:
    cases = input_cases(base.inputs, seed=0, max_tokens=9)
    build_bundle(base, [adapter], out, references=CutRunner(base), cases=cases)


def test_open_widths_are_those_of_a_head(tmp_path):
    base = open_cached(tmp_path)
    caches = {record.name: (record.axes, record.next) for record in base.inputs if record.role == "cache"}
    axes = ("batch", HEADS, "past", WIDTH // HEADS)
    assert caches == {"past_key": (axes, "present_key"), "past_value": (axes, "present_value")}
    assert base.outputs[1].axes == ("batch", HEADS, "past + tokens", WIDTH // HEADS)


def test_inputs_that_are_left_out_at_the_end_are_dropped(tmp_path):
    """onnxruntime 1.21 supports fewer of them."""
    base = open_cached(tmp_path)
    (attention,) = (node for node in base.model.graph if node.op_type == "GroupQueryAttention")
    assert [value is None for value in attention.inputs] == [False, True, True, False, False, False, False]


def test_a_bundle_computes_what_the_reference_computes_with_and_without_a_past(tmp_path):
    base = open_cached(tmp_path)
    build(base, tmp_path / "bundle", random_adapter("a", HOULSBY, base))


def test_outputs_in_another_order_than_the_caches_are_refused(tmp_path):
    """A client that mistook the values for the keys would generate nonsense."""
    base = open_cached(tmp_path, cached_graph(("present_value", "present_key")))
    with pytest.raises(
        BaseModelError, match=r"output `present_value`: an output does not extend the cache.*`past_key`"
    ):
        build(base, tmp_path / "bundle", random_adapter("a", HOULSBY, base))


def test_a_head_that_averages_over_a_mask_with_a_past_is_refused(tmp_path):
    base = open_cached(tmp_path)
    averaging = random_adapter("a", HOULSBY, base, labels="xy")
    with pytest.raises(BaseModelError, match=r"its mask covers past tokens.*`bare=True`"):
        insert_slots(base, plan_slots([averaging], base.sites))
    first = random_adapter("b", HOULSBY, base, labels="xy", head=classification_head("first"))
    build(base, tmp_path / "bundle", first)


def test_steps_with_a_cache_equal_one_whole_run(tmp_path):
    """Running token by token with a past matches running all tokens at once."""
    base = open_cached(tmp_path)
    adapter = adapter_at("a", scaled_plus("u", "x"), ["layers.0.attention"], base.sites, base.fingerprint)
    plan = plan_slots([adapter], base.sites)
    session = open_session(insert_slots(base, plan), base.folder)
    ids, past = np.array([[3, 7, 1, 9]]), np.zeros((1, HEADS, 0, WIDTH // HEADS), np.float32)

    def run(tensors, key, value, at, to):
        inputs = {"ids": ids[:, at:to], "mask": np.ones((1, to), np.int64), "past_key": key, "past_value": value}
        return run_session(session, {**inputs, **tensors})

    whole = run(slot_tensors(plan, adapter), past, past, 0, 4)
    key = value = past
    for at in range(4):
        step = run(slot_tensors(plan, adapter), key, value, at, at + 1)
        key, value = step["present_key"], step["present_value"]
        np.testing.assert_allclose(step["hidden"][:, 0], whole["hidden"][:, at], rtol=0, atol=1e-5)
    assert np.abs(whole["present_key"] - run({}, past, past, 0, 4)["present_key"]).max() > 0.01
