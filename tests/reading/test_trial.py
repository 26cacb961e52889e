"""Graphs and tokenizers of others are tried in a child process before they are opened here."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_bundle import build_small

from adapter_export import text
from adapter_export.api.base import open_base, read_tokenizer
from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base import trial
from adapter_export.reading.child import Limits


def test_a_graph_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build_small(tmp_path).model
    open_base(path)
    trial._tried.clear()
    monkeypatch.setattr(trial, "_SECONDS", 0.01)
    with pytest.raises(BaseModelError, match=r"it ended the process in which it was tried; found no end after"):
        open_base(path)
    monkeypatch.undo()
    monkeypatch.setattr(trial, "_BYTES", 2**20)
    with pytest.raises(BaseModelError, match="it ended the process in which it was tried"):
        open_base(path)


def test_a_tokenizer_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(text, "_LIMITS", Limits(0.01, 2**30))
    with pytest.raises(BaseModelError, match="found no end after"):
        read_tokenizer(tmp_path)
    monkeypatch.undo()
    with pytest.raises(BaseModelError, match="is not a tokenizer"):
        read_tokenizer(tmp_path)
