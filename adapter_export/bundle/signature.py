"""Signatures of bundles by OpenSSF model-signing, offline: who made a bundle, and that it has not changed since.

A signature is a file in the bundle, in Sigstore's bundle format: an in-toto statement with the SHA-256 of every other
file, signed by an elliptic curve key. The library's command line can verify it, too.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from model_signing import hashing, signing, verifying

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.signature_claim import MOST_SIGNATURE_BYTES
from adapter_export.errors import FileError, FormatError, SignatureError
from adapter_export.format.check_report import read_report
from adapter_export.format.files import canonical_json
from adapter_export.format.manifest_json import CARD_FILE, MANIFEST_FILE, REPORT_FILE, SIGNATURE_FILE, is_hidden
from adapter_export.format.readme import is_card
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.output import Output, hold_lock
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes, sha256_of
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.tables import Described
from adapter_export.words import argument, command, quoted

_DIFFERS = ("Signature mismatch", "Cannot use")
"""Prefixes of the library's messages for a valid signature over a file that has changed since."""

_PASSWORD = "as `password`, or to the command in the environment variable `ADAPTER_EXPORT_KEY_PASSWORD`"

_FORGED = "InvalidSignature"
"""Error for a signature that was not made with this key from these bytes."""

_SHOWN = 5


@dataclass(frozen=True, repr=False)
class Signature(Described):
    """A valid signature.

    Attributes:
        signer: the subject of the certificate, or the SHA-256 of the public key.
        digest: the SHA-256 of the signed manifest, for `Bundle.open(expect=…)`.
        files: signed files, as paths from the folder of the bundle.
    """

    signer: str
    digest: str
    files: tuple[str, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        return {"signer": self.signer, "digest": self.digest, "files": len(self.files)}


def sign_bundle(
    folder: Path,
    key: Path,
    *,
    certificate: Path | None,
    chain: Sequence[Path],
    password: str | None,
    report: Path | None,
    force: bool,
) -> Signature:
    """Sign a bundle whose files match their SHA-256; `report` is copied into it and signed, too.

    Raises:
        SignatureError: the key or the certificate cannot be used.
        InputError: the bundle is damaged, or the report is of a failed check or another bundle.
        OutputExistsError: it has a signature, and `force` is false.
        WriteError: the operating system refused a write.
    """
    folder = folder.resolve()
    config = signing.Config()
    key_files = [key, *chain] if certificate is None else [key, certificate, *chain]
    for path in key_files:
        read_bytes(path, MOST_SIGNATURE_BYTES)
    with parsing(partial(_unusable, key)):
        if certificate is None:
            # the library passes it on to `cryptography`, which requires bytes
            secret: Any = None if password is None else password.encode()
            config.use_elliptic_key_signer(private_key=key, password=secret)
        else:
            between = chain or [certificate]  # the library requires a chain
            config.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=between)
    # from hashing to signing: no other process may change the files in between
    with hold_lock(folder):
        bundle = OpenedBundle.open(folder, copy=False)
        with Output(folder / SIGNATURE_FILE, force).file() as temporary:
            if report is not None:
                _keep(report, folder / REPORT_FILE, bundle.digest, force=force)
            readme = [] if is_card(folder / CARD_FILE) else [CARD_FILE]  # `push` replaces a build's README
            unsigned = [SIGNATURE_FILE, *readme, *_hidden(folder)]
            config.set_hashing_config(hashing.Config().set_ignored_paths(paths=unsigned, ignore_git_paths=False))
            with parsing(lambda message: SignatureError("cannot be signed", where=folder, found=message)):
                config.sign(folder, temporary)
            document = parse_json(read_bytes(temporary), folder / SIGNATURE_FILE)
    signed = _signed(document)
    return Signature(_signer(document), signed[MANIFEST_FILE], tuple(sorted(signed)))


