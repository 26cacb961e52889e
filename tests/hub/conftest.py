"""A small bundle, the folder of an adapter; each test has a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, hub_here
from tiny_onnx import tiny_bundle

from adapter_export.format.manifest_json import read_manifest


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory)


@pytest.fixture(scope="session")
def adapter(bundle: Path) -> Path:
    return bundle / read_manifest(bundle).adapters[0].source


@pytest.fixture(scope="session")
def other(bundle: Path) -> Path:
    return bundle / read_manifest(bundle).adapters[1].source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTER_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_here(monkeypatch, tmp_path / "hf") as running:
        yield running
