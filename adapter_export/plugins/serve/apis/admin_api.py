"""Administration: routes from names to models."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.route_context import Context
from adapter_export.safe_io.documents import parse_json


class Administration:
    """Routes of the routing table."""

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
        """Set the route of a name."""
        route = parse_json(await self._context.body(request), "the request")
        return await self._change("route", name=name, route=route)

    async def unroute(self, name: str) -> Response:
        """Delete a route."""
        if name not in self._context.service.routes.table:
            raise RefusedError(404, f"there is no route `{name}`")
        return await self._change("unroute", name=name)

    async def rollback(self) -> Response:
        """Restore the routes from before the last change."""
        return await self._change("rollback")

    async def _change(self, change: str, **arguments: Any) -> Response:
        await self._context.in_time(self._context.control.do(change, **arguments))
        return await self.routes()
