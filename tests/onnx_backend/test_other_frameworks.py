"""Transformers of Flax and Keras, exported by jax2onnx and tf2onnx: with adapters, they match their frameworks.

`make.py` in `tests/fixtures/jax` and `tests/fixtures/keras` computed the expected values, layer by layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapter_export.bases.base_view import BaseView
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.plugins.formats.importers.plain_tensors import pack
from adapter_export.runtime.graphs import run_session

FIXTURES = Path(__file__).parents[1] / "fixtures"
SITES = ["layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"]


INSIDE = {
    "jax": {"attention": ("query", "key", "value", "output"), "ffn": ("up", "down")},
    # tf2onnx adds the bias of the output projection after two reshapes
    "keras": {"attention": ("query", "key", "value"), "ffn": ("up", "down")},
}


@pytest.fixture(scope="module", params=INSIDE)
def folder(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / str(request.param)


@pytest.fixture(scope="module")
def base(folder: Path) -> OnnxBase:
    return open_onnx(folder / "model.onnx")


def test_sites_match_lists_written_by_hand(base: OnnxBase, folder: Path) -> None:
    assert [site.name for site in base.sites.sublayers] == SITES
    inside = INSIDE[folder.name]
    expected = {f"{site}.{name}" for site in SITES for name in inside[site.rpartition(".")[2]]}
    assert {site.name for site in base.sites.of_roles(("linear",))} == expected
    (record,) = base.inputs
    assert record.axes[2] == 16
    assert all(isinstance(axis, str) for axis in record.axes[:2])


@pytest.mark.parametrize("case", ["a", "b"])
def test_adapted_graph_computes_what_its_framework_computes(base: OnnxBase, folder: Path, case: str) -> None:
    expected, tensors = load_file(folder / "expected.safetensors"), load_file(folder / "adapter.safetensors")
    kind = houlsby(BottleneckOptions("relu"))
    adapter = pack(tensors, kind, BaseView(base.fingerprint, base.sites), name="a").adapter
    plan, output = plan_slots([adapter], base.sites), base.outputs[0].name
    session, inputs = open_session(insert_slots(base, plan), base.folder), {base.inputs[0].name: expected[f"{case}.x"]}
    assert np.abs(expected[f"{case}.adapted"] - expected[f"{case}.plain"]).max() > 1
    for active, name in ((None, "plain"), (adapter, "adapted"), (None, "plain")):
        feeds = inputs | (dict(slot_tensors(plan, active)) if active else {})
        for found in (run_session(session, feeds)[output], CutRunner(base).run(inputs, active)[output]):
            np.testing.assert_allclose(found, expected[f"{case}.{name}"], rtol=0, atol=2e-5, err_msg=name)
