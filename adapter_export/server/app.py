"""The routes of HTTP: the plain API, health, metrics, administration and the page for people."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib import resources
from typing import Any

from fastapi import Depends, FastAPI
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter_export.errors import AdapterExportError, InputError, UsageError, quoted
from adapter_export.safe_io.documents import parse_json
from adapter_export.server.calls import Call, parse
from adapter_export.server.limits import RefusedError, status_of
from adapter_export.server.openai_api import OpenAiApi, is_openai, openai_error
from adapter_export.server.protocol import InferenceProtocol
from adapter_export.server.rerank_api import RerankApi
from adapter_export.server.route_context import Context
from adapter_export.server.telemetry import log

_QUERY: Mapping[str, frozenset[str]] = {
    "/adapters/{name}": frozenset({"labels", "task", "bundle"}),
    "/": frozenset({"model", "text"}),  # read by the page
}
"""Query keys by the path of the route; all other routes have none."""

_QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
"""Paths that are polled; logged only when they fail."""


class RequestLog:
    """Counts, logs and traces each request, and gives it an id; a middleware of ASGI."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app, self._context = app, context

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
                if not self._context.control.ready:  # the client opens another one, to a server that stays
                    given["connection"] = "close"
            await send(message)

        path, method = scope["path"], scope["method"]
        with self._context.tracer.span(f"{method} {path}", headers) as span:
            try:
                await self._app(scope, receive, answered)
            finally:
                seconds, model = time.perf_counter() - began, state.get("model")
                self._context.metrics.request(model, status, seconds)
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
                app = _refused_query(keys, _QUERY.get(route.path, frozenset()), scope["path"]) or app
        await app(scope, receive, send)


def _refused_query(keys: Counter[str], known: frozenset[str], path: str) -> Response | None:
    unknown, twice = sorted(set(keys) - known), [key for key, count in keys.items() if count > 1]
    if unknown:
        words = f"unknown query key {quoted(unknown)}; expected {quoted(sorted(known)) or 'none'}"
    elif twice:
        words = f"the query key {quoted(twice)} is given twice"
    else:
        return None
    return JSONResponse(_body(words, 400, path), status_code=400)


class PlainApi:
    """The routes of the plain API: answers, adapters, statistics and metrics."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        admitted = [Depends(self._context.admission.check)]
        app.get("/adapters")(self.adapters)
        app.put("/adapters/{name}", dependencies=admitted)(self.load)
        app.delete("/adapters/{name:path}", dependencies=admitted)(self.unload)
        app.get("/statistics")(self.statistics)
        app.get("/metrics")(self.metrics)
        for path, endpoint in (("/answer", self.answer), ("/run", self.run)):
            app.add_route(path, endpoint, methods=["POST"])  # FastAPI's own way to a function takes time

    async def adapters(self) -> Response:
        """List the adapters."""
        return JSONResponse(self._service.adapters())

    async def load(
        self,
        name: str,
        request: HttpRequest,
        labels: str | None = None,
        task: str | None = None,
        bundle: str | None = None,
    ) -> Response:
        """Load an adapter from the file in the body."""
        named = None if labels is None else labels.split(",")
        data = await self._context.file(request)
        change = self._context.control.do("load", name=name, data=data, labels=named, task=task, bundle=bundle)
        await self._context.in_time(change)
        return await self.adapters()

    async def unload(self, name: str) -> Response:
        """Unload an adapter."""
        await self._context.in_time(self._context.control.do("unload", name=name))
        return await self.adapters()

    async def answer(self, request: HttpRequest) -> Response:
        """Answer rows by the tasks of their adapters."""
        call, key = await self._call(request)
        return JSONResponse({"rows": await self._context.in_time(self._service.answer(call, key, request.state))})

    async def run(self, request: HttpRequest) -> Response:
        """Return the outputs of rows."""
        call, key = await self._call(request)
        return JSONResponse({"rows": await self._context.in_time(self._service.run(call, key, request.state))})

    async def _call(self, request: HttpRequest) -> tuple[Call, str]:
        data = await self._context.body(request)
        call = parse(Call, data) if len(data) < 2**14 else await asyncio.to_thread(parse, Call, data)
        return call, call.id or request.state.key

    async def statistics(self) -> Response:
        """Return what the sessions have computed; with several bundles, by bundle."""
        found = {served.name: asdict(served.session.statistics) for served in self._service.models.served}
        return JSONResponse(next(iter(found.values())) if len(found) == 1 else found)

    async def metrics(self) -> Response:
        """Return metrics for Prometheus."""
        metrics = self._context.metrics
        for served in self._service.models.served:
            metrics.look(served)
        return Response(metrics.exposition(), media_type=metrics.content_type)


class Administration:
    """The routes that show and change where names lead."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        admitted = [Depends(self._context.admission.check)]
        app.get("/admin/routes", dependencies=admitted)(self.routes)
        app.put("/admin/routes/{name}", dependencies=admitted)(self.route)
        app.delete("/admin/routes/{name}", dependencies=admitted)(self.unroute)
        app.post("/admin/rollback", dependencies=admitted)(self.rollback)

    async def routes(self) -> Response:
        """List the routes."""
        return JSONResponse(self._context.service.routes.document())

    async def route(self, name: str, request: HttpRequest) -> Response:
        """Let a name lead to models."""
        route = parse_json(await self._context.body(request), "the request")
        return await self._changed("route", name=name, route=route)

    async def unroute(self, name: str) -> Response:
        """Forget a route."""
        if name not in self._context.service.routes.table:
            raise RefusedError(404, f"there is no route `{name}`")
        return await self._changed("unroute", name=name)

    async def rollback(self) -> Response:
        """Go back to the routes before the last change."""
        return await self._changed("rollback")

    async def _changed(self, change: str, **given: Any) -> Response:
        await self._context.in_time(self._context.control.do(change, **given))
        return await self.routes()


