"""The supervisor of several workers that share a port and the files of the bundles.

It opens each bundle once, and workers map its private copy. A change that one worker receives is applied in all of
them, one change at a time, and again in a worker that replaces a dead one. The processes exchange lines of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapter_export.errors import AdapterExportError, UsageError
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.lora_loader import LOAD_LORA, LoraLoader
from adapter_export.plugins.serve.models import check_resident, named_bundles, open_session
from adapter_export.plugins.serve.process import OnReady, address_of, listen
from adapter_export.plugins.serve.server_settings import ServerSettings
from adapter_export.plugins.serve.telemetry import forget_process, log, log_to_stderr
from adapter_export.plugins.serve.worker import MOST_LINE, refusal
from adapter_export.runtime import Bundle
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.words import argument

_ROUTES = ("route", "unroute", "rollback")
_MOST_CHANGES = 500
"""Maximum changes that a new worker repeats; many more than can be rolled back."""

_PAUSE = 1.0
"""Seconds until a dead worker is replaced, so that one that cannot start costs little."""


def serve_workers(
    places: Sequence[str], settings: ServerSettings, workers: int, on_ready: OnReady = lambda *_: None
) -> None:
    """Serve bundles in several processes until this one is terminated; arguments and errors as in `serve_here`."""
    if os.name == "nt":
        raise UsageError("processes cannot share a port on Windows", fix="omit " + argument("workers"))
    log_to_stderr(quiet=settings.quiet)
    with listen(settings) as listening, temporary_folder() as folder:
        bundles = named_bundles(places)
        for bundle in bundles.values():
            _check(bundle, settings)
        asyncio.run(_Watch(bundles, settings, listening, folder).run(workers, on_ready))


def _check(bundle: Bundle, settings: ServerSettings) -> None:
    """Compare a session with golden data; the copies of the workers do not contain any."""
    check_resident(bundle, open_session(bundle, settings.sessions), settings.sessions)


@dataclass(eq=False)
class _Worker:
    """A worker process with its connection and pending changes."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    pending: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    names: Sequence[str] = ()

    def send(self, **message: object) -> None:
        """Send a message to the worker."""
        self.writer.write(json.dumps(message, default=str).encode() + b"\n")


