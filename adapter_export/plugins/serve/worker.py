"""A worker: one of several processes that share a port. It applies the changes that the supervisor sends."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.errors import AdapterExportError, InputError, UsageError
from adapter_export.plugins.serve.limits import RefusedError, status_of
from adapter_export.plugins.serve.process import make_server, run_server
from adapter_export.plugins.serve.server_settings import Limits, ServerSettings, SessionSettings
from adapter_export.plugins.serve.telemetry import log, log_to_stderr
from adapter_export.runtime import Bundle

MOST_LINE = 2**24
"""Maximum bytes of a line between processes. Files of adapters are passed by path."""

Apply = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Task:
    """The configuration of a worker, sent as its first line.

    Attributes:
        settings: settings of the server.
        bundles: folders of the private copies, by name.
        folder: folder for shared files.
        changes: earlier changes to apply.
    """

    settings: ServerSettings
    bundles: Mapping[str, str]
    folder: Path
    changes: Sequence[tuple[str, dict[str, Any]]]

    @classmethod
    def of(cls, line: str) -> Task:
        """Parse the line."""
        document = json.loads(line)
        settings = document["settings"]
        settings["sessions"] = SessionSettings(**settings["sessions"])
        settings["limits"] = Limits(**settings["limits"])
        settings |= {name: settings[name] and Path(settings[name]) for name in ("adapters_dir", "state", "lora_root")}
        return cls(ServerSettings(**settings), document["bundles"], Path(document["folder"]), document["changes"])


def refusal(error: AdapterExportError | RefusedError) -> list[Any]:
    """Return the error of a change as JSON."""
    if isinstance(error, RefusedError):
        return [error.status, str(error), error.again]
    return [status_of(error), str(error), None]


class Relay:
    """The connection of a worker to the supervisor."""

    def __init__(self, connection: socket.socket, task: Task) -> None:
        self._connection, self._task = connection, task
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._tasks = set[asyncio.Task[None]]()

    async def start(self, apply: Apply) -> None:
        """Apply earlier changes, then listen for new ones."""
        self._reader, self._writer = await asyncio.open_connection(sock=self._connection, limit=MOST_LINE)
        for change, arguments in self._task.changes:
            await apply(change, arguments)
        self._spawn(self._listen(apply))

    def send(self, **message: object) -> None:
        """Send a message."""
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def ask(self, change: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make a change in all workers, and return its JSON description.

        Raises:
            RefusedError: the change is refused.
        """
        if "data" in arguments:  # other workers, including later ones, read the file
            with tempfile.NamedTemporaryFile(dir=self._task.folder, delete=False) as file:
                file.write(arguments.pop("data"))
            arguments["path"] = file.name
        number = next(self._numbers)
        self._pending[number] = asyncio.get_running_loop().create_future()
        self.send(ask=number, change=change, arguments=arguments)
        try:
            return await self._pending[number]
        finally:
            del self._pending[number]

    async def _listen(self, apply: Apply) -> None:
        while line := await self._reader.readline():
            message = json.loads(line)
            if "apply" in message:
                self._spawn(self._apply(apply, message))
            elif (future := self._pending.get(message["answer"])) is not None and not future.done():
                if "refused" in message:
                    future.set_exception(RefusedError(*message["refused"]))
                else:
                    future.set_result(message["done"])
        os.kill(os.getpid(), signal.SIGTERM)  # the supervisor has ended

    async def _apply(self, apply: Apply, message: Mapping[str, Any]) -> None:
        try:
            done = await apply(message["apply"], message["arguments"])
        except (InputError, UsageError, RefusedError) as error:
            self.send(number=message["number"], refused=refusal(error))
        else:
            self.send(number=message["number"], done=done)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def main(connection: int, listening: int) -> None:
    """Run a worker; the arguments are the file descriptors of the supervisor's connection and the listening socket."""
    pair = socket.socket(fileno=connection)
    line = bytearray()
    while not line.endswith(b"\n"):
        part = pair.recv(2**16)
        if not part:
            return
        line += part
    task = Task.of(line.decode())
    relay = Relay(pair, task)
    log_to_stderr(quiet=task.settings.quiet)
    try:
        # the supervisor has verified these copies
        bundles = {name: Bundle.open(home, verify=False, copy=False) for name, home in task.bundles.items()}
        server = make_server(bundles, task.settings, relay)
    except AdapterExportError as error:
        log("worker", level=logging.ERROR, error=str(error))
        sys.exit(error.exit_code)
    with suppress(KeyboardInterrupt):  # the supervisor reports the interrupt
        run_server(
            server, task.settings, socket.socket(fileno=listening), lambda _, names: relay.send(ready=list(names))
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
