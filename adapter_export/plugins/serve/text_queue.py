"""Generation for concurrent requests: texts share calls, and join and leave between two tokens."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from adapter_export.errors import InputError
from adapter_export.plugins.serve.limits import RefusedError, check_queue
from adapter_export.runtime.generation.decoding_batch import WrittenRow
from adapter_export.runtime.generation.running_rows import RunningRows
from adapter_export.runtime.generation.text_writer import OpenText, Piece, TextWriter
from adapter_export.tables import number_of

_SHARE = 8
"""The short lane has an eighth of the rows and tokens."""

Event = Piece | BaseException
"""A piece of a text, or the error that ends a request."""


@dataclass(eq=False)
class TextJob:
    """The texts of one request.

    Attributes:
        texts: the texts.
        writer: generates them.
        held: resources to release when the texts are done, such as a hold on the adapter.
        events: pieces of the texts, as they are generated.
    """

    texts: Sequence[OpenText]
    writer: TextWriter
    held: ExitStack
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    @property
    def is_done(self) -> bool:
        """True if no text gets more tokens."""
        return all(text.row.is_done for text in self.texts)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of all texts as they are generated.

        Raises:
            InputError: a text cannot be computed.
        """
        left = len(self.texts)
        while left:
            event = await self.events.get()
            if isinstance(event, BaseException):
                raise event
            left -= event.done is not None
            yield event

    def close(self) -> None:
        """Stop generating, and release the resources. May be called more than once."""
        for text in self.texts:
            text.row.abandoned = True
        self.held.close()


@dataclass
class _Lane:
    """Rows that run, within limits.

    Attributes:
        rows: maximum rows.
        tokens: maximum tokens of all rows.
        costs: the tokens of each row that runs.
    """

    rows: int
    tokens: int
    costs: dict[WrittenRow, int] = field(default_factory=dict)

    def takes(self, row: WrittenRow, cost: int) -> bool:
        """Add a row if it fits, and return whether it does; an empty lane takes a larger one."""
        fits = len(self.costs) < self.rows and sum(self.costs.values()) + cost <= self.tokens
        if fits or (self.rows and not self.costs):
            self.costs[row] = cost
            return True
        return False

    def drop_done(self) -> None:
        """Drop the rows that are done."""
        self.costs = {row: cost for row, cost in self.costs.items() if not row.is_done}


class TextQueue:
    """Generates texts in a thread; create it inside a running event loop.

    Each step computes the next token of all running rows. A queued text joins when the running ones leave room, first
    those of the request with the fewest tokens that run. An eighth of the room is for short texts of requests without a
    running text, so that requests of many or long texts do not delay them.

    Args:
        writer: generates texts with a bundle.
        rows: maximum running rows.
        tokens: maximum tokens of running rows, prompts and completions. Default: by the size of the caches.
        most_waiting: maximum queued rows.
        most_tokens: maximum tokens of queued rows.
        on_step: called for each call of a step with its number of rows.
    """

    def __init__(
        self,
        writer: TextWriter,
        *,
        rows: int,
        tokens: int | None,
        most_waiting: int,
        most_tokens: int,
        on_step: Callable[[int], None],
    ) -> None:
        self.writer = writer
        self._most_waiting, self._most_tokens, self._on_step = most_waiting, most_tokens, on_step
        self._running_tokens = writer.running_tokens if tokens is None else tokens
        short_rows, short_tokens = rows // _SHARE, self._running_tokens // _SHARE
        self._main = _Lane(rows - short_rows, self._running_tokens - short_tokens)
        self._short = _Lane(short_rows, short_tokens)
        self._queued: dict[TextJob, deque[OpenText]] = {}
        self._open: dict[WrittenRow, tuple[TextJob, OpenText]] = {}
        self._thread = ThreadPoolExecutor(1, "adapter-export-texts")
        self._running: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of queued rows."""
        return len(self._waiting())

    def submit(self, job: TextJob) -> None:
        """Queue the texts of a request.

        Raises:
            RefusedError: 413, a text or the request is larger than this server computes; 429, the queue is full.
        """
        costs = [self.writer.cost(text) for text in job.texts]
        if max(costs) > self._running_tokens:
            most = f"at most {self._running_tokens:,} (`max_batch_tokens` of the server)"
            raise RefusedError(
                413, f"a prompt and its completion need {number_of(max(costs), 'token')}; expected {most}"
            )
        waiting = self._waiting()
        check_queue(len(waiting), len(costs), self._most_waiting, "rows", "max_queue")
        tokens = sum(map(self.writer.cost, waiting))
        check_queue(tokens, sum(costs), self._most_tokens, "tokens", "max_queue_tokens")
        self._queued[job] = deque(job.texts)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Finish the submitted texts, then end the thread."""
        if self._running is not None:
            await self._running
        self._thread.shutdown()

    def _waiting(self) -> list[OpenText]:
        return [text for texts in self._queued.values() for text in texts if not text.row.is_done]

    async def _run(self) -> None:
        loop, rows = asyncio.get_running_loop(), self.writer.running()
        while True:
            new = self._joining()
            self._open |= new
            if not self._open:
                break
            step = loop.run_in_executor(self._thread, _step, rows, list(new), dict(self._open))
            (outcome,) = await asyncio.gather(step, return_exceptions=True)  # one failure must not stop the queue
            if isinstance(outcome, BaseException):
                rows = self.writer.running()
                outcome = [(job, outcome) for job, _ in self._open.values()]
            for job, event in outcome:
                job.events.put_nowait(event)
                if isinstance(event, BaseException) or job.is_done:
                    job.close()
            for count in rows.calls:
                self._on_step(count)
            self._open = {row: both for row, both in self._open.items() if not row.is_done}

    def _joining(self) -> dict[WrittenRow, tuple[TextJob, OpenText]]:
        """Remove the rows from the queue that can start now."""
        self._main.drop_done()
        self._short.drop_done()
        running = Counter[TextJob]()
        for row, (job, _) in self._open.items():
            running[job] += self._main.costs.get(row, 0) + self._short.costs.get(row, 0)
        queues = {job: deque(text for text in texts if not text.row.is_done) for job, texts in self._queued.items()}
        self._queued = {job: texts for job, texts in queues.items() if texts}
        joining: dict[WrittenRow, tuple[TextJob, OpenText]] = {}
        candidates, is_full = list(self._queued), False
        while candidates:
            job = min(candidates, key=running.__getitem__)  # the oldest of those with the fewest running tokens
            texts = self._queued[job]
            row, cost = texts[0].row, self.writer.cost(texts[0])
            is_short = not running[job] and cost <= self._short.tokens
            if not (not is_full and self._main.takes(row, cost)) and not (is_short and self._short.takes(row, cost)):
                is_full = True  # rows of other requests wait for their turn, or large ones would never fit
                candidates.remove(job)
                continue
            joining[row] = job, texts.popleft()
            running[job] += cost
            if not texts:
                candidates.remove(job)
                del self._queued[job]
        return joining


def _step(
    rows: RunningRows, new: Sequence[WrittenRow], texts: Mapping[WrittenRow, tuple[TextJob, OpenText]]
) -> list[tuple[TextJob, Event]]:
    """Compute the next token of each row; return the new pieces of text and the errors."""
    rows.join(new)
    events: list[tuple[TextJob, Event]] = []
    for row in rows.step():
        job, text = texts[row]
        event: Event | None
        try:
            event = row.error or text.piece()
        except InputError as error:
            event = row.error = error
        if event is not None:
            events.append((job, event))
    return events
