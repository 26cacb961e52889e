"""Model cards, generated only from the records of an artifact; unknown facts are omitted.

Names, labels and file names are untrusted text and are escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from adapter_export.errors import HashError, within
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.check_report import CheckReport, read_report
from adapter_export.format.manifest import Manifest
from adapter_export.format.manifest_json import MANIFEST_FILE, REPORT_FILE, read_manifest
from adapter_export.format.records import Count, Sha256, record_from_json
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import CAUSAL_LM, TASK_TYPES, Task
from adapter_export.interval import Interval
from adapter_export.markdown import escaped, labels_cell, table_lines
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.plugins.hub.artifact import Kind, digest_of
from adapter_export.plugins.hub.reference import parse_reference
from adapter_export.tables import number_of
from adapter_export.words import visible

LIBRARY = "adapter-export"


@dataclass(frozen=True)
class ScoreRecord:
    """A metric on rows.

    Attributes:
        value: value of the metric; null if undefined.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measured:
    """Scores of `evaluate`, as in its JSON.

    Attributes:
        adapter: name of the adapter.
        digest: SHA-256 of the bundle's manifest.
        source: SHA-256 of the adapter's `adapter_graph.json`.
        task: task type.
        data: name of the data file.
        sha256: SHA-256 of the data file.
        rows: number of answered rows.
        runtime: program that computed the answers.
        resamples: bootstrap resamples of the intervals.
        scores: scores by metric.
    """

    adapter: str
    digest: Sha256
    source: Sha256
    task: str
    data: str
    sha256: Sha256
    rows: Annotated[int, Interval(1)]
    runtime: str
    resamples: Count
    scores: Mapping[str, ScoreRecord]


class Evaluated(Protocol):
    """An evaluation, as `evaluate` returns it."""

    @property
    def data(self) -> str:
        """The file with the rows."""

    def to_json(self) -> object:
        """Return all of it as JSON data."""


def measured_from_json(document: object, where: object) -> Measured:
    """Parse the output of `evaluate --json`.

    Raises:
        FormatError: the document is not such an output.
    """
    names = Measured.__dataclass_fields__
    known = {key: value for key, value in document.items() if key in names} if isinstance(document, dict) else document
    with within(where):
        return record_from_json(Measured, known)


@dataclass(frozen=True)
class _Entry:
    """Facts of one adapter for the card."""

    name: str
    kind: str
    parameters: int
    task: Task | None
    training: Mapping[str, Any]
    source: str


def model_card(
    folder: Path,
    kind: Kind,
    reference: str,
    *,
    licence: str | None,
    base_model: str | None,
    measured: Sequence[Measured],
) -> str:
    """Return the text of a card, starting with its metadata.

    Args:
        folder: a complete bundle or adapter.
        kind: kind of the artifact.
        reference: destination; the last part of its name is the card's title.
        licence: licence by its name on the Hub, as passed by the owner.
        base_model: Hub id of the base, as passed by the owner.
        measured: results of `evaluate` on this artifact.

    Raises:
        HashError: results belong to another artifact.
        FormatError: the report in the bundle belongs to another bundle.
    """
    digest = digest_of(folder, kind)
    for evaluation in measured:
        actual = evaluation.digest if kind == "bundle" else evaluation.source
        if actual != digest:
            what = f"the evaluation on `{visible(evaluation.data)}` belongs to another {kind}"
            raise HashError(folder, what, found=actual, expected=digest, fix="evaluate this one")
    name = parse_reference(reference).name
    manifest = read_manifest(folder) if kind == "bundle" else None
    entries = list(_of_bundle(folder, manifest) if manifest is not None else _of_adapter(read_adapter(folder), digest))
    report = None
    if manifest is not None and (folder / REPORT_FILE).is_file():
        report = read_report(folder / REPORT_FILE, digest)
    pipelines = {_pipeline(entry) for entry in entries if entry.task is not None or _is_language(entry)}
    results = list(_results(measured, {entry.name: entry for entry in entries}))
    data = ModelCardData(
        library_name=LIBRARY,
        license=licence,
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter",
        pipeline_tag=pipelines.pop() if len(pipelines) == 1 else None,
        tags=[
            LIBRARY,
            kind,
            "adapters",
            *(["onnx"] if kind == "bundle" else []),
            *sorted({entry.kind for entry in entries}),
        ],
        model_name=name if results else None,
        eval_results=results or None,
    )
    lines = [
        *(_about_bundle(name, manifest, folder) if manifest is not None else _about_adapter(name, entries[0], folder)),
        *_adapters(entries),
        *_data(entries),
        *_scores(entries, measured),
        *([] if report is None else _check(report)),
        *_use(kind, reference, digest),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))


