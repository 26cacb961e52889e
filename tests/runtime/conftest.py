"""A small bundle, built once, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_onnx import tiny_bundle

from adapter_export.runtime import Bundle, Session


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def bundle(built: Path) -> Bundle:
    return Bundle.open(built)


@pytest.fixture
def session(bundle: Bundle) -> Session:
    return bundle.session(threads=1)
