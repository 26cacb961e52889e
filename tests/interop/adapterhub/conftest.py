"""The bases that AdapterHub's adapters were made for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from adapterhub_bases import FIXTURES, Made


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A base by its name."""
    known: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = Made(FIXTURES / name, tmp_path_factory.mktemp(name))
        return known[name]

    return get


@pytest.fixture(scope="session")
def bert(made: Callable[[str], Made]) -> Made:
    return made("bert")


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a fixture, to be tampered with."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(FIXTURES / name, tmp_path / Path(name).name))

    return copy
