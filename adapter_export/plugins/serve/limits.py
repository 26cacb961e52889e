"""Limits of requests, and refusals with an HTTP status."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from adapter_export.errors import AdapterExportError, NotFoundError, RemoteError

MOST_ROWS = 256
"""Maximum rows of a request."""

DISCONNECTED = 499
"""Status in the log of a request whose client left; nginx uses the same number."""

_LONGEST_HEAD = 2**16
"""Maximum bytes of the headers of a request."""


class RefusedError(Exception):
    """A refusal with an HTTP status.

    Args:
        status: the HTTP status.
        words: the message, one sentence.
        again: seconds until the client may retry. Default: no retry.
    """

    def __init__(self, status: int, words: str, again: int | None = None) -> None:
        super().__init__(words)
        self.status, self.again = status, again


def check_queue(waiting: int, more: int, most: int, unit: str, option: str) -> None:
    """Check that a queue takes a request.

    Args:
        waiting: rows or tokens that are queued.
        more: those of the request.
        most: maximum of both.
        unit: `rows` or `tokens`.
        option: setting of the server with the maximum.

    Raises:
        RefusedError: 413, the request exceeds the maximum by itself; 429, it does not fit now.
    """
    if more > most:
        raise RefusedError(
            413, f"the request has {more:,} {unit}; expected at most {most:,} (`{option}` of the server)"
        )
    if waiting + more > most:
        raise RefusedError(429, "the queue is full; try again later", again=1)


def status_of(error: AdapterExportError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, NotFoundError):
        return 404
    return 502 if isinstance(error, RemoteError) else 400


async def body_of(request: HttpRequest, most: int, seconds: float) -> bytes:
    """Return the body of a request.

    Raises:
        RefusedError: 413, it exceeds `most` bytes; 408, it takes longer than `seconds`; 499, the client disconnected.
    """
    data = bytearray()
    too_large = RefusedError(413, f"the body is too large; expected at most {most:,} bytes (`max_body` of the server)")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large
    except ClientDisconnect:
        raise RefusedError(DISCONNECTED, "the client disconnected") from None
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {seconds:g} seconds") from None
    return bytes(data)


def impatient(seconds: float) -> type[HttpToolsProtocol]:
    """Return a uvicorn protocol that closes connections whose headers are too large or take longer than `seconds`."""

    class Impatient(HttpToolsProtocol):
        waiting: asyncio.TimerHandle | None = None
        head = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.wait()

        def data_received(self, data: bytes) -> None:
            self.head += len(data)
            if self.waiting is not None and self.head > _LONGEST_HEAD + len(data):
                self.transport.close()
                return
            super().data_received(data)

        def on_message_begin(self) -> None:
            self.wait()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.stop_waiting()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop_waiting()
            super().connection_lost(exc)

        def wait(self) -> None:
            if self.waiting is None:
                self.waiting, self.head = self.loop.call_later(seconds, self.transport.close), 0

        def stop_waiting(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

    return Impatient
