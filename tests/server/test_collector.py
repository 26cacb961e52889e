"""Batching across requests: order, delay, errors and disconnects."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from adapter_export.errors import RequestError
from adapter_export.plugins.serve.collector import Collector
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.runtime import Request


class Slow:
    """Returns the names of adapters once released; `bad` is invalid."""

    def __init__(self) -> None:
        self.calls: list[list[str | None]] = []
        self.may = threading.Event()

    def __call__(self, requests: Sequence[Request]) -> list[str | None]:
        names = [request.adapter for request in requests]
        self.calls.append(names)
        assert self.may.wait(10)
        if "bad" in names:
            raise RequestError("does not fit")
        return names


def _run(work: Callable[[Slow], Awaitable[None]]) -> None:
    asyncio.run(work(Slow()))  # type: ignore[arg-type]


def _rows(*names: str) -> list[Request]:
    return [Request({}, name) for name in names]


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.001)


def test_requests_during_a_call_share_the_next_one() -> None:
    async def work(slow: Slow) -> None:
        collector, told = Collector(slow, most=3, on_call=lambda rows, _: told.append(rows)), list[int]()
        asking = [asyncio.create_task(collector.answer(_rows(*names))) for names in ("a", "bc", "de", "f")]
        await _until(lambda: bool(slow.calls))
        slow.may.set()
        assert await asyncio.gather(*asking) == [["a"], ["b", "c"], ["d", "e"], ["f"]]
        assert slow.calls == [["a"], ["b", "c", "d"], ["e", "f"]]
        assert told == [1, 3, 2]
        await collector.stop()

    _run(work)


def test_an_invalid_row_does_not_affect_others() -> None:
    async def work(slow: Slow) -> None:
        slow.may.set()
        collector = Collector(slow, max_wait=0.01)
        found = await asyncio.gather(
            *(collector.answer(_rows(*names)) for names in (("a",), ("bad",), ("b", "bad"), ("c",))),
            return_exceptions=True,
        )
        assert [found[0], found[3]] == [["a"], ["c"]]
        assert all(isinstance(one, RequestError) for one in found[1:3])
        await collector.stop()

    _run(work)


def test_a_row_waits_at_most_the_batching_delay() -> None:
    async def work(slow: Slow) -> None:
        slow.may.set()
        collector = Collector(slow, max_wait=0.1, most=3)
        first = asyncio.create_task(collector.answer(_rows("a")))
        await asyncio.sleep(0.02)
        assert await collector.answer(_rows("b")) == ["b"]
        assert await first == ["a"]
        assert slow.calls == [["a", "b"]]
        began = asyncio.get_running_loop().time()
        assert await collector.answer(_rows("c", "d", "e")) == ["c", "d", "e"]  # full
        assert asyncio.get_running_loop().time() - began < 0.1
        await collector.stop()

    _run(work)


def test_rows_of_disconnected_clients_are_dropped() -> None:
    async def work(slow: Slow) -> None:
        collector = Collector(slow, most_waiting=3)
        first, gone = (asyncio.create_task(collector.answer(_rows(name))) for name in ("a", "gone"))
        await _until(lambda: bool(slow.calls))
        gone.cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(collector.answer(_rows("b")))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError, match="try again later"):
            await collector.answer(_rows("c", "d", "e"))
        slow.may.set()
        await collector.stop()  # answers queued requests
        assert [await first, await last] == [["a"], ["b"]]
        assert slow.calls == [["a"], ["b"]]

    _run(work)


def test_calls_run_concurrently() -> None:
    async def work(slow: Slow) -> None:
        collector = Collector(slow, calls=2)
        asking = [asyncio.create_task(collector.answer(_rows(name))) for name in "abc"]
        await _until(lambda: len(slow.calls) == 2)
        slow.may.set()
        assert await asyncio.gather(*asking) == [["a"], ["b"], ["c"]]
        assert sorted(slow.calls[:2]) == [["a"], ["b"]]
        await collector.stop()

    _run(work)
