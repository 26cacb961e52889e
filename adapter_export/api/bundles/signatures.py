"""Signatures of bundles, verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.api.bundles.bundles import folder_of
from adapter_export.api.models.base import PathLike, require
from adapter_export.errors import UsageError, argument

if TYPE_CHECKING:
    from adapter_export.bundle.signature import Signature
    from adapter_export.runtime import Bundle


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
        certificates: PEM files of certificate authorities, instead of a key. A signature with any certificate that
            they issued is accepted.

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
