"""Remove adapters from a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import PathLike
from adapter_export.bundle.open_bundle import own_folder
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.option import Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.words import quoted

if TYPE_CHECKING:
    from adapter_export.runtime import Bundle


def remove(
    bundle: Bundle | PathLike,
    adapters: Annotated[Sequence[str], Option(metavar="A,B,…", commas=True)],
    *,
    reporter: Reporter = SILENT,
) -> Bundle:
    """Remove adapters from BUNDLE, with their files, golden vectors, bank rows and baked graphs.

    The slots stay, so that adapters with the same operators can be added later. A bundle keeps at least one adapter.
    If anything fails, the bundle stays unchanged.

    Raises:
        AdapterError: an adapter is unknown, or no adapter would remain.
        InputError, WriteError, ParityError: as `add`.
    """
    from adapter_export.bundle.change import remove_adapters
    from adapter_export.runtime import Bundle

    folder = own_folder(bundle)
    after = remove_adapters(folder, adapters, reporter=reporter)
    return Bundle(folder, after, verified=True)


def _show(bundle: Bundle, screen: Screen) -> None:
    names = quoted(record.name for record in bundle.manifest.adapters)
    screen.report(
        f"{bundle.folder}: removed {quoted(dict.fromkeys(screen.given['adapters']))}; it now contains {names}"
    )
    screen.report(f"Next: {next_line('verify', bundle.folder)}")


def _document(bundle: Bundle, screen: Screen) -> Mapping[str, object]:
    return {
        "bundle": str(bundle.folder),
        "removed": list(dict.fromkeys(screen.given["adapters"])),
        "manifest": asdict(bundle.manifest),
    }


COMMAND = Command(
    remove,
    _show,
    document=_document,
    examples=(
        "adapter-export remove bundle trec",
        "adapter-export remove bundle trec,sentiment",
    ),
)