class FrontPage:
    """The page for people, with a policy by which a browser runs its own script and nothing else."""

    def __init__(self) -> None:
        self._page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
        script = hashlib.sha256(self._page.partition("<script>")[2].partition("</script>")[0].encode()).digest()
        self._policy = (
            f"default-src 'none'; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{base64.b64encode(script).decode()}'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def add_to(self, app: FastAPI) -> None:
        """Add the route to an app."""
        app.get("/")(self.front)

    async def front(self) -> Response:
        """Return the page."""
        headers = {"content-security-policy": self._policy, "x-content-type-options": "nosniff"}
        return HTMLResponse(self._page, headers=headers)


def make_app(context: Context) -> ASGIApp:
    """Return the server's app."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.service.models.start(context.metrics.call)
        await context.control.start()
        yield
        await context.control.stop()
        await context.service.models.stop()

    # without FastAPI's own pages, whose scripts come from elsewhere
    app = FastAPI(title="adapter-export serve", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(InputError, _refuse)
    app.add_exception_handler(UsageError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_unknown)
    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(Exception, _fail)
    apis = (PlainApi(context), InferenceProtocol(context), OpenAiApi(context), RerankApi(context))
    for routes in (*apis, Administration(context), FrontPage()):
        routes.add_to(app)
    return RequestLog(KnownQuery(app), context)


async def _refuse(request: HttpRequest, error: Exception) -> JSONResponse:
    if isinstance(error, RefusedError):
        return _refusal(request, str(error), error.status, error.again)
    assert isinstance(error, AdapterExportError)
    return _refusal(request, str(error), status_of(error))


async def _refuse_unknown(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _refusal(request, f"{error.detail}: {request.method} {request.url.path}", error.status_code)


async def _fail(request: HttpRequest, error: Exception) -> JSONResponse:
    log("bug", level=logging.ERROR, trace=True, id=request.state.key)
    return _refusal(request, f"{type(error).__name__}; this is a bug, and the log of the server has more", 500)


def _refusal(request: HttpRequest, words: str, status: int, again: int | None = None) -> JSONResponse:
    headers = {"connection": "close"} if status in (408, 413, 503) else {}
    if again is not None:
        headers["retry-after"] = str(again)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(_body(words, status, request.url.path), status_code=status, headers=headers)


def _body(words: str, status: int, path: str) -> dict[str, Any]:
    return openai_error(words, status) if is_openai(path) else {"error": words}
