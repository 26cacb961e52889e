"""`adapter-export inspect`: what is in a bundle, an adapter or a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapter_export.cli.options import PATH, examples, json_option, trust_pickle_option

if TYPE_CHECKING:
    from rich.table import Table

    from adapter_export.cli.sources import Source
    from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.cost import Cost

_SHORT_FINGERPRINT = 19
_MANY_LABELS = 8


@click.command(
    epilog=examples(
        "adapter-export inspect bundle",
        "adapter-export inspect adapters/trec",
        "adapter-export inspect model.pt --json",
    )
)
@click.argument("path", type=PATH)
@trust_pickle_option
@json_option
def inspect(path: Path, trust_pickle: bool, as_json: bool) -> None:
    """Show what is in PATH: a bundle, an adapter folder, or a model.

    The files of a bundle are held against the hashes in its manifest, and an adapter's tensors against its graph.
    """
    if (path / "manifest.json").is_file():
        _inspect_bundle(path, as_json)
    elif (path / "adapter_graph.json").is_file() or (path / "weights.safetensors").is_file():
        _inspect_adapter(path, as_json)
    else:
        _inspect_model(path, trust_pickle, as_json)


def _inspect_bundle(path: Path, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json
    from adapter_export.format.inventory import verify_files
    from adapter_export.format.manifest_json import read_manifest

    manifest = read_manifest(path)
    verify_files(manifest, path)
    if as_json:
        emit_json({"what": "bundle", "path": str(path), "manifest": asdict(manifest)})
    else:
        _show(f"{path}  bundle by {manifest.producer}", list(_bundle_tables(manifest)))


def _bundle_tables(manifest: Manifest) -> Iterator[Table]:
    from adapter_export.cli.output import size, table

    sizes = {file.path: file.bytes for file in manifest.files}
    yield table(
        "adapters",
        ("name", "kind", "parameters", "file", "task", "labels", "trained on this base"),
        [
            (
                adapter.name,
                adapter.kind,
                f"{adapter.parameters:,}",
                size(sizes[adapter.onnx_adapter]),
                _task(adapter.task),
                _labels(adapter.labels),
                "yes" if adapter.base == manifest.base else "no",
            )
            for adapter in manifest.adapters
        ],
        numbers="llrr",
    )
    yield _signature(manifest.inputs, manifest.outputs)
    yield table(
        f"files, {size(sum(sizes.values()))}, all as their hashes say",
        ("path", "bytes", "sha256"),
        [(file.path, f"{file.bytes:,}", f"{file.sha256[:12]}…") for file in manifest.files],
        numbers="lr",
    )
    cases = len(manifest.golden.cases) + sum(len(adapter.golden.cases) for adapter in manifest.adapters)
    yield _facts(
        ("base", _short(manifest.base)),
        (
            "sites",
            f"{len(manifest.sites)}, width {', '.join(str(w) for w in sorted({s.width for s in manifest.sites}))}",
        ),
        ("slots", str(len(manifest.slots))),
        ("golden vectors", f"{cases} cases by {manifest.golden.reference}"),
        ("text", "none" if manifest.text is None else f"tokenizer, at most {manifest.text.max_tokens} tokens"),
        ("needs", f"onnxruntime {manifest.minimum_onnxruntime} or newer (opset {manifest.opset})"),
        ("precision", _precision(manifest)),
    )


def _precision(manifest: Manifest) -> str:
    apart = "" if manifest.batch_invariant else "; the rows of a batch depend on each other"
    return f"{manifest.base_precision}{apart}"


def _inspect_adapter(path: Path, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json
    from adapter_export.format.adapter_files import read_adapter

    adapter = read_adapter(path)
    if as_json:
        emit_json({"what": "adapter", "path": str(path), **_adapter_document(adapter)})
    else:
        _show(f"{path}  adapter `{adapter.name}`, {adapter.kind}", list(_adapter_tables(adapter)))


def _adapter_document(adapter: Adapter) -> dict[str, object]:
    from adapter_export.graph.cost import cost

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


def _adapter_tables(adapter: Adapter) -> Iterator[Table]:
    from adapter_export.cli.output import size, table
    from adapter_export.graph.cost import cost

    rows = [
        (owner, _widths(widths), " → ".join(node.op for node in graph.nodes), *_cost_cells(cost(graph, widths)))
        for owner, graph, widths in adapter.parts()
    ]
    rows.append(("all", "", "", *_cost_cells(adapter.cost())))
    columns = ("site", "widths", "graph", "parameters", "bytes", "multiply-accumulates per token")
    yield table(None, columns, rows, numbers="lllrrr")
    labels = () if adapter.head is None else adapter.head.labels
    yield _facts(
        ("base", _short(adapter.base)),
        ("task", _task(None if adapter.head is None else adapter.head.task)),
        ("labels", _labels(labels, many=len(labels))),
        ("size", size(adapter.cost().bytes)),
    )
    if adapter.training:
        yield table("training record", ("what", "value"), list(_flat(adapter.training)))


def _inspect_model(path: Path, trust_pickle: bool, as_json: bool) -> None:
    from adapter_export.cli.output import emit_json
    from adapter_export.cli.sources import FORM_NAMES, open_source

    source = open_source(path, trust_pickle=trust_pickle)
    if as_json:
        emit_json({"what": "model", "path": str(path), **_model_document(source)})
        return
    facts = _facts(
        ("fingerprint", _short(source.fingerprint)),
        ("sites", f"{len(source.sites().sublayers)}, see `adapter-export sites {path}`"),
    )
    _show(f"{path}  {FORM_NAMES[source.form]}", [_signature(source.base.inputs, source.base.outputs), facts])


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


def _signature(inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord]) -> Table:
    from adapter_export.cli.output import table

    rows = [("in", one.name, one.dtype, _axes(one.axes), _role(one)) for one in inputs]
    rows += [("out", one.name, one.dtype, _axes(one.axes), "") for one in outputs]
    return table("inputs and outputs", ("", "name", "type", "shape", "meaning"), rows)


def _role(record: InputRecord) -> str:
    return f"ids below {record.limit}" if record.role == "ids" and record.limit else record.role


def _axes(axes: Sequence[int | str]) -> str:
    return f"[{', '.join(str(axis) for axis in axes)}]"


def _facts(*facts: tuple[str, str]) -> Table:
    from adapter_export.cli.output import table

    return table(None, ("what", "value"), facts)


def _task(task: str | None) -> str:
    return "no head" if task is None else task.replace("_", " ")


def _labels(labels: Sequence[str] | None, many: int = _MANY_LABELS) -> str:
    if not labels:
        return "none"
    more = f", … {len(labels)} in all" if len(labels) > many else ""
    return ", ".join(labels[:many]) + more


def _short(fingerprint: str) -> str:
    return f"{fingerprint[:_SHORT_FINGERPRINT]}…"


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
            len(value) > _MANY_LABELS or any(isinstance(v, Mapping) for v in value)
        ):
            yield f"{prefix}{key}", f"{len(value)} entries"
        else:
            yield f"{prefix}{key}", str(value)
