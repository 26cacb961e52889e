"""Rows of many requests that generate together; rows join and leave between steps (continuous batching)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapter_export.errors import InputError
from adapter_export.runtime.generation.decoder import Decoder
from adapter_export.runtime.generation.decoding_batch import DecodingBatch, WrittenRow


class RunningRows:
    """Rows that generate together, each with the tokens that it has by itself.

    New rows compute their prompts in a call of their own, then join the others. Not thread-safe.

    Args:
        decoder: computes the rows.

    Attributes:
        calls: the rows of each call of the last step.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._batches: list[DecodingBatch] = []
        self.calls: list[int] = []

    def join(self, rows: Sequence[WrittenRow]) -> None:
        """Add new rows, whose prompts the next step computes."""
        self._batches += self._decoder.batches(rows)

    def step(self) -> list[WrittenRow]:
        """Write a token of each row, and return the rows; a row that cannot be computed has an `error` then."""
        for batch in self._batches:
            batch.drop_done()
        batches = self._shared()
        rows = [row for batch in batches for row in batch.rows]
        self._batches = [stepped for batch in batches for stepped in self._stepped(batch)]
        self.calls = [len(batch.rows) for batch in self._batches]
        return rows

    def _shared(self) -> list[DecodingBatch]:
        """Return the batches that have rows, those that can share calls as one."""
        found: list[DecodingBatch] = []
        for batch in self._batches:
            if not batch.rows:
                continue
            for at, other in enumerate(found):
                if not (batch.is_new or other.is_new) and self._decoder.may_share(other, batch):
                    found[at] = other.merged(batch)
                    break
            else:
                found.append(batch)
        return found

    def _stepped(self, batch: DecodingBatch) -> Iterator[DecodingBatch]:
        try:
            batch.step()
        except InputError as error:
            if batch.is_new and len(batch.rows) > 1:  # one prompt does not fit; the others are computed without it
                for row in batch.rows:
                    for own in self._decoder.batches([row]):
                        yield from self._stepped(own)
                return
            for row in batch.rows:
                row.error = error
        yield batch
