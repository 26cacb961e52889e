"""The clients in JavaScript locate tokens in their text as the tokenizers library does; their own library does not."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients import Client, last_line
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

LEARNT = [
    "the quick brown fox jumps over the lazy dog, and naïve café owners don't care",
    "Who wrote Hamlet? Shakespeare wrote it in 1601.",
    "Zoë lives in Kraków — really 🙂 of İstanbul",
    "  two  spaces\tand tabs\n",
]
PIECES = [
    *["the", "quick", " ", "  ", ",", "don't", "café", "cafe\u0301", "Zoë", "🙂", "👩\u200d👩\u200d👧", "İstanbul"],
    *["漢字", "1601", "\t", "\n", "—", "ﬁne", "A\u030a", "ß", "?", " x", "qqq", "ΟΔΥΣΣΕΥΣ", "½", "한국"],
    *["\u1112\u1161\u11ab", "’s", "_", "▁", "Ġ"],
]
ADDED = ["[SEP]", "<mask>", "<right>", "Hamlet"]
"""Added tokens in texts: two special ones, one with the blanks behind it, and one that is found after normalization."""
INSIDE = ["dog dogs", "dogdog", "hotdog", "dog\u0301", "dog_", "own crown", "漢dog", "Zoë own-dog2", "own\u200dx"]
"""Texts with `dog` or `own` inside a word; both are added tokens that are only found between words."""


def _texts() -> list[str]:
    drawn = random.Random(0)
    gaps = ["", " ", " ", "  "]
    rows = [[drawn.choice(PIECES) + drawn.choice(gaps) for _ in range(drawn.randint(1, 9))] for _ in range(80)]
    both = [*PIECES, *ADDED * 3]
    rows += [[drawn.choice(both) + drawn.choice(gaps) for _ in range(drawn.randint(1, 9))] for _ in range(80)]
    named = ["the [SEP]quick [MASK] dog", "🙂 [SEP] 漢字", "[SEP]", " [SEP] ", "the <mask>, <right>  dog <right>"]
    return ["", " ", " leading", "trailing ", *named, *INSIDE, "dog-dog (own) Own", *map("".join, rows)]


def _with_added(made: Tokenizer) -> Tokenizer:
    """Add tokens with all options that decide where they are found."""
    made.add_special_tokens(["[SEP]", AddedToken("<mask>", lstrip=True), AddedToken("<right>", rstrip=True)])
    made.add_tokens([AddedToken("Hamlet", normalized=True), AddedToken("own", single_word=True, normalized=True)])
    made.add_tokens([AddedToken("dog", single_word=True, normalized=False)])
    return made


def _byte_level(prefix: bool, trim: bool, normalizer: Any = None) -> Tokenizer:
    made, special = Tokenizer(models.BPE()), ("<s>", 0)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if normalizer:
        made.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=350, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    made.train_from_iterator(LEARNT, trainer)
    made.post_processor = processors.RobertaProcessing(special, special, trim_offsets=trim, add_prefix_space=prefix)
    return made


def _unigram(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizer
    if normalizer:
        made.normalizer = normalizer
    made.train_from_iterator(
        LEARNT, trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    )
    return made


def _bpe(fallback: bool) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", *([f"<0x{byte:02X}>" for byte in range(256)] if fallback else [])]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    made.train_from_iterator(LEARNT[:2], trainer)
    return made


def _word_piece(normalizer: Any) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        LEARNT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    )
    return made


def _tokenizers() -> Mapping[str, Tokenizer]:
    lower = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return {
        "bytes": _byte_level(prefix=False, trim=True, normalizer=normalizers.NFC()),
        "bytes with a prefix": _byte_level(prefix=True, trim=False),
        "bytes with a prefix, trimmed": _byte_level(prefix=True, trim=True),
        "sentence pieces": _unigram(pre_tokenizers.Metaspace()),
        "sentence pieces of words": _unigram(words, lower),
        "pieces with bytes": _bpe(fallback=True),
        "pieces with unknown ones": _bpe(fallback=False),
        "word pieces": _word_piece(normalizers.BertNormalizer()),
        "word pieces of composed letters": _word_piece(normalizers.NFC()),
    }


def test_token_positions_match_the_tokenizers_library(node_client: Client, tmp_path: Path) -> None:
    """For each of these kinds of tokenizers, in texts of several scripts, blanks, and marks that combine."""
    texts, made = _texts(), {name: _with_added(one) for name, one in _tokenizers().items()}
    node, program = node_client.command
    cases = {name: {"tokenizer": one.to_str(), "texts": texts} for name, one in made.items()}
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    script = replace(node_client.alone(), command=(node, str(Path(__file__).with_name("places.mjs"))))
    done = script.call(Path(program).parent, tmp_path / "cases.json")
    assert done.returncode == 0, last_line(done)
    for name, rows in json.loads(done.stdout).items():
        for text, row in zip(texts, rows, strict=True):
            encoding = made[name].encode(text, add_special_tokens=False)  # which trims offsets nevertheless
            if text in INSIDE:
                assert "inside a word" in row["error"], (name, text)
                continue
            places = [[*place, token] for place, token in zip(encoding.offsets, encoding.tokens, strict=True)]
            assert row == {"ids": encoding.ids, "places": places}, (name, text)
