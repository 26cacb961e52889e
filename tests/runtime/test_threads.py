"""8 threads with 1,000 calls each share a session while 50 adapters are replaced."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
import onnxruntime as ort
import pytest
from tiny_onnx import token_inputs

from adapter_export.errors import RequestError
from adapter_export.format.tensors import read_tensors
from adapter_export.runtime import Bundle, Session

THREADS, CALLS, ADAPTERS, VERSIONS = 8, 1_000, 50, 2
ROWS = 3
INPUTS = token_inputs(4, 2, 3)

Answers = dict[str, list[np.ndarray]]
"""For each name the logits [rows, classes] of each of its versions."""


@pytest.fixture(scope="module")
def files(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Two versions of each adapter that differ in every tensor."""
    folder = tmp_path_factory.mktemp("files")
    tensors = read_tensors(bundle.folder / "adapters/narrow.safetensors")
    rng = np.random.default_rng(0)
    return {
        f"n{index}": [_file(bundle, tensors, rng, folder / "a") for _ in range(VERSIONS)] for index in range(ADAPTERS)
    }


def _file(bundle: Bundle, tensors: dict[str, np.ndarray], rng: np.random.Generator, path: Path) -> bytes:
    """Random weights of standard deviation 0.2."""
    drawn = {
        name: (0.2 * rng.standard_normal(value.shape)).astype(np.float32) if value.any() else value
        for name, value in tensors.items()
    }
    adapter = ort.AdapterFormat()
    adapter.set_model_version(bundle.manifest.model_version)
    adapter.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in drawn.items()})
    adapter.export_adapter(str(path))
    return path.read_bytes()


def _answers(bundle: Bundle, files: dict[str, list[bytes]]) -> Answers:
    """Compute expected results one by one, in a session of their own."""
    session = bundle.session(threads=1)
    found: Answers = {}
    for name, versions in files.items():
        for data in versions:
            session.load_bytes(name, data)
            found.setdefault(name, []).append(session.run(INPUTS, name)["logits"])
            session.unload(name)
    return found


class _Work:
    """Work of each thread; counts the outcomes."""

    def __init__(self, session: Session, files: dict[str, list[bytes]], answers: Answers) -> None:
        self._session = session
        self._files = files
        self._answers = answers
        self._names = list(files)
        self._versions = Counter[str]()
        self._locks = {name: Lock() for name in files}

    def __call__(self, seed: int) -> Counter[str]:
        rng = np.random.default_rng(seed)
        done = Counter[str]()
        for _ in range(CALLS):
            kind = rng.choice(["one", "mixed", "replaced"], p=[0.72, 0.25, 0.03])
            try:
                getattr(self, f"_{kind}")(rng)
            except RequestError as error:
                if error.what != "is not loaded":
                    raise
                kind = "away"  # another thread replaces it at this moment
            done[kind] += 1
        return done

    def _one(self, rng: np.random.Generator) -> None:
        name = self._names[rng.integers(ADAPTERS)]
        found = self._session.run(INPUTS, name)["logits"]
        assert any(np.array_equal(found, version) for version in self._answers[name])

    def _mixed(self, rng: np.random.Generator) -> None:
        names = [self._names[index] for index in rng.integers(ADAPTERS, size=ROWS)]
        found = self._session.run(INPUTS, adapters=names)["logits"]
        for row, name in enumerate(names):
            assert any(np.abs(found[row] - version[row]).max() < 1e-5 for version in self._answers[name])

    def _replaced(self, rng: np.random.Generator) -> None:
        name = self._names[rng.integers(ADAPTERS)]
        with self._locks[name]:
            self._session.unload(name)
            self._versions[name] += 1
            version = self._versions[name] % VERSIONS
            self._session.load_bytes(name, self._files[name][version])
            found = self._session.run(INPUTS, name)["logits"]
            assert np.array_equal(found, self._answers[name][version])


def test_threads_get_right_answers_while_adapters_are_replaced(bundle: Bundle, files: dict[str, list[bytes]]) -> None:
    answers = _answers(bundle, files)
    session = bundle.session(threads=1, resident=24)
    for name, versions in files.items():
        session.load_bytes(name, versions[0])
    work = _Work(session, files, answers)
    with ThreadPoolExecutor(THREADS) as pool:
        done = sum(pool.map(work, range(THREADS)), Counter[str]())
    assert done.total() == THREADS * CALLS
    assert done["away"] < done.total() / 100
    assert done["replaced"] > 150
    assert done["mixed"] > 1_500
    assert session.statistics.bank.evictions > 500
    assert len(session.adapters) == len(bundle.manifest.adapters) + ADAPTERS
