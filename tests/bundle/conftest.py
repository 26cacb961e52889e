"""Fixtures shared by the tests of bundles."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_bundle import Built, build_small
from tiny_onnx import save_tiny

from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    """A tiny base, opened once."""
    return open_onnx(save_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A small bundle; do not change it."""
    return build_small(tmp_path_factory.mktemp("parity"))


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    """A copy of the small bundle, for tampering."""
    return shutil.copytree(built.folder, tmp_path / "bundle")
