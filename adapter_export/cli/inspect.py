"""`adapter-export inspect`: what is in a bundle, an adapter or a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import click
from rich.table import Table

from adapter_export.cli.options import PATH, check_free, examples, force_option, json_option, trust_pickle_option
from adapter_export.cli.output import size, table
from adapter_export.format.manifest import GoldenRecord, InputRecord, Manifest, OutputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import Cost, cost

if TYPE_CHECKING:
    from rich.table import Table

    from adapter_export import Base
    from adapter_export.cli.drawing import PlacementMap
    from adapter_export.format.manifest import Manifest

    Map = Callable[[], PlacementMap]


# Cells and small tables that several inspections show.

_SHORT_FINGERPRINT = 19
MANY_LABELS = 8
"""How many labels a cell shows."""


def signature(inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord]) -> Table:
    """What a graph takes and gives."""
    rows = [("in", one.name, one.dtype, axes(one.axes), _role(one)) for one in inputs]
    rows += [("out", one.name, one.dtype, axes(one.axes), "") for one in outputs]
    return table("inputs and outputs", ("", "name", "type", "shape", "meaning"), rows)


def _role(record: InputRecord) -> str:
    return f"ids below {record.limit}" if record.role == "ids" and record.limit else record.role


def axes(lengths: Sequence[int | str]) -> str:
    """A shape."""
    return f"[{', '.join(str(axis) for axis in lengths)}]"


def facts(*rows: tuple[str, str]) -> Table:
    """Facts by name."""
    return table(None, ("what", "value"), rows)


def task_name(task: str | None) -> str:
    """A task in words."""
    return "no head" if task is None else task.replace("_", " ")


def label_list(labels: Sequence[str] | None, many: int = MANY_LABELS) -> str:
    """The first labels, and how many there are."""
    if not labels:
        return "none"
    more = f", … {len(labels)} in all" if len(labels) > many else ""
    return ", ".join(labels[:many]) + more


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint."""
    return f"{fingerprint[:_SHORT_FINGERPRINT]}…"


# A bundle as tables.

_GRAPHS: Mapping[str, str] = {
    "slots": "optional inputs; their defaults are the base",
    "inputs": "required inputs",
    "bank": "rows of a table; each row of a batch names its own",
}
"""What the tensors of an adapter are in each form."""

_MANY_FILES = 60

_LAYER = re.compile(r"\.(\d+)\.")


def bundle_tables(manifest: Manifest) -> Iterator[Table]:
    """Everything that its manifest says, in the order in which one asks."""
    sizes = {file.path: file.bytes for file in manifest.files}
    yield _adapters(manifest, sizes)
    yield _graphs(manifest, sizes)
    yield signature(manifest.inputs, manifest.outputs)
    yield _slots(manifest)
    yield _golden(manifest)
    yield _files(manifest)
    yield facts(
        ("base", short(manifest.base)),
        (
            "sites",
            f"{len(manifest.sites)}, width {', '.join(str(w) for w in sorted({s.width for s in manifest.sites}))}",
        ),
        ("text", "none" if manifest.text is None else f"tokenizer, at most {manifest.text.max_tokens} tokens"),
        ("needs", f"onnxruntime {manifest.minimum_onnxruntime} or newer (opset {manifest.opset})"),
        ("precision", _precision(manifest)),
    )


def _adapters(manifest: Manifest, sizes: Mapping[str, int]) -> Table:
    return table(
        "adapters",
        ("name", "kind", "parameters", "file", "task", "labels", "trained on this base"),
        [
            (
                adapter.name,
                adapter.kind,
                f"{adapter.parameters:,}",
                size(sizes[adapter.onnx_adapter]),
                task_name(adapter.task),
                label_list(adapter.labels),
                "yes" if adapter.base == manifest.base else "no",
            )
            for adapter in manifest.adapters
        ],
        numbers="llrr",
    )


def _graphs(manifest: Manifest, sizes: Mapping[str, int]) -> Table:
    rows = [(flavour, path, size(sizes[path]), _GRAPHS[flavour]) for flavour, path in manifest.graphs.items()]
    rows += [
        ("baked", adapter.baked, size(sizes[adapter.baked]), f"constants: `{adapter.name}` alone")
        for adapter in manifest.adapters
        if adapter.baked is not None
    ]
    return table("graphs", ("flavour", "file", "size", "an adapter's tensors are"), rows, numbers="llr")


def _files(manifest: Manifest) -> Table:
    """One line each; those of many adapters that are alike share one."""
    title = f"files, {size(sum(file.bytes for file in manifest.files))}, all as their hashes say"
    if len(manifest.files) <= _MANY_FILES:
        rows = [(file.path, f"{file.bytes:,}", f"{file.sha256[:12]}…") for file in manifest.files]
        return table(title, ("path", "bytes", "sha256"), rows, numbers="lr")
    alike: dict[str, list[int]] = {}
    for file in manifest.files:
        alike.setdefault(_pattern(PurePosixPath(file.path)), []).append(file.bytes)
    return table(
        title,
        ("path", "files", "bytes"),
        [(path, str(len(found)), f"{sum(found):,}") for path, found in alike.items()],
        numbers="lrr",
    )


def _pattern(path: PurePosixPath) -> str:
    """`adapters/*/weights.safetensors` for a file of one adapter; what lies in the bundle's own folder has a line."""
    if len(path.parts) == 1:
        return str(path)
    return f"{path.parts[0]}/*{path.suffix}" if len(path.parts) == 2 else f"{path.parts[0]}/*/{path.name}"


