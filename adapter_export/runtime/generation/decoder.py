"""Generate tokens: a decoder continues its prompt, an encoder–decoder reads it and writes another text."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from adapter_export.decoding import Decoding
from adapter_export.errors import FormatError, RequestError
from adapter_export.format.manifest import Manifest, WrittenRecord
from adapter_export.format.sketch import filled
from adapter_export.runtime.generation.call_budget import CallBudget, parts_of
from adapter_export.runtime.generation.decoder_inputs import DecoderInputs
from adapter_export.runtime.generation.decoding_batch import DecodingBatch, Runs, WrittenRow
from adapter_export.runtime.generation.json_guide import JsonGuide
from adapter_export.runtime.generation.speech_prompt import SpeechPrompt, speech_prompts
from adapter_export.tables import number_of
from adapter_export.words import command

_SAMPLE_LENGTHS = (1, 4, 7, 4, 4, 4)
"""Tokens of golden prompts: four of one length, since some decoders write only such rows together."""

_RUN = command("run(BUNDLE, audio=[FILE])", "run BUNDLE --audio FILE")
"""The call that writes the texts of files."""

_TRIAL = (3, 5)
"""Tokens of the two rows that are computed separately and together."""

_TRIAL_CHUNKS = CallBudget(tokens=2, least=1)
"""Budget of the calls that compute the prompt of a row in parts."""

_SHARED_TOKENS = 2**13
"""Tokens of a call's caches up to which padding costs nothing that matters."""