def _of_bundle(folder: Path, manifest: Manifest) -> Iterator[_Entry]:
    hashes = {file.path: file.sha256 for file in manifest.files}
    for record in manifest.adapters:
        adapter = read_adapter(folder / record.source)
        source = hashes[f"{record.source}/adapter_graph.json"]
        yield _Entry(record.name, record.kind, record.parameters, record.task, adapter.training, source)


def _of_adapter(adapter: Adapter, digest: str) -> Iterator[_Entry]:
    parameters = sum(int(tensor.size) for tensor in adapter.weights.values())
    task = adapter.task
    yield _Entry(adapter.name, adapter.kind, parameters, task, adapter.training, digest)


def _is_language(entry: _Entry) -> bool:
    return bool(entry.training.get("task") == CAUSAL_LM)


def _pipeline(entry: _Entry) -> str | None:
    if _is_language(entry):
        return TASK_TYPES[CAUSAL_LM].pipeline
    if entry.task is None:
        return None
    if entry.task.input in FILE_MODALITIES:
        return FILE_MODALITIES[entry.task.input].pipeline if entry.task.labels else None
    return entry.task.kind.pipeline


def _results(measured: Iterable[Measured], entries: Mapping[str, _Entry]) -> Iterator[EvalResult]:
    for evaluation in measured:
        entry = entries.get(evaluation.adapter)
        for metric, score in evaluation.scores.items():
            if score.value is not None:
                interval = None if score.low is None else {"interval_95": [score.low, score.high]}
                yield EvalResult(
                    task_type=(None if entry is None else _pipeline(entry)) or evaluation.task,
                    task_name=evaluation.adapter,
                    dataset_type=evaluation.data,
                    dataset_name=evaluation.data,
                    dataset_args={"sha256": evaluation.sha256, "rows": evaluation.rows},
                    metric_type=metric,
                    metric_value=score.value,
                    metric_args=interval,
                )


def _about_bundle(name: str, manifest: Manifest, folder: Path) -> Iterator[str]:
    count = len(manifest.adapters)
    size = sum(file.bytes for file in manifest.files) + (folder / MANIFEST_FILE).stat().st_size
    yield f"# {escaped(name)}"
    yield ""
    yield (
        f"One ONNX graph of a frozen base model, and {count} adapter{'' if count == 1 else 's'} that can be switched "
        "for each request or each row of a batch. Made by adapter-export."
    )
    yield ""
    yield from table_lines(
        ("what", "value"),
        [
            ("base", escaped(manifest.base)),
            ("precision of the base", escaped(manifest.base_precision)),
            ("graphs", escaped(", ".join(sorted(manifest.graphs)))),
            ("inputs", escaped(", ".join(record.name for record in manifest.inputs))),
            *([] if manifest.max_tokens is None else [("longest text", number_of(manifest.max_tokens, "token"))]),
            ("ONNX Runtime", f"{escaped(manifest.minimum_onnxruntime)} or newer"),
            ("size", f"{size:,} bytes in {number_of(len(manifest.files) + 1, 'file')}"),
            ("made by", escaped(manifest.producer)),
        ],
    )


def _about_adapter(name: str, entry: _Entry, folder: Path) -> Iterator[str]:
    adapter = read_adapter(folder)
    yield f"# {escaped(name)}"
    yield ""
    yield f"An adapter of the kind {escaped(entry.kind)} for a frozen base model, in the format of adapter-export."
    yield ""
    sites = list(adapter.placements)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    yield from table_lines(
        ("what", "value"),
        [
            ("base", escaped(adapter.base)),
            *([("sites", f"{len(sites)}, from {escaped(sites[0])} to {escaped(sites[-1])}")] if sites else []),
            ("size", f"{size:,} bytes"),
            *_known("made by", entry.training.get("producer")),
        ],
    )


