"""The ASGI application: routes, request log, and errors as responses."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter_export.errors import AdapterExportError, InputError, UsageError
from adapter_export.plugins.serve.apis.admin_api import Administration
from adapter_export.plugins.serve.apis.chat_api import ChatApi
from adapter_export.plugins.serve.apis.completions_api import CompletionsApi
from adapter_export.plugins.serve.apis.front_page import FrontPage
from adapter_export.plugins.serve.apis.inference_protocol import InferenceProtocol
from adapter_export.plugins.serve.apis.lora_api import LoraApi
from adapter_export.plugins.serve.apis.ollama_api import OllamaApi
from adapter_export.plugins.serve.apis.openai_api import OpenAiApi, is_openai, openai_error
from adapter_export.plugins.serve.apis.plain_api import PlainApi
from adapter_export.plugins.serve.apis.rerank_api import RerankApi
from adapter_export.plugins.serve.apis.scoring_api import ScoringApi
from adapter_export.plugins.serve.apis.tei_api import TeiApi
from adapter_export.plugins.serve.apis.tokens_api import TokensApi
from adapter_export.plugins.serve.apis.transcriptions_api import TranscriptionsApi
from adapter_export.plugins.serve.limits import RefusedError, status_of
from adapter_export.plugins.serve.route_context import Context
from adapter_export.plugins.serve.telemetry import log
from adapter_export.runtime.arena import PERIOD, return_memory
from adapter_export.words import quoted

_QUERY: Mapping[str, frozenset[str]] = {
    "/adapters/{name}": frozenset({"labels", "task", "bundle"}),
    "/": frozenset({"model", "text"}),  # read by the page
    "/info": frozenset({"model"}),
}
"""Query keys by path of the route. Other routes accept none."""

_QUIET = ("/v2/health/live", "/v2/health/ready", "/metrics")
"""Paths that are polled; only their failures are logged."""


class RequestLog:
    """ASGI middleware that counts, logs and traces each request, and gives it an id."""

    def __init__(self, app: ASGIApp, context: Context) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # of a client: limited and printable, as it goes to the log
        named = headers.get("x-request-id", "")[:200]
        key = named if named.isprintable() and named else uuid.uuid4().hex
        scope.setdefault("state", {})["key"] = key
        state: dict[str, Any] = scope["state"]
        status, began = 500, time.perf_counter()

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["x-request-id"] = key
                if not self._context.control.ready:  # the next connection goes to a server that stays
                    response_headers["connection"] = "close"
            await send(message)

        path, method = scope["path"], scope["method"]
        with self._context.tracer.span(f"{method} {path}", headers) as span:
            try:
                await self._app(scope, receive, send_with_headers)
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
    """ASGI middleware that refuses unknown query keys, which may be misspelled."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; status 400 for unknown or repeated keys."""
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
        words = f"unknown query key {quoted(unknown)}; expected {quoted(sorted(known)) or 'no key'}"
    elif twice:
        words = f"duplicate query key {quoted(twice)}"
    else:
        return None
    return JSONResponse(_body(words, 400, path), status_code=400)


def make_app(context: Context) -> ASGIApp:
    """Return the application of a server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.service.models.start(context.metrics)
        await context.control.start()
        returning = asyncio.create_task(_return_memory())
        yield
        returning.cancel()
        await context.control.stop()
        await context.service.models.stop()

    # FastAPI's documentation pages would load scripts from a CDN
    app = FastAPI(title="adapter-export serve", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(InputError, _refuse)
    app.add_exception_handler(UsageError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_unknown)
    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(Exception, _fail)
    native = (PlainApi(context), Administration(context), FrontPage())
    of_openai = (OpenAiApi(context), CompletionsApi(context), ChatApi(context), TranscriptionsApi(context))
    others = (InferenceProtocol, RerankApi, ScoringApi, TokensApi, TeiApi, OllamaApi, LoraApi)
    for routes in (*native, *of_openai, *(api(context) for api in others)):
        routes.add_to(app)
    return RequestLog(KnownQuery(app), context)


async def _return_memory() -> None:
    """Return the memory of calls to the system, also while no further call runs."""
    while True:
        await asyncio.sleep(PERIOD)
        await asyncio.to_thread(return_memory)


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
    return _refusal(request, f"internal error ({type(error).__name__}); the log of the server has the traceback", 500)


def _refusal(request: HttpRequest, words: str, status: int, again: int | None = None) -> JSONResponse:
    # the rest of the request is not read, or another server should get the next one
    headers = {"connection": "close"} if status in (408, 413, 503) else {}
    if again is not None:
        headers["retry-after"] = str(again)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(_body(words, status, request.url.path), status_code=status, headers=headers)


def _body(words: str, status: int, path: str) -> dict[str, Any]:
    return openai_error(words, status) if is_openai(path) else {"error": words}
