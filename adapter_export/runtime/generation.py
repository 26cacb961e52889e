"""Texts that a decoder writes: token by token, with its cache, each row with an adapter of its own.

A decoder continues its prompt. That of an encoder–decoder writes another text: the encoder reads the prompt in the
first call, and no tokens in later ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from adapter_export.decoding import Decoding
from adapter_export.errors import FormatError, RequestError, argument
from adapter_export.format.axes import names
from adapter_export.format.generation import GenerationRecord
from adapter_export.format.lengths import axis_lengths
from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord
from adapter_export.graph.tasks.asked import named_adapter
from adapter_export.safe_io.documents import parse_json
from adapter_export.tables import Described

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer

Finish = Literal["end", "stop", "length"]
"""The end of a text: a token that ends texts, a stop string, or a limit."""

Arrays = Mapping[str, np.ndarray]

CONFIG_FILE = "genai_config.json"
"""Names the tokens that end a text, as onnxruntime-genai reads them."""

_SAMPLE_LENGTHS = (1, 4, 7)

_TRIAL = (3, 5)
"""Tokens of the two rows that are tried alone and together."""


def next_token(
    logits: np.ndarray, decoding: Decoding, random: np.random.Generator, suppressed: Sequence[int] = ()
) -> int:
    """Return the token that follows a row, by its logits [words]; RequestError if one is NaN or infinite."""
    if not np.isfinite(logits).all():
        raise RequestError("a logit is NaN or infinite", fix="run `adapter-export verify` on the bundle")
    if suppressed:
        logits = logits.copy()
        logits[list(suppressed)] = -np.inf
    if not decoding.temperature:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: decoding.top_k]
    scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / decoding.temperature
    sums = np.exp(scaled).cumsum()
    sums /= sums[-1]
    if decoding.top_p is not None:
        sums = sums[: int(np.searchsorted(sums, decoding.top_p)) + 1]
    return int(order[np.searchsorted(sums, random.random() * sums[-1], side="right")])


class Runs(Protocol):
    """A session, or an object with its interface."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters."""

    def run(
        self, inputs: Arrays, adapter: str | None = None, /, *, adapters: Any = None, allow_padding: bool = False
    ) -> Mapping[str, np.ndarray]:
        """Return the outputs of a batch as it is."""


@dataclass(eq=False)
class WrittenRow:
    """A row while its text is written.

    Attributes:
        place: of the row among the prompts.
        prompt: its tokens.
        adapter: that writes it; `None` is the base.
        tokens: those that were written.
        finish: why nothing more is written; `None` before.
    """

    place: int
    prompt: Sequence[int]
    adapter: str | None
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None