class _Watch:
    """Starts, watches and replaces workers."""

    def __init__(
        self, bundles: dict[str, Bundle], settings: ServerSettings, listening: socket.socket, folder: Path
    ) -> None:
        self._bundles, self._settings, self._listening, self._folder = bundles, settings, listening, folder
        self._old: list[Bundle] = []  # still in use by running requests
        self._workers: list[_Worker] = []
        self._changes: list[tuple[str, dict[str, Any]]] = []
        self._changing, self._ending = asyncio.Lock(), asyncio.Event()
        self._lora = LoraLoader.of(settings)
        self._numbers = itertools.count()
        self._tasks = set[asyncio.Task[None]]()

    async def run(self, count: int, on_ready: OnReady) -> None:
        """Start the workers, and watch them until shutdown."""
        (self._folder / "metrics").mkdir()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload_all()))
        await asyncio.gather(*(self._start(index) for index in range(count)))
        if not self._workers:
            fix = "see their errors on stderr, or omit " + argument("workers")
            raise UsageError("no worker could start", fix=fix)
        if not self._ending.is_set():
            on_ready(address_of(self._listening), self._workers[0].names)
        await self._ending.wait()
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.process.terminate()
        await asyncio.gather(*(worker.process.wait() for worker in self._workers))

    async def _start(self, index: int) -> None:
        """Start a worker and wait until it is ready; changes wait meanwhile."""
        async with self._changing:
            ours, theirs = socket.socketpair()
            words = [sys.executable, "-m", "adapter_export.plugins.serve.worker", str(theirs.fileno())]
            words.append(str(self._listening.fileno()))
            fds = (theirs.fileno(), self._listening.fileno())
            around = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._folder / "metrics")}
            process = await asyncio.create_subprocess_exec(
                *words, pass_fds=fds, env=around, stdin=asyncio.subprocess.DEVNULL
            )
            theirs.close()  # held by the worker only, so that the connection ends when it exits
            worker = _Worker(process, *await asyncio.open_connection(sock=ours, limit=MOST_LINE))
            # one worker writes the file of the routes
            settings = self._settings if index == 0 else replace(self._settings, keeps_state=False)
            keeps = self._settings.state is not None  # the state file contains the routes
            worker.send(
                settings=asdict(settings),
                bundles={name: bundle.home for name, bundle in self._bundles.items()},
                folder=self._folder,
                changes=[entry for entry in self._changes if not (keeps and entry[0] in _ROUTES)],
            )
            self._spawn(self._listen(worker))
            self._spawn(self._live(worker, index))
            ended = asyncio.create_task(process.wait())
            ready = asyncio.create_task(worker.ready.wait())
            await asyncio.wait([ended, ready], return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            ended.cancel()
            if worker.ready.is_set():
                self._workers.append(worker)
            elif not self._workers:
                self._ending.set()  # the first worker failed to start and has logged the reason

    async def _live(self, worker: _Worker, index: int) -> None:
        """Replace a worker that exits."""
        await worker.process.wait()
        forget_process(worker.process.pid, self._folder / "metrics")
        if worker in self._workers:
            self._workers.remove(worker)
            for future in worker.pending.values():
                future.cancel()
        if not self._ending.is_set():
            log("worker", level=logging.ERROR, process=worker.process.pid, ended=worker.process.returncode)
            await asyncio.sleep(_PAUSE)
            await self._start(index)

    async def _listen(self, worker: _Worker) -> None:
        while line := await worker.reader.readline():
            message = json.loads(line)
            if "ready" in message:
                worker.names = message["ready"]
                worker.ready.set()
            elif "ask" in message:
                self._spawn(self._answer(worker, message))
            elif (future := worker.pending.pop(message["number"], None)) is not None and not future.done():
                if "refused" in message:
                    future.set_exception(RefusedError(*message["refused"]))
                else:
                    future.set_result(message["done"])

    async def _answer(self, worker: _Worker, message: dict[str, Any]) -> None:
        try:
            done = await self._change(message["change"], message["arguments"])
        except (AdapterExportError, RefusedError) as error:
            worker.send(answer=message["ask"], refused=refusal(error))
        else:
            worker.send(answer=message["ask"], done=done)

    async def _change(self, change: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Apply a change in the first worker, which may refuse it, then in the others."""
        if change == LOAD_LORA and self._lora is not None:
            change, arguments = "load", await self._lora.prove(**arguments, bundles=self._bundles, into=self._folder)
        async with self._changing:
            fresh = None
            if change == "reload" and arguments["name"] in self._bundles:
                old = self._bundles[arguments["name"]]
                fresh = await asyncio.to_thread(old.reload)
                if fresh is old:
                    return {"bundle": arguments["name"], "changed": False, "dropped": []}
                await asyncio.to_thread(_check, fresh, self._settings)
                arguments = {**arguments, "home": str(fresh.home)}
            if not self._workers:
                raise RefusedError(503, "no worker is running; try again", again=1)
            # the first alone: a change that it refuses must not be made anywhere
            first, *others = self._workers
            done = await self._apply(first, change, arguments)
            await asyncio.gather(*(self._apply(worker, change, arguments) for worker in others))
            if fresh is not None:
                self._old = [*self._old, self._bundles[arguments["name"]]][-2 * len(self._bundles) :]
                self._bundles[arguments["name"]] = fresh
            else:
                self._changes = [*self._changes, (change, arguments)][-_MOST_CHANGES:]
            return done

    async def _apply(self, worker: _Worker, change: str, arguments: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        worker.pending[number] = future
        worker.send(apply=change, arguments=arguments, number=number)
        try:
            return await future
        except asyncio.CancelledError:
            raise RefusedError(503, "a worker ended during the change; try again", again=1) from None

    async def _reload_all(self) -> None:
        for name in list(self._bundles):
            try:
                await self._change("reload", {"name": name})
            except (AdapterExportError, RefusedError) as error:
                log("reload", level=logging.ERROR, bundle=name, error=str(error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
