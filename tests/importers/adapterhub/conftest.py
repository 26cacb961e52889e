"""The bases that AdapterHub's adapters were made for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
from adapterhub_bases import FIXTURES, Made, adapterhub_base


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A base by its name."""
    return cache(partial(adapterhub_base, tmp_path_factory))


@pytest.fixture(scope="session")
def bert(made: Callable[[str], Made]) -> Made:
    return made("bert")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a fixture, to be tampered with."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(FIXTURES / name, tmp_path / Path(name).name))

    return copy
