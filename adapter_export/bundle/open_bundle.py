"""Open bundles; options shared by the commands that make them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike, as_written, is_remote, locate
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.reporting import SILENT, Reporter

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


def open_bundle(bundle: Bundle | Address, *, verify: bool = True) -> Bundle:
    """Open a bundle and compare every file with its SHA-256.

    Args:
        bundle: its folder, or a reference to fetch, such as `hf://owner/name@revision`.
        verify: if false, damage goes unnoticed: most damaged weights run.

    Raises:
        FileError: a file is missing, or a link points outside the folder.
        FormatError: the manifest breaks the format, or a file is damaged; `HashError` and `VersionError` are
            subclasses.
    """
    from adapter_export.runtime import Bundle

    return bundle if isinstance(bundle, Bundle) else Bundle.open(folder_of(bundle), verify=verify)


def folder_of(bundle: Bundle | Address, reporter: Reporter = SILENT) -> Path:
    """Return the folder of a bundle for reading; a remote bundle is fetched, and `reporter` receives the step."""
    return locate(bundle, "artifact", reporter).path if isinstance(bundle, str | Path) else bundle.folder


def own_folder(bundle: Bundle | PathLike) -> Path:
    """Return the folder of a local bundle for writing; a remote reference is a `UsageError`."""
    if isinstance(bundle, str | Path) and is_remote(bundle):
        fix = f"run `adapter-export pull {as_written(bundle)} -o bundle`, and pass that folder"
        raise UsageError("is remote, but a local bundle is needed", where=as_written(bundle), fix=fix)
    return folder_of(bundle)
