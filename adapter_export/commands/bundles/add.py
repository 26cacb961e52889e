"""Add adapters to a bundle without an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.adapters import adapters_of
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bases.prepared_base import model_of, same_precision
from adapter_export.bundle.open_bundle import AdapterPrecisionOption, AllowBaseMismatch, own_folder
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.words import quoted

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.runtime import Bundle


def add(
    bundle: Bundle | PathLike,
    adapters: Annotated[
        Sequence[Adapter | Address] | Mapping[str, Adapter | Address], Option(metavar="A,B,…", commas=True)
    ],
    *,
    against: Annotated[
        Base | Address,
        Option(
            "The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. It "
            "computes the new adapters' golden vectors, because a bundle must not be its own reference.",
            "MODEL",
        ),
    ],
    allow_base_mismatch: AllowBaseMismatch = False,
    adapter_precision: AdapterPrecisionOption = "float32",
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
) -> Bundle:
    """Add adapters to BUNDLE without an export.

    A,B,… are adapter folders, or names looked up in the current folder, beside the model and in `./adapters`;
    `NAME=FOLDER` renames one. Widths and numbers of classes may differ, but each adapter must have the same
    operators as one that the bundle was built with; the graph has no slots for others.

    The graph with slots and the base's weights stay unchanged. Each new adapter gets its files, its golden vectors
    and a row of the bank. The result is compared with the golden vectors and then replaces the bundle in one step;
    if anything fails, the bundle stays unchanged.

    Args:
        bundle: the bundle, or its folder.
        adapters: as in `build`, with the operators of an adapter that the bundle was built with.
        against: the model that the bundle was built from; it computes the golden vectors of the new adapters.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        allow_base_mismatch: accept adapters trained on other weights of the base.
        reporter: receives each step, and notes about adapters without effect and a deleted signature.

    Raises:
        AdapterError: a name is already used, or the graph has no slots for an adapter.
        BaseModelError: the model does not match the bundle's base.
        ParityError: the new bundle and the reference disagree.
        InputError, WriteError: the bundle cannot be read or changed; `BusyError` if another process changes it.
    """
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.change import add_adapters
    from adapter_export.runtime import Bundle
    from adapter_export.safe_io.output import hold_lock

    opened = OpenedBundle.open(own_folder(bundle), copy=False)
    base = model_of(opened.manifest, base_for(against, OpenOptions(site_map, trust_pickle), reporter))
    chosen, slots = adapters_of(adapters, base), opened.numerics.precision
    matching = same_precision(base, slots)
    with hold_lock(opened.folder.resolve()), matching as (references, _):
        after = add_adapters(
            opened,
            chosen,
            references=references,
            site_map=None if base.given is None else base.given.digest,
            allow_base_mismatch=allow_base_mismatch,
            precision=adapter_precision,
            reporter=reporter,
        )
    return Bundle(opened.folder, after, verified=True)


def _names(bundle: Bundle, screen: Screen) -> list[str]:
    return [each.name for each in bundle.manifest.adapters[-len(screen.given["adapters"]) :]]


def _show(bundle: Bundle, screen: Screen) -> None:
    names = quoted(record.name for record in bundle.manifest.adapters)
    screen.report(f"{bundle.folder}: added {quoted(_names(bundle, screen))}; it now contains {names}")
    screen.report(f"Next: {next_line('verify', bundle.folder)}")


def _document(bundle: Bundle, screen: Screen) -> Mapping[str, object]:
    return {"bundle": str(bundle.folder), "added": _names(bundle, screen), "manifest": asdict(bundle.manifest)}


COMMAND = Command(
    add,
    _show,
    document=_document,
    examples=(
        "adapter-export add bundle trec --against model.pt",
        "adapter-export add bundle runs/2/trec,sentiment --against huggingface-folder",
        "adapter-export add bundle second=runs/2/trec --against model.onnx",
    ),
)
