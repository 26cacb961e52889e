"""Rows that generate together: their next tokens, masks and caches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from adapter_export.decoding import Decoding
from adapter_export.errors import InputError, RequestError
from adapter_export.format.manifest import InputRecord
from adapter_export.runtime.generation.call_budget import CallBudget
from adapter_export.runtime.generation.decoder_inputs import DecoderInputs
from adapter_export.runtime.generation.json_guide import JsonGuide
from adapter_export.runtime.generation.speech_times import TimeRule

Finish = Literal["end", "stop", "length"]
"""Reason for the end of a text: a token that ends texts, a stop string, or a limit."""

Arrays = Mapping[str, np.ndarray]


class Runs(Protocol):
    """A session, or an object with its interface."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""

    def run(
        self, inputs: Arrays, adapter: str | None = None, /, *, adapters: Any = None, allow_padding: bool = False
    ) -> Mapping[str, np.ndarray]:
        """Return the outputs of a batch as it is."""

    def may_mix(self, adapters: Collection[str | None], /) -> bool:
        """Return whether rows with these adapters can run in one batch."""


class TokenScore(NamedTuple):
    """Log probabilities of a token of a text, by the logits before temperature and suppressed tokens.

    Attributes:
        token: the token.
        score: its log probability.
        top: the most likely tokens in this place, with their log probabilities, in descending order.
    """

    token: int
    score: float
    top: tuple[tuple[int, float], ...]


def score_token(logits: np.ndarray, token: int, top: int) -> TokenScore:
    """Return the log probabilities of a token and of the `top` most likely ones, by their logits [words]."""
    exact = logits.astype(np.float64)
    # log-softmax; the shift keeps `exp` from overflowing
    exact -= exact.max()
    exact -= np.log(np.exp(exact).sum())
    best = np.argsort(-exact, kind="stable")[:top]
    return TokenScore(token, float(exact[token]), tuple((int(number), float(exact[number])) for number in best))


@dataclass(eq=False)
class WrittenRow:
    """A row while its text is written.

    Attributes:
        place: position of the row among the prompts of its request; a part of the seed.
        prompt: its tokens. For a file, those that the decoder reads before the text.
        adapter: the adapter that writes it; `None` is the base.
        decoding: the options.
        ends: tokens that end a text; they are not among `tokens`.
        last: the token that is forced at the length limit; `None` if the model chooses it.
        tokens: the tokens written so far.
        finish: the reason for the end; `None` before.
        error: the reason why the row cannot go on.
        abandoned: whether the caller no longer waits for the text.
        top_scores: most likely tokens to keep in `scores`; `None` keeps no scores.
        scores: log probabilities of `tokens`, if they are wanted.
        guide: restricts the next token to those of a JSON schema.
        media: the windows of a file that an encoder reads, [windows, …].
        languages: tokens of which the model chooses one, which the decoder reads behind the prompt.
        forced: tokens that the decoder reads behind that one.
        times: restricts the next token to those of a text with times.
    """

    place: int
    prompt: Sequence[int]
    adapter: str | None
    decoding: Decoding = field(default_factory=Decoding)
    ends: Collection[int] = frozenset()
    last: int | None = None
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: InputError | None = None
    abandoned: bool = False
    top_scores: int | None = None
    scores: list[TokenScore] = field(default_factory=list)
    guide: JsonGuide | None = None
    media: np.ndarray | None = None
    languages: Sequence[int] = ()
    forced: Sequence[int] = ()
    times: TimeRule | None = None

    def __post_init__(self) -> None:
        self.random = np.random.default_rng([self.decoding.seed, self.place])

    @property
    def is_done(self) -> bool:
        """True if no more tokens are written."""
        return self.abandoned or self.finish is not None or self.error is not None


def next_token(
    logits: np.ndarray,
    decoding: Decoding,
    random: np.random.Generator,
    suppressed: Sequence[int] = (),
    guide: JsonGuide | None = None,
    times: Callable[[np.ndarray], np.ndarray] | None = None,
) -> int:
    """Return the token that follows a row, by its logits [words]; `times` leaves those of a text with times.

    Raises:
        RequestError: a logit is NaN or infinite, or the guide allows no token.
    """
    if not np.isfinite(logits).all():
        raise RequestError("a logit is NaN or infinite", fix="run `adapter-export verify` on the bundle")
    if guide is not None:
        logits = np.where(guide.allowed(logits.size), logits, -np.inf)
    if suppressed:
        logits = logits.copy()
        logits[list(suppressed)] = -np.inf
    if times is not None:
        logits = times(logits)
    if guide is not None and logits.max() == -np.inf:
        raise RequestError("the JSON schema cannot be followed", found="no token of the model that may come next")
    if not decoding.temperature:
        return int(logits.argmax())
    # stable, so that equal logits are in the order in which `argmax` picks them
    order = np.argsort(-logits, kind="stable")[: decoding.top_k]
    scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / decoding.temperature
    sums = np.exp(scaled).cumsum()
    sums /= sums[-1]
    if decoding.top_p is not None:
        # the token that reaches `top_p` belongs to the nucleus (Holtzman et al. 2020, §3.1)
        sums = sums[: int(np.searchsorted(sums, decoding.top_p)) + 1]
    return int(order[np.searchsorted(sums, random.random() * sums[-1], side="right")])


