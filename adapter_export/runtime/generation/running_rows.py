"""Rows of many requests that generate together; rows join and leave between steps (continuous batching)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapter_export.errors import InputError
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import DecodingBatch, WrittenRow


class RunningRows:
    """Rows that generate together, each with the tokens that it has by itself.

    New rows compute their prompts in calls of their own, then join the others. A step computes a part of the oldest
    prompt, and other prompts if they are short, each up to the budget of a call: a long prompt delays neither the rows
    that are written nor short prompts. Not thread-safe.

    Args:
        decoder: computes the rows.

    Attributes:
        calls: the rows of each call of the last step that wrote tokens.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._batches: list[DecodingBatch] = []
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
        """Return the batches whose prompts this step computes: the oldest, and the shortest others."""
        if not new:
            return []
        oldest, *others = new
        chosen, total, budget = [oldest], 0, self._decoder.budget.tokens
        for batch in sorted(others, key=lambda batch: batch.unread):
            total += batch.unread
            if total > budget:
                break
            chosen.append(batch)
        return chosen

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
            if batch.is_new and self._decoder.is_long(batch):
                batch.read_chunk(self._decoder.budget)
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