class Decoder:
    """Writes tokens with a session.

    Rows of one adapter share calls, and with the graph `bank` those of several; rows of different lengths where padding
    before their tokens changes nothing: that is tried once for each adapter, with and without a cache.

    Args:
        session: runs the graph.
        manifest: of the bundle.

    Attributes:
        session: runs the graph.
        longest: the most tokens of a prompt and its text; `None` if there is no limit. Of an encoder–decoder, of the
            token that begins a text and the text.

    Raises:
        RequestError: the bundle does not generate: it has no caches, or gives no logits for the next token.
    """

    def __init__(self, session: Runs, manifest: Manifest) -> None:
        self.session, self._manifest = session, manifest
        self._caches = [record for record in manifest.inputs if record.role == "cache"]
        self._ids, self._mask, self.logits = _roles(manifest)
        self._source = _source(manifest)
        self._source_mask = None if self._source is None else _mask_of(self._source, manifest)
        self.record = manifest.generation or GenerationRecord()
        if self._source is not None and self.record.start is None:
            raise RequestError("the token with which the decoder begins is unknown", fix="capture the base again")
        self._mixes = manifest.bank is not None and manifest.batch_invariant
        self._pads: dict[str | None, bool] = {}
        self._past = [_past_axis(record, self._ids.axes[1]) for record in self._caches]
        sums = [axis for axis in manifest.lengths if len(names(axis)) > 1 and self._ids.axes[1] in names(axis)]
        total = self._mask.axes[1] if self._mask is not None else next(iter(sums), self._ids.axes[1])
        self.longest = axis_lengths(total, manifest.lengths).maximum

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None],
        decoding: Decoding,
        ends: Collection[int],
    ) -> Iterator[WrittenRow]:
        """Write behind prompts; yield a row whenever it has got a token, which the caller may make its last.

        Args:
            prompts: the tokens of each row, at least one.
            adapters: the adapter of each row; `None` is the base.
            decoding: the options.
            ends: tokens that end a text; they are not among `tokens`.

        Raises:
            RequestError: a prompt has no token, or is longer than the base takes; an adapter is not loaded, or there is
                not one for each prompt.
        """
        if isinstance(adapters, str) or len(adapters) != len(prompts):
            found = repr(adapters) if isinstance(adapters, str) else f"{len(adapters)} adapters"
            expected = f"a list of {len(prompts)} names; `None` is the base"
            raise RequestError("there is not one adapter for each prompt", found=found, expected=expected)
        rows = [WrittenRow(*row) for row in zip(range(len(prompts)), prompts, adapters, strict=True)]
        for row in rows:
            most = self._longest_prompt
            if not len(row.prompt) or (most is not None and len(row.prompt) > most):
                expected = "at least 1" if most is None else f"1 to {most}"
                raise RequestError(
                    "has too few or too many tokens",
                    where=f"prompt {row.place}",
                    found=len(row.prompt),
                    expected=expected,
                )
        for group in self._groups(rows):
            yield from self._written(group, decoding, ends)

    @property
    def _longest_prompt(self) -> int | None:
        if self._source is not None:
            return axis_lengths(self._source.axes[1], self._manifest.lengths).maximum
        return None if self.longest is None else self.longest - 1

    def sample_prompts(self) -> list[list[int]]:
        """Return the prompts of golden texts: a few lengths of drawn tokens that neither end a text nor pad one."""
        never, words = {*self.record.end, self.record.padding}, (self._source or self._ids).limit or 1
        ids = [number for number in range(words) if number not in never] or [0]
        random, most = np.random.default_rng(0), self._longest_prompt
        sizes = dict.fromkeys(size if most is None else min(size, most) for size in _SAMPLE_LENGTHS)
        return [random.choice(ids, size).tolist() for size in sizes]

    def forget(self, adapter: str) -> None:
        """Forget what was tried with an adapter, since another may get its name."""
        self._pads.pop(adapter, None)

    def _groups(self, rows: Sequence[WrittenRow]) -> list[list[WrittenRow]]:
        """Return the rows that share calls."""
        groups: dict[tuple[object, object], list[WrittenRow]] = {}
        varied = len({len(row.prompt) for row in rows}) > 1
        for row in rows:
            adapter = None if self._mixes else row.adapter
            length = 0 if varied and self._pads_left(row.adapter) else len(row.prompt)
            groups.setdefault((adapter, length), []).append(row)
        return list(groups.values())

    def _pads_left(self, adapter: str | None) -> bool:
        """Try once whether a model sees nothing of what the mask hides before the tokens of a row."""
        if adapter not in self._pads:
            self._pads[adapter] = self._mask is not None and self._manifest.batch_invariant and self._tried(adapter)
        return self._pads[adapter]

    def _tried(self, adapter: str | None) -> bool:
        """Return whether two rows of different lengths have together the logits that they have alone."""
        random, words = np.random.default_rng(0), self._ids.limit or 2
        prompts = [random.integers(0, words, count).tolist() for count in _TRIAL]
        records = {record.name: record.golden for record in self._manifest.adapters}
        golden = self._manifest.golden if adapter is None else records.get(adapter, self._manifest.golden)
        alone = np.concatenate([self._two_steps([prompt], adapter) for prompt in prompts], 1)
        apart = np.abs(self._two_steps(prompts, adapter) - alone).max()
        return bool(apart <= golden.absolute[self.logits.name])

    def _two_steps(self, prompts: Sequence[Sequence[int]], adapter: str | None) -> np.ndarray:
        """Return the logits behind prompts, and behind their first tokens after these, [steps, rows, words]."""
        batch = _Batch(self, [WrittenRow(at, prompt, adapter) for at, prompt in enumerate(prompts)])
        first = batch.logits()
        batch.append([prompt[0] for prompt in prompts])
        return np.stack([first, batch.logits()])

    def _written(self, rows: Sequence[WrittenRow], decoding: Decoding, ends: Collection[int]) -> Iterator[WrittenRow]:
        randoms = {row.place: np.random.default_rng([decoding.seed, row.place]) for row in rows}
        batch = _Batch(self, rows)
        while batch.rows:
            logits = batch.logits()
            tokens = [
                self.record.first
                if self.record.first is not None and not row.tokens
                else next_token(own, decoding, randoms[row.place], self.record.suppressed)
                for own, row in zip(logits, batch.rows, strict=True)
            ]
            for token, row in zip(tokens, batch.rows, strict=True):
                if token in ends:
                    row.finish = "end"
                else:
                    row.tokens.append(token)
                    total = (len(row.prompt) if self._source is None else 1) + len(row.tokens)
                    if len(row.tokens) == decoding.max_new_tokens or total == self.longest:
                        row.finish = "length"
                yield row
            batch.append(tokens)


