"""Servers of others, started as their users start them."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

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
    """Return whether a server reports that it is healthy."""
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError, TimeoutError):
        return False
