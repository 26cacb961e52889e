"""Graphs and tokenizers of others are tried in a child process before they are opened here."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_onnx import save_tiny

from adapter_export import text
from adapter_export.bases.opening import open_base
from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.base import sandbox as trial
from adapter_export.safe_io.child import Limits


def test_a_graph_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny(tmp_path)
    open_base(path)
    trial._tried.clear()
    monkeypatch.setattr(trial, "_SECONDS", 0.01)
    with pytest.raises(BaseModelError, match=r"it crashed the sandbox process; found timeout after"):
        open_base(path)
    monkeypatch.undo()
    monkeypatch.setattr(trial, "_BYTES", 2**20)
    with pytest.raises(BaseModelError, match="it crashed the sandbox process"):
        open_base(path)


def test_a_tokenizer_that_ends_its_process_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(text, "_LIMITS", Limits(0.01, 2**30))
    with pytest.raises(BaseModelError, match="found timeout after"):
        text.read_tokenizer(tmp_path)
    monkeypatch.undo()
    with pytest.raises(BaseModelError, match="is not a tokenizer"):
        text.read_tokenizer(tmp_path)


def _repeated(document: dict[str, Any], times: int) -> None:
    document["post_processor"]["single"] = [{"Sequence": {"id": "A", "type_id": 0}}] * times


def _far(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["far"] = 2**31


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (partial(_repeated, times=2), "128 tokens of a text truncated to 64"),
        (partial(_repeated, times=300), ""),
        (_far, ""),
    ],
    ids=["twice", "300 times", "a far id"],
)
def test_a_tokenizer_whose_windows_take_all_memory_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    """Each single text has tokens; windows multiply them to all combinations, or a copy of all ids."""
    document = {
        "version": "1.0",
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "A": 1}, "unk_token": "[UNK]"},
        "padding": {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": None}
        | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
        "post_processor": {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    }
    _repeated(document, 1)
    text.try_tokenizer(json.dumps(document))
    change(document)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(BaseModelError, match=f"is not a tokenizer; found .*{words}"):
        text.try_tokenizer(json.dumps(document))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 700_000), "kB, of a small file"
