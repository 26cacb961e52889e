"""The plain API: answers, adapters and metrics."""

from __future__ import annotations

import asyncio

from fastapi import Depends, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.plugins.serve.calls import Call, parse
from adapter_export.plugins.serve.route_context import Context


class PlainApi:
    """Routes of the plain API."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        admitted = [Depends(self._context.admission.check)]
        app.get("/adapters")(self.adapters)
        app.put("/adapters/{name}", dependencies=admitted)(self.load)
        app.delete("/adapters/{name:path}", dependencies=admitted)(self.unload)
        app.get("/metrics")(self.metrics)
        for path, endpoint in (("/answer", self.answer), ("/run", self.run)):
            app.add_route(path, endpoint, methods=["POST"])  # FastAPI's dependency injection adds time to each request

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
        """Answer rows according to the tasks of their adapters."""
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

    async def metrics(self) -> Response:
        """Return metrics in Prometheus's text format."""
        metrics = self._context.metrics
        for served in self._service.models.served:
            metrics.look(served)
        return Response(metrics.exposition(), media_type=metrics.content_type)
