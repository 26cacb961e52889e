"""What the tests of the checker have in common."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_bundle import Built, build_small


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A small bundle, not to be changed."""
    return build_small(tmp_path_factory.mktemp("parity"))


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    """A copy of the small bundle, to be tampered with."""
    return shutil.copytree(built.folder, tmp_path / "bundle")
