"""Batching of concurrent requests: rows that arrive during a call share the next one, each with its own adapter."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from adapter_export.errors import InputError
from adapter_export.plugins.serve.limits import check_queue
from adapter_export.runtime import Request

RunMany = Callable[[Sequence[Request]], list[Any]]
"""Computes requests, such as `Session.run_many`: one result per request, in order."""


_VALUES = 64
"""Values of an image or audio file that count as a token."""


class _Waiting(NamedTuple):
    request: Request
    future: asyncio.Future[Any]
    since: float


def tokens_of(request: Request) -> int:
    """Return the cost of a request: its tokens, or a token for some values of an image or audio file."""
    arrays = request.inputs.values()
    return max((array.size if array.dtype.kind in "biu" else array.size // _VALUES for array in arrays), default=0)


class Collector:
    """Runs requests in threads; create it inside a running event loop.

    A call begins as soon as a thread is free, with all queued requests. Without load, no request waits; under load,
    calls fill by themselves. `max_wait` delays a call that could begin, so that more requests join it.

    Args:
        run_many: computes requests; called in a thread.
        calls: maximum concurrent calls.
        most: maximum requests of one call.
        most_waiting: maximum queued requests.
        most_tokens: maximum tokens of queued requests.
        max_wait: maximum delay of a call in seconds.
        on_call: called for each call with the number of requests and the seconds that the first of them waited.
    """

    def __init__(
        self,
        run_many: RunMany,
        *,
        calls: int = 1,
        most: int = 32,
        most_waiting: int = 4096,
        most_tokens: int = 2**20,
        max_wait: float = 0.0,
        on_call: Callable[[int, float], None] | None = None,
    ) -> None:
        self._run_many = run_many
        self._most, self._most_waiting, self._max_wait = most, most_waiting, max_wait
        self._most_tokens = most_tokens
        self._waiting: deque[_Waiting] = deque()
        self._on_call = on_call
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(calls, "adapter-export-call")
        self._free = calls
        self._timer: asyncio.TimerHandle | None = None
        self._running = set[asyncio.Task[None]]()

    @property
    def waiting(self) -> int:
        """Number of queued requests."""
        return len(self._waiting)

    async def answer(self, requests: Sequence[Request]) -> list[Any]:
        """Return the answer of each request.

        Raises:
            InputError: one of them is invalid. Requests of other callers are not affected.
            RefusedError: 413, there are more than the queue takes; 429, the queue is full.
        """
        check_queue(len(self._waiting), len(requests), self._most_waiting, "rows", "max_queue")
        waiting, new = (sum(map(tokens_of, some)) for some in ((queued.request for queued in self._waiting), requests))
        check_queue(waiting, new, self._most_tokens, "tokens", "max_queue_tokens")
        now = self._loop.time()
        futures: list[asyncio.Future[Any]] = [self._loop.create_future() for _ in requests]
        self._waiting.extend(map(_Waiting, requests, futures, [now] * len(requests)))
        self._begin()
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:  # the client disconnected, or another of its rows is invalid
                future.cancel()

    async def stop(self) -> None:
        """Answer queued requests, then end the threads."""
        while self._waiting or self._running:
            self._begin(in_time=False)
            await asyncio.gather(*self._running)
        self._threads.shutdown()

    def _begin(self, *, in_time: bool = True) -> None:
        """Begin calls with queued requests while threads are free."""
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()
        while self._free and self._waiting:
            left = self._waiting[0].since + self._max_wait - self._loop.time()
            if in_time and left > 0 and len(self._waiting) < self._most:
                if self._timer is None:
                    self._timer = self._loop.call_later(left, self._on_timer)
                return
            some = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            some = [queued for queued in some if not queued.future.done()]
            if some:
                self._free -= 1
                task = self._loop.create_task(self._call(some))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    def _on_timer(self) -> None:
        self._timer = None
        self._begin()

    async def _call(self, some: Sequence[_Waiting]) -> None:
        if self._on_call is not None:
            self._on_call(len(some), self._loop.time() - some[0].since)
        await self._run(some)
        self._free += 1
        self._begin()

    async def _run(self, some: Sequence[_Waiting]) -> None:
        running = self._loop.run_in_executor(self._threads, self._run_many, [waiting.request for waiting in some])
        (outcome,) = await asyncio.gather(running, return_exceptions=True)  # an error must not stop the queue
        if isinstance(outcome, InputError) and len(some) > 1:
            for waiting in some:  # one is invalid: run each separately, so that the others succeed
                await self._run([waiting])
            return
        answers = [outcome] * len(some) if isinstance(outcome, BaseException) else outcome
        for waiting, answer in zip(some, answers, strict=True):
            if waiting.future.done():  # the client disconnected
                continue
            if isinstance(answer, BaseException):
                waiting.future.set_exception(answer)
            else:
                waiting.future.set_result(answer)
