"""Text becomes token arrays, by the `tokenizers` library and a `tokenizer.json`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from adapter_export.errors import BaseModelError, FileError, MissingExtraError, RequestError

try:
    import tokenizers
except ModuleNotFoundError as error:
    raise MissingExtraError("tokenizers", extra="text", needed_for="turning text into tokens") from error

Text = str | Sequence[str]
"""A text, or its words where they are known."""

Tokens = dict[str, npt.NDArray[np.int64]]
"""Arrays [batch, tokens] by input name."""

TOKENIZER_FILE = "tokenizer.json"

_HALF_A_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: a Python string may hold one, UTF-8 may not."""

_INPUTS: Mapping[str, Callable[[tokenizers.Encoding], list[int]]] = {
    "input_ids": lambda encoding: encoding.ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "token_type_ids": lambda encoding: encoding.type_ids,
}
"""What each input is made of; the names are those of Hugging Face models."""


class Tokenizer:
    """A tokenizer that cuts at the base's limit and pads to the longest text of a batch.

    Whatever fixed length the file itself asks for is overridden; its padding token and the side on which it pads stay.
    The library's tokenizer that is given is changed. Special tokens count among `max_tokens`.

    Raises:
        BaseModelError: `max_tokens` leaves no room for text beside the special tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_tokens: int) -> None:
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= special:
            raise BaseModelError(
                "the base takes too few tokens for any text",
                found=f"at most {max_tokens}",
                expected=f"more than the {special} special tokens",
            )
        self.max_tokens = max_tokens
        self._tokenizer = tokenizer
        direction = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(max_tokens, direction=direction)
        kept = tokenizer.padding or _padding_token(tokenizer)
        names = ("direction", "pad_id", "pad_type_id", "pad_token")
        tokenizer.enable_padding(**{name: kept[name] for name in names if name in kept})

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> Tokenizer:
        """From the contents of a `tokenizer.json`; BaseModelError if they are no tokenizer."""
        with _NamedErrors():
            tokenizer = tokenizers.Tokenizer.from_str(text)
        return cls(tokenizer, max_tokens)

    @classmethod
    def from_folder(cls, path: Path | str, max_tokens: int) -> Tokenizer:
        """From the `tokenizer.json` in a folder.

        Raises:
            FileError: there is none, or it cannot be read.
            BaseModelError: it is not a tokenizer, or `max_tokens` leaves no room for text.
        """
        file = Path(path) / TOKENIZER_FILE
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(
                f"no tokenizer can be read ({error})",
                where=file,
                expected="a `tokenizer.json` of the tokenizers library",
                fix="save one with `tokenizer.save_pretrained(folder)`",
            ) from error
        return cls.from_json(text, max_tokens)

    def encode(self, texts: Sequence[Text]) -> list[tokenizers.Encoding]:
        """The library's encodings of texts or the words of each, cut at `max_tokens` and padded to the longest of them.

        Of words, `word_ids` of an encoding counts these words.

        Raises:
            RequestError: there is no text, or one of them is no Unicode text.
        """
        if isinstance(texts, str) or not texts:
            raise RequestError("no texts", found=repr(texts), expected="a list of at least one text")
        are_words = isinstance(texts[0], list | tuple)
        for index, text in enumerate(texts):
            for piece in text if are_words and isinstance(text, list | tuple) else [text]:
                if not isinstance(piece, str) or _HALF_A_PAIR.search(piece):
                    found = f"{piece!a}"
                    raise RequestError("is no Unicode text", where=f"text {index}", found=found, expected="a string")
        return list(self._tokenizer.encode_batch(list(texts), is_pretokenized=are_words))

    def batch(self, texts: Sequence[Text], input_names: Sequence[str]) -> Tokens:
        """Token arrays, int64 [batch, tokens], for the inputs of a base, of texts or the words of each.

        The inputs may be `input_ids`, `attention_mask` and `token_type_ids`.

        Raises:
            RequestError: an input that text cannot fill, no text, a text without tokens, or texts of different lengths
                for a base that takes no mask and would read padding as text.
        """
        unknown = [name for name in input_names if name not in _INPUTS]
        if unknown:
            raise RequestError(
                "the base has inputs that text cannot fill",
                found=", ".join(f"`{name}`" for name in unknown),
                expected=f"only {', '.join(f'`{name}`' for name in _INPUTS)}",
                fix="give arrays for all inputs instead of text",
            )
        encodings = self.encode(texts)
        lengths = [sum(encoding.attention_mask) for encoding in encodings]
        if 0 in lengths:
            raise RequestError(
                "has no tokens",
                where=f"text {lengths.index(0)}",
                expected="at least one token",
                fix="leave empty texts out",
            )
        if "attention_mask" not in input_names and len(set(lengths)) > 1:
            raise RequestError(
                "the base takes no `attention_mask`, so texts of different lengths do not go together",
                found=f"{min(lengths)} to {max(lengths)} tokens",
                expected="one length",
                fix="run the texts one by one",
            )
        return {name: np.array([_INPUTS[name](encoding) for encoding in encodings], np.int64) for name in input_names}


def _padding_token(tokenizer: tokenizers.Tokenizer) -> dict[str, int | str]:
    """The special token that calls itself padding; without one any token does, since the mask hides it."""
    for number, token in sorted(tokenizer.get_added_tokens_decoder().items()):
        if token.special and token.content.strip("[]<>|").lower() == "pad":
            return {"pad_id": number, "pad_token": token.content}
    return {"pad_id": 0}


class _NamedErrors:
    """Names the errors of the tokenizers library, which raises `Exception` itself and no class of its own."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception or kind is UnicodeEncodeError:
            raise BaseModelError(
                "is not a tokenizer",
                where=f"`{TOKENIZER_FILE}`",
                found=error,
                expected="a `tokenizer.json` of the tokenizers library",
                fix="save it again with `tokenizer.save_pretrained(folder)`",
            ) from error
