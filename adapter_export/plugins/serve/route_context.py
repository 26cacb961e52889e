"""Shared objects of the routes: service, control, limits and admission."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import AsyncIterator, Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.requests import Request as HttpRequest

from adapter_export.plugins.serve.control import Control
from adapter_export.plugins.serve.limits import DISCONNECTED, RefusedError, body_of
from adapter_export.plugins.serve.server_settings import MAX_ADAPTER_BYTES, Limits
from adapter_export.plugins.serve.service import Service
from adapter_export.plugins.serve.telemetry import Metrics, Tracer

Awaited = TypeVar("Awaited")

_PROXY_HEADERS = ("x-forwarded-for", "forwarded", "x-real-ip")
"""Headers of proxies, which may forward requests of any client."""


class Admission:
    """Admits administrators: clients with the token; without a token, loopback clients.

    Web pages in a browser on this machine are refused: their requests have a foreign `Origin`, or after DNS rebinding
    a foreign `Host`.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    @property
    def has_token(self) -> bool:
        """True if administrators need the token."""
        return self._token is not None

    async def check(self, request: HttpRequest) -> None:
        """Raise RefusedError (401, 403) for clients that are not admitted."""
        if self._token is not None:
            scheme, _, token = request.headers.get("authorization", "").partition(" ")
            # in constant time: the duration must not tell how much of a token is right
            if scheme.lower() != "bearer" or not secrets.compare_digest(token.encode(), self._token.encode()):
                raise RefusedError(401, "the header `authorization: Bearer TOKEN` with the admin token is required")
            return
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        near = request.client is not None and _is_loopback(request.client.host)
        # a browser here may send what a foreign page asks for: its origin differs, or its host after DNS rebinding
        is_local = _is_loopback(_host_name(host)) and origin in (None, f"http://{host}")
        # behind a proxy on this machine, all clients would seem to be local
        if not near or not is_local or any(name in request.headers for name in _PROXY_HEADERS):
            raise RefusedError(403, "only loopback clients may administer this server; start it with an admin token")


async def _wait_for_disconnect(request: HttpRequest) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _host_name(host: str) -> str:
    """Return the host name of a `Host` header without the port; an empty string if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Context:
    """Shared objects of the routes.

    Attributes:
        service: computes rows and texts.
        control: changes the service.
        limits: limits of requests.
        metrics: count requests and calls.
        tracer: traces requests.
        admission: admits administrators.
    """

    service: Service
    control: Control
    limits: Limits
    metrics: Metrics
    tracer: Tracer
    admission: Admission

    async def in_time(self, answer: Awaitable[Awaited]) -> Awaited:
        """Await an answer; RefusedError (503) after `request_timeout`."""
        seconds = self.limits.request_timeout
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise RefusedError(503, f"there was no answer within {seconds:g} seconds", again=1) from None

    async def each_in_time(self, items: AsyncIterator[Awaited]) -> AsyncIterator[Awaited]:
        """Yield items; RefusedError (503) if they are not complete after `request_timeout`."""
        seconds = self.limits.request_timeout
        end = asyncio.get_running_loop().time() + seconds
        try:
            while True:
                async with asyncio.timeout_at(end):
                    item = await anext(items)
                yield item
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusedError(503, f"the answer took longer than {seconds:g} seconds", again=1) from None

    async def while_connected(self, request: HttpRequest, answer: Coroutine[Any, Any, Awaited]) -> Awaited:
        """Await an answer as `in_time` does; cancel it if the client disconnects.

        The body of the request must have been read.
        """
        working = asyncio.create_task(self.in_time(answer))
        leaving = asyncio.create_task(_wait_for_disconnect(request))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise RefusedError(DISCONNECTED, "the client disconnected")
            return working.result()
        finally:
            for task in (working, leaving):
                task.cancel()

    async def body(self, request: HttpRequest) -> bytes:
        """Return the body of a request; errors as in `body_of`."""
        return await body_of(request, self.limits.max_body, self.limits.read_timeout)

    async def file(self, request: HttpRequest) -> bytes:
        """Return the body of a request that uploads an adapter; errors as in `body_of`."""
        return await body_of(request, MAX_ADAPTER_BYTES, self.limits.read_timeout)
