"""The routes of HTTP: the plain API, health, metrics, administration and the page for people."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ipaddress
import logging
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter_export.errors import InputError, UsageError, quoted
from adapter_export.safe_io.documents import parse_json
from adapter_export.server.calls import Call, parse
from adapter_export.server.control import Control
from adapter_export.server.limits import Limits, RefusedError, body_of, status_of
from adapter_export.server.protocol import add_protocol
from adapter_export.server.service import Service
from adapter_export.server.telemetry import Metrics, Tracer, log

Found = TypeVar("Found")

_STRANGERS = ("x-forwarded-for", "forwarded", "x-real-ip")
"""Headers that a proxy adds, behind which anybody may be."""

_QUERY: Mapping[str, frozenset[str]] = {
    "/adapters/{name}": frozenset({"labels", "task", "bundle"}),
    "/": frozenset({"model", "text"}),  # read by the page
}
"""Query keys by the path of the route; all other routes have none."""

_QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
"""What is asked all the time, and logged only when it fails."""


@dataclass(frozen=True)
class Facing:
    """What an app needs beside its service.

    Attributes:
        limits: of a client.
        metrics: are counted.
        tracer: of requests.
        token: that administration takes; without one, only who sits at this machine may change anything.
    """

    limits: Limits
    metrics: Metrics
    tracer: Tracer
    token: str | None = None


class Admission:
    """Who may change what is served: who has the token, or without one, who sits at this machine.

    Pages of others that a browser on this machine shows are strangers, too: their requests name their `Origin`, and
    one that comes by a name that leads here (DNS rebinding) another `Host`.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    def check(self, request: HttpRequest) -> None:
        """Raise RefusedError (401, 403) for strangers."""
        if self._token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(given.encode(), self._token.encode()):
                raise RefusedError(401, "this needs the header `authorization: Bearer TOKEN` with the admin token")
            return
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        near = request.client is not None and _is_loopback(request.client.host)
        own = _is_loopback(_named(host)) and origin in (None, f"http://{host}")
        if not near or not own or any(name in request.headers for name in _STRANGERS):
            raise RefusedError(403, "only who sits at this machine may do this; start the server with an admin token")


def _named(host: str) -> str:
    """Return the name in a header `Host`, without its port; nothing if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Watched:
    """Counts, logs and traces each request, and gives it an id; a middleware of ASGI."""

    def __init__(self, app: ASGIApp, control: Control, facing: Facing) -> None:
        self._app, self._control, self._facing = app, control, facing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        named = headers.get("x-request-id", "")[:200]
        key = named if named.isprintable() and named else uuid.uuid4().hex
        scope.setdefault("state", {})["key"] = key
        state: dict[str, Any] = scope["state"]
        status, began = 500, time.perf_counter()

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = MutableHeaders(scope=message)
                given["x-request-id"] = key
                if not self._control.ready:  # the client opens another one, to a server that stays
                    given["connection"] = "close"
            await send(message)

        path, method = scope["path"], scope["method"]
        with self._facing.tracer.span(f"{method} {path}", headers) as span:
            try:
                await self._app(scope, receive, answered)
            finally:
                seconds, model = time.perf_counter() - began, state.get("model")
                self._facing.metrics.request(model, status, seconds)
                if span is not None:
                    span.set_attribute("http.request.method", method)
                    span.set_attribute("url.path", path)
                    span.set_attribute("http.response.status_code", status)
                    span.set_attribute("adapter_export.model", model or "")
                if path not in _QUIET or status >= 400:
                    log(
                        "request",
                        id=key,
                        method=method,
                        path=path,
                        status=status,
                        ms=round(1000 * seconds, 2),
                        **{name: state[name] for name in ("model", "adapter", "rows") if name in state},
                    )


class KnownQuery:
    """Refuses unknown query keys, any of which could be a misspelled one; a middleware of ASGI."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 400."""
        app: ASGIApp = self._app
        if scope.get("query_string"):
            keys = Counter(key for key, _ in QueryParams(scope["query_string"]).multi_items())
            routes = (route for route in self._app.routes if route.matches(scope)[0] is Match.FULL)
            if isinstance(route := next(routes, None), Route):
                app = _refused_query(keys, _QUERY.get(route.path, frozenset())) or app
        await app(scope, receive, send)


def _refused_query(keys: Counter[str], known: frozenset[str]) -> Response | None:
    unknown, twice = sorted(set(keys) - known), [key for key, count in keys.items() if count > 1]
    if unknown:
        words = f"unknown query key {quoted(unknown)}; expected {quoted(sorted(known)) or 'none'}"
    elif twice:
        words = f"the query key {quoted(twice)} is given twice"
    else:
        return None
    return JSONResponse({"error": words}, status_code=400)