def _slots(manifest: Manifest) -> Table:
    """Layers that have the same slots share a line."""
    places: dict[tuple[str, str], list[str]] = {}
    for slot in manifest.slots:
        places.setdefault((slot.site, slot.graph), []).append(f"{slot.parameter} {axes(slot.axes)}")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (site, graph), tensors in places.items():
        alike.setdefault((_LAYER.sub(".*.", site, 1), graph, ", ".join(tensors)), []).append(site)
    rows = [(_range(sites), graph, tensors) for (_, graph, tensors), sites in alike.items()]
    return table(f"{len(manifest.slots)} slots", ("site", "graph", "tensors"), rows)


def _range(sites: list[str]) -> str:
    """`layers.0–5.ffn` for sites that differ in their layer alone."""
    found = [_LAYER.search(site) for site in sites]
    layers = [int(one[1]) for one in found if one is not None]
    if len(layers) < len(sites) or len(sites) == 1:
        return ", ".join(sites)
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    said = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return _LAYER.sub(f".{said}.", sites[0], 1)


def _golden(manifest: Manifest) -> Table:
    records: list[tuple[str, GoldenRecord]] = [("the base alone", manifest.golden)]
    records += [(adapter.name, adapter.golden) for adapter in manifest.adapters]
    rows = [
        (
            name,
            len(one.cases),
            ", ".join(f"{output} ± {allowed:.2g}" for output, allowed in one.absolute.items()),
            one.reference,
        )
        for name, one in records
    ]
    return table("golden vectors", ("adapter", "cases", "allowed", "computed by"), rows, numbers="lr")


def _precision(manifest: Manifest) -> str:
    apart = "" if manifest.batch_invariant else "; the rows of a batch depend on each other"
    return f"{manifest.base_precision}{apart}"


# An adapter folder as tables and as data.


def adapter_document(adapter: Adapter) -> dict[str, object]:
    """Its parts with what they cost, and where it came from."""
    return {
        "name": adapter.name,
        "kind": adapter.kind,
        "base": adapter.base,
        "task": None if adapter.head is None else adapter.head.task,
        "labels": None if adapter.head is None else list(adapter.head.labels) or None,
        "cost": asdict(adapter.cost()),
        "parts": [
            {
                "owner": owner,
                "widths": dict(widths),
                "ops": [node.op for node in graph.nodes],
                **asdict(cost(graph, widths)),
            }
            for owner, graph, widths in adapter.parts()
        ],
        "training": dict(adapter.training),
    }


def adapter_tables(adapter: Adapter) -> Iterator[Table]:
    """Its parts with what they cost, what it is for, and its training record."""
    rows = [
        (owner, _widths(widths), " → ".join(node.op for node in graph.nodes), *_cost_cells(cost(graph, widths)))
        for owner, graph, widths in adapter.parts()
    ]
    rows.append(("all", "", "", *_cost_cells(adapter.cost())))
    columns = ("site", "widths", "graph", "parameters", "bytes", "multiply-accumulates per token")
    yield table(None, columns, rows, numbers="lllrrr")
    labels = () if adapter.head is None else adapter.head.labels
    yield facts(
        ("base", short(adapter.base)),
        ("task", task_name(None if adapter.head is None else adapter.head.task)),
        ("labels", label_list(labels, many=len(labels))),
        ("size", size(adapter.cost().bytes)),
    )
    if adapter.training:
        yield table("training record", ("what", "value"), list(_flat(adapter.training)))


def _widths(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} {number}" for symbol, number in widths.items())


def _cost_cells(found: Cost) -> tuple[str, str, str]:
    return f"{found.parameters:,}", f"{found.bytes:,}", f"{found.multiply_accumulates:,}"


def _flat(document: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A record's numbers and words, one a line; long lists by their length."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and (
            len(value) > MANY_LABELS or any(isinstance(v, Mapping) for v in value)
        ):
            yield f"{prefix}{key}", f"{len(value)} entries"
        else:
            yield f"{prefix}{key}", str(value)


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
    pass  # MOVE
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
    from adapter_export.cli.drawing import placement_map
    from adapter_export.format.adapter_files import read_adapter
    from adapter_export.sites.site import SUBLAYERS

    adapters = [(record.name, read_adapter(path / record.source)) for record in manifest.adapters]
    sublayers = [site.name for site in manifest.sites if site.role in SUBLAYERS]
    return placement_map(path.resolve().name, [site.name for site in manifest.sites], adapters, sublayers)


def _inspect_adapter(path: Path, as_json: bool) -> Map:
    pass  # MOVE
    from adapter_export.cli.drawing import placement_map
    from adapter_export.cli.output import emit_json
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
    from adapter_export.api.base import FORM_NAMES
    from adapter_export.cli.bases import opened
    from adapter_export.cli.drawing import placement_map
    from adapter_export.cli.output import emit_json

    base = opened(path, None, trust_pickle)
    if as_json:
        emit_json({"what": "model", "path": str(path), **_model_document(base)})
    else:
        known = facts(
            ("fingerprint", short(base.fingerprint)),
            ("sites", f"{len(base.sites.map.sublayers)}, see `adapter-export sites {path}`"),
        )
        _show(f"{path}  {FORM_NAMES[base.form]}", [signature(base.inputs, base.outputs), known])
    names = [site.name for site in base.sites]
    return lambda: placement_map(path.resolve().name, names, [], names)


def _model_document(base: Base) -> dict[str, object]:
    return {
        "form": base.form,
        "fingerprint": base.fingerprint,
        "inputs": [asdict(record) for record in base.inputs],
        "outputs": [asdict(record) for record in base.outputs],
        "sites": len(base.sites.map.sublayers),
    }


def _show(title: str, tables: Sequence[Table]) -> None:
    from rich.text import Text

    from adapter_export.cli.output import console

    out = console()
    out.print(Text(title, style="bold"))
    for one in tables:
        out.print()
        out.print(one)
