"""Calls whose tensors stay on the device, and machines without one."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from tiny_onnx import token_inputs

from adapter_export.errors import RequestError, UsageError
from adapter_export.format.tensors import read_tensors
from adapter_export.providers import ProviderName
from adapter_export.runtime import Bundle, Request, Session

INPUTS = token_inputs(5, 3, 1)
NAMES = (None, "wide", "narrow", "pfeiffer", "plain")

HAS_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
NEEDS_CUDA = pytest.mark.skipif(not HAS_CUDA, reason="no GPU: this build of ONNX Runtime has no CUDA provider")
PROVIDERS = ("cpu", pytest.param("cuda", marks=NEEDS_CUDA))
"""A missing GPU is no missing tool: the tests for it skip wherever there is none."""


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_run(session: Session, name: str | None) -> None:
    """IO binding ignores native adapters; these are bound as inputs."""
    found = session.run_on_device(INPUTS, name)
    expected = session.run(INPUTS, name)
    assert list(found) == list(expected)
    for output, value in found.items():
        assert value.device_name() == session.provider == "cpu"
        np.testing.assert_array_equal(value.numpy(), expected[output])


def test_run_on_device_refuses_invalid_calls(session: Session) -> None:
    with pytest.raises(RequestError, match="not those of the graph"):
        session.run_on_device({}, "wide")
    with pytest.raises(RequestError, match="not loaded"):
        session.run_on_device(INPUTS, "nobody")
    with pytest.raises(RequestError, match="weights are those of a fusion's members"):
        session.run_on_device(INPUTS, weights={"wide": 1.0})


@pytest.mark.skipif(HAS_CUDA, reason="there is a GPU")
def test_missing_gpu_is_reported_and_falls_back_to_cpu(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="`cuda` is not available here"):
        bundle.session(provider="cuda")
    with pytest.warns(RuntimeWarning, match="runs on `cpu`: `cuda` is not available here"):
        session = bundle.session(provider="cuda", fallback="cpu")
    assert session.provider == "cpu"
    np.testing.assert_array_equal(session.run(INPUTS, "wide")["hidden"], bundle.session().run(INPUTS, "wide")["hidden"])


def test_a_wrong_call_has_no_fallback(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="`threads` is out of range"):
        bundle.session(threads=0, fallback="cpu")
    with pytest.raises(UsageError, match="`resident` must be greater than 0"):
        bundle.session(resident=0)


@pytest.mark.parametrize("provider", PROVIDERS)
class TestProvider:
    """Properties of GPU runs, tested on the CPU so that these tests run everywhere."""

    @pytest.fixture
    def placed(self, bundle: Bundle, provider: ProviderName) -> Session:
        return bundle.session(provider=provider, resident=2)

    @pytest.mark.parametrize("name", NAMES)
    def test_golden_vectors_hold_and_outputs_stay_on_the_device(
        self, bundle: Bundle, placed: Session, provider: ProviderName, name: str | None
    ) -> None:
        record = next((each for each in bundle.manifest.adapters if each.name == name), None)
        golden = bundle.manifest.golden if record is None else record.golden
        tensors = read_tensors(bundle.folder / golden.path)
        for case in golden.cases:
            given = {i.name: tensors[f"{case}.input.{i.name}"] for i in bundle.manifest.inputs}
            bound = placed.run_on_device(given, name)
            for output, allowed in golden.absolute.items():
                assert bound[output].device_name() == provider
                expected = tensors[f"{case}.output.{output}"]
                np.testing.assert_allclose(bound[output].numpy(), expected, rtol=0, atol=allowed)
                np.testing.assert_allclose(placed.run(given, name)[output], expected, rtol=0, atol=allowed)

    def test_adapters_are_uploaded_once(self, placed: Session, provider: ProviderName) -> None:
        entry = placed._adapters.entry("wide")
        before = placed._adapters.load(entry).feeds
        for _ in range(3):
            placed.run(INPUTS, "wide")
            placed.run_on_device(INPUTS, "wide")
        after = placed._adapters.load(entry).feeds
        assert {value.device_name() for value in after.values()} == {provider}
        assert [value.data_ptr() for value in after.values()] == [value.data_ptr() for value in before.values()]
        if provider == "cpu":
            tensors = placed._adapters.load(entry).tensors
            assert all(after[name].data_ptr() == tensor.ctypes.data for name, tensor in tensors.items())

    def test_the_table_stays_on_the_device_until_an_adapter_is_put_in(
        self, bundle: Bundle, placed: Session, provider: ProviderName
    ) -> None:
        path = bundle.folder / "adapters/wide.onnx_adapter"
        placed.load("again", path)
        placed.run(INPUTS, adapters=("again", None, "again"))
        table = placed._bank
        before = dict(table._feeds)
        placed.run(INPUTS, adapters=(None, "again", "again"))
        assert {value.device_name() for value in table._feeds.values()} == {provider}
        assert all(table._feeds[name] is value for name, value in before.items())

    def test_provider_runs_mixed_batches_and_loaded_adapters(self, bundle: Bundle, placed: Session) -> None:
        for record in bundle.manifest.adapters:
            placed.load(f"{record.name}.again", bundle.folder / record.onnx_adapter, task=record.task)
        for names in (("wide", None, "narrow"), ("wide.again", "narrow.again", None), ("plain.again", "wide", None)):
            found = placed.run(INPUTS, adapters=names)["hidden"]
            for row, name in enumerate(names):
                np.testing.assert_allclose(found[row], placed.run(INPUTS, name)["hidden"][row], rtol=0, atol=1e-4)
        requests = [Request(token_inputs(3 + index), name) for index, name in enumerate(NAMES)]
        for request, outputs in zip(requests, placed.run_many(requests), strict=True):
            expected = placed.run(request.inputs, request.adapter)["hidden"]
            np.testing.assert_allclose(outputs["hidden"], expected, rtol=0, atol=1e-4)
