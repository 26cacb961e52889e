"""Signer and method named by the signature in a bundle, read without cryptography and not verified."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapter_export.errors import FormatError
from adapter_export.format.manifest_json import SIGNATURE_FILE
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_bytes

MOST_SIGNATURE_BYTES = 2**26
"""Maximum bytes of a signature to read: it names each file in about 200 bytes."""


@dataclass(frozen=True)
class SignatureClaim:
    """The signature of a bundle, in `inspect --json`; schema `signature-claim`.

    Attributes:
        method: `key` if an elliptic curve key signed, `certificate` if the key of an X.509 certificate did; `unknown`
            if `model.sig` is no signature of OpenSSF model-signing.
        signer: the sha256 of the public key, or of the certificate in DER, in lower-case hexadecimal; null if unknown.
        verified: whether it was verified with a key or certificates. Without that, anybody could have written it.
    """

    method: Literal["key", "certificate", "unknown"]
    signer: str | None
    verified: bool


def read_claim(folder: Path, *, verified: bool = False) -> SignatureClaim | None:
    """Return the signer and method that a bundle's signature names, or `None` without a signature.

    Raises:
        FileError: it cannot be read.
    """
    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        return None
    try:
        document = parse_json(read_bytes(path, MOST_SIGNATURE_BYTES), path)
        hint = _at(document, "verificationMaterial", "publicKey", "hint")
        if isinstance(hint, str) and _SHA256.fullmatch(hint):
            return SignatureClaim("key", hint, verified)
        certificate = _at(document, "verificationMaterial", "x509CertificateChain", "certificates", 0, "rawBytes")
        data = base64.b64decode(certificate, validate=True) if isinstance(certificate, str) else b""
    except (FormatError, ValueError):  # `verify_signature` reports the reason
        data = b""
    return SignatureClaim("certificate", hashlib.sha256(data).hexdigest(), verified) if data else _UNKNOWN


_SHA256 = re.compile("[0-9a-f]{64}")

_UNKNOWN = SignatureClaim("unknown", None, verified=False)


def _at(document: Any, *keys: str | int) -> Any:
    """Return the value at a path in a JSON document, or `None` if the path is missing."""
    for key in keys:
        is_there = isinstance(key, str) and isinstance(document, dict) and key in document
        if not is_there and not (isinstance(key, int) and isinstance(document, list) and key < len(document)):
            return None
        document = document[key]
    return document