class Decoder:
    """Generates tokens with a session.

    Rows of one adapter share calls, and with the graph `bank` those of several. Rows of different lengths share calls
    where padding before their tokens changes nothing, which is tried once for each adapter. Long prompts take several
    calls within `budget`, where that changes nothing, which is tried as well.

    Args:
        session: runs the graph.
        manifest: of the bundle.

    Attributes:
        session: runs the graph.
        inputs: the roles of the graph's inputs.
        record: the tokens that begin, end and pad a text.
        budget: limits of the calls that compute prompts, and of the rows that are written at a time.
        batch_type: holds the caches of rows; a self-test replaces it by one that mixes them up.

    Raises:
        RequestError: the bundle does not generate: it has no caches, or no logits for the next token.
    """

    def __init__(self, session: Runs, manifest: Manifest) -> None:
        self.session, self._manifest = session, manifest
        self.inputs = DecoderInputs.of(manifest)
        self.record = self.inputs.record
        self.budget = CallBudget.of(self.inputs)
        self.batch_type = DecodingBatch
        self._pads: dict[str | None, bool] = {}
        self._chunks: dict[str | None, bool] = {}

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None],
        decoding: Decoding,
        ends: Collection[int],
    ) -> Iterator[WrittenRow]:
        """Continue prompts; yield a row after each of its tokens. The caller may set `finish` to end it.

        Args:
            prompts: the tokens of each row, at least one.
            adapters: the adapter of each row; `None` is the base.
            decoding: the options.
            ends: tokens that end a text; they are not among `tokens`.

        Raises:
            RequestError: a prompt has no token, or is longer than the base takes; an adapter is not loaded, or the
                number of adapters differs from the number of prompts.
        """
        yield from self.write_rows(self.rows(prompts, adapters, decoding, ends))

    def rows(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None],
        decoding: Decoding,
        ends: Collection[int],
        guide: JsonGuide | None = None,
    ) -> list[WrittenRow]:
        """Return the rows of prompts; `guide` is that of the JSON schema. Other arguments and errors as of `write`."""
        if self.inputs.media is not None:
            raise _no_file("prompts")
        if decoding.json_schema is not None and guide is None:
            raise RequestError("tokens follow no JSON schema", fix="generate texts with `Bundle.writer`")
        if isinstance(adapters, str) or len(adapters) != len(prompts):
            actual = repr(adapters) if isinstance(adapters, str) else number_of(len(adapters), "adapter")
            expected = f"a list of {number_of(len(prompts), 'name')}; `None` is the base"
            raise RequestError("there is not one adapter for each prompt", found=actual, expected=expected)
        for place, prompt in enumerate(prompts):
            self.inputs.check_prompt(prompt, f"prompt {place}")
        both = zip(prompts, adapters, strict=True)
        rows = [WrittenRow(place, *row, decoding, ends, self.record.last) for place, row in enumerate(both)]
        for row in rows:
            row.guide = None if guide is None else guide.copy()
        return rows

    def file_row(
        self,
        window: np.ndarray,
        prompt: SpeechPrompt,
        adapter: str | None,
        decoding: Decoding,
        ends: Collection[int],
    ) -> WrittenRow:
        """Return the row of a window of a file, with the shape of the encoder's input.

        Args:
            window: a preprocessed file, or a part of it.
            prompt: the tokens that the decoder reads before the text.
            adapter: the adapter; `None` is the base.
            decoding: the options.
            ends: tokens that end a text; they are not among `tokens`.

        Raises:
            RequestError: the bundle has no encoder of files, or the prompt does not fit.
        """
        if self.inputs.media is None:
            raise RequestError("the bundle reads prompts, not files", fix="generate texts with `Bundle.writer`")
        self.inputs.check_prompt([*prompt.read, *prompt.forced], "the tokens before a text")
        row = WrittenRow(0, list(prompt.read), adapter, decoding, ends, self.record.last, media=window[None])
        row.languages, row.forced = prompt.languages, prompt.forced
        return row

    def golden_row(self, place: int, golden: WrittenRecord, adapter: str | None, decoding: Decoding) -> WrittenRow:
        """Return the row of a golden text.

        Raises `FormatError` for a seed without an encoder of files, or none with such an encoder.
        """
        media = self.inputs.media
        if (media is None) != (golden.fill is None):
            expected = "null, since no input takes files" if media is None else f"the seed of input `{media.name}`"
            raise FormatError("wrong seed of a golden text", where="`fill`", found=golden.fill, expected=expected)
        window = None
        if media is not None and golden.fill is not None:
            sizes = [axis for axis in media.axes[2:] if isinstance(axis, int)]
            window = filled(golden.fill, [1, *sizes], media.dtype)
        return WrittenRow(place, golden.prompt, adapter, decoding, self.record.end, media=window)

    def write_rows(self, rows: Sequence[WrittenRow]) -> Iterator[WrittenRow]:
        """Continue rows, one group of those that share calls after the other; yield and raise as `write`."""
        for group in self._groups(rows):
            for part in parts_of(group, self.inputs, self.budget.running):
                yield from self._write_part(part)

    def _write_part(self, rows: Sequence[WrittenRow]) -> Iterator[WrittenRow]:
        """Compute the prompts of rows in calls within the budget, then continue all of them together."""
        joined = self.batch_type(self.inputs, self.session, [])
        for batch in self._calls(rows):
            while self.is_long(batch):
                batch.read_chunk(self.budget)
            yield from _advance(batch)
            joined = joined.merged(batch) if joined.rows else batch
        while joined.rows:
            yield from _advance(joined)

    def logits(self, prompt: Sequence[int], tokens: Sequence[int], adapter: str | None) -> Iterator[np.ndarray]:
        """Yield the logits of known tokens after a prompt, in parts [some tokens, words], in a call without other rows.

        Args:
            prompt: its tokens, which an encoder–decoder reads.
            tokens: the tokens that follow, at least one.
            adapter: the adapter; `None` is the base.

        Raises:
            RequestError: the prompt has no token, or too many for the base.
        """
        if self.inputs.media is not None:
            raise _no_file("known tokens")
        self.inputs.check_prompt(prompt, "the prompt")
        row = WrittenRow(0, prompt, adapter)
        return self.batch_type(self.inputs, self.session, [row]).following(tokens, self.budget)

    def within(self, budget: CallBudget) -> Decoder:
        """Return a decoder with another budget and the same session; both share their trials."""
        other = copy.copy(self)
        other.budget = budget
        return other

    def sample_prompts(self) -> list[tuple[list[int], int | None]]:
        """Return the prompts of golden texts, with the seed of the file, if an encoder reads one.

        They are a few lengths of random tokens that neither end a text nor pad one; or what the decoder reads before
        the text of a file, for a few languages and tasks.
        """
        if self.inputs.media is not None:
            prompts = speech_prompts(self.record)
            return [(prompts[seed % len(prompts)], seed) for seed in range(len(_SAMPLE_LENGTHS))]
        never, words = {*self.record.end, self.record.padding}, (self.inputs.source or self.inputs.ids).limit or 1
        ids = [number for number in range(words) if number not in never] or [0]
        random, most = np.random.default_rng(0), self.inputs.longest_prompt
        sizes = [size if most is None else min(size, most) for size in _SAMPLE_LENGTHS]
        return [(random.choice(ids, size).tolist(), None) for size in sizes]

    def forget(self, adapter: str) -> None:
        """Forget the trials of an adapter, since another may get its name."""
        self._pads.pop(adapter, None)
        self._chunks.pop(adapter, None)

    def batches(self, rows: Sequence[WrittenRow]) -> list[DecodingBatch]:
        """Return batches of the rows that share a call for their prompts."""
        return [batch for group in self._groups(rows) for batch in self._calls(group)]

    def is_long(self, batch: DecodingBatch, budget: CallBudget | None = None) -> bool:
        """Return whether the prompt of a batch takes several calls. Default budget: that of the decoder."""
        return batch.is_long(budget or self.budget) and self._reads_chunks(batch.rows[0].adapter)

    def _calls(self, rows: Sequence[WrittenRow]) -> list[DecodingBatch]:
        return [self.batch_type(self.inputs, self.session, call) for call in self.budget.calls(rows)]

    def _groups(self, rows: Sequence[WrittenRow]) -> list[list[WrittenRow]]:
        """Return the rows that may share calls."""
        groups: dict[object, list[WrittenRow]] = {}
        varied = len({len(row.prompt) for row in rows}) > 1
        mixes = self._may_mix({row.adapter for row in rows})
        for row in rows:
            length = 0 if varied and self._pads_left(row.adapter) else len(row.prompt)
            apart = None if self._manifest.batch_invariant else row
            open_language = len(row.forced) if row.languages else None
            groups.setdefault((None if mixes else row.adapter, length, open_language, apart), []).append(row)
        return list(groups.values())

    def may_share(self, first: DecodingBatch, other: DecodingBatch) -> bool:
        """Return whether each row of two batches has the logits in one call that it has in two.

        Batches whose caches would mostly be padding do not share calls, either.
        """
        adapters = first.adapters | other.adapters
        if not self._may_mix(adapters):
            return False
        if first.lengths == other.lengths:
            return True
        padded = (len(first.rows) + len(other.rows)) * max(first.lengths[1], other.lengths[1])
        if padded > max(_SHARED_TOKENS, 2 * (first.tokens + other.tokens)):
            return False
        return all(map(self._pads_left, adapters))

    def _may_mix(self, adapters: Collection[str | None]) -> bool:
        return self._manifest.batch_invariant and (len(adapters) == 1 or self.session.may_mix(adapters))

    def _pads_left(self, adapter: str | None) -> bool:
        """Try once whether padding that the mask hides changes no logits with an adapter."""
        if adapter not in self._pads:
            can_hide = self.inputs.mask is not None and self._manifest.batch_invariant
            self._pads[adapter] = can_hide and self._is_same_padded(adapter)
        return self._pads[adapter]

    def _is_same_padded(self, adapter: str | None) -> bool:
        """Return whether two rows of different lengths have the same logits separately, together and merged later."""
        random, words = np.random.default_rng(0), self.inputs.ids.limit or 2
        prompts = [random.integers(0, words, count).tolist() for count in _TRIAL]
        rows = [WrittenRow(at, prompt, adapter) for at, prompt in enumerate(prompts)]
        short, long, both = (self.batch_type(self.inputs, self.session, some) for some in (rows[:1], rows[1:], rows))
        first = [batch.logits() for batch in (short, long, both)]
        for batch in (short, long, both):
            batch.append([row.prompt[0] for row in batch.rows])
        merged = short.merged(long)
        second = [batch.logits() for batch in (short, long, both, merged)]
        together = np.stack([first[2], second[2], second[3]])
        apart = [np.concatenate(step[:2]) for step in (first, second, second)]
        return bool(np.abs(together - np.stack(apart)).max() <= self._tolerance(adapter))

    def _reads_chunks(self, adapter: str | None) -> bool:
        """Try once whether a prompt in parts has the logits of the whole prompt with an adapter."""
        if adapter not in self._chunks:
            can_read = self.inputs.source is None and self.inputs.media is None and self._manifest.batch_invariant
            self._chunks[adapter] = can_read and self._is_same_in_chunks(adapter)
        return self._chunks[adapter]

    def _is_same_in_chunks(self, adapter: str | None) -> bool:
        random, words = np.random.default_rng(0), self.inputs.ids.limit or 2
        prompt = random.integers(0, words, max(_TRIAL)).tolist()
        whole, parts = (self.batch_type(self.inputs, self.session, [WrittenRow(0, prompt, adapter)]) for _ in range(2))
        try:
            while parts.is_long(_TRIAL_CHUNKS):
                parts.read_chunk(_TRIAL_CHUNKS)
        except RequestError:  # a graph that takes a past and one new token only
            return False
        first = [batch.logits() for batch in (whole, parts)]
        for batch in (whole, parts):
            batch.append(prompt[:1])
        second = [batch.logits() for batch in (whole, parts)]
        return bool(np.abs(np.diff([first, second], axis=1)).max() <= self._tolerance(adapter))

    def _tolerance(self, adapter: str | None) -> float:
        """Return the budget of an adapter's logits."""
        records = {record.name: record.golden for record in self._manifest.adapters}
        golden = self._manifest.golden if adapter is None else records.get(adapter, self._manifest.golden)
        return float(golden.absolute[self.inputs.logits.name])


def _no_file(given: str) -> RequestError:
    return RequestError("the bundle writes the texts of files", found=given, fix="call " + _RUN)


def _advance(batch: DecodingBatch) -> Iterator[WrittenRow]:
    """Write a token of each row, yield the rows, and drop those that are done; raises the error of a row."""
    batch.step()
    for row in batch.rows:
        if row.error is not None:
            raise row.error
        yield row
    batch.drop_done()
