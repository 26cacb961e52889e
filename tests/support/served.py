"""`adapter-export serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from starlette.testclient import TestClient

from adapter_export.plugins.serve.models import named_bundles
from adapter_export.plugins.serve.process import make_server
from adapter_export.plugins.serve.server_settings import ServerSettings


@dataclass(frozen=True)
class Served:
    """A server with a client; `log` is the file of its stderr."""

    client: httpx2.Client
    process: subprocess.Popen[str]
    log: Path

    def ended(self) -> str:
        """Stop it like a platform does, wait, and return its output."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        return self.log.read_text()


def made_app(*places: Path | str, **settings: object) -> TestClient:
    """A client of a server without a process of its own; errors of `serve` are raised here."""
    found = ServerSettings(**settings)
    made = make_server(named_bundles([str(place) for place in places]), found)
    return TestClient(made.app, "http://127.0.0.1", client=("127.0.0.1", 1), raise_server_exceptions=False)


@contextmanager
def served(*places: str | Path, **environment: str) -> Iterator[Served]:
    """Serve bundles on a free port until the block ends; options stand among the places."""
    words = [sys.executable, "-m", "adapter_export", "serve", *map(str, places), "--port", "0"]
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        around = {**os.environ, **environment}
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True, env=around) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("listening on "), Path(log.name).read_text()
                with httpx2.Client(base_url=line.split()[-1], timeout=30, trust_env=False) as client:
                    yield Served(client, process, Path(log.name))
            finally:
                if process.poll() is None:
                    process.kill()