def _known(what: str, value: object) -> list[tuple[str, str]]:
    return [(what, escaped(value))] if isinstance(value, str | int | float) else []


def _adapters(entries: Sequence[_Entry]) -> Iterator[str]:
    rows = []
    for entry in entries:
        labels = () if entry.task is None else entry.task.labels
        task = "" if entry.task is None else escaped(f"{entry.task.type}, {entry.task.input}")
        rows.append((escaped(entry.name), escaped(entry.kind), task, labels_cell(labels), f"{entry.parameters:,}"))
    yield from _section("Adapters", ("adapter", "kind", "task", "labels", "parameters"), rows)


def _data(entries: Sequence[_Entry]) -> Iterator[str]:
    rows = []
    for entry in entries:
        sources = entry.training.get("data")
        for part, source in sources.items() if isinstance(sources, Mapping) else ():
            if isinstance(source, Mapping):
                count = source.get("rows")
                rows.append(
                    (
                        escaped(entry.name),
                        escaped(part),
                        escaped(source["file"]) if "file" in source else "",
                        f"{count:,}" if isinstance(count, int) else "",
                        escaped(str(source.get("sha256", ""))[:12]),
                    )
                )
    yield from _section("Training data", ("adapter", "part", "file", "rows", "sha256"), rows)


def _scores(entries: Sequence[_Entry], measured: Sequence[Measured]) -> Iterator[str]:
    rows = [
        (
            escaped(evaluation.adapter),
            escaped(metric),
            f"{score.value:.4f}",
            "" if score.low is None or score.high is None else f"{score.low:.4f} to {score.high:.4f}",
            escaped(evaluation.data),
            f"{evaluation.rows:,}",
            escaped(evaluation.runtime),
        )
        for evaluation in measured
        for metric, score in evaluation.scores.items()
        if score.value is not None
    ]
    for entry in entries:
        for part in ("test", "validation"):
            scores = entry.training.get(part)
            for metric, value in scores.items() if isinstance(scores, Mapping) else ():
                if isinstance(value, float):
                    rows.append(
                        (escaped(entry.name), escaped(metric), f"{value:.4f}", "", f"{part} in training", "", "")
                    )
    yield from _section("Scores", ("adapter", "metric", "value", "95 % interval", "data", "rows", "by"), rows)
    if any(row[3] for row in rows):
        yield ""
        yield "Intervals: percentile bootstrap over rows. Scores on validation data selected the best epoch."


def _check(report: CheckReport) -> Iterator[str]:
    of = Counter(finding.status for finding in report.findings)
    ratios = [finding.ratio for finding in report.findings if finding.check == "output" and finding.ratio is not None]
    claims = f"{of['exact']:,} bit-exact, {of['tested']:,} tested, {of['unverified']:,} unverified"
    rows = [
        ("verdict", report.summary),
        ("compared", escaped(f"{report.runtime} with {report.reference or 'golden vectors'}")),
        *([("largest error", f"{max(ratios):.2f} of its budget")] if ratios else []),
        *([("claims", claims)] if report.findings else []),
    ]
    yield from _section("Agreement with the original model", ("fact", "value"), rows)


def _use(kind: Kind, reference: str, digest: str) -> Iterator[str]:
    where = str(parse_reference(reference))
    yield ""
    yield "## Use"
    yield ""
    yield "```sh"
    yield "# with the extra `hub` of adapter-export"
    yield f"adapter-export pull {where} --expect {digest} -o {kind}"
    yield f"adapter-export {'verify' if kind == 'bundle' else 'inspect'} {kind}"
    if kind == "adapter":
        yield "adapter-export build MODEL --adapters adapter -o bundle"
    yield "```"
    yield ""
    yield f"The digest of this {kind} is `sha256:{digest}`; it covers all files."


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a section with a table, or nothing without rows. Empty columns are omitted."""
    if rows:
        columns = [at for at in range(len(head)) if any(row[at] for row in rows)]
        yield ""
        yield f"## {title}"
        yield ""
        yield from table_lines([head[at] for at in columns], [[row[at] for at in columns] for row in rows])
