"""Calls whose tensors stay on the device, and what happens where there is none."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from tiny_onnx import token_inputs

from adapter_export.errors import RequestError, UsageError
from adapter_export.format.tensors import read_tensors
from adapter_export.runtime import Bundle, Request, Session

INPUTS = token_inputs(5, 3, 1)
NAMES = (None, "wide", "narrow", "pfeiffer", "plain")

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="no GPU: this build of ONNX Runtime has no CUDA provider")


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_run(session: Session, name: str | None) -> None:
    """IO binding ignores native adapters; these are bound as inputs."""
    found = session.run_on_device(INPUTS, name)
    expected = session.run(INPUTS, name)
    assert list(found) == list(expected)
    for output, value in found.items():
        assert value.device_name() == session.provider == "cpu"
        np.testing.assert_array_equal(value.numpy(), expected[output])


def test_what_fails_is_named(session: Session) -> None:
    with pytest.raises(RequestError, match="not those of the graph"):
        session.run_on_device({}, "wide")
    with pytest.raises(RequestError, match="not loaded"):
        session.run_on_device(INPUTS, "nobody")


@pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
def test_without_a_gpu_the_fallback_says_so(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="`cuda` is not available here"):
        bundle.session(provider="cuda")
    with pytest.warns(RuntimeWarning, match="runs on `cpu`: `cuda` is not available here"):
        session = bundle.session(provider="cuda", fallback="cpu")
    assert session.provider == "cpu"
    np.testing.assert_array_equal(session.run(INPUTS, "wide")["hidden"], bundle.session().run(INPUTS, "wide")["hidden"])


def test_a_wrong_call_has_no_fallback(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="a session needs a thread"):
        bundle.session(threads=0, fallback="cpu")
    with pytest.raises(UsageError, match="needs room for an adapter"):
        bundle.session(resident=0)


@needs_cuda
class TestCuda:
    @pytest.mark.parametrize("name", NAMES)
    def test_golden_vectors_hold_and_outputs_stay_on_the_device(self, bundle: Bundle, name: str | None) -> None:
        session = bundle.session(provider="cuda")
        record = next((each for each in bundle.manifest.adapters if each.name == name), None)
        golden = bundle.manifest.golden if record is None else record.golden
        tensors = read_tensors(bundle.folder / golden.path)
        for case in golden.cases:
            given = {i.name: tensors[f"{case}.input.{i.name}"] for i in bundle.manifest.inputs}
            bound = session.run_on_device(given, name)
            for output, allowed in golden.absolute.items():
                assert bound[output].device_name() == "cuda"
                expected = tensors[f"{case}.output.{output}"]
                np.testing.assert_allclose(bound[output].numpy(), expected, rtol=0, atol=allowed)
                np.testing.assert_allclose(session.run(given, name)[output], expected, rtol=0, atol=allowed)

    def test_mixed_batches_and_loaded_adapters(self, bundle: Bundle) -> None:
        session = bundle.session(provider="cuda", resident=2)
        for record in bundle.manifest.adapters:
            session.load(f"{record.name}.again", bundle.folder / record.onnx_adapter, labels=record.labels)
        for names in (("wide", None, "narrow"), ("wide.again", "narrow.again", None), ("plain.again", "wide", None)):
            found = session.run(INPUTS, adapters=names)["hidden"]
            for row, name in enumerate(names):
                np.testing.assert_allclose(found[row], session.run(INPUTS, name)["hidden"][row], rtol=0, atol=1e-4)
        requests = [Request(token_inputs(3 + index), name) for index, name in enumerate(NAMES)]
        for request, outputs in zip(requests, session.run_many(requests), strict=True):
            expected = session.run(request.inputs, request.adapter)["hidden"]
            np.testing.assert_allclose(outputs["hidden"], expected, rtol=0, atol=1e-4)
