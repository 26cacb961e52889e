"""Workers that run calls: this process, processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from socket import create_connection
from typing import Any

from adapter_export.errors import UsageError
from adapter_export.safe_io.parsers import parsing
from adapter_export.words import argument

_SECONDS = 10.0
"""Timeout in seconds for the head of a cluster to answer."""


class ThisProcess(ExitStack):
    """This process, which runs a call when it is submitted."""

    count = 1

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run a call."""
        done: Future[Any] = Future()
        done.set_result(call(*arguments))
        return done


class Processes(ExitStack):
    """Processes on this machine; if one dies, only its own call fails, and a new process replaces it."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self._pools: list[ProcessPoolExecutor | None] = [None] * count
        self._last: list[Future[Any] | None] = [None] * count

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start a call in an idle process."""
        at = next(at for at, last in enumerate(self._last) if last is None or last.done())
        pool, last = self._pools[at], self._last[at]
        if pool is None or (last is not None and isinstance(last.exception(), BrokenExecutor)):
            # one pool per process: in a shared pool, one dead process fails the calls of all
            context = multiprocessing.get_context("spawn")
            pool = self._pools[at] = self.enter_context(ProcessPoolExecutor(1, context, _end_with_parent))
        begun = self._last[at] = pool.submit(call, *arguments)
        return begun


def _end_with_parent() -> None:
    """End this process when its parent is killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayWorkers(ExitStack):
    """Tasks of a Ray cluster, or of one that is started on this machine; its machines see the same files.

    Args:
        address: cluster address, `auto` or `local`; an open connection is reused.
        count: parallel tasks; by default as many as fit the cluster.
        processors: processors per task.
        accelerators: accelerators of each task.

    Raises:
        UsageError: there is no such cluster.
    """

    def __init__(self, address: str, count: int | None, processors: int, accelerators: int) -> None:
        super().__init__()
        import ray  # noqa: PLC0415 - an extra

        if not ray.is_initialized():
            local: dict[str, Any] = {"num_cpus": (count or 1) * processors} if address == "local" else {}

            def refusal(reason: str) -> UsageError:
                return UsageError("no Ray cluster answers", where=argument("ray", address), found=reason)

            with parsing(refusal):  # `ray.init` raises plain `Exception`, too
                host, _, port = address.removeprefix("ray://").rpartition(":")
                if port.isdecimal():  # Ray itself waits for minutes
                    create_connection((host, int(port)), _SECONDS).close()
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
                ray.init(address=address, log_to_driver=False, include_dashboard=False if local else None, **local)
            self.callback(ray.shutdown)
        resources: Mapping[str, float] = ray.cluster_resources()
        self.count = max(1, int(resources.get("CPU", 1)) // processors) if count is None else count
        self._remote = ray.remote(num_cpus=processors, num_gpus=accelerators, max_retries=0)
        self._begun: list[Any] = []
        self.callback(lambda: [ray.cancel(each) for each in self._begun])

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Start a task."""
        self._begun.append(self._remote(call).remote(*arguments))
        begun: Future[Any] = self._begun[-1].future()
        return begun


Workers = ThisProcess | Processes | RayWorkers
"""Run `count` calls at a time. Leaving the block waits for running calls, and cancels those of Ray.

The future of a call has an error if its worker died.
"""
