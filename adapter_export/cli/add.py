"""`adapter-export add` and `adapter-export remove`: the adapters of a bundle change, and nothing else of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, examples, json_option, site_map_option, trust_pickle_option

if TYPE_CHECKING:
    from adapter_export.format.manifest import Manifest


@click.command(
    epilog=examples(
        "adapter-export add bundle trec --against model.pt",
        "adapter-export add bundle runs/2/trec,sentiment --against huggingface-folder",
        "adapter-export add bundle second=runs/2/trec --against model.onnx",
    )
)
@click.argument("bundle", type=PATH)
@click.argument("adapters", metavar="A,B,…")
@click.option(
    "--against",
    type=PATH,
    metavar="MODEL",
    required=True,
    help="The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. It "
    "computes the golden vectors of the new adapters, which the bundle itself must not do.",
)
@click.option(
    "--allow-base-mismatch", is_flag=True, help="Take adapters that were trained on other weights of the base."
)
@site_map_option
@trust_pickle_option
@json_option
def add(
    bundle: Path,
    adapters: str,
    against: Path,
    allow_base_mismatch: bool,
    site_map: Path | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Add adapters to BUNDLE without a new export.

    A,B,… are adapter folders, or names looked up in the current folder, beside the model and in `./adapters`;
    `NAME=FOLDER` renames one. Their widths and numbers of classes are free; what they compute must be what an adapter
    computes that the bundle was built with, or the graph has no slots for them.

    The graph with slots and the weights of the base stay as they are. The new adapters get their files and golden
    vectors, the bank a row for each. All is held against the golden vectors, and then takes the bundle's place at one
    stroke: if anything fails, the bundle is as it was.
    """
    import onnx_ir as ir

    from adapter_export.bundle.change import add_adapters
    from adapter_export.cli.output import steps
    from adapter_export.cli.places import check_site_map, read_adapters
    from adapter_export.cli.sources import model_of, same_precision
    from adapter_export.format.manifest_json import read_manifest
    from adapter_export.onnx_backend.base.numerics import numerics

    manifest = read_manifest(bundle)
    chosen = read_adapters(adapters, against)
    with steps() as tell:
        tell(f"opening {against}")
        source = model_of(manifest, against, trust_pickle=trust_pickle, site_map=site_map)
        check_site_map(chosen, source.given)
        with same_precision(source, numerics(ir.load(bundle / manifest.graphs["slots"]))) as references:
            after = add_adapters(
                bundle,
                chosen,
                references=references,
                site_map=None if source.given is None else source.given.digest,
                allow_base_mismatch=allow_base_mismatch,
                progress=tell,
            )
    _report(bundle, after, [adapter.name for adapter in chosen], "added", as_json)


@click.command(epilog=examples("adapter-export remove bundle trec", "adapter-export remove bundle trec,sentiment"))
@click.argument("bundle", type=PATH)
@click.argument("adapters", metavar="A,B,…")
@json_option
def remove(bundle: Path, adapters: str, as_json: bool) -> None:
    """Remove adapters from BUNDLE.

    Their files, their golden vectors, their rows of the bank and their baked graphs go. The slots stay, so that
    adapters that compute the same can be added later. The last adapter stays, too: a bundle has at least one. If
    anything fails, the bundle is as it was.
    """
    from adapter_export.bundle.change import remove_adapters
    from adapter_export.cli.output import steps

    names = [name.strip() for name in adapters.split(",")]
    with steps() as tell:
        after = remove_adapters(bundle, names, progress=tell)
    _report(bundle, after, names, "removed", as_json)


def _report(bundle: Path, manifest: Manifest, names: list[str], done: str, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json, say

    if as_json:
        emit_json({"bundle": str(bundle), done: names, "manifest": asdict(manifest)})
        return
    there = ", ".join(f"`{record.name}`" for record in manifest.adapters)
    say(f"{bundle}: {done} {', '.join(f'`{name}`' for name in names)}; it has {there}")
    say(f"Next: adapter-export verify {bundle}")
