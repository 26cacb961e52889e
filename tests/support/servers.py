"""Servers of others, started as their users start them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "180"}
"""The environment of programs that start Ray: nothing is sent anywhere, and a busy machine has time."""

_SECONDS = 120


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextmanager
def running(
    words: Sequence[str | Path], folder: Path, environment: Mapping[str, str], ready: Callable[[], bool]
) -> Iterator[None]:
    """A program, from the moment at which it is ready until the block ends."""
    said = folder / "said.txt"
    with said.open("wb") as log:
        process = subprocess.Popen(list(map(str, words)), cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + _SECONDS
        while not ready():
            assert process.poll() is None, said.read_text("utf-8", "replace")
            assert time.monotonic() < end, said.read_text("utf-8", "replace")
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(_SECONDS)


def answers_at(url: str) -> bool:
    """Whether a server says that all is well there."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def ray_cluster(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """A Ray of two processors on this machine, by its address.

    Its ports are given: for one that is not, its daemon waits 15 seconds, and dies on a busy machine.
    """
    port = free_port()
    agents = (
        "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port",
        "metrics-export-port",
        "runtime-env-agent-port",
    )
    words = ["--head", "--block", "--num-cpus=2", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    words += [f"--port={port}", *(f"--{name}-port={free_port()}" for name in agents)]

    def listens() -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", port)) == 0

    with running([Path(sys.prefix) / "bin" / "ray", "start", *words], folder, environment, listens):
        yield f"127.0.0.1:{port}"
