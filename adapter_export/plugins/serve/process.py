"""The server process: sockets, signals and shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from adapter_export.address import locate
from adapter_export.errors import AdapterExportError, UsageError
from adapter_export.plugins.serve.app import make_app
from adapter_export.plugins.serve.control import Control, Relayed
from adapter_export.plugins.serve.limits import RefusedError, impatient
from adapter_export.plugins.serve.lora_loader import LoraLoader
from adapter_export.plugins.serve.models import Models, named_bundles
from adapter_export.plugins.serve.resolver import Fetch, Resolver
from adapter_export.plugins.serve.route_context import Admission, Context
from adapter_export.plugins.serve.server_settings import MAX_ADAPTER_BYTES, ServerSettings
from adapter_export.plugins.serve.service import Service
from adapter_export.plugins.serve.telemetry import Metrics, Tracer, log, log_to_stderr
from adapter_export.runtime import Bundle
from adapter_export.runtime.arena import limit_heaps

_KEEP_ALIVE = 75
"""Seconds until an idle connection is closed. Longer than in client pools, so that clients close first."""

OnReady = Callable[[str, Sequence[str]], object]
"""Called with the address and the names of the models when the server is ready."""


@dataclass(frozen=True)
class ServerParts:
    """An application with its control and models."""

    app: ASGIApp
    control: Control
    models: Models


def make_server(bundles: dict[str, Bundle], settings: ServerSettings, relay: Relayed | None = None) -> ServerParts:
    """Open sessions and create the application; errors as in `Bundle.session`, `Models` and `load_routes`.

    `relay` applies changes in other processes as well.
    """
    metrics = Metrics()
    models = Models(bundles, settings.sessions, settings.limits, qualify=settings.qualify)
    resolver = Resolver(settings.adapters_dir, fetcher(settings), MAX_ADAPTER_BYTES)
    service = Service(models, resolver, metrics, settings.limits)
    control = Control(
        service,
        resolver,
        metrics,
        settings.state,
        keeps_state=settings.keeps_state,
        relay=relay,
        lora=LoraLoader.of(settings),
    )
    context = Context(service, control, settings.limits, metrics, Tracer(), Admission(settings.token))
    return ServerParts(make_app(context), control, models)


def fetcher(settings: ServerSettings) -> Fetch | None:
    """Return the function that fetches from hubs and registries; `None` unless `settings.hub`."""
    if not settings.hub:
        return None
    return lambda reference: locate(reference, "artifact").path


def serve_here(places: Sequence[str], settings: ServerSettings, on_ready: OnReady = lambda *_: None) -> None:
    """Serve bundles in this process until SIGTERM or SIGINT.

    Args:
        places: folders of bundles, or `NAME=FOLDER`.
        settings: settings of the server.
        on_ready: called when the server is ready.

    Raises:
        UsageError: two models have the same name, or the port is in use.
        InputError: a bundle cannot be opened.
    """
    with listen(settings) as listening:
        bundles = named_bundles(places)
        run_server(make_server(bundles, settings), settings, listening, on_ready)


def run_server(parts: ServerParts, settings: ServerSettings, listening: socket.socket, on_ready: OnReady) -> None:
    """Run the application until this process is terminated."""
    log_to_stderr(quiet=settings.quiet)
    limit_heaps()
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # uvicorn raises the signal again at its end, which would skip the cleanup
    _Server(parts, settings, on_ready).run(sockets=[listening])


def listen(settings: ServerSettings) -> socket.socket:
    """Return a listening socket; UsageError if the port is in use."""
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # uvicorn's own backlog
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason, _, _ = (error.strerror or str(error)).partition(" (while")  # Python appends the address
        raise UsageError(
            f"cannot listen ({reason})",
            found=f"{settings.host}:{settings.port}",
            fix="choose another host or port; port 0 picks a free one",
        ) from error


def address_of(listening: socket.socket) -> str:
    """Return the address of a socket as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """A uvicorn server that reports readiness, drains on SIGTERM and reloads its bundles on SIGHUP."""

    def __init__(self, parts: ServerParts, settings: ServerSettings, on_ready: OnReady) -> None:
        super().__init__(
            uvicorn.Config(
                parts.app,
                http=impatient(settings.limits.read_timeout),
                timeout_keep_alive=_KEEP_ALIVE,
                limit_concurrency=settings.limits.max_connections,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,  # the peer's own address decides on admission
                lifespan="on",
                ws="none",
            )
        )
        self._parts, self._drain, self._on_ready = parts, settings.drain, on_ready
        self._tasks = set[asyncio.Task[None]]()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        if self.should_exit or not sockets:
            return
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        self._on_ready(address_of(sockets[0]), list(self._parts.models.names()))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain first, then exit; a second signal exits at once."""
        if sig == signal.SIGTERM and self._parts.control.ready and self._drain:
            self._parts.control.ready = False
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._drain, super().handle_exit, sig, None)
            return
        super().handle_exit(sig, frame)

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload_all())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload_all(self) -> None:
        for served in self._parts.models.served:
            try:
                await self._parts.control.do("reload", name=served.name)
            except (AdapterExportError, RefusedError) as error:
                log("reload", level=logging.ERROR, bundle=served.name, error=str(error))
