"""Text becomes token arrays, by the `tokenizers` library and a `tokenizer.json`."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from adapter_export.errors import BaseModelError, FileError, InputError, MissingExtraError, RequestError, quoted
from adapter_export.safe_io.child import Limits, try_out
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text

if TYPE_CHECKING:
    import tokenizers


class Pair(NamedTuple):
    """Two texts that are read together, such as a question and a passage; the tokenizer puts its tokens between them.

    What is cut of a pair that is too long is what the tokenizer's own `truncation.strategy` says: `longest_first`, the
    default, takes tokens from the longer of the two; `only_first` and `only_second` from that one alone.
    """

    first: str
    second: str


TextSide = Literal["query", "document"]
"""The side of a search that a text is on."""


class SidedText(NamedTuple):
    """A text with its side of a search, for embedders that put another prefix before queries than before documents."""

    text: str
    side: TextSide


Text = str | Pair | Sequence[str]
"""A text, a pair of texts, or the words of a text where they are known; a pair is always a `Pair`."""

Side = Literal["right", "left"]
"""The end of a text that is cut."""


class PaddedLength(Protocol):
    """The number of tokens to which a text is padded; `pads` is false where padding would change its result."""

    def __call__(self, tokens: int, /, *, pads: bool = True) -> int:
        """Return it for a number of tokens; RequestError if the base does not take a text of this length."""


Tokens = dict[str, npt.NDArray[np.int64]]
"""Arrays [batch, tokens] by input name."""

TOKENIZER_FILE = "tokenizer.json"

MOST_CHARACTERS = 1_000_000
"""The longest text that is made tokens: a longer one is a file that was meant to be many texts."""

_OVERRIDDEN = ("truncation", "padding")
"""The sections of a `tokenizer.json` whose lengths are not those of a base."""

_NO_TEXT = re.compile("[\ud800-\udfff\0]")
"""Half of a surrogate pair, which a Python string may hold and UTF-8 may not, and NUL, which ends a string in C."""

_INPUTS: Mapping[str, Callable[[tokenizers.Encoding], list[int]]] = {
    "input_ids": lambda encoding: encoding.ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "token_type_ids": lambda encoding: encoding.type_ids,
}
"""The source of each input, by its name in Hugging Face models."""


_LIMITS = Limits(seconds=60.0, bytes=2 * 2**30)
"""Limits for loading an untrusted tokenizer; the largest in use, 33 MB, takes 2 seconds and half of the memory."""

_BYTES, _COPIES = 400 * 2**20, 128
"""The memory for a smaller one: for itself, and for each byte of its file; a trie of 250,000 words takes 120."""

_TRIED_ON = ("", "a", "a" * 40, "A b c, d. 1 2 3!", "\u4f60\u597d \U0001f600 \u0301", "\n\t  \u00a0", "x" * 10_000)
"""Texts of many kinds: a tokenizer that crashes on all of one kind is found."""


_LONG, _WINDOW = "A b c, d. 1 2 3! " * 20, 64
"""A text that is cut into windows, and the tokens of one."""


def read_tokenizer(path: Path) -> str:
    """Return the text of a `tokenizer.json`, or of the one in a folder, as one that can be opened.

    Raises:
        FileError: there is none, or it cannot be read.
        BaseModelError: the tokenizers library cannot read it.
    """
    path = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        text = read_text(path)
    except InputError as error:
        raise FileError(
            f"no tokenizer can be read ({error.what})",
            where=path,
            expected="a `tokenizer.json` of the tokenizers library",
            fix="save one with `tokenizer.save_pretrained(folder)`",
        ) from error
    try_tokenizer(text)
    return text


def try_tokenizer(text: str) -> None:
    """Read a `tokenizer.json` of others in a child process, and make tokens with it there; once for each text.

    The library is Rust and C code, which may crash, or ask for all memory, where no Python handler sees it.

    Raises:
        BaseModelError: the child crashed, took too long or too much memory; or it is no tokenizer.
    """
    data = text.encode(errors="surrogatepass")
    digest = hashlib.sha256(data).hexdigest()
    if digest not in _tried:
        limits = Limits(_LIMITS.seconds, min(_LIMITS.bytes, _BYTES + _COPIES * len(data)))
        try_out(f"{__name__}:open_and_encode", text, limits=limits, refusal=_no_tokenizer)
        _tried.add(digest)


_tried: set[str] = set()


def open_and_encode(text: str) -> None:
    """Make tokens of some texts with a `tokenizer.json`; what the library refuses is a `BaseModelError`."""
    with suppress(MissingExtraError), parsing(_no_tokenizer):
        tokenizer = _library().Tokenizer.from_str(text)
        for sample in _TRIED_ON:
            with suppress(BaseModelError), parsing(_no_tokenizer):  # readers of texts report missing tokens
                tokenizer.encode(sample)
        copy = _library().Tokenizer.from_str(tokenizer.to_str())  # which takes memory for ids that no token has
        copy.no_padding()  # which a file may ask for, to a fixed length
        copy.enable_truncation(_WINDOW, stride=_WINDOW // 4)
        longest = len(copy.encode(_LONG).ids)
        if longest > _WINDOW:  # a template that repeats its text gives all combinations of windows, too
            raise _no_tokenizer(f"{longest} tokens of a text that was cut at {_WINDOW}")


@lru_cache(maxsize=2)  # a build asks for that of one file many times; parsing it takes tens of milliseconds each
def tokenizer_digest(text: str) -> str:
    """The sha256 of a `tokenizer.json`, of what it says and not of its layout: 64 hexadecimal digits.

    It is that of the JSON document without its sections `truncation` and `padding`, which are overridden, with its keys
    sorted, without blanks, in UTF-8. Two files of one digest give the same ids.

    Raises:
        BaseModelError: the text is no JSON object.
    """
    with parsing(_no_tokenizer):
        document = json.loads(text)
        kept = {key: value for key, value in document.items() if key not in _OVERRIDDEN}
        data = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()


def ending_token(text: str) -> int | None:
    """Return the id of the token that a `tokenizer.json` adds behind every text; `None` if it adds none there."""
    (encoding,) = Tokenizer.from_json(text, sys.maxsize).whole(["0"])
    return encoding.ids[-1] if encoding.special_tokens_mask[-1:] == [1] else None


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens, not padded.

    Attributes:
        encoding: the library's encoding of what is left of the text.
        found: how many tokens the whole text has, special tokens included.
        places: of each token that is left, its place among those of the whole text.
        margins: of each token, how many tokens of a window lie between it and the nearest edge behind which the text
            goes on; `None` if the text is whole or cut.
    """

    encoding: tokenizers.Encoding
    found: int
    places: Sequence[int] = ()
    margins: Sequence[int] = ()

    @property
    def cut(self) -> int:
        """Number of tokens of the text that were left out."""
        return self.found - len(self.encoding.ids)


