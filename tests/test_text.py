"""The tokenizer: the same arrays as the library that trained the base, whatever fixed lengths the file asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapter_export.errors import BaseModelError, FileError, RequestError
from adapter_export.text import Tokenizer

NAMES = ("input_ids", "attention_mask", "token_type_ids")
BATCHES = {
    "one": ["Who wrote the Iliad?"],
    "different lengths": ["short", "a somewhat longer sentence, with punctuation!", "mid length here"],
    "empty among others": ["", "not empty"],
    "empty alone": [""],
    "unknown letters": ["naïve 日本語 🙂 ﬁ\u200b\x00", "tab\tand\nnewline"],
    "longer than the limit": ["word " * 700, "short"],
}


@pytest.fixture(scope="module")
def theirs(minilm_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(minilm_folder)


@pytest.fixture(scope="module")
def ours(minilm_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(minilm_folder, 512)


@pytest.mark.parametrize("texts", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("limit", [3, 64, 512])
def test_equals_transformers(
    minilm_folder: Path, theirs: PreTrainedTokenizerBase, texts: list[str], limit: int
) -> None:
    expected = theirs(texts, padding="longest", truncation=True, max_length=limit, return_tensors="np")
    found = Tokenizer.from_folder(minilm_folder, limit).batch(texts, NAMES)
    for name in NAMES:
        assert found[name].dtype == np.int64
        np.testing.assert_array_equal(found[name], expected[name])


def test_pads_to_the_longest_and_not_to_the_length_in_the_file(minilm_folder: Path, ours: Tokenizer) -> None:
    file = json.loads((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert file["padding"]["strategy"] == {"Fixed": 128}
    assert file["truncation"]["max_length"] == 128
    assert ours.batch(["two words", "x"], NAMES)["input_ids"].shape == (2, 4)
    assert ours.batch(["word " * 300], NAMES)["input_ids"].shape == (1, 302)


def test_gives_only_what_is_asked_for(ours: Tokenizer) -> None:
    assert list(ours.batch(["a"], ["attention_mask", "input_ids"])) == ["attention_mask", "input_ids"]


def test_from_the_text_of_the_file(minilm_folder: Path, ours: Tokenizer) -> None:
    text = (minilm_folder / "tokenizer.json").read_text(encoding="utf-8")
    assert Tokenizer.from_json(text, 512).encode(["hello"])[0].ids == ours.encode(["hello"])[0].ids == [101, 7592, 102]


def word_tokenizer(special: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer without a template: it adds no special tokens, so that a text may have no tokens at all."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.mark.parametrize(("special", "padding"), [(["<s>", "<pad>"], 4), (["[PAD]"], 3), (["<|pad|>"], 3), ([], 0)])
def test_pads_with_the_padding_token_that_the_file_has(special: list[str], padding: int) -> None:
    found = Tokenizer(word_tokenizer(special), 8).batch(["a b a", "b"], ["input_ids", "attention_mask"])
    assert found["input_ids"].tolist() == [[1, 2, 1], [2, padding, padding]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_keeps_the_side_on_which_the_file_pads_and_cuts() -> None:
    tokenizer = word_tokenizer([])
    tokenizer.enable_padding(direction="left", pad_id=2, length=50)
    tokenizer.enable_truncation(1, direction="left")
    found = Tokenizer(tokenizer, 3).batch(["a b b a b", "a"], ["input_ids", "attention_mask"])
    assert found["input_ids"].tolist() == [[2, 1, 2], [2, 2, 1]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_refuses_a_text_without_tokens() -> None:
    with pytest.raises(RequestError, match="text 1: has no tokens"):
        Tokenizer(word_tokenizer([]), 8).batch(["a", ""], ["input_ids", "attention_mask"])


def test_refuses_to_pad_where_no_mask_hides_the_padding(ours: Tokenizer) -> None:
    assert ours.batch(["one", "two"], ["input_ids"])["input_ids"].shape == (2, 3)
    with pytest.raises(RequestError, match="found 3 to 4 tokens"):
        ours.batch(["one", "two words"], ["input_ids"])


@pytest.mark.parametrize("texts", [[], "one text", [3], ["fine", None], ["half a pair \ud83d"], [b"bytes"]])
def test_refuses_what_is_no_list_of_texts(ours: Tokenizer, texts: list[str]) -> None:
    with pytest.raises(RequestError, match="text"):
        ours.batch(texts, NAMES)


def test_refuses_inputs_that_text_cannot_fill(ours: Tokenizer) -> None:
    with pytest.raises(RequestError, match="`pixel_values`"):
        ours.batch(["a"], ["input_ids", "pixel_values"])


def test_refuses_a_limit_without_room_for_text(minilm_folder: Path) -> None:
    with pytest.raises(BaseModelError, match="at most 2"):
        Tokenizer.from_folder(minilm_folder, 2)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "X"}}', "\ud800", "\x80"])
def test_refuses_what_is_no_tokenizer(text: str) -> None:
    with pytest.raises(BaseModelError, match="is not a tokenizer"):
        Tokenizer.from_json(text, 8)


def test_refuses_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="no tokenizer can be read"):
        Tokenizer.from_folder(tmp_path, 8)


def test_says_which_extra_brings_the_library() -> None:
    code = "import sys; sys.modules['tokenizers'] = None; import adapter_export.text"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in found.stderr
    assert "pip install 'adapter-export[text]'" in found.stderr
