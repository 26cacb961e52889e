"""Small files that ask for much: each is refused by name, within seconds and without their memory."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_generators import generating

import adapter_export as ae
from adapter_export.errors import AdapterExportError, BaseModelError, UsageError
from adapter_export.runtime import Bundle
from adapter_export.safe_io.tokenizer_bounds import MOST_VOCABULARY, unbounded_part
from adapter_export.text import read_tokenizer
from adapter_export.torch_backend.base.folder_size import bounded_model

SECONDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "llama")


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS


def _changed(source: Path, copy: Path, file: str, **changes: Any) -> Path:
    shutil.copytree(source, copy)
    document = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(document | changes))
    return copy


@pytest.mark.filterwarnings("ignore:the pattern")
@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "((((.*)*)*)*q_proj|v_proj)+x"},
        {"target_modules": r"(.*a|.*a)+\1"},
        {"target_modules": "(" * 5000},
        {"target_modules": "(?:.{1,900}){1,900}q"},
        {"rank_pattern": {"(a|l|.)*x*(.|l)*q": 3}},
        {"alpha_pattern": {"(.+)+y": 3.0}},
        {"rank_pattern": {f"{number}(.*)*(.*)*": 3 for number in range(2000)}},
        {"exclude_modules": "(.*.*)*(.*.*)*(.*.*)*y"},
        {"layers_to_transform": [0], "layers_pattern": "(.*)*(.*)*x"},
    ],
)
def test_slow_expressions_of_adapters_are_bounded(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Python's matcher would backtrack for longer than anybody waits; those that select modules are matched."""
    hostile = _changed(folder / "a", tmp_path / "hostile", "adapter_config.json", **changes)
    try:
        ae.import_peft(hostile, folder / "base.pt", name="hostile")
    except AdapterExportError as error:
        assert "adapter_config.json" in str(error) or "hostile" in str(error)  # noqa: PT017 - or it is imported


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "larger model than the folder has weights for; found `num_hidden_layers` 1,000"),
        ({"vocab_size": 10**12}, "found `vocab_size` 1,000,000,000,000"),
        ({"hidden_size": 2**22}, "found more than .* values"),
        ({"num_hidden_layers": 9999}, "found more than .* (modules|parameters)"),
        ({"architectures": ["os.system"]}, "`architectures` names no class; found 'os.system'"),
        ({"architectures": ["LlamaForCausalLM", 3]}, "names no class; found 3"),
    ],
)
def test_oversized_model_configurations_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    hostile = _changed(folder / "hf", tmp_path / "hostile", "config.json", **changes)
    with pytest.raises(BaseModelError, match=message):
        ae.capture(hostile, tmp_path / "base.pt")


def test_the_bound_of_a_model_ends_with_its_block(folder: Path) -> None:
    with bounded_model(folder / "hf"):
        torch.nn.Linear(2, 2)
    torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(12_000)))


def _replaced(character: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": character}, "content": content}


_CHARSMAP = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"ab\0" + b"z" * 500 + b"\0").decode()

_TWICE_NESTED = {"type": "Sequence", "normalizers": [_replaced("q", "q" * 9)] * 2}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [_replaced("q", "qq")] * 40}),
        ("normalizer", {"type": "Sequence", "normalizers": [_TWICE_NESTED] * 2}),
        ("normalizer", _replaced("q", "z" * 5000)),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": _CHARSMAP}),
        ("normalizer", {"type": "Sequence", "normalizers": [{**_replaced("", "z"), "pattern": {"Regex": "x*"}}] * 9}),
        ("decoder", {"type": "Sequence", "decoders": [_replaced("q", "qq")] * 40}),
    ],
)
def test_tokenizers_that_multiply_texts_are_refused(folder: Path, tmp_path: Path, part: str, value: object) -> None:
    hostile = _changed(folder / "hf", tmp_path / "hostile", "tokenizer.json", **{part: value})
    with pytest.raises(BaseModelError, match=f"a `{part}` that makes more than 64 characters of one"):
        read_tokenizer(hostile)


def test_tokenizers_in_use_are_within_the_bounds() -> None:
    usual = [
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, _replaced(" ", "\u2581"), {"type": "Lowercase"}]},
        {"type": "Sequence", "normalizers": [{**_replaced("", " "), "pattern": {"Regex": " {2,}"}}] * 30},
        {"type": "BertNormalizer"},
        None,
    ]
    assert [unbounded_part(json.dumps({"normalizer": one, "model": {"vocab": {}}})) for one in usual] == [None] * 4


def test_excessive_vocabularies_are_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "hf" / "tokenizer.json").read_text())
    document["model"]["vocab"] |= {f"zz{number}": number + 200 for number in range(MOST_VOCABULARY)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(BaseModelError, match=r"a vocabulary of 1,048,6.. entries, more than 1,048,576"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("threads", [0, -1, 1025, 99999999999])
def test_excessive_thread_counts_are_refused(folder: Path, threads: int) -> None:
    with pytest.raises(UsageError, match=r"`threads` is out of range; found .*; expected 1 to 1,024"):
        Bundle.open(folder / "bundle").session(threads=threads)
