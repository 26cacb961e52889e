"""The Python runtime reproduces the golden vectors of the bundle of all clients, on the CPU and on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from adapter_export.format.manifest import GoldenRecord
from adapter_export.format.tensors import read_tensors
from adapter_export.providers import ProviderName
from adapter_export.runtime import Bundle, Session

NAMES = ("wide", "narrow", "first")

NEEDS_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="no GPU: this build of ONNX Runtime has no CUDA provider",
)
"""A missing GPU is no missing tool: what needs it skips wherever there is none."""

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def provider(request: pytest.FixtureRequest) -> ProviderName:
    found: ProviderName = request.param
    return found


@pytest.fixture(scope="module")
def bundle(provider: ProviderName, conformance_bundle: Path) -> Bundle:
    return Bundle.open(conformance_bundle)


@pytest.fixture(scope="module")
def session(bundle: Bundle, provider: ProviderName) -> Session:
    return bundle.session(provider=provider, threads=1)


def _golden(bundle: Bundle, name: str | None) -> GoldenRecord:
    records = {record.name: record.golden for record in bundle.manifest.adapters}
    return bundle.manifest.golden if name is None else records[name]


def _cases(bundle: Bundle, name: str | None) -> dict[str, tuple[Arrays, Arrays]]:
    """Inputs and expected outputs."""
    golden = _golden(bundle, name)
    tensors = read_tensors(bundle.folder / golden.path)
    return {
        case: (
            {record.name: tensors[f"{case}.input.{record.name}"] for record in bundle.manifest.inputs},
            {output: tensors[f"{case}.output.{output}"] for output in golden.absolute},
        )
        for case in golden.cases
    }


@pytest.mark.parametrize("name", [None, *NAMES])
def test_each_adapter_reproduces_its_golden_vectors(bundle: Bundle, session: Session, name: str | None) -> None:
    for inputs, expected in _cases(bundle, name).values():
        found, bound = session.run(inputs, name), session.run_on_device(inputs, name)
        for output, allowed in _golden(bundle, name).absolute.items():
            assert bound[output].device_name() == session.provider
            np.testing.assert_allclose(found[output], expected[output], rtol=0, atol=allowed)
            np.testing.assert_allclose(bound[output].numpy(), expected[output], rtol=0, atol=allowed)


def test_rows_of_a_mixed_batch_reproduce_golden_vectors(bundle: Bundle, session: Session) -> None:
    """Every row is another subject in turn: each subject's rows are what the reference computed for it."""
    subjects = (None, *NAMES)
    expected = {name: _cases(bundle, name) for name in subjects}
    compared = 0
    for case, (inputs, _) in expected[None].items():
        rows = len(next(iter(inputs.values())))
        for turn in range(len(subjects)):
            chosen = [subjects[(row + turn) % len(subjects)] for row in range(rows)]
            found = session.run(inputs, adapters=chosen)
            for row, name in enumerate(chosen):
                for output, allowed in _golden(bundle, name).absolute.items():
                    own = expected[name][case][1][output][row]
                    shown = found[output][row][..., : own.shape[-1]]
                    np.testing.assert_allclose(shown, own, rtol=0, atol=allowed)
                    compared += 1
    assert compared > 50
