"""Every reader of foreign files, fed with changed ones for a moment; `make fuzz` does it for an hour."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))

from fuzz import outcome
from readers import Reader, light_readers

from adapter_export.onnx_backend import session

LIGHT = (
    *("manifest", "derivation", "adapter", "safetensors", "onnx_adapter", "onnx", "onnx of a cache"),
    *("onnx of fused", "site map", "tokenizer", "golden texts", "npz", "picture", "clip", "csv", "jsonl", "rows"),
)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Reader]:
    return light_readers(tmp_path_factory.mktemp("made"))


def test_every_reader_is_here(readers: Mapping[str, Reader]) -> None:
    assert tuple(readers) == LIGHT


@pytest.mark.parametrize("name", LIGHT)
def test_what_was_not_changed_is_read(name: str, readers: Mapping[str, Reader], tmp_path: Path) -> None:
    readers[name].write(tmp_path, None)
    readers[name].read(tmp_path)


@pytest.mark.parametrize("name", LIGHT)
def test_what_was_changed_is_read_or_refused(
    name: str, readers: Mapping[str, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_MOST_SECONDS", 1.0)

    examples = 10 if name.startswith("onnx") and name != "onnx_adapter" else 60

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(random: Random) -> None:
        with tempfile.TemporaryDirectory() as folder:
            readers[name].write(Path(folder), random)
            assert outcome(readers[name], Path(folder)) is None

    check()
