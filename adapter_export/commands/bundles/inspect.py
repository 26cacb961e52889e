"""Show the contents of a bundle, an adapter or a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import recorded_base
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import FileError, UsageError
from adapter_export.graph.graph import Cost, cost
from adapter_export.option import TRUST_PICKLE, Force, Option
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.sites.site import SUBLAYERS, SiteName
from adapter_export.tables import Described, Table, number_of, size
from adapter_export.words import argument, command

if TYPE_CHECKING:
    from adapter_export.bases.drawing import PlacementMap
    from adapter_export.bundle.signature_claim import SignatureClaim
    from adapter_export.format.generation import ChatRecord
    from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord, RecordedRuns
    from adapter_export.format.media import MediaRecord
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks import Task

_MANY_LABELS = 8
_MANY_FILES = 60
_FACTS = ("what", "value")


@dataclass(frozen=True, repr=False)
class Inspection(Described):
    """Contents of a bundle, an adapter or a model, for `print` and notebooks.

    Attributes:
        title: a one-line description.
        tables: the contents.
        document: the same as JSON data.
    """

    title: str
    tables: tuple[Table, ...]
    document: Mapping[str, Any] = field(repr=False)
    _map: Callable[[], PlacementMap] = field(repr=False)

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"title": self.title, "tables": len(self.tables)}

    def drawing(self) -> str:
        """SVG drawing: a row per site, a column per adapter, and a box with its widths where the adapter acts."""
        from adapter_export.bases.drawing import draw

        return draw(self._map())

    def to_json(self) -> dict[str, Any]:
        """The contents as JSON data."""
        return dict(self.document)

    def __str__(self) -> str:
        return "\n\n".join([self.title, *map(str, self.tables)])

    def _repr_html_(self) -> str:
        return f"{Table((self.title,), ())._repr_html_()}{''.join(table._repr_html_() for table in self.tables)}"


def inspect(
    path: Address | Base | Adapter,
    *,
    key: Annotated[PathLike | None, Option("Public key (PEM) that must have signed the bundle.", "PUBLIC")] = None,
    svg: Annotated[
        PathLike | None, Option("Write a drawing of the sites where adapters act, or could act in a model.", "FILE")
    ] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Inspection:
    """Show the contents of a bundle, an adapter or a model.

    The files of a bundle are compared with the hashes in its manifest, and an adapter's tensors with its graph.
    The signer of a bundle is shown as its signature claims; with a key, the signature is verified.

    The drawing has a row per site of the base, a column per adapter, and a box with its widths where the adapter acts.
    It suits light and dark backgrounds.

    Args:
        path: a bundle, an adapter folder, a path that `open_base` accepts, a reference such as `hf://owner/name` to
            one of these, or an adapter or base object.
        key: the public key that must have signed the bundle.
        svg: the drawing's file.
        trust_pickle: as `open_base` takes it.
        force: replace an existing drawing.
        reporter: receives the step of a download.

    Raises:
        FileError, FormatError: a file is missing, damaged, or breaks the format.
        SignatureError: the signature is missing, invalid, or made with another key.
        MissingExtraError: a key is given and the signature library is not installed.
        UsageError: a key is given for something other than a bundle.
        BaseModelError: the file is not a model.
    """
    output = None if svg is None else Output(Path(svg), force)
    if output is not None:
        output.ensure_writable()
    inspection = _inspect(path, None if key is None else Path(key), OpenOptions(trust_pickle=trust_pickle), reporter)
    if output is not None:
        with output.file() as temporary:
            temporary.write_text(inspection.drawing(), encoding="utf-8")
    return inspection


def _inspect(path: Address | Base | Adapter, key: Path | None, options: OpenOptions, reporter: Reporter) -> Inspection:
    from adapter_export.graph.adapter import Adapter

    located = None if isinstance(path, Adapter | Base) else locate(path, "any", reporter)
    place = None if located is None else located.path
    if place is not None and (place / "manifest.json").is_file():
        return _bundle(place, key)
    if key is not None:
        raise UsageError("only bundles are signed", where=argument("key"), found=f"`{path}`", expected="a bundle")
    if isinstance(path, Adapter):
        return _adapter(path, None)
    if isinstance(path, Base):
        return _model(path)
    assert located is not None
    assert place is not None
    if not place.exists():
        expected, fix = "a bundle, an adapter folder or a model", "check the path for typos"
        raise FileError("does not exist", where=place, expected=expected, fix=fix)
    if (place / "adapter_graph.json").is_file() or (place / "weights.safetensors").is_file():
        from adapter_export.format.adapter_files import read_adapter

        return _adapter(read_adapter(place), place)
    return _model(replace(recorded_base(place, options), fetched=located.source))


def _bundle(path: Path, key: Path | None) -> Inspection:
    from adapter_export.bases.drawing import placement_map
    from adapter_export.bundle.signature_claim import read_claim
    from adapter_export.bundle.verify_signature import verify_signature
    from adapter_export.format.adapter_files import read_adapter
    from adapter_export.format.manifest_json import MANIFEST_FILE, read_manifest, verify_files
    from adapter_export.safe_io.regular_files import sha256_of

    digest = sha256_of(path / MANIFEST_FILE) if key is None else verify_signature(path, key=key).digest
    manifest, claim = read_manifest(path, expect=digest), read_claim(path, verified=key is not None)
    verify_files(manifest, path)

    def drawn() -> PlacementMap:
        adapters = [(record.name, read_adapter(path / record.source)) for record in manifest.adapters]
        sublayers = [site.name for site in manifest.sites if site.role in SUBLAYERS]
        return placement_map(path.resolve().name, [site.name for site in manifest.sites], adapters, sublayers)

    document = {
        "what": "bundle",
        "path": str(path),
        "digest": digest,
        "signature": None if claim is None else asdict(claim),
        "manifest": asdict(manifest),
    }
    title = f"{path}  bundle by {manifest.producer}, digest {digest}"
    return Inspection(title, tuple(_bundle_tables(manifest, claim)), document, drawn)


def _recorded(runs: RecordedRuns) -> str:
    return f"golden cases, bit for bit, with onnxruntime {runs.runtime}, {runs.provider}, {runs.processor}"


def _signed(claim: SignatureClaim | None) -> str:
    if claim is None:
        return "not signed"
    if claim.method == "unknown":
        return "`model.sig` is not a readable signature"
    held = "verified" if claim.verified else "not verified"
    return f"by the {claim.method} of sha256 {claim.signer}, {held}"


def _bundle_tables(manifest: Manifest, claim: SignatureClaim | None) -> Iterator[Table]:
    from adapter_export.format.files import IDENTITY_FILE
    from adapter_export.format.manifest import BAKED, TENSORS_OF_ADAPTERS

    sizes = {file.path: file.bytes for file in manifest.files}
    adapters = [
        (
            adapter.name,
            adapter.kind,
            f"{adapter.parameters:,}",
            size(sizes[adapter.onnx_adapter]) + ("" if adapter.precision == "float32" else f", {adapter.precision}"),
            _task_name(_type_of(adapter.task), has_head=adapter.output is not None),
            _label_list(None if adapter.task is None else adapter.task.labels),
            "yes" if adapter.base == manifest.base else "no",
        )
        for adapter in manifest.adapters
    ]
    columns = ("name", "kind", "parameters", "file", "task", "labels", "trained on this base")
    yield Table(columns, adapters, "adapters", "llrr", ("file", "labels"))

    graphs = [(name, file, size(sizes[file]), TENSORS_OF_ADAPTERS[name]) for name, file in manifest.graphs.items()]
    graphs += [
        (BAKED, adapter.baked, size(sizes[adapter.baked]), f"{TENSORS_OF_ADAPTERS[BAKED]}: `{adapter.name}` only")
        for adapter in manifest.adapters
        if adapter.baked is not None
    ]
    yield Table(("variant", "file", "size", "adapter tensors are"), graphs, "graphs", "llr")
    yield _signature(manifest.inputs, manifest.outputs)
    yield _slots(manifest)

    golden = [("base", manifest.golden), *((adapter.name, adapter.golden) for adapter in manifest.adapters)]
    allowed = [
        ", ".join(f"{output} ± {number:.2g}" for output, number in vectors.absolute.items()) for _, vectors in golden
    ]
    rows = [
        (name, len(vectors.cases), tolerance, vectors.reference)
        for (name, vectors), tolerance in zip(golden, allowed, strict=True)
    ]
    yield Table(("adapter", "cases", "allowed", "computed by"), rows, "golden vectors", "lr")
    yield from _separation(manifest)
    yield _files(manifest)

    widths = ", ".join(map(str, sorted({site.width for site in manifest.sites})))
    depend = "" if manifest.batch_invariant else "; the rows of a batch depend on each other"
    text = "none" if manifest.text is None else f"tokenizer, at most {manifest.max_tokens} tokens"
    is_identified = any(file.path == IDENTITY_FILE for file in manifest.files)
    proved = f", its weights rounded or joined: see `{IDENTITY_FILE}`" if is_identified else ""
    facts = [
        ("signature", _signed(claim)),
        ("base", f"{_short(manifest.base)}{proved}"),
        ("sites", f"{len(manifest.sites)}, width {widths}"),
        ("text", text),
        *([] if manifest.chat is None else [("chat", _chat(manifest.chat))]),
        *([] if manifest.media is None else [(manifest.media.medium, _processor(manifest.media))]),
        ("needs", f"onnxruntime {manifest.minimum_onnxruntime} or newer (opset {manifest.opset})"),
        ("precision", f"{manifest.base_precision}{depend}"),
        *([] if manifest.recorded is None else [("recorded", _recorded(manifest.recorded))]),
    ]
    yield Table(_FACTS, facts)


def _separation(manifest: Manifest) -> Iterator[Table]:
    """Yield a table of each adapter's weakest fault and nearest neighbour, if they were measured."""
    separations = [(adapter.name, adapter.golden.separation) for adapter in manifest.adapters]
    rows = [
        (
            name,
            f"{separation.least:.3g}",
            separation.fault,
            "" if separation.nearest is None else f"{separation.nearest.separation:.3g}",
            "" if separation.nearest is None else separation.nearest.adapter,
            ", ".join(separation.weak),
        )
        for name, separation in separations
        if separation is not None
    ]
    if rows:
        columns = ("adapter", "separation", "weakest fault", "apart", "nearest adapter", "faults below 2")
        yield Table(columns, rows, "separation of golden data", "lrlrll")


