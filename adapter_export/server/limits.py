"""Requests that are refused, and bounds on what a client may send."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request as HttpRequest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from adapter_export.errors import AdapterExportError, NotFoundError, RemoteError

MOST_ROWS = 256
"""Rows of one request."""

_LONGEST_HEAD = 2**16
"""Maximum bytes of the headers of a request."""


class RefusedError(Exception):
    """A request that is refused with an HTTP status of its own.

    Args:
        status: of HTTP.
        words: one sentence.
        again: seconds after which the client may ask again. Default: never.
    """

    def __init__(self, status: int, words: str, again: int | None = None) -> None:
        super().__init__(words)
        self.status, self.again = status, again


def status_of(error: AdapterExportError) -> int:
    """Return the HTTP status that says what kind of an error it is."""
    if isinstance(error, NotFoundError):
        return 404
    return 502 if isinstance(error, RemoteError) else 400


async def body_of(request: HttpRequest, most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
        RefusedError: it is larger, or takes longer to come.
    """
    data = bytearray()
    too_large = RefusedError(413, f"the body is too large; expected at most {most:,} bytes")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise RefusedError(408, f"the body did not come within {seconds:g} seconds") from None
    return bytes(data)


def impatient(seconds: float) -> type[HttpToolsProtocol]:
    """Return the protocol of a server that closes a connection on which a head does not come whole, and in time."""

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
