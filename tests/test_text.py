"""The tokenizer: the same arrays as the training library, for any fixed lengths in the file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapter_export.errors import BaseModelError, FileError, RequestError
from adapter_export.text import MOST_CHARACTERS, Pair, Text, Tokenizer, tokenizer_digest

NAMES = ("input_ids", "attention_mask", "token_type_ids")
BATCHES = (
    ["Who wrote the Iliad?"],
    ["short", "a somewhat longer sentence, with punctuation!", "mid length here"],
    ["", "not empty"],
    [""],
    ["naïve 日本語 🙂 ﬁ\u200b\x01", "tab\tand\nnewline"],
    ["word " * 700, "short"],
)


@pytest.fixture(scope="module")
def theirs(minilm_folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(minilm_folder)


@pytest.fixture(scope="module")
def ours(minilm_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(minilm_folder, 512)


@pytest.mark.parametrize("limit", [3, 64, 512])
def test_tokenizer_equals_transformers(minilm_folder: Path, theirs: PreTrainedTokenizerBase, limit: int) -> None:
    ours = Tokenizer.from_folder(minilm_folder, limit)
    for texts in BATCHES:
        expected = theirs(texts, padding="longest", truncation=True, max_length=limit, return_tensors="np")
        found = ours.batch(texts, NAMES)
        for name in NAMES:
            assert found[name].dtype == np.int64
            np.testing.assert_array_equal(found[name], expected[name])


PAIRS = [
    Pair("Who wrote it?", "Goethe wrote Faust in sixty years."),
    Pair("", "no first"),
    Pair("word " * 40, "and " * 90),
    Pair("short", "and " * 90),
    Pair("word " * 90, "short"),
]


@pytest.mark.parametrize("strategy", ["longest_first", "only_first", "only_second"])
def test_pairs_equal_transformers(minilm_folder: Path, theirs: PreTrainedTokenizerBase, strategy: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    for limit, pair in product([5, 16, 64, 512], PAIRS):
        tokenizer.enable_truncation(8, strategy=strategy)
        ours = Tokenizer(tokenizer, limit)
        expected: Any = None
        with suppress(Exception):  # the library has no error class for texts that cannot be truncated
            expected = theirs(*pair, truncation=strategy, max_length=limit, return_tensors="np")
        if expected is None:
            with pytest.raises(RequestError, match=f"text 0: the limit leaves no room.*with `{strategy}`"):
                ours.batch([pair], NAMES)
            continue
        found = ours.batch([pair], NAMES)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], expected[name])


def test_pairs_that_fit_equal_transformers(ours: Tokenizer, theirs: PreTrainedTokenizerBase) -> None:
    expected = theirs([pair.first for pair in PAIRS[:2]], [pair.second for pair in PAIRS[:2]], padding=True)
    found = ours.batch(PAIRS[:2], NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_row_has_its_own_limit_and_side(minilm_folder: Path, ours: Tokenizer, side: Literal["right"]) -> None:
    texts: list[Text] = ["a b c d e f g h", "a b c d e f g h", Pair("a b c d", "e f g"), "a"]
    limits = [5, None, 8, 3]
    found = ours.rows(texts, limits=limits, sides=[side] * 4)
    cutting = AutoTokenizer.from_pretrained(minilm_folder, truncation_side=side)
    for text, limit, row in zip(texts, limits, found, strict=True):
        parts = text if isinstance(text, Pair) else (text,)
        whole = cutting(*parts)["input_ids"]
        assert row.encoding.ids == cutting(*parts, truncation=True, max_length=limit or 512)["input_ids"]
        assert (row.total, row.cut) == (len(whole), len(whole) - len(row.encoding.ids))
    assert [row.cut for row in found] == [5, 0, 2, 0]
    assert ours.batch(texts, NAMES, limits=[4] * 4, sides=[side] * 4)["input_ids"].shape == (4, 4)


_STRATEGIES = {"longest_first": "LongestFirst", "only_second": "OnlySecond"}


@pytest.mark.parametrize("strategy", _STRATEGIES)
@pytest.mark.parametrize("limit", [7, 64])
def test_long_texts_keep_only_their_beginning(
    minilm_folder: Path, theirs: PreTrainedTokenizerBase, limit: int, strategy: str
) -> None:
    """The library keeps the rest of a truncated text in `overflowing`, and all combinations of those of a pair."""
    document = json.loads((minilm_folder / "tokenizer.json").read_text())
    document["truncation"] = {"max_length": 9, "stride": 0, "strategy": _STRATEGIES[strategy], "direction": "Right"}
    ours = Tokenizer.from_json(json.dumps(document), limit)
    random = np.random.default_rng(0)
    letters = [*"ab c,\u65e5e\u0301 "]
    texts = ["".join(random.choice(letters, size)) for size in (1200, 1300, 1000)] + ["x" * 1000]
    pairs = [Pair("a b", texts[0]), Pair(texts[1], texts[2]), Pair(texts[3], "c")]
    for asked in (texts, pairs if strategy == "longest_first" else pairs[:1]):
        rows = ours.rows(asked)
        for one, row in zip(asked, rows, strict=True):
            parts = one if isinstance(one, Pair) else (one,)
            how: Any = strategy if isinstance(one, Pair) else True
            expected = theirs(*parts, truncation=how, max_length=limit, return_offsets_mapping=True)
            assert row.encoding.ids == expected["input_ids"]
            assert row.encoding.offsets == expected["offset_mapping"]
            assert row.encoding.type_ids == expected["token_type_ids"]
            assert row.total == len(theirs(*parts)["input_ids"])
            assert sum(len(rest.ids) for rest in row.encoding.overflowing) < 30_000


def test_no_row_has_more_than_the_base_takes(minilm_folder: Path) -> None:
    ours = Tokenizer.from_folder(minilm_folder, 8)
    assert len(ours.rows(["word " * 20], limits=[512])[0].encoding.ids) == 8


def test_a_pair_needs_room_for_its_own_special_tokens(minilm_folder: Path) -> None:
    ours = Tokenizer.from_folder(minilm_folder, 3)
    assert ours.batch(["one two"], ["input_ids"])["input_ids"].shape == (1, 3)
    with pytest.raises(RequestError, match=r"text 1: .*at most 3 tokens; expected more than the 3 special tokens"):
        ours.rows(["one", Pair("one", "two")])
    with pytest.raises(RequestError, match=r"text 0: .*at most 2 tokens"):
        ours.rows(["one"], limits=[2])


@pytest.mark.parametrize(("limit", "stride"), [(10, 0), (10, 3), (10, 7), (11, None), (40, None)])
@pytest.mark.parametrize("pair", [False, True])
def test_windows_hold_every_token(ours: Tokenizer, limit: int, stride: int | None, pair: bool) -> None:
    passage = " ".join(f"word{number}" for number in range(20))
    text: Text = Pair("who?", passage) if pair else passage
    if pair:
        limit += 3
    (whole,) = ours.rows([text])
    windows = ours.windows(text, limit, stride)
    assert len(windows) > 1 or limit > 40
    seen: dict[int, int] = {}
    for window in windows:
        assert len(window.encoding.ids) <= limit
        assert window.encoding.ids == [whole.encoding.ids[place] for place in window.places]
        assert window.encoding.offsets == [whole.encoding.offsets[place] for place in window.places]
        for place, margin in zip(window.places, window.margins, strict=True):
            seen[place] = max(seen.get(place, 0), margin)
    assert sorted(seen) == list(range(whole.total))
    part = [place for place, sequence in enumerate(whole.encoding.sequence_ids) if sequence == int(pair)]
    room = limit - (whole.total - len(part))
    shared = room // 4 if stride is None else stride
    assert all(seen[place] >= (shared - 1) // 2 for place in part)
    assert [window.places[part[0]] - part[0] for window in windows] == [
        number * (room - shared) for number in range(len(windows))
    ]


def test_a_text_that_fits_is_one_window(ours: Tokenizer) -> None:
    (window,) = ours.windows("a short text", 64, 8)
    assert (window.encoding.ids, window.cut) == (ours.encode(["a short text"])[0].ids, 0)


def test_windows_that_do_not_move_on_are_refused(ours: Tokenizer) -> None:
    with pytest.raises(RequestError, match="found `stride` 8; expected 0 to 7"):
        ours.windows("word " * 40, 10, 8)
    with pytest.raises(RequestError, match="found 14 tokens besides the second text; expected fewer than 14"):
        ours.windows(Pair("word " * 11, "and " * 11), 14, 2)


def test_tokenizer_digest_ignores_formatting_of_the_file(minilm_folder: Path) -> None:
    text = (minilm_folder / "tokenizer.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert tokenizer_digest(text) == Tokenizer.from_json(text, 8).digest
    other = dict(reversed(document.items())) | {"truncation": None, "padding": None}
    assert tokenizer_digest(json.dumps(other, indent=3)) == tokenizer_digest(text)
    document["normalizer"]["lowercase"] = False
    assert tokenizer_digest(json.dumps(document)) != tokenizer_digest(text)
    for wrong in ("", "[]", "3", '{"a": "\\ud800"}'):
        with pytest.raises(BaseModelError, match="is not a tokenizer"):
            tokenizer_digest(wrong)


@pytest.mark.parametrize("piece", ["x" * (MOST_CHARACTERS + 1), "é" * 2_500_000, "\ud83d" * 900_000, "a\0" * 400_000])
def test_a_text_that_is_none_is_one_short_sentence(ours: Tokenizer, piece: str) -> None:
    for text in (piece, Pair("a", piece), Pair(piece, "a")):
        start = time.monotonic()
        with pytest.raises(RequestError, match="text 1: is ") as caught:
            ours.batch(["fine", text], NAMES)
        assert time.monotonic() - start < 1
        assert len(str(caught.value)) < 200


def test_threads_share_a_tokenizer(ours: Tokenizer) -> None:
    text = " ".join(f"w{number}" for number in range(300))
    limits = [4 + number % 60 for number in range(120)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda limit: len(ours.rows([text], limits=[limit])[0].encoding.ids), limits))
    assert found == limits


def test_batches_are_padded_to_the_longest_text(minilm_folder: Path, ours: Tokenizer) -> None:
    file = json.loads((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert file["padding"]["strategy"] == {"Fixed": 128}
    assert file["truncation"]["max_length"] == 128
    assert ours.batch(["two words", "x"], NAMES)["input_ids"].shape == (2, 4)
    assert ours.batch(["word " * 300], NAMES)["input_ids"].shape == (1, 302)


def test_batch_returns_only_the_requested_inputs(ours: Tokenizer) -> None:
    assert list(ours.batch(["a"], ["attention_mask", "input_ids"])) == ["attention_mask", "input_ids"]


def test_tokenizer_is_read_from_json_text(minilm_folder: Path, ours: Tokenizer) -> None:
    text = (minilm_folder / "tokenizer.json").read_text(encoding="utf-8")
    assert Tokenizer.from_json(text, 512).encode(["hello"])[0].ids == ours.encode(["hello"])[0].ids == [101, 7592, 102]


def word_tokenizer(special: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer without a template: it adds no special tokens, so that a text may have no tokens at all."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.mark.parametrize(("special", "padding"), [(["<s>", "<pad>"], 4), (["[PAD]"], 3), (["<|pad|>"], 3), ([], 0)])
def test_batches_use_the_padding_token_of_the_file(special: list[str], padding: int) -> None:
    found = Tokenizer(word_tokenizer(special), 8).batch(["a b a", "b"], ["input_ids", "attention_mask"])
    assert found["input_ids"].tolist() == [[1, 2, 1], [2, padding, padding]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_batches_pad_right_and_truncate_as_the_file_says() -> None:
    tokenizer = word_tokenizer([])
    tokenizer.enable_padding(direction="left", pad_id=2, length=50)
    tokenizer.enable_truncation(1, direction="left")
    found = Tokenizer(tokenizer, 3).batch(["a b b a b", "a"], ["input_ids", "attention_mask"])
    assert found["input_ids"].tolist() == [[2, 1, 2], [1, 2, 2]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_texts_without_tokens_are_refused() -> None:
    with pytest.raises(RequestError, match="text 1: has no tokens"):
        Tokenizer(word_tokenizer([]), 8).batch(["a", ""], ["input_ids", "attention_mask"])


def test_padding_without_a_mask_is_refused(ours: Tokenizer) -> None:
    assert ours.batch(["one", "two"], ["input_ids"])["input_ids"].shape == (2, 3)
    with pytest.raises(RequestError, match="found 3 to 4 tokens"):
        ours.batch(["one", "two words"], ["input_ids"])


@pytest.mark.parametrize("texts", [[], "one text", [3], ["fine", None], ["half a pair \ud83d"], [b"bytes"]])
def test_values_that_are_not_lists_of_texts_are_refused(ours: Tokenizer, texts: list[str]) -> None:
    with pytest.raises(RequestError, match="text"):
        ours.batch(texts, NAMES)


def test_inputs_that_text_cannot_fill_are_refused(ours: Tokenizer) -> None:
    with pytest.raises(RequestError, match="`pixel_values`"):
        ours.batch(["a"], ["input_ids", "pixel_values"])


def test_limits_without_room_for_text_are_refused(minilm_folder: Path) -> None:
    with pytest.raises(BaseModelError, match="at most 2"):
        Tokenizer.from_folder(minilm_folder, 2)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "X"}}', "\ud800", "\x80"])
def test_invalid_tokenizer_files_are_refused(text: str) -> None:
    with pytest.raises(BaseModelError, match="is not a tokenizer"):
        Tokenizer.from_json(text, 8)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                        {"Sequence": {"id": "A", "type_id": 0}},
                    ],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {},
                }
            },
            "a",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            },
            "a" * 40 + "b",
        ),
    ],
    ids=["no special token", "a regular expression that backtracks"],
)
def test_a_panic_of_the_library_is_a_named_error(minilm_folder: Path, changes: dict[str, object], text: str) -> None:
    file = json.loads((minilm_folder / "tokenizer.json").read_text(encoding="utf-8"))
    with pytest.raises(BaseModelError, match="is not a tokenizer"):
        Tokenizer.from_json(json.dumps(file | changes), 16).rows([text])


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path, 8)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="the tokenizer cannot be read"):
        Tokenizer.from_folder(tmp_path, 8)


@pytest.mark.extended
def test_missing_tokenizers_library_names_its_extra() -> None:
    code = "import sys; sys.modules['tokenizers'] = None; import adapter_export.text as t; t.Tokenizer.from_json('', 8)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError" in found.stderr
    assert "pip install 'adapter-export[text]'" in found.stderr
