"""Small bundles with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bundle import counted_bundle, text_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of `topic`, `tone` and `mood` in the default variants."""
    return text_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a base that padding changes, with a weighted fusion `fused`."""
    return counted_bundle(tmp_path_factory)
