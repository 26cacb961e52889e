"""Tokenization with the `tokenizers` library and a `tokenizer.json`."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from adapter_export.errors import BaseModelError, FileError, InputError, MissingExtraError, RequestError
from adapter_export.safe_io.child import Limits, try_out
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text
from adapter_export.safe_io.tokenizer_bounds import unbounded_part
from adapter_export.tables import number_of
from adapter_export.words import quoted

if TYPE_CHECKING:
    import tokenizers


class Pair(NamedTuple):
    """Two texts encoded as one sequence, such as a question and a passage, with the tokenizer's separators.

    A pair that is too long is truncated by the tokenizer's `truncation.strategy`: `longest_first`, the default, removes
    tokens from the longer text; `only_first` and `only_second` remove them only from that text.
    """

    first: str
    second: str


TextSide = Literal["query", "document"]
"""Role of a text in retrieval."""


class SidedText(NamedTuple):
    """A text with its role in retrieval, for embedders with different prefixes for queries and documents."""

    text: str
    side: TextSide


Text = str | Pair | Sequence[str]
"""A text, a `Pair` of texts, or the words of a text."""

Side = Literal["right", "left"]
"""Side on which a text is truncated."""


class PaddedLength(Protocol):
    """Computes the padded length of a text; `pads` is false if padding would change its result."""

    def __call__(self, tokens: int, /, *, pads: bool = True) -> int:
        """Return the padded length for a number of tokens; RequestError if the base does not accept it."""


Tokens = dict[str, npt.NDArray[np.int64]]
"""Arrays [batch, tokens] by input name."""

TOKENIZER_FILE = "tokenizer.json"

MOST_CHARACTERS = 1_000_000
"""Maximum length of a text; a longer one is probably a file of many texts."""

_AT_ONCE = 2**18
"""Characters of texts that are encoded at a time; each takes about 200 bytes."""

_LONG_REST = 256
"""Truncated tokens whose memory is given back."""

_BEHIND = 128
"""Characters behind the last token of a truncated text that may decide how the text is split."""

_OVERRIDDEN = ("truncation", "padding")
"""Sections of a `tokenizer.json` that this package overrides, as their lengths are unrelated to the base."""

_NO_TEXT = re.compile("[\ud800-\udfff\0]")
"""Lone surrogates, which UTF-8 cannot encode, and NUL, which ends a string in C."""

_INPUTS: Mapping[str, Callable[[tokenizers.Encoding], list[int]]] = {
    "input_ids": lambda encoding: encoding.ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "token_type_ids": lambda encoding: encoding.type_ids,
}
"""Source of each model input, by its name in Hugging Face models."""


_LIMITS = Limits(seconds=60.0, bytes=2 * 2**30)
"""Limits for loading an untrusted tokenizer; the largest in common use, 33 MB, needs 2 s and half of the memory."""

_BYTES, _COPIES = 400 * 2**20, 128
"""Memory limit of a smaller tokenizer: constant, and per byte of its file; a trie of 250,000 words needs 120."""

_TRIED_ON = ("", "a", "a" * 40, "A b c, d. 1 2 3!", "\u4f60\u597d \U0001f600 \u0301", "\n\t  \u00a0", "x" * 10_000)
"""Sample texts, one for each kind that may crash a tokenizer."""


_LONG, _WINDOW = "A b c, d. 1 2 3! " * 20, 64
"""Text to split into windows, and the tokens of a window."""


def read_tokenizer(path: Path) -> str:
    """Read a `tokenizer.json`, or the one in a folder, and check that it loads.

    Raises:
        FileError: the file does not exist or cannot be read.
        BaseModelError: the tokenizers library cannot load it.
    """
    path = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        text = read_text(path)
    except InputError as error:
        raise FileError(
            "the tokenizer cannot be read (" + error.what + ")",
            where=path,
            expected="a `tokenizer.json` of the tokenizers library",
            fix="save one with `tokenizer.save_pretrained(folder)`",
        ) from error
    try_tokenizer(text)
    return text


def try_tokenizer(text: str) -> None:
    """Load an untrusted `tokenizer.json` in a child process and encode sample texts; once per tokenizer.

    The library is Rust and C code, which may crash or exhaust memory beyond the reach of Python handlers.

    Raises:
        BaseModelError: the child crashed or exceeded its limits, the text is not a tokenizer, or it multiplies texts.
    """
    data = text.encode(errors="surrogatepass")
    digest = hashlib.sha256(data).hexdigest()
    if digest not in _tried:
        with parsing(_no_tokenizer):
            reason = unbounded_part(text)
        if reason is not None:
            raise _no_tokenizer(reason)
        limits = Limits(_LIMITS.seconds, min(_LIMITS.bytes, _BYTES + _COPIES * len(data)))
        try_out(f"{__name__}:open_and_encode", text, limits=limits, refusal=_no_tokenizer)
        _tried.add(digest)


_tried: set[str] = set()
"""Digests of tokenizers that loaded: a child process takes part of a second."""


def open_and_encode(text: str) -> None:
    """Encode sample texts with a `tokenizer.json`; BaseModelError if the library rejects it."""
    with suppress(MissingExtraError), parsing(_no_tokenizer):
        tokenizer = _library().Tokenizer.from_str(text)
        for sample in _TRIED_ON:
            with suppress(BaseModelError), parsing(_no_tokenizer):  # missing tokens are reported when texts are encoded
                tokenizer.encode(sample)
        copy = _library().Tokenizer.from_str(tokenizer.to_str())  # allocates memory for unused ids, too
        copy.no_padding()  # the file may set a fixed length
        copy.enable_truncation(_WINDOW, stride=_WINDOW // 4)
        longest = len(copy.encode(_LONG).ids)
        if longest > _WINDOW:  # a template that repeats its text multiplies the windows
            raise _no_tokenizer(f"{longest} tokens of a text truncated to {_WINDOW}")


@lru_cache(maxsize=2)  # a build calls this often for one file; parsing takes tens of milliseconds
def tokenizer_digest(text: str) -> str:
    """Return the sha256 of a `tokenizer.json`, independent of its layout: 64 hexadecimal digits.

    It covers the JSON document in UTF-8 with sorted keys and without whitespace, except its sections `truncation` and
    `padding`, which are overridden. Files with equal digests produce equal ids.

    Raises:
        BaseModelError: the text is not a JSON object.
    """
    with parsing(_no_tokenizer):
        document = json.loads(text)
        effective = {key: value for key, value in document.items() if key not in _OVERRIDDEN}
        data = json.dumps(effective, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()


def ending_token(text: str) -> int | None:
    """Return the id of the token that a `tokenizer.json` appends to each text, or `None`."""
    (encoding,) = Tokenizer.from_json(text, sys.maxsize).whole(["0"])
    return encoding.ids[-1] if encoding.special_tokens_mask[-1:] == [1] else None


@dataclass(frozen=True)
class EncodedText:
    """A text as unpadded tokens.

    Attributes:
        encoding: the library's encoding of the text, possibly truncated.
        total: number of tokens of the whole text, including special tokens.
        places: index of each remaining token in the whole text.
        margins: for each token, the number of tokens to the nearest edge of its window beyond which the text continues;
            `None` if the text is not split into windows.
    """

    encoding: tokenizers.Encoding
    total: int
    places: Sequence[int] = ()
    margins: Sequence[int] = ()

    @property
    def cut(self) -> int:
        """Number of truncated tokens."""
        return self.total - len(self.encoding.ids)


class Tokenizer:
    """A tokenizer that truncates to the base's limit, or a limit per text, and pads to the longest text of a batch.

    The fixed length and the padding side of the file are overridden: padding follows the tokens, because positions
    count from the first one. The padding token, the truncation side and the truncation strategy are kept. The passed
    library tokenizer is modified. `max_tokens` includes special tokens. With `fit`, a text is padded to `fit(tokens)`.
    `digest` is the `tokenizer_digest` of the file, if any. Thread-safe.

    Raises:
        BaseModelError: `max_tokens` leaves no room for text besides the special tokens.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        max_tokens: int,
        digest: str | None = None,
        fit: PaddedLength | None = None,
    ) -> None:
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= special:
            raise BaseModelError(
                "the base accepts too few tokens for any text",
                found=f"at most {max_tokens}",
                expected=f"more than the {special} special tokens",
            )
        self.max_tokens, self.digest, self._fit = max_tokens, digest, fit
        cutting, padding = tokenizer.truncation or {}, tokenizer.padding or _padding_token(tokenizer)
        self.side: Side = cutting.get("direction", "right")
        self._strategy: str = cutting.get("strategy", "longest_first")
        self._padding = {name: padding[name] for name in ("pad_id", "pad_type_id", "pad_token") if name in padding}
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._whole, self._lock = tokenizer, Lock()

    @classmethod
    def from_json(cls, text: str, max_tokens: int, fit: PaddedLength | None = None) -> Tokenizer:
        """Load the contents of a `tokenizer.json`.

        Raises:
            BaseModelError: the text is not a tokenizer, or `max_tokens` leaves no room for text.
            MissingExtraError: the tokenizers library is not installed.
        """
        library, digest = _library(), tokenizer_digest(text)
        with parsing(_no_tokenizer):
            tokenizer = library.Tokenizer.from_str(text)
        return cls(tokenizer, max_tokens, digest, fit)

    @classmethod
    def from_folder(cls, path: Path | str, max_tokens: int, fit: PaddedLength | None = None) -> Tokenizer:
        """Load the `tokenizer.json` in a folder.

        Raises:
            FileError: the file does not exist or cannot be read.
            BaseModelError, MissingExtraError: see `from_json`.
        """
        return cls.from_json(read_tokenizer(Path(path) / TOKENIZER_FILE), max_tokens, fit)

    def encode(
        self, texts: Sequence[Text], *, limits: Sequence[int | None] = (), sides: Sequence[Side] = ()
    ) -> list[tokenizers.Encoding]:
        """Return the library's encodings of texts, truncated like `rows` and padded to the longest.

        For words, `word_ids` of an encoding counts the passed words.

        Raises:
            RequestError: as `rows`.
        """
        return self.padded([row.encoding for row in self.rows(texts, limits=limits, sides=sides)])

    def batch(
        self,
        texts: Sequence[Text],
        input_names: Sequence[str],
        *,
        limits: Sequence[int | None] = (),
        sides: Sequence[Side] = (),
    ) -> Tokens:
        """Return token arrays, int64 [batch, tokens], for the inputs of a base; texts are truncated like `rows`.

        Supported inputs are `input_ids`, `attention_mask` and `token_type_ids`.

        Raises:
            RequestError: see `rows` and `arrays`.
        """
        check_inputs(input_names)
        return self.arrays([row.encoding for row in self.rows(texts, limits=limits, sides=sides)], input_names)

    def rows(
        self,
        texts: Sequence[Text],
        *,
        limits: Sequence[int | None] = (),
        sides: Sequence[Side] = (),
        places: Sequence[str] = (),
    ) -> list[EncodedText]:
        """Encode texts, pairs or lists of words without padding, each truncated to its own limit.

        Args:
            texts: at least one. Lists of words cannot be mixed with texts.
            limits: maximum tokens of each text, up to `max_tokens`, which is the default.
            sides: truncation side of each text; defaults to the tokenizer's.
            places: names of the texts in messages; defaults to `text 0` and so on.

        Raises:
            RequestError: there is no text; or a text is not Unicode, exceeds `MOST_CHARACTERS`, or cannot be truncated
                to its limit.
        """
        places = places or [f"text {index}" for index in range(len(texts))]
        _check_texts(texts, places)
        rows: list[EncodedText] = []
        for part in _parts(texts):  # the encoding of a whole text takes far more memory than that of its beginning
            for index, encoding in zip(part, self._encode([texts[at] for at in part]), strict=True):
                row = EncodedText(encoding, len(encoding.ids), range(len(encoding.ids)))
                limit = self._limit(limits[index] if limits else None, texts[index], places[index])
                if row.total > limit:
                    row = self._cut(texts[index], row, limit, sides[index] if sides else self.side, places[index])
                rows.append(row)
        return rows

    def windows(
        self, text: Text, limit: int | None = None, stride: int | None = None, *, place: str = "text 0"
    ) -> list[EncodedText]:
        """Encode a text of any length as overlapping windows, without padding.

        For a pair, the second text is split into windows, and the first is repeated in each.

        Args:
            text: a text, a pair, or words.
            limit: maximum tokens of a window, up to `max_tokens`, which is the default.
            stride: tokens shared by neighbouring windows (`stride` of the tokenizers library); defaults to a quarter of
                the window's text.
            place: name of the text in messages.

        Raises:
            RequestError: see `rows`; or the stride is too large, or the first text fills the window.
        """
        _check_texts([text], [place])
        (whole,) = self._encode([text])
        limit, count = self._limit(limit, text, place), len(whole.ids)
        places = [place for place, part in enumerate(whole.sequence_ids) if part == int(isinstance(text, Pair))]
        room = limit - (count - len(places))
        if count <= limit:
            return [EncodedText(whole, count, range(count))]
        if room < 1:
            raise _no_room(
                place, f"{number_of(count - len(places), 'token')} besides the second text", f"fewer than {limit}"
            )
        stride = room // 4 if stride is None else stride
        if not 0 <= stride < room:
            raise RequestError(
                "windows overlap too much to advance",
                where=place,
                found=f"`stride` {stride}",
                expected=f"0 to {room - 1}, as a window contains {room} tokens of the text",
            )
        strategy = "only_second" if isinstance(text, Pair) else "longest_first"
        first = self._truncated(text, limit, "right", strategy, stride)
        return [
            _window(window, whole, places, start=number * (room - stride))
            for number, window in enumerate([first, *first.overflowing])
        ]

    def whole(self, texts: Sequence[Text], *, special: bool = True) -> list[tokenizers.Encoding]:
        """Encode texts of any length without truncation and padding, with or without the tokenizer's special tokens.

        Raises:
            RequestError: see `rows`.
        """
        _check_texts(texts, [f"text {index}" for index in range(len(texts))])
        return self._encode(texts, special=special)

    def to_json(self) -> str:
        """Return the contents of its `tokenizer.json`, without truncation and padding."""
        with parsing(_no_tokenizer):
            text: str = self._whole.to_str()
        return text

    def id_of(self, token: str) -> int | None:
        """Return the id of a token, or `None` if it is unknown."""
        token_id: int | None = self._whole.token_to_id(token)
        return token_id

    def name_of(self, token: int) -> str | None:
        """Return a token as the vocabulary writes it, or `None` if its id is unknown."""
        name: str | None = self._whole.id_to_token(token)
        return name

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones included.

        Raises:
            RequestError: the tokenizer has no token with an id, which its library would leave out.
        """
        with parsing(lambda reason: RequestError("the tokenizer cannot decode the tokens", found=reason)):
            unknown = [token for token in dict.fromkeys(tokens) if self._whole.id_to_token(token) is None]
            text: str = self._whole.decode(list(tokens), skip_special_tokens=False)
        if unknown:
            raise RequestError("the tokenizer has no such token", found=unknown[0], expected="ids of its vocabulary")
        return text

    def token_text(self, token: int) -> str:
        """Return the characters that a token adds behind another one; U+FFFD for a part of a character."""
        with parsing(_no_tokenizer):
            (before,) = self._encode(["a"], special=False)
            start = self._whole.decode(before.ids, skip_special_tokens=False)
            text: str = self._whole.decode([*before.ids, token], skip_special_tokens=False)
        return text[len(start) :]

    def decoding(self) -> Callable[[int], str]:
        """Return a streaming decoder, a function from each token of a text to the characters that it completes.

        Special tokens produce no characters. It raises RequestError for tokens that the tokenizer cannot decode.
        """
        stream = _library().decoders.DecodeStream(skip_special_tokens=True)

        def step(token: int) -> str:
            with parsing(lambda reason: RequestError("the tokenizer cannot decode a text", found=reason)):
                text: str | None = stream.step(self._whole, token)
            return text or ""

        return step

    def padded(self, encodings: Sequence[tokenizers.Encoding]) -> list[tokenizers.Encoding]:
        """Pad encodings to the longest of them, in place."""
        longest = max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(longest, **self._padding)
        return list(encodings)

    def arrays(
        self, encodings: Sequence[tokenizers.Encoding], input_names: Sequence[str], *, pads: bool = True
    ) -> Tokens:
        """Return token arrays, int64 [batch, tokens], of encodings, padded to a length that the base accepts.

        `pads` is false if padding would change the results of these texts.

        Raises:
            RequestError: an input cannot be computed from text, a text has no tokens, the base does not accept a
                length, or lengths differ and padding is not possible.
        """
        check_inputs(input_names)
        lengths = [len(encoding.ids) for encoding in encodings]
        if 0 in lengths:
            raise RequestError(
                "has no tokens",
                where=f"text {lengths.index(0)}",
                expected="at least one token",
                fix="remove empty texts",
            )
        width = max(lengths if self._fit is None else (self._fit(tokens, pads=pads) for tokens in lengths))
        if len(set(lengths)) > 1 and not (pads and "attention_mask" in input_names):
            what = "padding would change their results" if "attention_mask" in input_names else "the base has no mask"
            raise RequestError(
                f"texts of different lengths cannot share a batch: {what}",
                found=f"{min(lengths)} to {max(lengths)} tokens",
                expected="one length",
                fix="run the texts one by one",
            )
        fill = {"input_ids": self._padding.get("pad_id", 0), "token_type_ids": self._padding.get("pad_type_id", 0)}
        arrays = {name: np.full((len(lengths), width), fill.get(name, 0), np.int64) for name in input_names}
        for name, array in arrays.items():
            for row, encoding in zip(array, encodings, strict=True):
                row[: len(encoding.ids)] = _INPUTS[name](encoding)
        return arrays

    def _encode(self, texts: Sequence[Text], *, special: bool = True) -> list[tokenizers.Encoding]:
        with parsing(_no_tokenizer):
            words = _is_words(texts[0])
            return list(self._whole.encode_batch(list(texts), is_pretokenized=words, add_special_tokens=special))

    def _limit(self, limit: int | None, text: Text, place: str) -> int:
        limit = self.max_tokens if limit is None else min(limit, self.max_tokens)
        special = self._whole.num_special_tokens_to_add(is_pair=isinstance(text, Pair))
        if limit <= special:
            raise _no_room(place, f"at most {limit} tokens", f"more than the {special} special tokens")
        return limit

    def _cut(self, text: Text, row: EncodedText, limit: int, side: Side, place: str) -> EncodedText:
        strategy, excess = "longest_first", row.total - limit
        if isinstance(text, Pair):
            strategy = self._strategy
            part = {"only_first": 0, "only_second": 1}.get(strategy)
            if part is not None and row.encoding.sequence_ids.count(part) <= excess:
                from_text = row.encoding.sequence_ids.count(part)
                actual = f"{number_of(row.total, 'token')}, {from_text} of them from the truncated text"
                raise _no_room(place, actual, f"at most {limit} with `{strategy}`")
        encoding = None
        if side == "right" and not _is_words(text) and excess > _LONG_REST:
            encoding = self._beginning(text if isinstance(text, Pair) else str(text), row.encoding, limit, strategy)
        return EncodedText(encoding or self._truncated(text, limit, side, strategy), row.total)

    def _beginning(
        self, text: str | Pair, whole: tokenizers.Encoding, limit: int, strategy: str
    ) -> tokenizers.Encoding | None:
        """Truncate the beginning of a text, which gives the same tokens as the whole text; `None` if it does not.

        The library keeps the rest of a truncated text in `overflowing`, for a pair in all combinations of the rests.
        """
        pieces = text if isinstance(text, Pair) else (text,)
        firsts = [list(islice(_content(whole, at), limit + 1)) for at in range(len(pieces))]
        ends = [max((end for _, (_, end), _ in first), default=0) + _BEHIND for first in firsts]
        beginning = _shortened(text, ends)
        if isinstance(text, Pair):  # the longer one, or the second, loses one token more
            longer = 0 if _first_is_longer(whole) else 1
            while _first_is_longer(self._encode([beginning])[0]) != (longer == 0):
                if ends[longer] >= len(pieces[longer]):
                    return None
                ends[longer] *= 2
                beginning = _shortened(text, ends)
        encoding = self._truncated(beginning, limit, "right", strategy)
        contents = [list(_content(encoding, at)) for at in range(len(pieces))]
        same = all(content == first[: len(content)] for content, first in zip(contents, firsts, strict=True))
        return encoding if same and len(encoding.ids) == limit else None

    def _truncated(self, text: Text, limit: int, side: Side, strategy: str, stride: int = 0) -> tokenizers.Encoding:
        """Truncate with a separate library tokenizer, because the limit is part of its state."""
        with self._lock:
            self._cutter.enable_truncation(limit, stride=stride, strategy=strategy, direction=side)
            with parsing(_no_tokenizer):
                return self._cutter.encode_batch([text], is_pretokenized=_is_words(text))[0]

    @cached_property
    def _cutter(self) -> tokenizers.Tokenizer:
        with parsing(_no_tokenizer):
            copy: tokenizers.Tokenizer = _library().Tokenizer.from_str(self._whole.to_str())
        return copy


def _library() -> Any:
    """Import the tokenizers library, an optional dependency."""
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise MissingExtraError("tokenizers", extra="text", needed_for="turning text into tokens") from error


def unfillable(names: Iterable[str]) -> list[str]:
    """Return the inputs that cannot be computed from text."""
    return [name for name in names if name not in _INPUTS]


def check_inputs(names: Iterable[str]) -> None:
    """Raise RequestError for inputs that cannot be computed from text."""
    unknown = unfillable(names)
    if unknown:
        raise RequestError(
            "the base has inputs that cannot be computed from text",
            found=quoted(unknown),
            expected=f"only {quoted(_INPUTS)}",
            fix="pass arrays for all inputs instead of text",
        )


def _is_words(text: Text) -> bool:
    return isinstance(text, list | tuple) and not isinstance(text, Pair)


def _content(encoding: tokenizers.Encoding, at: int) -> Iterator[tuple[int, tuple[int, int], int | None]]:
    """Yield the id, the characters and the word of each token that is part of a text, the first or the second."""
    facts = zip(encoding.sequence_ids, encoding.ids, encoding.offsets, encoding.word_ids, strict=True)
    return ((token, offsets, word) for part, token, offsets, word in facts if part == at)


def _shortened(text: str | Pair, ends: Sequence[int]) -> str | Pair:
    if isinstance(text, Pair):
        return Pair(*(piece[:end] for piece, end in zip(text, ends, strict=True)))
    return text[: ends[0]]


def _first_is_longer(pair: tokenizers.Encoding) -> bool:
    parts = pair.sequence_ids
    return parts.count(0) > parts.count(1)


def _parts(texts: Sequence[Text]) -> Iterator[range]:
    """Yield the places of texts that are encoded at a time, those of about `_AT_ONCE` characters."""
    start = total = 0
    for end, text in enumerate(texts, 1):
        total += len(text) if isinstance(text, str) else sum(map(len, text))
        if total >= _AT_ONCE or end == len(texts):
            yield range(start, end)
            start, total = end, 0


def _check_texts(texts: Sequence[Text], places: Sequence[str]) -> None:
    if isinstance(texts, str | Pair) or not texts:
        raise RequestError("no texts", found=f"{texts!a}", expected="a list of at least one text")
    are_words = _is_words(texts[0])
    for text, place in zip(texts, places, strict=True):
        _check_text(text, are_words, place)


def _check_text(text: Text, are_words: bool, where: str) -> None:
    pieces = text if isinstance(text, Pair) or (are_words and _is_words(text)) else [text]
    for piece in pieces:
        if not isinstance(piece, str):
            raise RequestError("is not a text", where=where, found=f"{piece!a}", expected="a string")
        if len(piece) > MOST_CHARACTERS:
            raise RequestError(
                "is too long",
                where=where,
                found=number_of(len(piece), "character"),
                expected=f"at most {MOST_CHARACTERS:,}",
                fix="split it into several texts",
            )
        wrong = _NO_TEXT.search(piece)
        if wrong:
            raise RequestError(
                "is not valid Unicode",
                where=where,
                found=f"{'NUL' if wrong[0] == chr(0) else 'half of a surrogate pair'} at character {wrong.start()}",
                expected="a string without it",
            )


def _window(window: tokenizers.Encoding, whole: tokenizers.Encoding, places: Sequence[int], start: int) -> EncodedText:
    """Locate the tokens of a window, which contains some of those at `places`, starting with number `start`."""
    count = len(window.ids) - (len(whole.ids) - len(places))
    held = places[start : start + count]
    before = places[0]
    held_places = [*range(before), *held, *range(places[-1] + 1, len(whole.ids))]
    if not held or [whole.ids[place] for place in held_places] != window.ids:
        raise _no_tokenizer("windows that are not parts of their text")
    left = [len(places) if start == 0 else number for number in range(count)]
    right = [len(places) if held[-1] == places[-1] else count - 1 - number for number in range(count)]
    margins = [*[0] * before, *map(min, left, right), *[0] * (len(whole.ids) - 1 - places[-1])]
    return EncodedText(window, len(whole.ids), held_places, margins)


def _no_room(place: str, actual: str, expected: str) -> RequestError:
    return RequestError("the limit leaves no room for the text", where=place, found=actual, expected=expected)


def _padding_token(tokenizer: tokenizers.Tokenizer) -> dict[str, int | str]:
    """Return the padding token; without one, any token serves, since the mask hides it."""
    for number, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if token.special and token.content.strip("[]<>|").lower() == "pad":
            return {"pad_id": number, "pad_token": token.content}
    return {"pad_id": 0}


def _no_tokenizer(reason: object) -> BaseModelError:
    return BaseModelError(
        "is not a tokenizer",
        where=f"`{TOKENIZER_FILE}`",
        found=reason,
        expected="a `tokenizer.json` of the tokenizers library",
        fix="save it again with `tokenizer.save_pretrained(folder)`",
    )
