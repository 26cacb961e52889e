"""A transformer of Flax, as jax2onnx wrote it (`tests/fixtures/jax`): with adapters it gives what JAX computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.interop.plain import pack
from adapter_export.onnx.base import OnnxBase, open_onnx
from adapter_export.onnx.cut_runner import CutRunner
from adapter_export.onnx.insert import insert_slots
from adapter_export.onnx.session import open_session, run_session
from adapter_export.onnx.slots import plan_slots, slot_tensors

FOLDER = Path(__file__).parents[1] / "fixtures" / "jax"
SITES = ["layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"]


@pytest.fixture(scope="module")
def base() -> OnnxBase:
    return open_onnx(FOLDER / "model.onnx")


def test_its_sites_are_those_that_a_person_lists(base: OnnxBase) -> None:
    assert [site.name for site in base.sites.sublayers] == SITES
    inside = {"attention": ["query", "key", "value", "output"], "ffn": ["up", "down"]}
    expected = {f"{site}.{name}" for site in SITES for name in inside[site.rpartition(".")[2]]}
    assert {site.name for site in base.sites.of_roles(("linear",))} == expected
    assert [(record.name, record.axes) for record in base.inputs] == [("in_0", ("batch", "tokens", 16))]


@pytest.mark.parametrize("case", ["a", "b"])
def test_it_computes_what_jax_computes(base: OnnxBase, case: str) -> None:
    expected, tensors = load_file(FOLDER / "expected.safetensors"), load_file(FOLDER / "adapter.safetensors")
    kind = houlsby(BottleneckOptions("relu"))
    adapter = pack(tensors, kind, base.sites, name="a", base=base.fingerprint).adapter
    plan, output = plan_slots([adapter], base.sites), base.outputs[0].name
    session, inputs = open_session(insert_slots(base, plan), base.folder), {"in_0": expected[f"{case}.x"]}
    assert np.abs(expected[f"{case}.adapted"] - expected[f"{case}.plain"]).max() > 1
    for active, name in ((None, "plain"), (adapter, "adapted"), (None, "plain")):
        feeds = inputs | (dict(slot_tensors(plan, active)) if active else {})
        for found in (run_session(session, feeds)[output], CutRunner(base).run(inputs, active)[output]):
            np.testing.assert_allclose(found, expected[f"{case}.{name}"], rtol=0, atol=2e-5, err_msg=name)
