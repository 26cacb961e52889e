"""`adapter-export add` and `adapter-export remove`: the adapters of a bundle change, and nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import adapter_export as ae
from adapter_export.cli.options import Json, SiteMapFile, TrustPickle, command
from adapter_export.errors import quoted
from adapter_export.option import Option

if TYPE_CHECKING:
    from adapter_export import Bundle

Adapters = Annotated[str, Option(metavar="A,B,…")]


@command(
    "adapter-export add bundle trec --against model.pt",
    "adapter-export add bundle runs/2/trec,sentiment --against huggingface-folder",
    "adapter-export add bundle second=runs/2/trec --against model.onnx",
    like=ae.add,
)
def add(
    bundle: Path,
    adapters: Adapters,
    *,
    against: Annotated[
        Path,
        Option(
            "The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. It "
            "computes the golden vectors of the new adapters, which the bundle itself must not do.",
            "MODEL",
        ),
    ],
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Add adapters to BUNDLE without a new export.

    A,B,… are adapter folders, or names looked up in the current folder, beside the model and in `./adapters`;
    `NAME=FOLDER` renames one. Their widths and numbers of classes are free; what they compute must be what an adapter
    computes that the bundle was built with, or the graph has no slots for them.

    The graph with slots and the weights of the base stay as they are. The new adapters get their files and golden
    vectors, the bank a row for each. All is compared with the golden vectors, and then takes the bundle's place in one
    step: if anything fails, the bundle is as it was.
    """
    from adapter_export.cli.bases import listed, opened
    from adapter_export.cli.reporter import TerminalReporter

    with TerminalReporter("add") as reporter:
        reporter.step(f"opening {against}")
        base = opened(against, site_map, trust_pickle)
        after = ae.add(bundle, listed(adapters), against=base, reporter=reporter, **options)
    _report(after, [each.name for each in after.manifest.adapters[-len(listed(adapters)) :]], "added", as_json)


@command("adapter-export remove bundle trec", "adapter-export remove bundle trec,sentiment")
def remove(bundle: Path, adapters: Adapters, *, as_json: Json = False) -> None:
    """Remove adapters from BUNDLE.

    Their files, their golden vectors, their rows of the bank and their baked graphs go. The slots stay, so that
    adapters that compute the same can be added later. The last adapter stays, too: a bundle has at least one. If
    anything fails, the bundle is as it was.
    """
    from adapter_export.cli.bases import listed
    from adapter_export.cli.reporter import TerminalReporter

    with TerminalReporter("remove") as reporter:
        after = ae.remove(bundle, listed(adapters), reporter=reporter)
    _report(after, list(dict.fromkeys(listed(adapters))), "removed", as_json)


def _report(bundle: Bundle, names: Sequence[str], done: str, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json, say

    if as_json:
        emit_json({"bundle": str(bundle.folder), done: list(names), "manifest": asdict(bundle.manifest)})
        return
    there = quoted(record.name for record in bundle.manifest.adapters)
    say(f"{bundle.folder}: {done} {quoted(names)}; it has {there}")
    say(f"Next: adapter-export verify {bundle.folder}")