class DecodingBatch:
    """Rows that share calls, the shorter ones padded before their tokens.

    Args:
        inputs: the roles of the graph's inputs.
        session: runs the graph.
        rows: new rows; the first step computes their prompts.

    Attributes:
        rows: the rows.
        is_new: True before the first token.
    """

    def __init__(self, inputs: DecoderInputs, session: Runs, rows: Sequence[WrittenRow]) -> None:
        self._inputs, self._session = inputs, session
        self.rows, self.is_new = list(rows), True
        prompts = [row.prompt for row in rows]
        self._source = np.zeros((len(rows), 0), np.int64)
        if inputs.source is not None:  # rows of one length: the decoder has no mask that could hide padding
            self._source = np.array(prompts, np.int64)
            prompts = [[inputs.record.start or 0] for _ in rows]
        self._source_mask = np.ones_like(self._source)
        self._media = _stacked_media(inputs, rows)
        width = max(map(len, prompts), default=0)
        self._new = np.zeros((len(rows), width), np.int64)
        self._mask = np.zeros((len(rows), width), np.int64)
        for at, prompt in enumerate(prompts):
            # on the right, so that the next token of each row has the same place
            self._new[at, width - len(prompt) :] = prompt
            self._mask[at, width - len(prompt) :] = 1
        self._caches = {record.name: np.zeros(_empty(record, len(rows)), record.dtype) for record in inputs.caches}

    @property
    def adapters(self) -> set[str | None]:
        """The adapters of the rows."""
        return {row.adapter for row in self.rows}

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the source, and of the prompts and texts, padding included."""
        return self._source_mask.shape[1], self._mask.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding excluded."""
        return int(self._mask.sum())

    @property
    def unread(self) -> int:
        """Tokens that the next calls compute, padding included."""
        return self._new.size

    @property
    def is_begun(self) -> bool:
        """True if a part of the prompt is computed, and the rest is not."""
        return self.is_new and self._past > 0

    def is_long(self, budget: CallBudget) -> bool:
        """Return whether a call takes only a part of the new tokens."""
        return len(self.rows) == 1 and self._new.shape[1] > budget.chunk(self._past)

    def read_chunk(self, budget: CallBudget) -> None:
        """Compute the first part of the new tokens of a single row; their logits are not used.

        Raises:
            RequestError: the session cannot compute them.
        """
        count = budget.chunk(self._past)
        self._run(self._new[:, :count], self._mask[:, : self._past + count])
        self._new = self._new[:, count:]

    def step(self) -> None:
        """Write the next token of each row.

        A row whose logits are not finite gets an `error`; the others go on.

        Raises:
            RequestError: the session cannot compute the batch; no row has changed.
        """
        tokens = []
        for row, logits in zip(self.rows, self.logits(), strict=True):
            try:
                tokens.append(self._write(row, logits))
            except RequestError as error:
                row.error = error
                # a failed row must not shift the tokens of the others
                tokens.append(0)  # the row leaves before the next step
        self.append(tokens)

    def _write(self, row: WrittenRow, logits: np.ndarray) -> int:
        record, written = self._inputs.record, len(row.tokens) + 1
        length = self._inputs.length(row.prompt, row.tokens)
        is_last = written == row.decoding.max_new_tokens or length + 1 == self._inputs.longest
        last = row.last if is_last else None
        token = record.first if last is None and length == 1 else last
        if token is None:
            never = record.suppressed
            if written == 1 or (written == 2 and record.first is not None and length == 2):
                never += record.suppressed_first
            times = None if row.times is None else partial(row.times.restricted, tokens=row.tokens)
            token = next_token(logits, row.decoding, row.random, never, row.guide, times)
            if row.guide is not None:
                row.guide.take(token)
        ends = token in row.ends
        if not ends:
            row.tokens.append(token)
            if row.top_scores is not None:
                row.scores.append(score_token(logits, token, row.top_scores))
        if is_last or ends:
            row.finish = "end" if ends and last is None else "length"  # an end that the limit forces is a limit
        return token

    def logits(self) -> np.ndarray:
        """Compute the logits of the next token of each row, [rows, words]; first its language, if that is open."""
        logits = self._run(self._new, self._mask)[:, -1]
        if not any(row.languages for row in self.rows):
            return logits
        new = []
        for row, of_row in zip(self.rows, logits, strict=True):
            languages = sorted(row.languages)  # of equal logits, the first wins
            new.append([languages[int(of_row[languages].argmax())], *row.forced])
            row.prompt, row.languages, row.forced = [*row.prompt, *new[-1]], (), ()
        self._new = np.array(new, np.int64)
        self._mask = np.concatenate([self._mask, np.ones_like(self._new)], 1)
        return self._run(self._new, self._mask)[:, -1]

    def following(self, tokens: Sequence[int], budget: CallBudget) -> Iterator[np.ndarray]:
        """Yield the logits of tokens that follow those of a new batch with a single row, [some tokens, words].

        Long texts take several calls, so that the logits of a large vocabulary stay small.
        """
        ids = np.concatenate([self._new, np.array([tokens[:-1]], np.int64)], 1)
        skipped, start = ids.shape[1] - len(tokens), 0
        while start < ids.shape[1]:
            end = start + budget.chunk(start)
            logits = self._run(ids[:, start:end], np.ones_like(ids[:, :end]))[0, max(0, skipped - start) :]
            if len(logits):
                yield logits
            start = end

    @property
    def _past(self) -> int:
        return self._mask.shape[1] - self._new.shape[1]

    def _run(self, new: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Compute the logits of new tokens, [rows, tokens, words], and keep their caches."""
        inputs = self._inputs
        feeds = {inputs.ids.name: new, **self._caches}
        if inputs.mask is not None:
            feeds[inputs.mask.name] = mask
        if inputs.source is not None:
            feeds[inputs.source.name] = self._source
        if inputs.source_mask is not None:
            feeds[inputs.source_mask.name] = self._source_mask
        if inputs.media is not None:
            feeds[inputs.media.name] = self._media
        adapters = [row.adapter for row in self.rows]
        is_uniform = len(set(adapters)) == 1
        outputs = self._session.run(
            feeds, adapters[0] if is_uniform else None, adapters=None if is_uniform else adapters, allow_padding=True
        )
        self._caches = {record.name: outputs[str(record.next)] for record in inputs.caches}
        # an encoder reads its tokens once: later calls have their keys and values
        self._source, self._media = self._source[:, :0], self._media[:, :0]
        logits: np.ndarray = outputs[inputs.logits.name]
        return logits

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to each row."""
        self.is_new = False
        self._new = np.array(tokens, np.int64)[:, None]
        self._mask = np.concatenate([self._mask, np.ones_like(self._new)], 1)

    def drop_done(self) -> None:
        """Drop the rows that are done, and the padding that no other row needs."""
        going = np.array([not row.is_done for row in self.rows], bool)
        if going.all():
            return
        self.rows = [row for row in self.rows if not row.is_done]
        self._source, self._source_mask, self._new = self._source[going], self._source_mask[going], self._new[going]
        self._media = self._media[going]
        mask = self._mask[going]
        first = int(mask.any(0).argmax()) if self.rows else 0
        self._mask = mask[:, first:]
        if self.is_new:  # the padding is in the prompts, and the caches are empty
            self._new = self._new[:, first:]
            first = 0
        self._caches = {
            record.name: np.ascontiguousarray(_behind(self._caches[record.name][going], axis, first))
            for record, axis in self._inputs.caches.items()
        }

    def merged(self, other: DecodingBatch) -> DecodingBatch:
        """Return a batch of the rows of both, after a step of each; the caches of the shorter one get padding."""
        merged_batch = type(self)(self._inputs, self._session, [])
        merged_batch.rows, merged_batch.is_new = [*self.rows, *other.rows], False
        merged_batch._new = np.concatenate([self._new, other._new])
        merged_batch._source = np.concatenate([self._source, other._source])
        merged_batch._source_mask = np.concatenate([self._source_mask, other._source_mask])
        merged_batch._media = np.concatenate([self._media, other._media])
        width = max(self._mask.shape[1], other._mask.shape[1])
        merged_batch._mask = np.concatenate(
            [_padded(part._mask, 1, width - part._mask.shape[1]) for part in (self, other)]
        )
        merged_batch._caches = {
            record.name: np.concatenate(
                [_padded(part._caches[record.name], axis, width - part._mask.shape[1]) for part in (self, other)]
            )
            for record, axis in self._inputs.caches.items()
        }
        return merged_batch


def _stacked_media(inputs: DecoderInputs, rows: Sequence[WrittenRow]) -> np.ndarray:
    """Return the windows of all rows, [rows, windows, …]; no window for a graph without an encoder of files."""
    windows = [row.media for row in rows if row.media is not None]
    if windows:
        return np.stack(windows)
    sizes = () if inputs.media is None else inputs.media.axes[2:]
    return np.zeros((len(rows), 0, *(size if isinstance(size, int) else 0 for size in sizes)), np.float32)


def _empty(record: InputRecord, rows: int) -> list[int]:
    return [rows, *(axis if isinstance(axis, int) else 0 for axis in record.axes[1:])]


def _behind(array: npt.NDArray[Any], axis: int, first: int) -> npt.NDArray[Any]:
    """Return an array without its first places along an axis."""
    return array[(slice(None),) * axis + (slice(first, None),)] if first else array


def _padded(array: npt.NDArray[Any], axis: int, count: int) -> npt.NDArray[Any]:
    """Return an array with zeros before its first place along an axis."""
    return np.pad(array, [(count if at == axis else 0, 0) for at in range(array.ndim)]) if count else array