def _chat(chat: ChatRecord) -> str:
    return f"template for {', '.join(chat.roles)}{' and tools' if chat.tools else ''}"


def _processor(media: MediaRecord) -> str:
    from adapter_export.format.media import format_steps

    rate = "" if media.sampling_rate is None else f"{media.sampling_rate:,} Hz: "
    return (
        f"{rate}{format_steps(media.steps)}"
        if media.steps is not None
        else f"arrays only: the processor {media.unknown}"
    )


def _slots(manifest: Manifest) -> Table:
    """List the slots; layers with equal slots share a line."""
    places: dict[tuple[str, str], list[str]] = {}
    for slot in manifest.slots:
        places.setdefault((slot.site, slot.graph), []).append(f"{slot.parameter} {_axes(slot.axes)}")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (site, graph), tensors in places.items():
        alike.setdefault((SiteName.parse(site).place, graph, ", ".join(tensors)), []).append(site)
    rows = [(_range(sites), graph, tensors) for (_, graph, tensors), sites in alike.items()]
    return Table(("site", "graph", "tensors"), rows, number_of(len(manifest.slots), "slot"))


def _range(sites: list[str]) -> str:
    """Return `layers.0–5.ffn` for sites that differ only in their layer."""
    first, *_ = names = [SiteName.parse(site) for site in sites]
    layers = [name.layer for name in names if name.layer is not None]
    if len(layers) < len(sites) or len(sites) == 1:
        return ", ".join(sites)
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    ranges = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{first.stream}layers.{ranges}.{first.part}"


