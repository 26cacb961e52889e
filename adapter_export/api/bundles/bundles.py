"""Bundles: opened, and options of the commands that make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.models.base import PathLike
from adapter_export.option import Option

if TYPE_CHECKING:
    from adapter_export.dtypes import AdapterPrecision
    from adapter_export.runtime import Bundle

ADAPTER_PRECISIONS: tuple[AdapterPrecision, ...] = ("float32", "float16", "int8")

AdapterPrecisionOption = Annotated[
    "AdapterPrecision",
    Option(
        "Precision of the adapter files. Fewer bits round the weights once; computation stays in float32.",
        choices=ADAPTER_PRECISIONS,
    ),
]
AllowBaseMismatch = Annotated[bool, "Accept adapters trained on other weights of the base."]


def open_bundle(bundle: Bundle | PathLike, *, verify: bool = True) -> Bundle:
    """Open a bundle and compare every file with its hash.

    Args:
        bundle: its folder.
        verify: without it, damage goes unseen: most damaged weights run.

    Raises:
        FileError: a file is missing, or a link leads out of the folder.
        FormatError: the manifest breaks the format, or a file is damaged; `HashError` and `VersionError` are kinds of
            it.
    """
    from adapter_export.runtime import Bundle

    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)


def folder_of(bundle: Bundle | PathLike) -> Path:
    """Return where a bundle lies."""
    return Path(bundle) if isinstance(bundle, str | Path) else bundle.folder
