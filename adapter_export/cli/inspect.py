"""`adapter-export inspect`: what is in a bundle, an adapter or a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, check_free, examples, force_option, json_option, trust_pickle_option

if TYPE_CHECKING:
    from rich.table import Table

    from adapter_export.cli.placement_map import PlacementMap
    from adapter_export.cli.sources import Source
    from adapter_export.format.manifest import Manifest

    Map = Callable[[], PlacementMap]


@click.command(
    epilog=examples(
        "adapter-export inspect bundle",
        "adapter-export inspect bundle --svg adapters.svg",
        "adapter-export inspect adapters/trec",
        "adapter-export inspect model.pt --json",
    )
)
@click.argument("path", type=PATH)
@click.option("--svg", type=PATH, metavar="FILE", help="Draw where adapters sit, or could sit in a model.")
@trust_pickle_option
@force_option
@json_option
def inspect(path: Path, svg: Path | None, trust_pickle: bool, force: bool, as_json: bool) -> None:
    """Show what is in PATH: a bundle, an adapter folder, or a model.

    The files of a bundle are held against the hashes in its manifest, and an adapter's tensors against its graph.

    The drawing has a row for each place of the base, a column for each adapter, and a box with its widths where it
    acts. It suits light and dark backgrounds.
    """
    if svg is not None:
        check_free(svg, force=force)
    if (path / "manifest.json").is_file():
        found = _inspect_bundle(path, as_json)
    elif (path / "adapter_graph.json").is_file() or (path / "weights.safetensors").is_file():
        found = _inspect_adapter(path, as_json)
    else:
        found = _inspect_model(path, trust_pickle, as_json)
    if svg is not None:
        _draw(found(), svg, force)


def _draw(what: PlacementMap, svg: Path, force: bool) -> None:
    from adapter_export.cli.drawing import draw
    from adapter_export.cli.output import say
    from adapter_export.format.files import new_file

    with new_file(svg, force=force) as temporary:
        temporary.write_text(draw(what), encoding="utf-8")
    say(f"wrote {svg}")


def _inspect_bundle(path: Path, as_json: bool) -> Map:
    from adapter_export.cli.inspect_bundle import bundle_tables
    from adapter_export.cli.output import emit_json
    from adapter_export.format.inventory import verify_files
    from adapter_export.format.manifest_json import read_manifest

    manifest = read_manifest(path)
    verify_files(manifest, path)
    if as_json:
        emit_json({"what": "bundle", "path": str(path), "manifest": asdict(manifest)})
    else:
        _show(f"{path}  bundle by {manifest.producer}", list(bundle_tables(manifest)))
    return lambda: _map_of_bundle(path, manifest)


def _map_of_bundle(path: Path, manifest: Manifest) -> PlacementMap:
    from adapter_export.cli.placement_map import placement_map
    from adapter_export.format.adapter_files import read_adapter
    from adapter_export.sites.site import SUBLAYERS

    adapters = [(record.name, read_adapter(path / record.source)) for record in manifest.adapters]
    sublayers = [site.name for site in manifest.sites if site.role in SUBLAYERS]
    return placement_map(path.resolve().name, [site.name for site in manifest.sites], adapters, sublayers)


def _inspect_adapter(path: Path, as_json: bool) -> Map:
    from adapter_export.cli.inspect_adapter import adapter_document, adapter_tables
    from adapter_export.cli.output import emit_json
    from adapter_export.cli.placement_map import placement_map
    from adapter_export.format.adapter_files import read_adapter
    from adapter_export.sites.site import SUBLAYERS

    adapter = read_adapter(path)
    if as_json:
        emit_json({"what": "adapter", "path": str(path), **adapter_document(adapter)})
    else:
        _show(f"{path}  adapter `{adapter.name}`, {adapter.kind}", list(adapter_tables(adapter)))
    sublayers = [site for site in adapter.placements if site.rpartition(".")[2] in SUBLAYERS]
    named = f"adapter {adapter.name}"
    return lambda: placement_map(named, list(adapter.placements), [(adapter.name, adapter)], sublayers)


def _inspect_model(path: Path, trust_pickle: bool, as_json: bool) -> Map:
    from adapter_export.cli.inspect_cells import facts, short, signature
    from adapter_export.cli.output import emit_json
    from adapter_export.cli.placement_map import placement_map
    from adapter_export.cli.sources import FORM_NAMES, open_source

    source = open_source(path, trust_pickle=trust_pickle)
    if as_json:
        emit_json({"what": "model", "path": str(path), **_model_document(source)})
    else:
        known = facts(
            ("fingerprint", short(source.fingerprint)),
            ("sites", f"{len(source.sites().sublayers)}, see `adapter-export sites {path}`"),
        )
        _show(f"{path}  {FORM_NAMES[source.form]}", [signature(source.base.inputs, source.base.outputs), known])
    names = [site.name for site in source.sites()]
    return lambda: placement_map(path.resolve().name, names, [], names)


def _model_document(source: Source) -> dict[str, object]:
    return {
        "form": source.form,
        "fingerprint": source.fingerprint,
        "inputs": [asdict(record) for record in source.base.inputs],
        "outputs": [asdict(record) for record in source.base.outputs],
        "sites": len(source.sites().sublayers),
    }


def _show(title: str, tables: Sequence[Table]) -> None:
    from rich.text import Text

    from adapter_export.cli.output import console

    out = console()
    out.print(Text(title, style="bold"))
    for one in tables:
        out.print()
        out.print(one)
