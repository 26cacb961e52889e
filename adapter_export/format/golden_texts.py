"""Golden texts, `golden/texts.json`: texts, their token ids, and the answers of adapters.

Specified in `docs/reference/format.md`; any client with a tokenizer can replay them. The texts are those for which
tokenizers of different programs most often produce different ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from adapter_export.errors import FormatError, RequestError, within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import (
    SEMVER,
    Count,
    NotEmpty,
    NotNegative,
    Sha256,
    record_from_json,
    version_checked,
)
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.text import Pair, SidedText, TextSide, Tokenizer

GOLDEN_TEXTS_VERSION = "1.0.0"
"""Version of the format written, and the newest supported."""

_TEXTS: Mapping[str, str] = {
    "plain": "How far is it from here to the moon?",
    "lower case": "who wrote the iliad and the odyssey",
    "upper case": "WHO WROTE THE ILIAD?",
    "mixed case": "McDonald's iPhone and the eBay of NaCl",
    "title case": "The Old Man And The Sea",
    "dotted and dotless i": "İstanbul ve Iğdır ile ısı",
    "sharp s": "Straße und STRASSE, ẞ",
    "accents composed": "Café déjà vu, naïve Ångström, Žižek",
    "accents decomposed": "Cafe\u0301 de\u0301ja\u0300 vu, nai\u0308ve A\u030angstro\u0308m",
    "two accents on a letter": "Tiếng Việt: ộ ồ ổ ỗ, q\u0307\u0323",
    "ligatures and width": "ﬁnal oﬃce Ｆｕｌｌ　Ｗｉｄｔｈ ½ ² №",
    "german": "Der Übergang über die Brücke kostet 3,50 €.",
    "french": "L'été, c'est-à-dire aujourd'hui, où êtes-vous ?",
    "polish": "Zażółć gęślą jaźń",
    "greek": "Ὁ βίος βραχύς, ἡ δὲ τέχνη μακρή; ΟΔΥΣΣΕΥΣ",
    "russian": "Съешь же ещё этих мягких французских булок",
    "chinese": "我能吞下玻璃而不伤身体。",
    "japanese": "東京タワーは高いです。ｶﾀｶﾅ ひらがな",
    "korean composed": "대한민국의 수도는 서울이다",
    "korean decomposed": "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "thai": "ภาษาไทยไม่มีช่องว่าง",
    "hindi": "नमस्ते दुनिया, क्षत्रिय",
    "arabic": "السلام عليكم، كيف حالك؟",
    "hebrew": "שָׁלוֹם עולם",
    "two directions": "The word \u202bשלום\u202c means peace (سلام).",
    "emoji": "Great work 🎉👍🏽 thanks 🙂",
    "emoji joined": "👩\u200d👩\u200d👧\u200d👦 and 🏳️\u200d🌈 and ❤️\u200d🔥",
    "flags and keycaps": "🇩🇪🇫🇷 1️⃣ #️⃣",
    "beyond the first plane": "𝕬𝖇𝖈 𝒳 𠜎 𐍈",
    "zero width": "zero\u200bwidth\u200cnon\u200djoiner\u2060 and\ufeff mark",
    "soft hyphen and no-break": "co\u00adop 10\u00a0000 a\u202fb\u2007c",
    "control characters": "a\x01b\x07c\x1bd\x7fe\x85f",
    "blanks": "  two  blanks \t tab \n line \r\n end   ",
    "line and paragraph separators": "one\u2028two\u2029three\x0bfour\x0cfive",
    "only blanks": " \t\n ",
    "empty": "",
    "one letter": "a",
    "one mark": "?",
    "punctuation": "Wait... what?! (yes) [no] {maybe} <tag/> -- a–b—c “q” ‘s’ «g»",
    "contractions": "I'm, you're, he'd, we'll, don't, o'clock, rock'n'roll",
    "numbers": "3.14159 1,000,000 -40 1e-9 0x1F 2024-02-29 12:34:56 50%",
    "currency and units": "$5 £6 €7 ¥8 5kg 10°C µm",
    "address": "https://user@example.com:8080/a_b/c-d?x=1&y=%20#top",
    "mail and mention": "Write to jane.doe+news@example.org or @jane_doe #now",
    "code": "for (int i = 0; i < n; ++i) { a[i] *= b->c; } // done",
    "special tokens as text": "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <pad> <mask> <|endoftext|>",
    "long word": "donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "very long word": "x" * 130,
    "repeated": "no no no no no no no no no no",
    "replacement character": "broken \ufffd text \ufffe\uffff",
    "private use": "icon \ue000 and \U000f0000",
}

_PAIRS: Mapping[str, Pair] = {
    "pair": Pair("Who wrote Faust?", "Goethe worked on Faust for sixty years."),
    "pair of equals": Pair("A man plays a guitar.", "A man plays a guitar."),
    "pair in two scripts": Pair("Where is Tokyo?", "東京は日本の首都です。"),
    "pair with accents": Pair("Où est le CAFÉ ?", "Le cafe\u0301 est là-bas."),
    "pair with emoji": Pair("How was it? 🙂", "👩\u200d💻 loved it!"),
    "pair with separators": Pair("a [SEP] b", "c </s> d"),
    "pair of letters": Pair("a", "b"),
    "pair of numbers": Pair("1,000 + 1", "= 1001.0"),
}


@dataclass(frozen=True)
class GoldenText:
    """A text, or a pair of texts, with its ids and answer.

    Attributes:
        name: unique in its set.
        text: the text of a request, without the task's prefix.
        pair: the second text of a pair; null for one text.
        ids: token ids with special tokens, truncated and not padded.
        token_type_ids: the type of each token.
        answer: the answer to the arrays: an item for each token for token tasks, `first_token` and `last_token` for
            span tasks. Null to compare only the ids.
        context: for span tasks, the range [start, end) of the second text's tokens, which may be the answer; null for
            other tasks.
        decided: whether rounding cannot change a choice; if false, only numbers are compared.
        side: `query` or `document`, for embedders with prefixes for both.
    """

    name: Annotated[str, NotEmpty()]
    text: str
    pair: str | None
    ids: Annotated[tuple[Count, ...], NotEmpty()]
    token_type_ids: Annotated[tuple[Count, ...], NotEmpty()]
    answer: Mapping[str, Any] | None = None
    context: tuple[Count, Count] | None = None
    decided: bool = True
    side: TextSide | None = None

    @property
    def input(self) -> str | SidedText | Pair:
        """Input of the tokenizer: the text, with its side if any, or the pair."""
        if self.side is not None:
            return SidedText(self.text, self.side)
        return self.text if self.pair is None else Pair(self.text, self.pair)


@dataclass(frozen=True)
class GoldenTextSet:
    """Golden texts of one adapter, or of the base.

    The manifest defines truncation and prefixes of the adapter.

    Attributes:
        adapter: the adapter; null for the base, whose texts have ids but no answers.
        reference: the program that computed the answers, such as `torch 2.13.0 float32`; never the exported graph. Null
            without answers.
        absolute: maximum |found - expected| of every number in an answer.
        reason: derivation of `absolute`. Informative.
        texts: the texts.
    """

    adapter: str | None
    reference: str | None
    absolute: NotNegative
    reason: str | None
    texts: tuple[GoldenText, ...]


@dataclass(frozen=True)
class GoldenTexts:
    """Texts, their ids from the base's tokenizer, and the answers of the reference.

    This is `golden/texts.json`. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        digest: digest of the tokenizer, equal to `text.digest` of the manifest.
        tokenizer: library, version and class of the tokenizer. Informative.
        sets: one set for the base, then one for each adapter with a head and a task.
    """

    version: Annotated[str, SEMVER]
    digest: Sha256
    tokenizer: str
    sets: tuple[GoldenTextSet, ...]


def golden_texts_json(texts: GoldenTexts) -> bytes:
    """Return the document; the bytes are deterministic."""
    return canonical_json(asdict(texts))


def parse_golden_texts(data: bytes, where: object) -> GoldenTexts:
    """Parse golden texts; `where` names their source in messages.

    Raises:
        FormatError: the document violates the format; `VersionError` is a subclass.
    """
    document = parse_json(data, where)
    with version_checked(document, GOLDEN_TEXTS_VERSION, where), within(where):
        golden = record_from_json(GoldenTexts, document)
        for index, text_set in enumerate(golden.sets):
            _check_set(text_set, f"`$.sets[{index}].texts`")
        names = [text_set.adapter for text_set in golden.sets]
        if len(set(names)) < len(names):
            raise FormatError("an adapter has two sets", where="`$.sets`")
    return golden


def read_golden_texts(path: Path) -> GoldenTexts:
    """Read golden texts from a file.

    Raises:
        FileError: the file cannot be read.
        FormatError: see `parse_golden_texts`.
    """
    return parse_golden_texts(read_bytes(path), path)


def _check_set(text_set: GoldenTextSet, where: str) -> None:
    counts = Counter(text.name for text in text_set.texts)
    twice = next((name for name, count in counts.items() if count > 1), None)
    if twice is not None:
        raise FormatError("a name occurs twice", where=where, found=f"`{twice}`")
    uneven = next((text.name for text in text_set.texts if len(text.ids) != len(text.token_type_ids)), None)
    if uneven is not None:
        raise FormatError(
            "the number of token types differs from the number of tokens", where=where, found=f"`{uneven}`"
        )


def different(tokenizer: Tokenizer, texts: GoldenTexts) -> list[str]:
    """Return the names of the base's golden texts for which a tokenizer produces other ids or token types.

    Truncated texts are compared only if the limits are equal.
    """
    of_base = [text for text_set in texts.sets if text_set.adapter is None for text in text_set.texts]
    limit = max((len(text.ids) for text in of_base), default=0)
    names = []
    for text in of_base:
        if limit != tokenizer.max_tokens and len(text.ids) >= min(limit, tokenizer.max_tokens):
            continue
        try:
            (row,) = tokenizer.rows([text.input])
        except RequestError:  # the limit leaves no room for a pair
            names.append(text.name)
            continue
        if (row.encoding.ids, row.encoding.type_ids) != (list(text.ids), list(text.token_type_ids)):
            names.append(text.name)
    return names


def sample_texts(limit: int) -> Iterator[tuple[str, str | Pair]]:
    """Yield texts and pairs with unique names; `cut` texts have more than `limit` tokens in every tokenizer.

    Their words are numbers, so that ids show the truncation.
    """
    yield from _TEXTS.items()
    words = [str(number) for number in range(1, limit + 1)]
    yield "cut", " ".join(words)
    yield from _PAIRS.items()
    half = limit // 3 or 1
    yield "cut pair", Pair(" ".join(words[: limit - half]), " ".join(words[:half]))
    yield "cut second of a pair", Pair("How many?", " ".join(words))
