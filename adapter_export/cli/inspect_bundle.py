"""A bundle as tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import PurePosixPath

from rich.table import Table

from adapter_export.cli.inspect_cells import axes, facts, label_list, short, signature, task_name
from adapter_export.cli.output import size, table
from adapter_export.format.manifest import GoldenRecord, Manifest

_GRAPHS: Mapping[str, str] = {
    "slots": "optional inputs; their defaults are the base",
    "inputs": "required inputs",
    "bank": "rows of a table; each row of a batch names its own",
    "mixture": "rows of a table; each row of a batch gives a share of each",
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