def _files(manifest: Manifest) -> Table:
    """List the files; in long lists, equal files of different adapters share a line."""
    title = f"files, {size(sum(file.bytes for file in manifest.files))}, all match their SHA-256"
    if len(manifest.files) <= _MANY_FILES:
        rows = [(file.path, f"{file.bytes:,}", f"{file.sha256[:12]}…") for file in manifest.files]
        return Table(("path", "bytes", "sha256"), rows, title, "lr")
    alike: dict[str, list[int]] = {}
    for file in manifest.files:
        path = PurePosixPath(file.path)
        in_folder = f"{path.parts[0]}/*{path.suffix}" if len(path.parts) == 2 else f"{path.parts[0]}/*/{path.name}"
        alike.setdefault(file.path if len(path.parts) == 1 else in_folder, []).append(file.bytes)
    shared = [(pattern, str(len(sizes)), f"{sum(sizes):,}") for pattern, sizes in alike.items()]
    return Table(("path", "files", "bytes"), shared, title, "lrr")


def _adapter(adapter: Adapter, path: Path | None) -> Inspection:
    from adapter_export.bases.drawing import placement_map

    head, components = adapter.head, []
    for owner, graph, widths in adapter.components():
        ops = [node.op for node in graph.nodes]
        components.append({"owner": owner, "widths": dict(widths), "ops": ops, **asdict(cost(graph, widths))})
    document = {
        "what": "adapter",
        "path": None if path is None else str(path),
        "name": adapter.name,
        "kind": adapter.kind,
        "base": adapter.base,
        "task": None if head is None or head.task is None else head.task.document(),
        "cost": asdict(adapter.cost()),
        "parts": components,
        "training": dict(adapter.training),
    }
    title = f"{'' if path is None else f'{path}  '}adapter `{adapter.name}`, {adapter.kind}"
    sublayers = [site for site in adapter.placements if site.rpartition(".")[2] in SUBLAYERS]
    sites, named = list(adapter.placements), f"adapter {adapter.name}"
    drawn = partial(placement_map, named, sites, [(adapter.name, adapter)], sublayers)
    return Inspection(title, tuple(_adapter_tables(adapter)), document, drawn)


