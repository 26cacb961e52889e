"""An OCI registry on this machine: Debian's `docker-registry`, with storage of its own, on a free port."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
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
    if login:
        (folder / "htpasswd").write_text(_HTPASSWD)
    with _running(
        folder, f"auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n" if login else ""
    ) as registry:
        yield registry


@contextmanager
def _running(folder: Path, auth: str) -> Iterator[OciRegistry]:
    program = shutil.which("docker-registry")
    if program is None:
        skip_or_fail("a registry is missing: `apt-get install docker-registry`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
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


@contextmanager
def token_registry(folder: Path) -> Iterator[OciRegistry]:
    """Start a registry that wants tokens, and who gives them for a name and a password, as Docker Hub and GHCR do."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (folder / "tokens.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    chain = [b64encode(certificate.public_bytes(Encoding.DER)).decode()]

    class Tokens(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            kind, name, actions = asked["scope"][0].split(":")
            is_known = self.headers.get("Authorization") == f"Basic {b64encode(f'{NAME}:{PASSWORD}'.encode()).decode()}"
            access = {"type": kind, "name": name, "actions": actions.split(",") if is_known else []}
            claims = {"iss": "tests", "sub": NAME, "aud": asked["service"][0], "jti": "1", "access": [access]}
            times = {"iat": int(time.time()), "nbf": int(time.time()) - 60, "exp": int(time.time()) + 300}
            parts = [
                _base64url(json.dumps(one)) for one in ({"typ": "JWT", "alg": "ES256", "x5c": chain}, claims | times)
            ]
            numbers = decode_dss_signature(key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256())))
            signature = urlsafe_b64encode(b"".join(number.to_bytes(32, "big") for number in numbers)).decode()
            body = json.dumps({"token": ".".join([*parts, signature.rstrip("=")])}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    realm = f"http://127.0.0.1:{server.server_address[1]}/token"
    auth = f"{{realm: '{realm}', service: tests, issuer: tests, rootcertbundle: {folder}/tokens.crt}}"
    try:
        with _running(folder, f"auth: {{token: {auth}}}\n") as registry:
            yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _base64url(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")
