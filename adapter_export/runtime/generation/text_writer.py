"""Texts that a bundle generates: prompts become tokens, and tokens become pieces of text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapter_export.decoding import Decoding
from adapter_export.errors import FormatError, RequestError
from adapter_export.graph.tasks.asked import named_adapter
from adapter_export.runtime.generation.call_budget import cost_of
from adapter_export.runtime.generation.chat import ChatRenderer, RenderedChat, no_template
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import Finish, TokenScore, WrittenRow
from adapter_export.runtime.generation.json_guide import JsonSchemas
from adapter_export.runtime.generation.running_rows import RunningRows
from adapter_export.safe_io.documents import parse_json
from adapter_export.tables import Described

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer

CONFIG_FILE = "genai_config.json"
"""Names the tokens that end a text, as onnxruntime-genai reads them."""


Prompt = str | RenderedChat
"""A text, or a conversation that a chat template rendered."""


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
        scores: log probabilities of the tokens since the piece before it, if they are wanted.
    """

    row: int
    text: str
    done: Generated | None = None
    scores: Sequence[TokenScore] = ()


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
        self._decoded_tokens = self._scored_tokens = 0

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
        if row.finish is None and not text:
            return None
        scores, self._scored_tokens = row.scores[self._scored_tokens :], len(row.scores)
        done = None
        if row.finish is not None:
            done = Generated(self._prompt, row.adapter, self._shown, tuple(row.tokens), row.finish)
        return Piece(row.place, text, done, scores)


class TextWriter:
    """Generates texts; made by `Bundle.writer`.

    Args:
        decoder: generates tokens.
        tokenizer: of the bundle.
        ends: tokens that end a text.
        chat: renders conversations as prompts; `None` for a bundle without chat templates.
        where: the bundle, for messages.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        ends: Collection[int],
        chat: ChatRenderer | None = None,
        where: object = None,
    ) -> None:
        self._decoder, self._tokenizer, self._ends = decoder, tokenizer, ends
        self._chat, self._where = chat, where
        self._schemas = JsonSchemas(tokenizer, ends)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""
        return tuple(self._decoder.session.adapters)

    @property
    def chat(self) -> ChatRenderer:
        """Renders conversations as prompts; RequestError if the bundle has no chat template."""
        if self._chat is None:
            raise no_template(self._where)
        return self._chat

    def token_text(self, token: int) -> str:
        """Return the characters of a token in the middle of a text."""
        return self._tokenizer.token_text(token)

    @property
    def ends(self) -> Collection[int]:
        """The tokens that end a text."""
        return self._ends

    def named(self, adapter: str | None) -> str | None:
        """Return the adapter that a call names, `None` for `base`; UsageError if one is required."""
        return named_adapter(adapter, dict.fromkeys(self._decoder.session.adapters, True), None)

    def write(
        self,
        prompts: Sequence[Prompt],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        decoding: Decoding | None = None,
    ) -> list[Generated]:
        """Generate a text for each prompt.

        Args:
            prompts: at least one. The tokenizer's special tokens are added to texts; conversations of `chat.render`
                have those of their template.
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
        prompts: Sequence[Prompt],
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

    def opened(
        self,
        prompts: Sequence[Prompt],
        adapters: Sequence[str | None],
        decoding: Decoding,
        *,
        top_scores: int | None = None,
    ) -> list[OpenText]:
        """Return texts of which nothing is written yet; other arguments and errors as of `write`.

        Args:
            prompts: at least one.
            adapters: one adapter for each prompt.
            decoding: the options.
            top_scores: alternatives of each token whose log probabilities pieces have. Default: pieces have none.
        """
        _check_prompts(prompts)
        texts = [prompt.text if isinstance(prompt, RenderedChat) else prompt for prompt in prompts]
        # one by one, since the offsets of an encoding take far more memory than its tokens
        tokens = [
            self._tokenizer.whole([text], special=not isinstance(prompt, RenderedChat))[0].ids
            for text, prompt in zip(texts, prompts, strict=True)
        ]
        guide = None if decoding.json_schema is None else self._schemas.guide(decoding.json_schema)
        rows = self._decoder.rows(tokens, adapters, decoding, self._ends, guide)
        for row in rows:
            row.top_scores = top_scores
        return [OpenText(self._tokenizer, text, row) for text, row in zip(texts, rows, strict=True)]

    def check_limit(self, decoding: Decoding) -> None:
        """Raise RequestError if a chosen number of new tokens exceeds the base's length; the default may."""
        if decoding.max_new_tokens != Decoding.max_new_tokens:
            self._decoder.inputs.check_limit(decoding.max_new_tokens)

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


def _check_prompts(prompts: Sequence[Prompt]) -> None:
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
