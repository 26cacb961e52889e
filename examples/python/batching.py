"""Requests that arrive while the session is busy go into its next call together, each with its own adapter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from limits import RefusedError

from adapter_export.errors import InputError
from adapter_export.runtime import Request

RunMany = Callable[[Sequence[Request]], list[Any]]
"""Such as `session.run_many`: an answer for each request, in order."""


class Collector:
    """Runs requests in the background; make it inside a running event loop.

    Args:
        run_many: computes; called in a thread, one call at a time.
        most: how many requests at most go into one call of it.
        most_waiting: how many at most wait.
    """

    def __init__(self, run_many: RunMany, most: int = 256, most_waiting: int = 4096) -> None:
        self._run_many = run_many
        self._most, self._most_waiting = most, most_waiting
        self._waiting: asyncio.Queue[tuple[Request, asyncio.Future[Any]]] = asyncio.Queue()
        self._task = asyncio.create_task(self._work())

    async def answer(self, requests: Sequence[Request]) -> list[Any]:
        """The answer of each request.

        Raises:
            InputError: one of them does not fit; it does not disturb those of others.
            RefusedError: too many wait.
        """
        if self._waiting.qsize() + len(requests) > self._most_waiting:
            raise RefusedError(503, "too many requests are waiting; try again later")
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in requests]
        for pair in zip(requests, futures, strict=True):
            self._waiting.put_nowait(pair)
        return list(await asyncio.gather(*futures))

    def stop(self) -> None:
        self._task.cancel()

    async def _work(self) -> None:
        while True:
            pairs = [await self._waiting.get()]
            while len(pairs) < self._most and not self._waiting.empty():
                pairs.append(self._waiting.get_nowait())
            pairs = [pair for pair in pairs if not pair[1].done()]  # those of others waited too long
            if pairs:
                await self._run(pairs)

    async def _run(self, pairs: Sequence[tuple[Request, asyncio.Future[Any]]]) -> None:
        computing = asyncio.to_thread(self._run_many, [request for request, _ in pairs])
        (found,) = await asyncio.gather(computing, return_exceptions=True)  # whatever happens, others are waiting
        if isinstance(found, InputError) and len(pairs) > 1:
            for pair in pairs:  # one of them does not fit, and the others need not know
                await self._run([pair])
            return
        answers = [found] * len(pairs) if isinstance(found, BaseException) else found
        for (_, future), answer in zip(pairs, answers, strict=True):
            _settle(future, answer)


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():  # the client has gone
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