def _adapter_tables(adapter: Adapter) -> Iterator[Table]:
    rows = [
        (
            owner,
            ", ".join(f"{symbol} {number}" for symbol, number in widths.items()),
            " → ".join(node.op for node in graph.nodes),
            *_cost_cells(cost(graph, widths)),
        )
        for owner, graph, widths in adapter.components()
    ]
    rows.append(("all", "", "", *_cost_cells(adapter.cost())))
    columns = ("site", "widths", "graph", "parameters", "bytes", "multiply-accumulates per token")
    yield Table(columns, rows, numbers="lllrrr")
    labels = () if adapter.head is None else adapter.head.labels
    facts = [
        ("base", _short(adapter.base)),
        ("task", _task_name(_type_of(adapter.task), has_head=adapter.head is not None)),
        ("labels", _label_list(labels, many=len(labels))),
        ("size", size(adapter.cost().bytes)),
    ]
    yield Table(_FACTS, facts)
    if adapter.training:
        yield Table(_FACTS, list(_flat(adapter.training)), "training record")


def _cost_cells(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.parameters:,}", f"{cost.bytes:,}", f"{cost.multiply_accumulates:,}"


def _flat(document: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a record's values; long lists as their length."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and (
            len(value) > _MANY_LABELS or any(isinstance(v, Mapping) for v in value)
        ):
            yield f"{prefix}{key}", number_of(len(value), "entry", "entries")
        else:
            yield f"{prefix}{key}", str(value)


def _model(base: Base) -> Inspection:
    from adapter_export.bases.drawing import placement_map

    sites = base.sites.map
    document = {
        "what": "model",
        "path": None if base.path is None else str(base.path),
        "form": base.form,
        "fingerprint": base.fingerprint,
        "inputs": [asdict(record) for record in base.inputs],
        "outputs": [asdict(record) for record in base.outputs],
        "sites": len(sites.sublayers),
        "base_head": base.base_head_facts(),
        "source": base.source,
        "notes": list(base.notes),
    }
    head_facts = base.base_head_facts()
    path = base.path or Path("MODEL")
    see = command("base.sites", f"sites {path}")
    facts = [("fingerprint", _short(base.fingerprint)), ("sites", f"{len(sites.sublayers)}, see " + see)]
    facts += (
        [("base head", _task_name(None if head_facts["task"] is None else head_facts["task"]["type"], has_head=True))]
        if head_facts
        else []
    )
    facts += [] if base.source is None else [("source", base.source)]
    facts += [("note", note) for note in base.notes]
    tables = _signature(base.inputs, base.outputs), Table(_FACTS, facts)
    names = [site.name for site in sites]
    drawn = partial(placement_map, base.path.resolve().name if base.path else "model", names, [], names)
    return Inspection(f"{path}  {base.form_name}", tables, document, drawn)


def _signature(inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord]) -> Table:
    rows = []
    for record in inputs:
        meaning = f"ids below {record.limit}" if record.role == "ids" and record.limit else record.role
        rows.append(("in", record.name, record.dtype, _axes(record.axes), meaning))
    rows += [("out", record.name, record.dtype, _axes(record.axes), "") for record in outputs]
    return Table(("", "name", "type", "shape", "meaning"), rows, "inputs and outputs")


def _axes(lengths: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, lengths))}]"


def _type_of(task: Task | None) -> str | None:
    return None if task is None else task.type


def _task_name(problem: str | None, *, has_head: bool) -> str:
    return ("not known" if has_head else "no head") if problem is None else problem.replace("_", " ")


def _label_list(labels: Sequence[str] | None, many: int = _MANY_LABELS) -> str:
    if not labels:
        return "none"
    more = f", … {len(labels)} in all" if len(labels) > many else ""
    return ", ".join(labels[:many]) + more


def _short(fingerprint: str) -> str:
    return f"{fingerprint[: len('sha256:') + 12]}…"


def _show(inspection: Inspection, screen: Screen) -> None:
    screen.show(inspection.title, *inspection.tables)
    if "svg" in screen.given:
        screen.report(f"wrote {screen.given['svg']}")


COMMAND = Command(
    inspect,
    _show,
    examples=(
        "adapter-export inspect bundle",
        "adapter-export inspect bundle --key release.pub",
        "adapter-export inspect bundle --svg adapters.svg",
        "adapter-export inspect adapters/trec",
        "adapter-export inspect model.pt --json",
    ),
)
