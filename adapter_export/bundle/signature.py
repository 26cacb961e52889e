"""Signatures of bundles, by OpenSSF model-signing: who made one, and that it is still what they made. Never online.

A signature is a file in the bundle, in the format of Sigstore's bundles: an in-toto statement with the sha256 of every
other file, signed by an elliptic curve key. The library's own command line verifies it too.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from model_signing import hashing, signing, verifying

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.signature_claim import MOST_SIGNATURE_BYTES
from adapter_export.errors import FileError, FormatError, SignatureError, argument, command, quoted
from adapter_export.format.check_report import read_report
from adapter_export.format.files import canonical_json
from adapter_export.format.manifest_json import CARD_FILE, MANIFEST_FILE, REPORT_FILE, SIGNATURE_FILE, is_hidden
from adapter_export.format.readme import is_card
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.output import Output, locked
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes, sha256_of
from adapter_export.tables import Described

_DIFFERS = ("Signature mismatch", "Cannot use")
"""Prefixes of the library's messages for a valid signature over a file that has changed since."""

_PASSWORD = "as `password`, or to the command in the environment variable `ADAPTER_EXPORT_KEY_PASSWORD`"

_FORGED = "InvalidSignature"
"""The error of a signature that was not made with this key from these bytes."""

_SHOWN = 5


@dataclass(frozen=True, repr=False)
class Signature(Described):
    """A signature that holds.

    Attributes:
        signer: the subject of the certificate, or the sha256 of the public key.
        digest: the sha256 of the manifest that was signed, as `Bundle.open(expect=…)` takes it.
        files: what was signed, paths from the folder of the bundle.
    """

    signer: str
    digest: str
    files: tuple[str, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
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
    """Sign a bundle whose files are as their hashes say; `report` is copied into it and signed too.

    Raises:
        SignatureError: the key or the certificate cannot be used.
        InputError: the bundle is damaged, or the report is one of a failed check or on another bundle.
        OutputExistsError: it has a signature, and `force` is not given.
        WriteError: the operating system refused a write.
    """
    folder = folder.resolve()
    config = signing.Config()
    given = [key, *chain] if certificate is None else [key, certificate, *chain]
    for path in given:
        read_bytes(path, MOST_SIGNATURE_BYTES)
    with parsing(partial(_unusable, key)):
        if certificate is None:
            # the library passes it on to `cryptography`, which takes bytes
            secret: Any = None if password is None else password.encode()
            config.use_elliptic_key_signer(private_key=key, password=secret)
        else:
            between = chain or [certificate]  # the library does not take none
            config.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=between)
    with locked(folder):
        bundle = OpenedBundle.open(folder, copy=False)
        with Output(folder / SIGNATURE_FILE, force).file() as temporary:
            if report is not None:
                _keep(report, folder / REPORT_FILE, bundle.digest, force=force)
            readme = [] if is_card(folder / CARD_FILE) else [CARD_FILE]  # that of a build: `push` replaces it
            own = [SIGNATURE_FILE, *readme, *_hidden(folder)]
            config.set_hashing_config(hashing.Config().set_ignored_paths(paths=own, ignore_git_paths=False))
            with parsing(lambda said: SignatureError("cannot be signed", where=folder, found=said)):
                config.sign(folder, temporary)
            document = parse_json(read_bytes(temporary), folder / SIGNATURE_FILE)
    signed = _signed(document)
    return Signature(_signer(document), signed[MANIFEST_FILE], tuple(sorted(signed)))


