"""Rows of many requests that generate together; rows join and leave between steps (continuous batching)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapter_export.errors import InputError
from adapter_export.runtime.generation.call_budget import CallBudget
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import DecodingBatch, WrittenRow

_CALM = 16
"""Steps after a short prompt in which the parts of long ones stay small: other short ones may follow."""


class RunningRows:
    """Rows that generate together, each with the tokens that it has by itself.

    New rows compute their prompts in calls of their own, then join the others. A step computes short prompts up to the
    budget of a call, and a part of the oldest long one. After a part, short prompts have a step without another part,
    and the parts beside them are small, so that a short prompt waits no longer than it takes. Not thread-safe.

    Args:
        decoder: computes the rows.

    Attributes:
        calls: the rows of each call of the last step that wrote tokens.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._batches: list[DecodingBatch] = []
        self._has_read_part, self._calm_steps = False, _CALM
        self.calls: list[int] = []

    def join(self, rows: Sequence[WrittenRow]) -> None:
        """Add new rows, whose prompts the next steps compute."""
        self._batches += self._decoder.batches(rows)

    def step(self) -> list[WrittenRow]:
        """Write a token of each row whose prompt is computed, and compute parts of the others.

        Returns:
            The rows with a new token; a row that cannot be computed has an `error` instead.
        """
        for batch in self._batches:
            batch.drop_done()
        batches = self._shared()
        prompts = self._prompts([batch for batch in batches if batch.is_new])
        computed = [*(batch for batch in batches if not batch.is_new), *prompts]
        stepped = {batch: list(self._advance(batch)) for batch in computed}
        self._batches = [part for batch in batches for part in stepped.get(batch, [batch])]
        done = [
            part for parts in stepped.values() for part in parts if not part.is_new or part.rows[0].error is not None
        ]
        self.calls = [len(batch.rows) for batch in done]
        return [row for batch in done for row in batch.rows]

    def _prompts(self, new: Sequence[DecodingBatch]) -> list[DecodingBatch]:
        """Return the batches whose prompts this step computes: short ones, and the oldest long one."""
        long = [batch for batch in new if batch.is_begun or self._decoder.is_long(batch)]
        chosen = self._short_prompts([batch for batch in new if batch not in long])
        self._calm_steps = 0 if chosen else self._calm_steps + 1
        self._has_read_part = bool(long) and not (chosen and self._has_read_part)
        return [*chosen, *long[: int(self._has_read_part)]]

    def _short_prompts(self, short: Sequence[DecodingBatch]) -> list[DecodingBatch]:
        """Return the oldest short prompt, and the shortest others within the budget of a call."""
        if not short:
            return []
        oldest, *others = short
        chosen, total, budget = [oldest], 0, self._decoder.budget.tokens
        for batch in sorted(others, key=lambda batch: batch.unread):
            total += batch.unread
            if total > budget:
                break
            chosen.append(batch)
        return chosen

    @property
    def _budget(self) -> CallBudget:
        """Budget of parts of long prompts."""
        budget = self._decoder.budget
        return budget if self._calm_steps > _CALM else budget.beside

    def _shared(self) -> list[DecodingBatch]:
        """Return the batches that have rows, those that can share calls as one."""
        batches_now: list[DecodingBatch] = []
        for batch in self._batches:
            if not batch.rows:
                continue
            for at, other in enumerate(batches_now):
                if not (batch.is_new or other.is_new) and self._decoder.may_share(other, batch):
                    batches_now[at] = other.merged(batch)
                    break
            else:
                batches_now.append(batch)
        return batches_now

    def _advance(self, batch: DecodingBatch) -> Iterator[DecodingBatch]:
        try:
            if batch.is_new and self._decoder.is_long(batch, self._budget):
                batch.read_chunk(self._budget)
            else:
                batch.step()
        except InputError as error:
            if batch.is_new and len(batch.rows) > 1:  # one prompt does not fit; the others are computed without it
                for row in batch.rows:
                    for single in self._decoder.batches([row]):
                        yield from self._advance(single)
                return
            for row in batch.rows:
                row.error = error
        yield batch