class _Batch:
    """Rows that share calls: their masks and caches, padded before the tokens of the shorter ones."""

    def __init__(self, decoder: Decoder, rows: Sequence[WrittenRow]) -> None:
        self._decoder, self.rows = decoder, list(rows)
        self._source = np.zeros((len(rows), 0), np.int64)
        if decoder._source is not None:  # rows of one length share calls, as the decoder has no mask to pad behind
            self._source = np.array([row.prompt for row in rows], np.int64)
            rows = [replace(row, prompt=[decoder.record.start or 0]) for row in rows]
        self._source_mask = np.ones_like(self._source)
        width = max(len(row.prompt) for row in rows)
        self._new = np.zeros((len(rows), width), np.int64)
        self._mask = np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            self._new[at, width - len(row.prompt) :] = row.prompt
            self._mask[at, width - len(row.prompt) :] = 1
        self._caches = {record.name: np.zeros(_empty(record, len(rows)), record.dtype) for record in decoder._caches}

    def logits(self) -> np.ndarray:
        """Compute the logits behind the tokens of each row, [rows, words]."""
        decoder = self._decoder
        feeds = {decoder._ids.name: self._new, **self._caches}
        if decoder._mask is not None:
            feeds[decoder._mask.name] = self._mask
        if decoder._source is not None:
            feeds[decoder._source.name], self._source = self._source, self._source[:, :0]
        if decoder._source_mask is not None:
            feeds[decoder._source_mask.name] = self._source_mask
        adapters = [row.adapter for row in self.rows]
        one = len(set(adapters)) == 1
        outputs = decoder.session.run(
            feeds, adapters[0] if one else None, adapters=None if one else adapters, allow_padding=True
        )
        self._caches = {record.name: outputs[str(record.next)] for record in decoder._caches}
        logits: np.ndarray = outputs[decoder.logits.name][:, -1]
        return logits

    def append(self, tokens: Sequence[int]) -> None:
        """Put a token behind each row, and leave out rows that are finished and what no row has any longer."""
        going = np.array([row.finish is None for row in self.rows])
        self.rows = [row for row in self.rows if row.finish is None]
        if not self.rows:
            return
        self._source, self._source_mask = self._source[going], self._source_mask[going]
        mask = self._mask[going]
        first = int(mask.any(0).argmax())
        self._caches = {
            record.name: np.ascontiguousarray(_without(self._caches[record.name][going], axis, first))
            for record, axis in zip(self._decoder._caches, self._decoder._past, strict=True)
        }
        self._new = np.array(tokens, np.int64)[going][:, None]
        self._mask = np.concatenate([mask[:, first:], np.ones_like(self._new)], 1)


def _roles(manifest: Manifest) -> tuple[InputRecord, InputRecord | None, OutputRecord]:
    """Return the input of the new tokens, the mask over past and new ones, if there is one, and the logits."""
    source = _source(manifest)
    reading = {source, None if source is None else _mask_of(source, manifest)}
    by_role: dict[str, list[InputRecord]] = {}
    for record in manifest.inputs:
        if record not in reading:
            by_role.setdefault(record.role, []).append(record)
    ids, masks = by_role.get("ids", []), by_role.get("mask", [])
    following = {record.next for record in by_role.get("cache", ())}
    results = [one for one in manifest.base_outputs if one.name not in following and len(one.axes) == 3]
    known = len(ids) == len(results) == 1 and len(masks) <= 1 and following and not by_role.get("values")
    if not known or results[0].axes[1] != ids[0].axes[1]:
        raise RequestError(
            "the bundle does not generate text",
            found=f"inputs {', '.join(record.name for record in manifest.inputs)}",
            expected="token ids, a cache, and logits for each new token",
            fix=f"capture a language model with {argument('with_cache', True)}, and build again",
        )
    return ids[0], masks[0] if masks else None, results[0]


def _source(manifest: Manifest) -> InputRecord | None:
    """Return the input of an encoder's tokens, which may be none in later calls; `None` for a decoder."""
    ids = [record for record in manifest.inputs if record.role == "ids" and len(record.axes) == 2]
    return next((record for record in ids if 0 in axis_lengths(record.axes[1], manifest.lengths)), None)


def _mask_of(source: InputRecord, manifest: Manifest) -> InputRecord | None:
    masks = [record for record in manifest.inputs if record.role == "mask"]
    return next((record for record in masks if source.axes[1] in names(record.axes[1])), None)