def verify_signature(folder: Path, *, key: Path | None, chain: Sequence[Path]) -> Signature:
    """Show that a bundle is what the holder of a key, or of a certificate that these vouch for, has signed.

    All files that were signed are read and hashed, the manifest among them, which has the hashes of all others.

    Raises:
        SignatureError: there is no signature, or it is by somebody else, does not hold, or does not cover the bundle.
        FileError: the signature, the key or a certificate cannot be read.
        FormatError: the signature is no JSON.
    """
    folder = folder.resolve()
    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        sign = command('sign("bundle", key=…)', "sign BUNDLE --key KEY")
        fix = f"get the bundle from its publisher; to sign it yourself use {sign}"
        raise SignatureError("is not signed", where=folder, expected=f"`{SIGNATURE_FILE}` in it", fix=fix)
    data = read_bytes(path, MOST_SIGNATURE_BYTES)
    document = parse_json(data, path)
    by = "key" if key is not None else "certificate"
    with parsing(lambda said: SignatureError("is no signature", where=path, found=said, fix=_AGAIN)):
        found = _form(document)
    if found != by:
        other = (
            argument("key", words="FILE")
            if by == "certificate"
            else argument("certificates", option="certificate", words="FILE")
        )
        raise SignatureError(f"was signed with a {found}, not with a {by}", where=path, fix=f"give {other}")
    config = verifying.Config().set_ignore_unsigned_files(True)
    given = chain if key is None else [key]
    for one in given:
        read_bytes(one, MOST_SIGNATURE_BYTES)
    with parsing(partial(_unusable, given[0])):
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        else:
            config.use_certificate_verifier(certificate_chain=chain)
    with TemporaryDirectory(prefix="adapter-export-") as temporary:
        copy = Path(temporary) / SIGNATURE_FILE
        copy.write_bytes(data)  # what is verified is what is read below
        with parsing(partial(_fault, folder, document, by)):
            config.verify(folder, copy)
    signed = _signed(document)
    needed = {MANIFEST_FILE, REPORT_FILE} if (folder / REPORT_FILE).exists() else {MANIFEST_FILE}
    if missing := sorted(needed - signed.keys()):
        where, found = folder, quoted(missing)
        raise SignatureError("has files that its signature does not cover", where=where, found=found, fix=_AGAIN)
    return Signature(_signer(document), signed[MANIFEST_FILE], tuple(sorted(signed)))


_AGAIN = "get the bundle from its signer again; if you changed it, sign it again"


def _keep(report: Path, place: Path, digest: str, *, force: bool) -> None:
    """Copy a report of `check` on this bundle into it; one of a check that failed is refused."""
    found = read_report(report, digest)
    if found.verdict != "passed":
        fix = "sign a bundle that passes, or sign without the report"
        raise FormatError("is a report of a check that failed", where=report, found=found.verdict, fix=fix)
    with Output(place, force).file() as temporary:
        temporary.write_bytes(read_bytes(report))


def _hidden(folder: Path) -> list[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(path for path in paths if is_hidden(path.as_posix()))


def _form(document: Any) -> str:
    """Return whether a key or a certificate signed."""
    if b"_" in canonical_json(document):
        raise ValueError("a key with `_`, which the library would read in place of the one without")
    material = document["verificationMaterial"]
    if "publicKey" in material:
        str(material["publicKey"]["hint"])  # the library prints a warning where there is none
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
    """Return the sha256 of each file that was signed; of other kinds of digests none."""
    statement: Any = parse_json(base64.b64decode(document["dsseEnvelope"]["payload"], validate=True), SIGNATURE_FILE)
    resources = statement["predicate"]["resources"]
    return {one["name"]: one["digest"] for one in resources if one["algorithm"] == "sha256"}


def _fault(folder: Path, document: Any, by: str, said: str) -> SignatureError:
    """Return what is wrong with a signature that the library refused."""
    path = folder / SIGNATURE_FILE
    if said.startswith(_DIFFERS):
        other = [name for name, digest in _signed(document).items() if _sha256(folder / name) != digest]
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        found = quoted(other[:_SHOWN]) + more or said
        return SignatureError("is not what was signed", where=folder, found=found, fix=_AGAIN)
    if said.startswith("Key mismatch"):
        fix = "pass the signer's public key, or get the bundle from the signer"
        return SignatureError("was signed with another key", where=path, found=_signer(document), fix=fix)
    if by == "certificate" and said != _FORGED:
        fix = "pass the signer's certificates, or get the bundle from the signer"
        what = "was signed by somebody whom the certificates do not vouch for"
        return SignatureError(what, where=path, found=said, fix=fix)
    return SignatureError("is no signature that holds", where=path, found=said, fix=_AGAIN)


def _sha256(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except FileError:
        return None


def _unusable(where: object, said: str) -> SignatureError:
    """Return what is wrong with a key or a certificate that the library does not take."""
    if "encrypted" in said or "password" in said:
        fix = f"give it {_PASSWORD}; beside a certificate, give a key without one"
        return SignatureError("the password of the key is missing or wrong", where=where, found=said, fix=fix)
    expected = "PEM files of elliptic curve keys (P-256, P-384, P-521)"
    return SignatureError("cannot be used to sign or to verify", where=where, found=said, expected=expected)
