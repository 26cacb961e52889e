"""Sign a bundle, so that others can verify its origin."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import PathLike
from adapter_export.bundle.open_bundle import own_folder
from adapter_export.bundle.verify_signature import require_signatures
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.errors import UsageError
from adapter_export.option import Force, Option
from adapter_export.tables import number_of
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.bundle.signature import Signature
    from adapter_export.runtime import Bundle


def sign(
    bundle: Bundle | PathLike,
    *,
    key: Annotated[PathLike, Option("Private key (PEM) on the elliptic curve P-256, P-384 or P-521.", "KEY")],
    certificate: Annotated[
        PathLike | None, Option("Certificate of KEY (PEM), for users who verify with `--certificate`.", "FILE")
    ] = None,
    certificate_chain: Annotated[
        Sequence[str], Option("Intermediate certificate (PEM) on the way to the root. Repeatable.", "FILE")
    ] = (),
    password: Annotated[str | None, Option(variable="ADAPTER_EXPORT_KEY_PASSWORD")] = None,
    report: Annotated[
        PathLike | None,
        Option("Passing report of `check --json` on BUNDLE; it is stored as `check.json` and signed.", "FILE"),
    ] = None,
    force: Force = False,
) -> Signature:
    """Sign all files of a bundle into its `model.sig`, offline.

    The signature has the OpenSSF model-signing format and covers every file except hidden ones. Verify it with
    `verify --key PUBLIC`. `add` and `remove` delete it, because they change the bundle. KEY's password is read
    from the environment variable `ADAPTER_EXPORT_KEY_PASSWORD`.

    Args:
        bundle: the bundle, or its folder.
        password: password of the key, if it has one.
        force: replace an existing signature and report.

    Returns:
        The signer, the digest of the manifest, and the signed files.

    Raises:
        UsageError: arguments exclude each other.
        MissingExtraError: the signature library is not installed.
        SignatureError: the key or the certificate cannot be used.
        InputError: the bundle is damaged, or the report is on another bundle or has failures.
        OutputExistsError, WriteError: the signature cannot be written.
    """
    require_signatures()
    from adapter_export.bundle.signature import sign_bundle

    if certificate_chain and certificate is None:
        raise UsageError(argument("certificate_chain") + " needs " + argument("certificate"))
    if certificate is not None and password is not None:
        fix = "pass a key without a password, as written by `openssl pkey -in KEY -out PLAIN`"
        raise UsageError("a key used with a certificate cannot have a password", fix=fix)
    return sign_bundle(
        own_folder(bundle),
        Path(key),
        certificate=None if certificate is None else Path(certificate),
        chain=[Path(path) for path in certificate_chain],
        password=password,
        report=None if report is None else Path(report),
        force=force,
    )


def _show(signed: Signature, screen: Screen) -> None:
    bundle = screen.given["bundle"]
    screen.report(f"signed {number_of(len(signed.files), 'file')} of {bundle} by {signed.signer}")
    if "certificate" in screen.given:
        screen.report("users verify it with the root of the certificate: `verify --certificate ROOT`")
        return
    key = Path(screen.given["key"])
    public = key.with_name(f"{key.stem}.pub.pem")
    screen.report(f"Next: {shlex.join(['openssl', 'pkey', '-in', str(key), '-pubout', '-out', str(public)])}")
    screen.report(f"  and: {next_line('verify', bundle, '--key', public)}")


def _document(signed: Signature, screen: Screen) -> Mapping[str, object]:
    return {"bundle": str(screen.given["bundle"]), **asdict(signed)}


COMMAND = Command(
    sign,
    _show,
    document=_document,
    exit_codes="0 signed, 3 the bundle, the key or the report cannot be used",
    examples=(
        "adapter-export sign bundle --key release.pem",
        "adapter-export sign bundle --key release.pem --report report.json",
        "adapter-export sign bundle --key release.pem --certificate release.crt --certificate-chain between.crt",
    ),
)
