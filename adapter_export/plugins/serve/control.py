"""Changes of a running server: routes, loaded adapters and reloaded bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import ProblemType
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.lora_loader import LOAD_LORA, LoraLoader, read_proof
from adapter_export.plugins.serve.models import LoadedAdapter
from adapter_export.plugins.serve.resolver import Resolver
from adapter_export.plugins.serve.routes import load_routes, route_of, save_routes
from adapter_export.plugins.serve.service import Service
from adapter_export.plugins.serve.telemetry import Metrics, log
from adapter_export.runtime import Bundle
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.safe_io.temporary import temporary_folder


class Relayed(Protocol):
    """Applies changes in several processes, of which this is one."""

    async def start(self, apply: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]], /) -> None:
        """Start to receive changes for this process; `apply` makes them."""

    async def ask(self, change: str, arguments: dict[str, Any], /) -> dict[str, Any]:
        """Make a change in all processes."""


class Control:
    """Changes a running server, one change at a time.

    Args:
        service: the service to change.
        resolver: finds adapters by name.
        metrics: count reloads.
        state: the file that stores the routes across restarts; `None` stores nothing.
        keeps_state: whether this process writes `state`.
        relay: applies changes in all processes; `None` for a single one.
        lora: imports and proves PEFT adapters; `None` refuses them.

    Attributes:
        ready: whether the server accepts new calls; false while it drains.
    """

    def __init__(
        self,
        service: Service,
        resolver: Resolver,
        metrics: Metrics,
        state: Path | None = None,
        *,
        keeps_state: bool = True,
        relay: Relayed | None = None,
        lora: LoraLoader | None = None,
    ) -> None:
        self._service, self._resolver, self._metrics, self._relay = service, resolver, metrics, relay
        self._state, self._lora = state if keeps_state else None, lora
        self._changing = asyncio.Lock()
        self.ready = False
        if state is not None:
            service.routes = load_routes(state)

    async def start(self) -> None:
        """Start inside a running event loop."""
        if self._relay is not None:
            await self._relay.start(self.apply)
        self.ready = True

    async def stop(self) -> None:
        """Stop accepting calls."""
        self.ready = False

    @property
    def loads_lora(self) -> bool:
        """True if the change `load_lora` is possible."""
        return self._lora is not None

    async def do(self, change: str, **arguments: Any) -> dict[str, Any]:
        """Make a change in all processes, and return a JSON description.

        Args:
            change: `load`, `load_lora`, `fetch`, `unload`, `reload`, `route`, `unroute` or `rollback`.
            arguments: the arguments of the change.

        Raises:
            InputError, UsageError, RefusedError: the change is refused, and nothing has changed.
        """
        if self._relay is not None:
            return await self._relay.ask(change, arguments)
        if change == LOAD_LORA and self._lora is not None:
            bundles = {served.name: served.bundle for served in self._service.models.served}
            with temporary_folder() as folder:
                return await self.apply("load", await self._lora.prove(**arguments, bundles=bundles, into=folder))
        return await self.apply(change, arguments)

    async def apply(self, change: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make a change in this process; arguments and errors as in `do`."""
        async with self._changing:
            done = await self._changes[change](self, **arguments)
        log("change", change=change, name=arguments.get("name"), route=arguments.get("route"), **done)
        return done

    async def _load(
        self,
        name: str,
        data: bytes | None = None,
        path: str | None = None,
        labels: Sequence[str] | None = None,
        task: ProblemType | None = None,
        bundle: str | None = None,
        proof: str | None = None,
    ) -> dict[str, Any]:
        """Load an adapter from bytes, from a file, or from a folder with its golden data."""
        if proof is not None:
            extra = await asyncio.to_thread(read_proof, Path(proof), name)
        else:
            if data is None:
                data = await asyncio.to_thread(read_bytes, Path(str(path)))
            extra = LoadedAdapter(name, data, None if labels is None else tuple(labels), task)
        served = await self._service.models.load(extra, bundle=bundle)
        return {"bundle": served.name, "digest": extra.digest}

    async def _fetch(self, name: str, source: str | None = None) -> dict[str, Any]:
        """Load an adapter by its name from the adapters folder, or by a reference from a hub."""
        models = self._service.models
        if source is not None:
            extra = await asyncio.to_thread(self._resolver.fetch_adapter, name, source, models.served)
            served = await models.load(extra)
            return {"bundle": served.name, "digest": extra.digest}
        target = models.find(name) or await self._service.resolve(name)
        if target is None:
            raise RefusedError(404, f"there is no model `{name}`, and no adapter with that name in the adapters folder")
        return {"bundle": target.served.name, "digest": target.digest}

    async def _unload(self, name: str) -> dict[str, Any]:
        """Unload an adapter after its last request."""
        leading = self._service.routes.leading_to(name)
        if leading:
            raise RefusedError(409, f"route `{leading[0]}` uses `{name}`; change the route first")
        await self._service.models.unload(name)
        return {}

    async def _reload(self, name: str, home: str | None = None) -> dict[str, Any]:
        """Reopen a bundle from its folder, or from the copy that another process opened at `home`."""
        fresh = None if home is None else Bundle.open(home, verify=False, copy=False)
        changed = await self._service.models.reload(name, fresh)
        served = next(candidate for candidate in self._service.models.served if candidate.name == name)
        if changed:
            self._metrics.count_reload(served)
        return {"bundle": name, "changed": changed, "dropped": served.dropped}

    async def _route(self, name: str, route: object) -> dict[str, Any]:
        """Set a route."""
        wanted = route_of(route)
        known = set[str]()
        for model in (*wanted.shares, *filter(None, [wanted.shadow])):
            if self._service.models.find(model) or await self._service.resolve(model):
                known.add(model)
        await self._keep(self._service.routes.having(name, wanted, known.__contains__))
        return {}

    async def _unroute(self, name: str) -> dict[str, Any]:
        """Delete a route."""
        await self._keep(self._service.routes.lacking(name))
        return {}

    async def _rollback(self) -> dict[str, Any]:
        """Restore the routes from before the last change."""
        back = self._service.routes.back()
        for name, route in back.table.items():
            for model in route.shares:
                if not (self._service.models.find(model) or await self._service.resolve(model)):
                    raise RequestError("uses a model that is gone", where=f"route `{name}`", found=f"`{model}`")
        await self._keep(back)
        return {}

    async def _keep(self, routes: Any) -> None:
        if self._state is not None:
            await asyncio.to_thread(save_routes, routes, self._state)
        self._service.routes = routes

    _changes: ClassVar[Mapping[str, Callable[..., Awaitable[dict[str, Any]]]]] = {
        "load": _load,
        "fetch": _fetch,
        "unload": _unload,
        "reload": _reload,
        "route": _route,
        "unroute": _unroute,
        "rollback": _rollback,
    }