def verify_signature(folder: Path, *, key: Path | None, chain: Sequence[Path]) -> Signature:
    """Verify that a bundle was signed by the holder of a key, or of a certificate issued under a chain.

    All signed files are read and hashed, including the manifest, which has the hashes of all others.

    Raises:
        SignatureError: there is no signature, or it has another signer, is invalid, or does not cover the bundle.
        FileError: the signature, the key or a certificate cannot be read.
        FormatError: the signature is not JSON.
    """
    folder = folder.resolve()
    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        sign = command('sign("bundle", key=…)', "sign BUNDLE --key KEY")
        fix = "get the bundle from its publisher; to sign it yourself, use " + sign
        raise SignatureError("is not signed", where=folder, expected=f"`{SIGNATURE_FILE}` in it", fix=fix)
    data = read_bytes(path, MOST_SIGNATURE_BYTES)
    document = parse_json(data, path)
    by = "key" if key is not None else "certificate"
    with parsing(lambda message: SignatureError("is not a signature", where=path, found=message, fix=_AGAIN)):
        form = _form(document)
    if form != by:
        other = (
            argument("key", words="FILE")
            if by == "certificate"
            else argument("certificates", option="certificate", words="FILE")
        )
        raise SignatureError(f"was signed with a {form}, not with a {by}", where=path, fix="pass " + other)
    config = verifying.Config().set_ignore_unsigned_files(True)
    key_files = chain if key is None else [key]
    for file in key_files:
        read_bytes(file, MOST_SIGNATURE_BYTES)
    with parsing(partial(_unusable, key_files[0])):
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=chain)
    with temporary_folder() as temporary:
        copy = temporary / SIGNATURE_FILE
        copy.write_bytes(data)  # verify the same bytes that are read below
        with parsing(partial(_fault, folder, document, by)):
            config.verify(folder, copy)
    signed = _signed(document)
    needed = {MANIFEST_FILE, REPORT_FILE} if (folder / REPORT_FILE).exists() else {MANIFEST_FILE}
    if missing := sorted(needed - signed.keys()):
        where, form = folder, quoted(missing)
        raise SignatureError("has files that its signature does not cover", where=where, found=form, fix=_AGAIN)
    return Signature(_signer(document), signed[MANIFEST_FILE], tuple(sorted(signed)))


_AGAIN = "get the bundle from its signer again; if you changed it, sign it again"


def _keep(report: Path, place: Path, digest: str, *, force: bool) -> None:
    """Copy a report of `check` on this bundle into it; reports of failed checks are rejected."""
    check_report = read_report(report, digest)
    if check_report.verdict != "passed":
        fix = "sign a bundle that passes, or sign without the report"
        raise FormatError("is the report of a failed check", where=report, found=check_report.verdict, fix=fix)
    with Output(place, force).file() as temporary:
        temporary.write_bytes(read_bytes(report))


def _hidden(folder: Path) -> list[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(path for path in paths if is_hidden(path.as_posix()))


def _form(document: Any) -> str:
    """Return `key` or `certificate`, the kind of signer."""
    if b"_" in canonical_json(document):
        raise ValueError("a key with `_`, which the library would read instead of the one without")
    material = document["verificationMaterial"]
    if "publicKey" in material:
        str(material["publicKey"]["hint"])  # the library prints a warning if it is missing
        return "key"
    base64.b64decode(material["x509CertificateChain"]["certificates"][0]["rawBytes"])
    return "certificate"


def _signer(document: Any) -> str:
    material = document["verificationMaterial"]
    if "publicKey" in material:
        return f"key {material['publicKey']['hint']}"
    first = base64.b64decode(material["x509CertificateChain"]["certificates"][0]["rawBytes"])
    return x509.load_der_x509_certificate(first).subject.rfc4514_string()


def _signed(document: Any) -> Mapping[str, str]:
    """Return the SHA-256 of each signed file; empty for other digests."""
    statement: Any = parse_json(base64.b64decode(document["dsseEnvelope"]["payload"], validate=True), SIGNATURE_FILE)
    resources = statement["predicate"]["resources"]
    return {resource["name"]: resource["digest"] for resource in resources if resource["algorithm"] == "sha256"}


def _fault(folder: Path, document: Any, by: str, message: str) -> SignatureError:
    """Return the error for a signature that the library rejected."""
    path = folder / SIGNATURE_FILE
    if message.startswith(_DIFFERS):
        other = [name for name, digest in _signed(document).items() if _sha256(folder / name) != digest]
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        differing = quoted(other[:_SHOWN]) + more or message
        return SignatureError("does not match its signature", where=folder, found=differing, fix=_AGAIN)
    if message.startswith("Key mismatch"):
        fix = "pass the signer's public key, or get the bundle from the signer"
        return SignatureError("was signed with another key", where=path, found=_signer(document), fix=fix)
    if by == "certificate" and message != _FORGED:
        fix = "pass the signer's certificates, or get the bundle from the signer"
        what = "was signed under a certificate that the chain does not cover"
        return SignatureError(what, where=path, found=message, fix=fix)
    return SignatureError("is not a valid signature", where=path, found=message, fix=_AGAIN)


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except FileError:
        return None


def _unusable(where: object, message: str) -> SignatureError:
    """Return the error for a key or a certificate that the library rejects."""
    if "encrypted" in message or "password" in message:
        fix = f"pass it {_PASSWORD}; with a certificate, use a key without a password"
        return SignatureError("the password of the key is missing or wrong", where=where, found=message, fix=fix)
    expected = "PEM files of elliptic curve keys (P-256, P-384, P-521)"
    return SignatureError("cannot be used to sign or to verify", where=where, found=message, expected=expected)
