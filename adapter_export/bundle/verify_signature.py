"""Verify signatures of bundles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.address import PathLike
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.errors import UsageError
from adapter_export.extras import require
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.bundle.signature import Signature
    from adapter_export.runtime import Bundle


def verify_signature(
    bundle: Bundle | PathLike, *, key: PathLike | None = None, certificates: Sequence[PathLike] = ()
) -> Signature:
    """Verify that a bundle is unchanged since it was signed, without running it; `verify` can do both.

    ::

        signature = ae.verify_signature("bundle", key="release.pub")
        bundle = Bundle.open("bundle", expect=signature.digest)

    Args:
        bundle: the bundle, or its folder.
        key: public key of the signer, a PEM file.
        certificates: PEM files of certificate authorities, instead of a key. A signature with any certificate they
            issued is accepted.

    Raises:
        UsageError: not exactly one of the two is given.
        MissingExtraError: the signing library is not installed.
        SignatureError: the bundle is unsigned, has another signer, or has changed since it was signed.
        FileError, FormatError: a file cannot be read.
    """
    require_signatures()
    from adapter_export.bundle.signature import verify_signature

    if (key is None) == (not certificates):
        raise UsageError("pass either " + argument("key") + " or " + argument("certificates", option="certificate"))
    chain = [Path(path) for path in certificates]
    return verify_signature(folder_of(bundle), key=None if key is None else Path(key), chain=chain)


def require_signatures() -> None:
    """Import the signing libraries; `MissingExtraError` if they are missing."""
    for library in ("model_signing", "OpenSSL"):  # model_signing imports OpenSSL, but its metadata do not list it
        require(library, "sign", "a signature")
