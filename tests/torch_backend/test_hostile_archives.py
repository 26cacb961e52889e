"""Archives that run code when torch loads them: each really does, and none does here."""

from __future__ import annotations

import contextlib
from pathlib import Path

import attacks
import pytest
import torch
from archives import read_entries, save_plainly, write_entries

from adapter_export.errors import UnsafeArchiveError
from adapter_export.torch_backend.base.quiet import LIBRARY_ERRORS, quiet
from adapter_export.torch_backend.base.torch_base import load_base


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harmless") / "small.pt2"
    save_plainly(path)
    return path


@pytest.fixture(params=[*attacks.ON_LOADING, *attacks.ON_USE], ids=lambda attack: attack.__name__)
def hostile(
    request: pytest.FixtureRequest, harmless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """A hostile archive, and the file that it creates."""
    monkeypatch.syspath_prepend(tmp_path)
    path, marker = tmp_path / "hostile.pt2", tmp_path / "marker"
    entries = read_entries(harmless)
    request.param(entries, marker)
    write_entries(path, entries)
    return path, marker


def test_torch_alone_runs_it(hostile: tuple[Path, Path]) -> None:
    path, marker = hostile
    with quiet(), contextlib.suppress(*LIBRARY_ERRORS):
        module = torch.export.load(path).module()
        # not through `__call__`: its checks of the inputs come first
        module.forward(torch.ones(3, 4))
    assert marker.exists()


def test_it_is_refused_and_runs_nothing(hostile: tuple[Path, Path]) -> None:
    path, marker = hostile
    with pytest.raises(UnsafeArchiveError, match="trust_pickle=True"):
        load_base(path)
    assert not marker.exists()
