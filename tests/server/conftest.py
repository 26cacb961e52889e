"""A server of a small bundle in its own process, and in-process applications."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from served import made_app, served
from small_bundle import counted_bundle, text_bundle
from starlette.testclient import TestClient
from tiers import extended


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text bundle `film` with the adapters `topic`, `tone` and `mood`."""
    return shutil.copytree(text_bundle(tmp_path_factory), tmp_path_factory.mktemp("film") / "film")


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose base is not padding-neutral, with a weighted fusion `fused`."""
    return counted_bundle(tmp_path_factory)


@pytest.fixture(scope="module")
def counting(counted: Path) -> Iterator[TestClient]:
    """An in-process server of `counted`."""
    with made_app(f"counted={counted}", quiet=True) as client:
        yield client


@pytest.fixture(scope="session")
def tenants(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters to load by name: `visitor`, a file with its task, and `guest`, an adapter folder."""
    folder = tmp_path_factory.mktemp("tenants")
    shutil.copy(film / "adapters" / "tone.onnx_adapter", folder / "visitor.onnx_adapter")
    (folder / "visitor.json").write_text('{"task": {"type": "single_label", "labels": ["cold", "warm"]}}')
    shutil.copytree(film / "adapters" / "mood", folder / "guest")
    return folder


@pytest.fixture(scope="session")
@extended
def server(film: Path, tenants: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server of `film` with the adapters folder `tenants`; tests must restore its state."""
    state = tmp_path_factory.mktemp("state") / "routes.json"
    with served(film, "--drain", "0", "--quiet", "--adapters", tenants, "--state", state) as found:
        yield found.client