def make_app(service: Service, control: Control, facing: Facing) -> ASGIApp:
    """Return the server's app."""
    limits, admission = facing.limits, Admission(facing.token)
    page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    script = hashlib.sha256(page.partition("<script>")[2].partition("</script>")[0].encode()).digest()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{base64.b64encode(script).decode()}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def in_time(answer: Awaitable[Found]) -> Found:
        try:
            async with asyncio.timeout(limits.answering):
                return await answer
        except TimeoutError:
            raise RefusedError(503, f"there was no answer within {limits.answering:g} seconds", again=1) from None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.models.start(facing.metrics.call)
        await control.start()
        yield
        await control.stop()
        await service.models.stop()

    # without FastAPI's own pages, whose scripts come from elsewhere
    app = FastAPI(title="adapter-export serve", lifespan=lifespan, openapi_url=None, redirect_slashes=False)

    def refusal(words: str, status: int, again: int | None = None) -> JSONResponse:
        headers = {"connection": "close"} if status in (408, 413, 503) else {}
        if again is not None:
            headers["retry-after"] = str(again)
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse({"error": words}, status_code=status, headers=headers)

    @app.exception_handler(InputError)
    @app.exception_handler(UsageError)
    async def refuse(_: HttpRequest, error: InputError | UsageError) -> JSONResponse:
        return refusal(str(error), status_of(error))

    @app.exception_handler(HTTPException)
    async def refuse_unknown(request: HttpRequest, error: HTTPException) -> JSONResponse:
        return refusal(f"{error.detail}: {request.method} {request.url.path}", error.status_code)

    @app.exception_handler(RefusedError)
    async def refuse_with_status(_: HttpRequest, error: RefusedError) -> JSONResponse:
        return refusal(str(error), error.status, error.again)

    @app.exception_handler(Exception)
    async def fail(request: HttpRequest, error: Exception) -> JSONResponse:
        log("bug", level=logging.ERROR, trace=True, id=request.state.key)
        return refusal(f"{type(error).__name__}; this is a bug, and the log of the server has more", 500)

    async def call_of(request: HttpRequest) -> tuple[Call, str]:
        data = await body_of(request, limits.call, limits.sending)
        call = parse(Call, data) if len(data) < 2**14 else await asyncio.to_thread(parse, Call, data)
        return call, call.id or request.state.key

    @app.get("/adapters")
    async def adapters() -> Response:
        return JSONResponse(service.adapters())

    @app.put("/adapters/{name}")
    async def load(
        name: str, request: HttpRequest, labels: str | None = None, task: str | None = None, bundle: str | None = None
    ) -> Response:
        admission.check(request)
        data = await body_of(request, limits.adapter, limits.sending)
        named = None if labels is None else labels.split(",")
        await in_time(control.do("load", name=name, data=data, labels=named, task=task, bundle=bundle))
        return JSONResponse(service.adapters())

    @app.delete("/adapters/{name:path}")
    async def unload(name: str, request: HttpRequest) -> Response:
        admission.check(request)
        await in_time(control.do("unload", name=name))
        return JSONResponse(service.adapters())

    async def answer(request: HttpRequest) -> Response:
        call, key = await call_of(request)
        return JSONResponse({"rows": await in_time(service.answer(call, key, request.state))})

    async def run(request: HttpRequest) -> Response:
        call, key = await call_of(request)
        return JSONResponse({"rows": await in_time(service.run(call, key, request.state))})

    for path, endpoint in (
        ("/answer", answer),
        ("/run", run),
    ):  # not by FastAPI, whose own way to a function takes time
        app.add_route(path, endpoint, methods=["POST"])

    @app.get("/statistics")
    async def statistics() -> Response:
        found = {served.name: asdict(served.session.statistics) for served in service.models.served}
        return JSONResponse(next(iter(found.values())) if len(found) == 1 else found)

    @app.get("/metrics")
    async def metrics() -> Response:
        for served in service.models.served:
            facing.metrics.look(served)
        return Response(facing.metrics.exposition(), media_type=facing.metrics.content_type)

    @app.get("/admin/routes")
    async def routes(request: HttpRequest) -> Response:
        admission.check(request)
        return JSONResponse(service.routes.document())

    @app.put("/admin/routes/{name}")
    async def route(name: str, request: HttpRequest) -> Response:
        admission.check(request)
        data = await body_of(request, limits.call, limits.sending)
        await in_time(control.do("route", name=name, route=parse_json(data, "the request")))
        return JSONResponse(service.routes.document())

    @app.delete("/admin/routes/{name}")
    async def unroute(name: str, request: HttpRequest) -> Response:
        admission.check(request)
        if name not in service.routes.table:
            raise RefusedError(404, f"there is no route `{name}`")
        await in_time(control.do("unroute", name=name))
        return JSONResponse(service.routes.document())

    @app.post("/admin/rollback")
    async def rollback(request: HttpRequest) -> Response:
        admission.check(request)
        await in_time(control.do("rollback"))
        return JSONResponse(service.routes.document())

    @app.get("/")
    async def front() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy, "x-content-type-options": "nosniff"})

    async def authorised(request: HttpRequest) -> None:
        admission.check(request)

    add_protocol(app, service, control, limits, in_time, authorised)
    return Watched(KnownQuery(app), control, facing)
