"""Every place of bases of many architectures: torch, ONNX Runtime and NumPy agree, and idle slots change no bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from exported_bases import ExportedBase, by_architecture
from replacing import at_every_place

from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.torch_runner import TorchRunner

CHOSEN = ("gpt2", "gpt_neox", "llama", "swiglu_block")
"""Products of rows; parallel sublayers; RMS norms; one projection for three."""


@dataclass(frozen=True)
class Base:
    """A base in both forms, inputs for it, and adapters that together act at every place."""

    in_torch: TorchBase
    in_onnx: OnnxBase
    inputs: Mapping[str, np.ndarray]
    real: np.ndarray
    adapters: list[Adapter]


@pytest.fixture(scope="module", params=by_architecture(CHOSEN))
def base(request: pytest.FixtureRequest, exported: Callable[[str], ExportedBase]) -> Base:
    made = exported(request.param)
    inputs = made.architecture.arrays(3, 5)
    real = inputs["attention_mask"] == 1 if "attention_mask" in inputs else np.ones((3, 5), bool)
    return Base(made.in_torch, made.in_onnx, inputs, real, at_every_place(made.in_onnx.sites, made.in_onnx.fingerprint))


def test_torch_onnxruntime_and_numpy_agree_at_every_place(base: Base) -> None:
    in_torch, in_numpy = TorchRunner(base.in_torch), CutRunner(base.in_onnx)
    plan = plan_slots(base.adapters, base.in_onnx.sites)
    session = open_session(insert_slots(base.in_onnx, plan), base.in_onnx.folder)
    (alone,) = in_torch.run(base.inputs, None).values()
    for adapter in base.adapters:
        (wanted,) = in_torch.run(base.inputs, adapter).values()
        assert np.abs(wanted - alone)[base.real].max() > 0.01
        (found,) = run_session(session, {**base.inputs, **slot_tensors(plan, adapter)}).values()
        (cut,) = in_numpy.run(base.inputs, adapter).values()
        scale = np.abs(wanted[base.real]).max()
        np.testing.assert_allclose(found[base.real], wanted[base.real], rtol=0, atol=2e-5 * scale)
        np.testing.assert_allclose(cut[base.real], wanted[base.real], rtol=0, atol=2e-5 * scale)


def test_idle_slots_change_no_bit(base: Base) -> None:
    plan = plan_slots(base.adapters, base.in_onnx.sites)
    folder = base.in_onnx.folder
    idle = open_session(insert_slots(base.in_onnx, plan), folder, optimize=False)
    untouched = run_session(open_session(base.in_onnx.model, folder, optimize=False), base.inputs)
    for name, value in run_session(idle, base.inputs).items():
        np.testing.assert_array_equal(value, untouched[name])
