"""Sign bundles, and find out who signed one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.bundles.bundles import folder_of
from adapter_export.api.models.base import PathLike, require
from adapter_export.errors import UsageError, argument
from adapter_export.option import Option

if TYPE_CHECKING:
    from adapter_export.bundle.signature import Signature
    from adapter_export.runtime import Bundle


def sign(
    bundle: Bundle | PathLike,
    *,
    key: Annotated[PathLike, Option("The private key, PEM, of the elliptic curve P-256, P-384 or P-521.", "KEY")],
    certificate: Annotated[
        PathLike | None, Option("The certificate of KEY, PEM, for those who verify with `--certificate`.", "FILE")
    ] = None,
    certificate_chain: Annotated[
        Sequence[str], Option("Certificates between that one and its root, PEM; may be repeated.", "FILE")
    ] = (),
    password: str | None = None,
    report: Annotated[
        PathLike | None,
        Option("A report of `check --json` on BUNDLE that passed: kept there as `check.json`, and signed.", "FILE"),
    ] = None,
    force: bool = False,
) -> Signature:
    """Sign a bundle: every file in it, into its `model.sig`. Nothing goes over the network.

    Args:
        bundle: the bundle, or its folder.
        password: of the key, if it has one.
        force: replace the signature and the report that are there.

    Returns:
        Who signed, the digest of the manifest, and the files that were signed.

    Raises:
        UsageError: arguments do not go together.
        MissingExtraError: the library of signatures is not installed.
        SignatureError: the key or the certificate cannot be used.
        InputError: the bundle is damaged, or the report is on another bundle or says that it failed.
        OutputExistsError, WriteError: the signature cannot be written.
    """
    require_signatures()
    from adapter_export.bundle.signature import sign_bundle

    if certificate_chain and certificate is None:
        raise UsageError(f"{argument('certificate_chain')} goes with {argument('certificate')}, which is not given")
    if certificate is not None and password is not None:
        fix = "give a key without one: `openssl pkey -in KEY -out PLAIN` makes it"
        raise UsageError("a key beside a certificate cannot have a password", fix=fix)
    return sign_bundle(
        folder_of(bundle),
        Path(key),
        certificate=None if certificate is None else Path(certificate),
        chain=[Path(one) for one in certificate_chain],
        password=password,
        report=None if report is None else Path(report),
        force=force,
    )


def verify_signature(
    bundle: Bundle | PathLike, *, key: PathLike | None = None, certificates: Sequence[PathLike] = ()
) -> Signature:
    """Show that a bundle is what its signer made, without running it; `verify` does both.

    ::

        signature = ae.verify_signature("bundle", key="release.pub")
        bundle = Bundle.open("bundle", expect=signature.digest)

    Args:
        bundle: the bundle, or its folder.
        key: the public key that must have signed it, a PEM file.
        certificates: PEM files of certificate authorities, in place of a key: whoever has a certificate from them may
            have signed it.

    Raises:
        UsageError: not one of the two is given.
        MissingExtraError: the library of signatures is not installed.
        SignatureError: the bundle is not signed, by somebody else, or is not what was signed.
        FileError, FormatError: a file cannot be read.
    """
    require_signatures()
    from adapter_export.bundle.signature import verify_signature

    if (key is None) == (not certificates):
        raise UsageError(f"give either {argument('key')} or {argument('certificates', option='certificate')}")
    chain = [Path(one) for one in certificates]
    return verify_signature(folder_of(bundle), key=None if key is None else Path(key), chain=chain)


def require_signatures() -> None:
    """Import the library of signatures; without it, it is a `MissingExtraError`."""
    for library in ("model_signing", "OpenSSL"):  # the first imports the second, and does not say so in its metadata
        require(library, "sign", "a signature")
