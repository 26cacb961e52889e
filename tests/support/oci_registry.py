"""An OCI registry on this machine: Debian's `docker-registry`, with storage of its own, on a free port."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolchain import skip_or_fail

NAME, PASSWORD = "tester", "secret"
_HTPASSWD = f"{NAME}:$2b$04$UeZrfrsSyOpYjtw3DxqC1upASusM7A886m/BrQ2i8m4CtfuuM/dC2\n"
"""As `htpasswd -B` writes it."""


@dataclass(frozen=True)
class OciRegistry:
    """A registry that runs.

    Attributes:
        host: with its port.
        storage: the folder with its blobs.
    """

    host: str
    storage: Path

    def blob(self, digest: str) -> Path:
        """The file of a blob."""
        hexadecimal = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal / "data"


@contextmanager
def oci_registry(folder: Path, *, login: bool = False) -> Iterator[OciRegistry]:
    """Start a registry, with a login if that is asked for, and stop it at the end."""
    program = shutil.which("docker-registry")
    if program is None:
        skip_or_fail("a registry is missing: `apt-get install docker-registry`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    auth = ""
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
        auth = f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n"
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/storage}}}}\nhttp: {{addr: {host}}}\n{auth}"
    )
    with subprocess.Popen([program, "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(host)
            yield OciRegistry(host, folder / "storage")
        finally:
            process.terminate()


def _wait(host: str) -> None:
    address, port = host.split(":")
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection((address, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"the registry at {host} does not answer")
