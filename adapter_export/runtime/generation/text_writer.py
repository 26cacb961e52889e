"""Texts that a bundle generates: prompts become tokens, and tokens become pieces of text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapter_export.decoding import Decoding
from adapter_export.errors import FormatError, RequestError
from adapter_export.graph.tasks.asked import named_adapter
from adapter_export.runtime.generation.call_budget import cost_of
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import Finish, WrittenRow
from adapter_export.runtime.generation.running_rows import RunningRows
from adapter_export.safe_io.documents import parse_json
from adapter_export.tables import Described

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer

CONFIG_FILE = "genai_config.json"
"""Names the tokens that end a text, as onnxruntime-genai reads them."""


@dataclass(frozen=True, repr=False)
class Generated(Described):
    """A generated text.

    Attributes:
        prompt: the prompt.
        adapter: the adapter that wrote it; `None` is the base.
        text: the text, without its prompt, a stop string and special tokens.
        tokens: its tokens; a text that a stop string ended has the tokens of that string.
        finish: `end` for a token that ends texts, `stop` for a stop string, `length` for a limit.
    """

    prompt: str
    adapter: str | None
    text: str
    tokens: tuple[int, ...]
    finish: Finish

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return self.document()

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "prompt": self.prompt,
            "adapter": self.adapter,
            "text": self.text,
            "tokens": list(self.tokens),
            "finish": self.finish,
        }


@dataclass(frozen=True)
class Piece:
    """A part of a text, from the end of the piece before it.

    Attributes:
        row: position of its prompt.
        text: the characters.
        done: the whole text, with its last piece.
    """

    row: int
    text: str
    done: Generated | None = None


class OpenText:
    """A text while it is written. Characters that a stop string may still remove are not shown.

    Args:
        tokenizer: decodes the tokens.
        prompt: of the text.
        row: its tokens.

    Attributes:
        row: its tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: str, row: WrittenRow) -> None:
        self._decoded, self._prompt, self.row = tokenizer.decoding(), prompt, row
        self._written = self._shown = ""
        self._decoded_tokens = 0

    def piece(self) -> Piece | None:
        """Take up the last token of the row, and return what can be shown now; a stop string ends the row."""
        row, stops = self.row, self.row.decoding.stop
        before = len(self._written)
        for token in row.tokens[self._decoded_tokens :]:  # empty if the last token ended the text
            self._written += self._decoded(token)
        self._decoded_tokens = len(row.tokens)
        positions = (self._written.find(stop, max(0, before - len(stop))) for stop in stops)  # earlier text has none
        places = [at for at in positions if at >= 0]
        if places:
            row.finish, self._written = "stop", self._written[: min(places)]
        end = len(self._written)
        if row.finish is None:
            end -= max((_overlap(self._written, stop) for stop in stops), default=0)
        text, self._shown = self._written[len(self._shown) : end], self._written[:end]
        if row.finish is not None:
            return Piece(
                row.place, text, Generated(self._prompt, row.adapter, self._shown, tuple(row.tokens), row.finish)
            )
        return Piece(row.place, text) if text else None


class TextWriter:
    """Generates texts; made by `Bundle.writer`.

    Args:
        decoder: generates tokens.
        tokenizer: of the bundle.
        ends: tokens that end a text.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, ends: Collection[int]) -> None:
        self._decoder, self._tokenizer, self._ends = decoder, tokenizer, ends

    @property
    def ends(self) -> Collection[int]:
        """The tokens that end a text."""
        return self._ends

    def named(self, adapter: str | None) -> str | None:
        """Return the adapter that a call names, `None` for `base`; UsageError if one is required."""
        return named_adapter(adapter, dict.fromkeys(self._decoder.session.adapters, True), None)

    def write(
        self,
        prompts: Sequence[str],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        decoding: Decoding | None = None,
    ) -> list[Generated]:
        """Generate a text for each prompt.

        Args:
            prompts: at least one; the tokenizer's special tokens are added, and no template.
            adapter: the adapter of all prompts, or `base`; required if the bundle has adapters.
            adapters: one adapter for each prompt instead; `None` is the base. In a bundle with the graph `bank` they
                share calls.
            decoding: the options. Default: greedy, at most 64 tokens.

        Raises:
            UsageError: no adapter is named.
            RequestError: there are no prompts, one has no token or too many, or an adapter is not loaded.
        """
        pieces = self.stream(prompts, adapter, adapters=adapters, decoding=decoding)
        done = {piece.row: piece.done for piece in pieces if piece.done is not None}
        return [done[row] for row in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[str],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        decoding: Decoding | None = None,
    ) -> Iterator[Piece]:
        """Yield pieces of texts as they are generated; arguments and errors as of `write`."""
        _check_prompts(prompts)
        of_prompts: Sequence[str | None]
        if adapters is None:
            of_prompts = [self.named(adapter)] * len(prompts)
        else:  # the decoder refuses a string
            of_prompts = adapters if isinstance(adapters, str) else [name and self.named(name) for name in adapters]
        texts = self.opened(prompts, of_prompts, decoding or Decoding())
        for row in self._decoder.write_rows([text.row for text in texts]):
            piece = texts[row.place].piece()
            if piece is not None:
                yield piece

    def opened(self, prompts: Sequence[str], adapters: Sequence[str | None], decoding: Decoding) -> list[OpenText]:
        """Return texts of which nothing is written yet; arguments and errors as of `write`."""
        _check_prompts(prompts)
        # one by one, since the offsets of an encoding take far more memory than its tokens
        tokens = [self._tokenizer.whole([prompt])[0].ids for prompt in prompts]
        rows = self._decoder.rows(tokens, adapters, decoding, self._ends)
        return [OpenText(self._tokenizer, prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    @property
    def running_tokens(self) -> int:
        """Default of the maximum tokens of all texts that are written at a time."""
        return self._decoder.budget.running

    def cost(self, text: OpenText) -> int:
        """Return the most tokens that a text and its prompt take while it is written."""
        return cost_of(text.row, self._decoder.inputs)

    def running(self) -> RunningRows:
        """Return rows that generate together; the rows of `opened` texts join them."""
        return RunningRows(self._decoder)


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str) or not prompts:
        raise RequestError("there are no prompts", found=repr(prompts), expected="a list of texts")


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def end_tokens(config: bytes, where: object) -> frozenset[int]:
    """Return the tokens that end a text, by the contents of `genai_config.json`.

    Raises:
        FormatError: its tokens are not in the form of onnxruntime-genai.
    """
    ends = _model_of(config, where).get("eos_token_id", [])
    tokens = ends if isinstance(ends, list) else [ends]
    if not all(type(end) is int for end in tokens):
        raise FormatError("names no tokens that end a text", where=where, expected="`model.eos_token_id`")
    return frozenset(tokens)


def padding_token(config: bytes, where: object) -> object:
    """Return the token that pads texts, by the contents of `genai_config.json`; `None` if there is none."""
    return _model_of(config, where).get("pad_token_id")


def _model_of(config: bytes, where: object) -> Mapping[str, Any]:
    document = parse_json(config, where)
    model = document.get("model") if isinstance(document, Mapping) else None
    if not isinstance(model, Mapping):
        raise FormatError("names no tokens that end a text", where=where, expected="`model.eos_token_id`")
    return model