def _past_axis(record: InputRecord, new: object) -> int:
    """Return the axis of a cache along which it grows."""
    return next(at for at, axis in enumerate(record.axes) if at and len(names(axis)) == 1 and axis != new)


def _empty(record: InputRecord, rows: int) -> list[int]:
    return [rows, *(axis if isinstance(axis, int) else 0 for axis in record.axes[1:])]


def _without(cache: npt.NDArray[Any], axis: int, first: int) -> npt.NDArray[Any]:
    return cache[(slice(None),) * axis + (slice(first, None),)] if first else cache


@dataclass(frozen=True, repr=False)
class Generated(Described):
    """A text that was written behind a prompt.

    Attributes:
        prompt: the prompt.
        adapter: that wrote it; `None` is the base.
        text: the text, without its prompt, a stop string and special tokens.
        tokens: its tokens; behind a stop string they end with it.
        finish: `end` behind a token that ends texts, `stop` before a stop string, `length` at a limit.
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
        row: the place of its prompt.
        text: what to show.
        done: the whole text, with its last piece.
    """

    row: int
    text: str
    done: Generated | None = None


class TextWriter:
    """Writes texts behind prompts; made by `Bundle.writer`.

    Args:
        decoder: writes tokens.
        tokenizer: of the bundle.
        ends: tokens that end a text.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, ends: Collection[int]) -> None:
        self._decoder, self._tokenizer, self._ends = decoder, tokenizer, ends

    def named(self, adapter: str | None) -> str | None:
        """Return the adapter that a call names: `None` for `base`; UsageError if there are adapters and none is."""
        return named_adapter(adapter, dict.fromkeys(self._decoder.session.adapters, True), None)

    def write(
        self,
        prompts: Sequence[str],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        decoding: Decoding | None = None,
    ) -> list[Generated]:
        """Write a text behind each prompt.

        Args:
            prompts: at least one; the tokenizer's special tokens are added, and no template.
            adapter: the adapter of all prompts, or `base`; needed where the bundle has adapters.
            adapters: instead, one for each prompt; `None` is the base. In a bundle with the graph `bank` they share
                calls.
            decoding: the options. Default: the most likely tokens, at most 64.

        Raises:
            UsageError: no adapter is named.
            RequestError: a prompt is none, has no token or too many; an adapter is not loaded.
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
        """Yield pieces of texts as they are written; arguments and errors as of `write`."""
        chosen = decoding or Decoding()
        if isinstance(prompts, str) or not prompts:
            raise RequestError("there are no prompts", found=repr(prompts), expected="a list of texts")
        own: Sequence[str | None]
        if adapters is None:
            own = [self.named(adapter)] * len(prompts)
        else:  # a string alone is refused by the decoder
            own = adapters if isinstance(adapters, str) else [name and self.named(name) for name in adapters]
        tokens = [encoding.ids for encoding in self._tokenizer.whole(prompts)]
        texts = [_Text(self._tokenizer, chosen.stop) for _ in prompts]
        for row in self._decoder.write(tokens, own, chosen, self._ends):
            written = texts[row.place]
            piece = written.added(row)
            if row.finish is None and not piece:
                continue
            done = None
            if row.finish is not None:
                done = Generated(prompts[row.place], row.adapter, written.shown, tuple(row.tokens), row.finish)
            yield Piece(row.place, piece, done)


class _Text:
    """A text while it is written: what stop strings may still take back is not shown yet."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._stream, self._stop = tokenizer.decoding(), stop
        self._written = self.shown = ""

    def added(self, row: WrittenRow) -> str:
        """Take up the last token of a row, and return what can be shown now; the row ends before a stop string."""
        if row.finish != "end":
            self._written += self._stream(row.tokens[-1])
        places = [at for at in (self._written.find(one) for one in self._stop) if at >= 0]
        if places:
            row.finish, self._written = "stop", self._written[: min(places)]
        end = len(self._written)
        if row.finish is None:
            end -= max((_overlap(self._written, one) for one in self._stop), default=0)
        piece, self.shown = self._written[len(self.shown) : end], self._written[:end]
        return piece


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def end_tokens(config: bytes, where: object) -> frozenset[int]:
    """Return the tokens that end a text, by the contents of `genai_config.json`.

    Raises:
        FormatError: it names none as onnxruntime-genai does.
    """
    document = parse_json(config, where)
    model = document.get("model") if isinstance(document, Mapping) else None
    ends = model.get("eos_token_id", []) if isinstance(model, Mapping) else None
    found = ends if isinstance(ends, list) else [ends]
    if not all(type(end) is int for end in found):
        raise FormatError("names no tokens that end a text", where=where, expected="`model.eos_token_id`")
    return frozenset(found)