class Tokenizer:
    """A tokenizer that cuts at the base's limit, or at one of each text, and pads to the longest text of a batch.

    Whatever fixed length the file itself asks for is overridden, and so is the side on which it pads: padding goes
    after the tokens, because positions count from the first one. Its padding token, the side on which it cuts, and what
    it cuts of a pair stay. The library's tokenizer that is given is changed. Special tokens count among `max_tokens`,
    and with `fit` a text is padded to what that returns for its number of tokens. Threads may share it.
    `digest` is the `tokenizer_digest` of its file, where it comes from one.

    Raises:
        BaseModelError: `max_tokens` leaves no room for text beside the special tokens.
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
                "the base takes too few tokens for any text",
                found=f"at most {max_tokens}",
                expected=f"more than the {special} special tokens",
            )
        self.max_tokens, self.digest, self._fit = max_tokens, digest, fit
        cutting, kept = tokenizer.truncation or {}, tokenizer.padding or _padding_token(tokenizer)
        self.side: Side = cutting.get("direction", "right")
        self._strategy: str = cutting.get("strategy", "longest_first")
        self._padding = {name: kept[name] for name in ("pad_id", "pad_type_id", "pad_token") if name in kept}
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._whole, self._lock = tokenizer, Lock()

    @classmethod
    def from_json(cls, text: str, max_tokens: int, fit: PaddedLength | None = None) -> Tokenizer:
        """From the contents of a `tokenizer.json`.

        Raises:
            BaseModelError: they are no tokenizer, or `max_tokens` leaves no room for text.
            MissingExtraError: the tokenizers library is not installed.
        """
        library, digest = _library(), tokenizer_digest(text)
        with parsing(_no_tokenizer):
            tokenizer = library.Tokenizer.from_str(text)
        return cls(tokenizer, max_tokens, digest, fit)

    @classmethod
    def from_folder(cls, path: Path | str, max_tokens: int, fit: PaddedLength | None = None) -> Tokenizer:
        """From the `tokenizer.json` in a folder.

        Raises:
            FileError: there is none, or it cannot be read.
            BaseModelError, MissingExtraError: as `from_json`.
        """
        return cls.from_json(read_tokenizer(Path(path) / TOKENIZER_FILE), max_tokens, fit)

    def encode(
        self, texts: Sequence[Text], *, limits: Sequence[int | None] = (), sides: Sequence[Side] = ()
    ) -> list[tokenizers.Encoding]:
        """The library's encodings of texts, cut as `rows` cuts and padded to the longest of them.

        Of words, `word_ids` of an encoding counts these words.

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
        """Token arrays, int64 [batch, tokens], for the inputs of a base, of texts cut as `rows` cuts.

        The inputs may be `input_ids`, `attention_mask` and `token_type_ids`.

        Raises:
            RequestError: as `rows` and `arrays`.
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
        """Encode texts, pairs or the words of each, each cut at its own limit; not padded.

        Args:
            texts: at least one. All are words, or none is.
            limits: the most tokens of each; none, or no limits at all, is `max_tokens`, which none exceeds.
            sides: where each is cut; without them, where the tokenizer's file says.
            places: what messages call each; `text 0` and so on if not given.

        Raises:
            RequestError: there is no text, one of them is no Unicode text, has more than `MOST_CHARACTERS`, or cannot
                be cut to its limit.
        """
        places = places or [f"text {index}" for index in range(len(texts))]
        whole = self._encode(texts, places)
        rows = [EncodedText(encoding, len(encoding.ids), range(len(encoding.ids))) for encoding in whole]
        for index, (text, row) in enumerate(zip(texts, rows, strict=True)):
            limit = self._limit(limits[index] if limits else None, text, places[index])
            if row.found > limit:
                rows[index] = self._cut(text, row, limit, sides[index] if sides else self.side, places[index])
        return rows

    def windows(
        self, text: Text, limit: int | None = None, stride: int | None = None, *, place: str = "text 0"
    ) -> list[EncodedText]:
        """Encode a text of any length as windows that overlap, from its beginning to its end; not padded.

        Of a pair, the second text is cut into windows, and the first stands in each of them.

        Args:
            text: a text, a pair, or words.
            limit: the most tokens of a window; `max_tokens`, which it does not exceed, if not given.
            stride: how many tokens two neighbours share (`stride` of the tokenizers library); a quarter of what a
                window holds of the text, if not given.
            place: what messages call the text.

        Raises:
            RequestError: as `rows`; or the stride leaves nothing new for a window, or the first text no room.
        """
        (whole,) = self._encode([text], [place])
        limit, found = self._limit(limit, text, place), len(whole.ids)
        places = [place for place, part in enumerate(whole.sequence_ids) if part == int(isinstance(text, Pair))]
        room = limit - (found - len(places))
        if found <= limit:
            return [EncodedText(whole, found, range(found))]
        if room < 1:
            raise _no_room(place, f"{found - len(places)} tokens beside the second text", f"fewer than {limit}")
        stride = room // 4 if stride is None else stride
        if not 0 <= stride < room:
            raise RequestError(
                "windows overlap too much to advance",
                where=place,
                found=f"`stride` {stride}",
                expected=f"0 to {room - 1}, as a window holds {room} tokens of the text",
            )
        strategy = "only_second" if isinstance(text, Pair) else "longest_first"
        first = self._truncated(text, limit, "right", strategy, stride)
        return [
            _window(window, whole, places, start=number * (room - stride))
            for number, window in enumerate([first, *first.overflowing])
        ]

    def whole(self, texts: Sequence[Text]) -> list[tokenizers.Encoding]:
        """Encode texts of any length; neither cut nor padded. Raises RequestError as `rows`."""
        return self._encode(texts, [f"text {index}" for index in range(len(texts))])

    def id_of(self, token: str) -> int | None:
        """Return the id of a token by its text, or `None` if there is no such token."""
        found: int | None = self._whole.token_to_id(token)
        return found

    def decoding(self) -> Callable[[int], str]:
        """Return a function that takes the tokens of one text in turn, and returns the characters that each completes.

        Special tokens have none.
        """
        stream = _library().decoders.DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._whole, token) or ""

    def padded(self, encodings: Sequence[tokenizers.Encoding]) -> list[tokenizers.Encoding]:
        """Pad encodings, in their place, to the longest of them."""
        longest = max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(longest, **self._padding)
        return list(encodings)

    def arrays(
        self, encodings: Sequence[tokenizers.Encoding], input_names: Sequence[str], *, pads: bool = True
    ) -> Tokens:
        """Token arrays, int64 [batch, tokens], of encodings, padded to the longest of them, or to what the base takes.

        `pads` is false where padding would change the results of these texts.

        Raises:
            RequestError: an input that text cannot fill, a text without tokens, texts of different lengths that may
                not be padded or whose base takes no mask, or one of a length that the base does not take.
        """
        check_inputs(input_names)
        lengths = [len(encoding.ids) for encoding in encodings]
        if 0 in lengths:
            raise RequestError(
                "has no tokens",
                where=f"text {lengths.index(0)}",
                expected="at least one token",
                fix="leave empty texts out",
            )
        width = max(lengths if self._fit is None else (self._fit(tokens, pads=pads) for tokens in lengths))
        if len(set(lengths)) > 1 and not (pads and "attention_mask" in input_names):
            what = "padding would change their results" if "attention_mask" in input_names else "the base takes no mask"
            raise RequestError(
                f"texts of different lengths do not go together: {what}",
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

    def _encode(self, texts: Sequence[Text], places: Sequence[str]) -> list[tokenizers.Encoding]:
        if isinstance(texts, str | Pair) or not texts:
            raise RequestError("no texts", found=f"{texts!a}", expected="a list of at least one text")
        are_words = _is_words(texts[0])
        for text, place in zip(texts, places, strict=True):
            _check_text(text, are_words, place)
        with parsing(_no_tokenizer):
            return list(self._whole.encode_batch(list(texts), is_pretokenized=are_words))

    def _limit(self, limit: int | None, text: Text, place: str) -> int:
        limit = self.max_tokens if limit is None else min(limit, self.max_tokens)
        special = self._whole.num_special_tokens_to_add(is_pair=isinstance(text, Pair))
        if limit <= special:
            raise _no_room(place, f"at most {limit} tokens", f"more than the {special} special tokens")
        return limit

    def _cut(self, text: Text, row: EncodedText, limit: int, side: Side, place: str) -> EncodedText:
        strategy, excess = "longest_first", row.found - limit
        if isinstance(text, Pair):
            strategy = self._strategy
            part = {"only_first": 0, "only_second": 1}.get(strategy)
            if part is not None and row.encoding.sequence_ids.count(part) <= excess:
                found = f"{row.found} tokens, {row.encoding.sequence_ids.count(part)} of them of the text that is cut"
                raise _no_room(place, found, f"at most {limit}, where `{strategy}` is cut")
        return EncodedText(self._truncated(text, limit, side, strategy), row.found)

    def _truncated(self, text: Text, limit: int, side: Side, strategy: str, stride: int = 0) -> tokenizers.Encoding:
        """Cut by the library, whose limit is a state of its tokenizer, so that there is one for this alone."""
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
    """The tokenizers library, which only those who give texts need."""
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise MissingExtraError("tokenizers", extra="text", needed_for="turning text into tokens") from error


def unfillable(names: Iterable[str]) -> list[str]:
    """Return those inputs of a base that text cannot fill."""
    return [name for name in names if name not in _INPUTS]


def check_inputs(names: Iterable[str]) -> None:
    """Raise RequestError for inputs of a base that text cannot fill."""
    unknown = unfillable(names)
    if unknown:
        raise RequestError(
            "the base has inputs that text cannot fill",
            found=quoted(unknown),
            expected=f"only {quoted(_INPUTS)}",
            fix="give arrays for all inputs instead of text",
        )


def _is_words(text: Text) -> bool:
    return isinstance(text, list | tuple) and not isinstance(text, Pair)


def _check_text(text: Text, are_words: bool, where: str) -> None:
    pieces = text if isinstance(text, Pair) or (are_words and _is_words(text)) else [text]
    for piece in pieces:
        if not isinstance(piece, str):
            raise RequestError("is no text", where=where, found=f"{piece!a}", expected="a string")
        if len(piece) > MOST_CHARACTERS:
            raise RequestError(
                "is longer than any text",
                where=where,
                found=f"{len(piece):,} characters",
                expected=f"at most {MOST_CHARACTERS:,}",
                fix="cut it into texts",
            )
        wrong = _NO_TEXT.search(piece)
        if wrong:
            raise RequestError(
                "is no Unicode text",
                where=where,
                found=f"{'NUL' if wrong[0] == chr(0) else 'half of a surrogate pair'} at character {wrong.start()}",
                expected="a string without it",
            )


def _window(window: tokenizers.Encoding, whole: tokenizers.Encoding, places: Sequence[int], start: int) -> EncodedText:
    """Find the tokens of a window, which holds some of those at `places` from the one of number `start` on."""
    count = len(window.ids) - (len(whole.ids) - len(places))
    held = places[start : start + count]
    before = places[0]
    found = [*range(before), *held, *range(places[-1] + 1, len(whole.ids))]
    if not held or [whole.ids[place] for place in found] != window.ids:
        raise _no_tokenizer("windows of a text that are no parts of it")
    left = [len(places) if start == 0 else number for number in range(count)]
    right = [len(places) if held[-1] == places[-1] else count - 1 - number for number in range(count)]
    margins = [*[0] * before, *map(min, left, right), *[0] * (len(whole.ids) - 1 - places[-1])]
    return EncodedText(window, len(whole.ids), found, margins)


def _no_room(place: str, found: str, expected: str) -> RequestError:
    return RequestError("the limit leaves no room for the text", where=place, found=found, expected=expected)


def _padding_token(tokenizer: tokenizers.Tokenizer) -> dict[str, int | str]:
    """The special token that calls itself padding; without one any token does, since the mask hides it."""
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
