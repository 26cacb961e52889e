"""Generation for concurrent requests: texts share calls, and join and leave between two tokens."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from adapter_export.errors import InputError
from adapter_export.runtime.generation.decoding_batch import WrittenRow
from adapter_export.runtime.generation.running_rows import RunningRows
from adapter_export.runtime.generation.text_writer import OpenText, Piece, TextWriter
from adapter_export.server.limits import RefusedError

Event = Piece | BaseException
"""A piece of a text, or the error that ends a request."""


@dataclass(eq=False)
class TextJob:
    """The texts of one request.

    Attributes:
        texts: the texts.
        held: resources to release when the texts are done, such as a hold on the adapter.
        events: pieces of the texts, as they are generated.
    """

    texts: Sequence[OpenText]
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


class TextQueue:
    """Generates texts in a thread; create it inside a running event loop.

    Each step computes the next token of all running rows. A queued text joins when fewer than `most` rows run.

    Args:
        writer: generates texts with a bundle.
        most: maximum running rows.
        most_waiting: maximum queued rows.
        on_step: called for each call of a step with its number of rows.
    """

    def __init__(self, writer: TextWriter, *, most: int, most_waiting: int, on_step: Callable[[int], None]) -> None:
        self.writer = writer
        self._most, self._most_waiting, self._on_step = most, most_waiting, on_step
        self._waiting: deque[tuple[TextJob, OpenText]] = deque()
        self._open: dict[WrittenRow, tuple[TextJob, OpenText]] = {}
        self._thread = ThreadPoolExecutor(1, "adapter-export-texts")
        self._running: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of queued rows."""
        return sum(not text.row.is_done for _, text in self._waiting)

    def submit(self, job: TextJob) -> None:
        """Queue the texts of a request; RefusedError (503) if the queue is full."""
        if self.waiting + len(job.texts) > self._most_waiting:
            raise RefusedError(503, "the queue is full; try again later", again=1)
        self._waiting.extend((job, text) for text in job.texts)
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Finish the submitted texts, then end the thread."""
        if self._running is not None:
            await self._running
        self._thread.shutdown()

    async def _run(self) -> None:
        loop, rows = asyncio.get_running_loop(), self.writer.running()
        while True:
            new = self._joining()
            self._open |= new
            if not self._open:
                break
            step = loop.run_in_executor(self._thread, _step, rows, list(new), dict(self._open))
            (found,) = await asyncio.gather(step, return_exceptions=True)  # one failure must not stop the queue
            if isinstance(found, BaseException):
                rows = self.writer.running()
                found = [(job, found) for job, _ in self._open.values()]
            for job, event in found:
                job.events.put_nowait(event)
                if isinstance(event, BaseException) or job.is_done:
                    job.close()
            for count in rows.calls:
                self._on_step(count)
            self._open = {row: both for row, both in self._open.items() if not row.is_done}

    def _joining(self) -> dict[WrittenRow, tuple[TextJob, OpenText]]:
        """Remove as many rows from the queue as can start now."""
        found: dict[WrittenRow, tuple[TextJob, OpenText]] = {}
        while self._waiting and len(self._open) + len(found) < self._most:
            job, text = self._waiting.popleft()
            if not text.row.is_done:
                found[text.row] = job, text
        return found


def _step(
    rows: RunningRows, new: Sequence[WrittenRow], texts: Mapping[WrittenRow, tuple[TextJob, OpenText]]
) -> list[tuple[TextJob, Event]]:
    """Compute the next token of each row; return the new pieces of text and the errors."""
    rows.join(new)
    found: list[tuple[TextJob, Event]] = []
    for row in rows.step():
        job, text = texts[row]
        event: Event | None
        try:
            event = row.error or text.piece()
        except InputError as error:
            event = row.error = error
        if event is not None:
            found.append((job, event))
    return found
