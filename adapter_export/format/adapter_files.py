"""Adapters on disk: a folder with `adapter_graph.json` and `weights.safetensors`.

Specified in `docs/reference/format.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from adapter_export.dtypes import AdapterPrecision, narrowed, widened
from adapter_export.errors import FileError, FormatError, HashError, within
from adapter_export.format.files import check_checksum, checked_json
from adapter_export.format.records import (
    SEMVER,
    Different,
    FileName,
    Name,
    NotEmpty,
    NotNull,
    OneOf,
    OrAbsent,
    Sha256,
    Text,
    record_from_json,
    version_checked,
)
from adapter_export.format.tensors import parse_tensors, tensor_bytes
from adapter_export.graph.adapter import Adapter, Head, Placement, Prefix
from adapter_export.graph.graph import HEAD_VALUES, READABLE, SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.ops import OPS
from adapter_export.graph.tasks import Task
from adapter_export.interval import Interval
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import read_bytes

ADAPTER_VERSION = "1.0.0"
"""Version of the adapter format written, and the newest supported."""

GRAPH_FILE = "adapter_graph.json"
WEIGHTS_FILE = "weights.safetensors"

Width = Annotated[int, Interval(1, 2**31 - 1)]
Widths = Mapping[Name, Width]
Role = Annotated[str, OneOf(tuple(dict.fromkeys(spec.role for op in OPS.values() for spec in op.parameters)))]


def _attributes_record() -> type:
    """Make the record of an op's attributes: a key for each attribute in the op table, with its range."""
    users: dict[str, list[str]] = {}
    hints: dict[str, object] = {}
    for op in OPS.values():
        for name, interval in op.attributes.items():
            users.setdefault(name, []).append(op.name)
            hints[name] = Annotated[Annotated[float, interval] | None, NotNull()]
    record = make_dataclass("AttributesRecord", [(name, hint, None) for name, hint in hints.items()], frozen=True)
    about = "The attributes of an op: float64 numbers, rounded to the precision of the computation."
    keys = [f"    {name}: of {' and '.join(ops)}." for name, ops in users.items()]
    record.__doc__ = "\n".join([about, "", "Attributes:", *keys])
    return record


AttributesRecord = _attributes_record()


@dataclass(frozen=True)
class NodeRecord:
    """One application of an op. docs/reference/format.md lists the inputs, parameters and attributes of each op.

    Attributes:
        op: the op.
        inputs: the values it reads: inputs of the graph, or outputs of earlier nodes.
        output: the value it defines, unique in the graph.
        parameters: the parameter of the graph for each role of the op. Omitted if the op has none.
        attributes: the attributes of the op. Omitted if the op has none.
    """

    op: Annotated[str, OneOf(tuple(OPS))]
    inputs: Annotated[tuple[Name, ...], NotEmpty()]
    output: Name
    parameters: Mapping[Role, Name] = field(default_factory=dict)
    attributes: AttributesRecord = field(default_factory=AttributesRecord)  # type: ignore[valid-type]


@dataclass(frozen=True)
class SiteGraphRecord:
    """A graph at a site: reads site values and computes the replacement for one of them, of the same shape.

    It is a list of ops, each applied to inputs or earlier results.

    Attributes:
        inputs: the values that the graph reads.
        parameters: the shape of each tensor of the graph. An axis is a number, or a symbol whose value is in `widths`.
        nodes: in the order of evaluation.
        result: the value that the graph returns.
        replaces: the site value that the result replaces. Not in a head.
        shared: the parameters shared by all sites with this graph; their tensors are named
            `shared.<graph>.<parameter>`. Default: none. Not in a head.
    """

    inputs: Annotated[tuple[Annotated[str, OneOf(tuple(SITE_VALUES))], ...], NotEmpty(), Different()]
    parameters: Mapping[Name, Annotated[tuple[Width | Name, ...], NotEmpty()]]
    nodes: tuple[NodeRecord, ...]
    result: Name
    replaces: Annotated[str, OneOf(tuple(READABLE))] = "h"
    shared: Annotated[tuple[Name, ...], NotEmpty(), Different()] = ()

    def graph(self) -> AdapterGraph:
        """Return the graph; GraphError if it is malformed."""
        nodes = []
        for node in self.nodes:
            numbers = {name: number for name, number in asdict(node.attributes).items() if number is not None}
            nodes.append(Node(node.op, node.inputs, node.output, node.parameters, numbers))
        return AdapterGraph(self.inputs, self.parameters, tuple(nodes), self.result, self.replaces, self.shared)


@dataclass(frozen=True)
class HeadGraphRecord(SiteGraphRecord):
    """The graph of a head.

    It reads the final hidden state [batch, tokens, d] and the attention mask [batch, tokens], and computes the result
    of the head's task.
    """

    inputs: Annotated[tuple[Annotated[str, OneOf(tuple(HEAD_VALUES))], ...], NotEmpty(), Different()]


@dataclass(frozen=True)
class SiteRecord:
    """A graph at a site.

    Attributes:
        site: the site's canonical name, such as `layers.3.ffn`; neither `head` nor `shared`.
        graph: a key of `graphs`.
        widths: the value of each symbol in the graph's parameter shapes, such as {"b": 64, "d": 384}.
    """

    site: Name
    graph: Name
    widths: Widths


@dataclass(frozen=True)
class HeadRecord:
    """A prediction head.

    Attributes:
        graph: computes logits or numbers [batch, classes], logits [batch, tokens, classes], or vectors [batch, width];
            the symbol of a width must not be `classes`.
        widths: the value of each symbol in the graph's parameter shapes.
        task: the task type and labels of the result. If absent, readers return logits and no answers.
    """

    graph: HeadGraphRecord
    widths: Widths
    task: OrAbsent[Task] = None


@dataclass(frozen=True)
class PrefixRecord:
    """Trained keys and values that a language model reads before the first token of each row.

    They are a past of `tokens` tokens that precedes the caches and that every token may read: positions begin after
    it. Tensors are named `prefix.<cache>`.

    Attributes:
        tokens: number of positions of the prefix.
        caches: the shape of each tensor, by the base's input that it precedes: the axes of that cache without the
            batch, with the name `tokens` in place of the past.
    """

    tokens: Width
    caches: Annotated[Mapping[Name, Annotated[tuple[Width | Literal["tokens"], ...], NotEmpty()]], NotEmpty()]


@dataclass(frozen=True)
class BaseRecord:
    """The frozen model that the adapter was trained on.

    Attributes:
        fingerprint: the fingerprint of the base's weights. An adapter runs only on a base with this fingerprint.
    """

    fingerprint: Text


@dataclass(frozen=True)
class WeightsRecord:
    """The file with the tensors `<site>.<parameter>` and `head.<parameter>`: float32, or float16 or int8 with a scale.

    Attributes:
        file: name of the file, in the same folder.
        sha256: SHA-256 of the file.
    """

    file: Literal["weights.safetensors"]
    sha256: Sha256


@dataclass(frozen=True)
class AdapterDocument:
    """An adapter for a frozen base model: which graph acts at which site, the prediction head, and where it came from.

    This is `adapter_graph.json`; its tensors are in weights.safetensors in the same folder. Specified in
    docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        name: the adapter's name.
        kind: the published kind of the graphs, such as `houlsby`; `custom` for graphs written by hand. Informative:
            only the graphs define the computation.
        base: the frozen model that the adapter was trained on.
        graphs: the graphs of the sites, by name. Each is used by at least one site.
        sites: the graph at each site, in the base's order of evaluation. Sites are unique. Empty only if there is a
            head or a prefix.
        weights: the file with the tensors.
        checksum: the SHA-256 of this file with every occurrence of these 64 digits replaced by 64 zeros. Optional for
            files written by hand.
        head: computes the result of the task from the base's final hidden state. Its tensors are named
            `head.<parameter>`.
        training: the trainer's record. Readers keep it without interpreting it.
        prefix: keys and values before the first token.
    """

    version: Annotated[str, SEMVER]
    name: FileName
    kind: Text
    base: BaseRecord
    graphs: Mapping[Name, SiteGraphRecord]
    sites: tuple[SiteRecord, ...]
    weights: WeightsRecord
    checksum: OrAbsent[Sha256] = None
    head: OrAbsent[HeadRecord] = None
    training: Mapping[str, Any] = field(default_factory=dict)
    prefix: OrAbsent[PrefixRecord] = None


def write_adapter(
    adapter: Adapter, folder: Path, *, precision: AdapterPrecision = "float32", force: bool = False
) -> None:
    """Write the two files of an adapter to a folder; the bytes are deterministic.

    In a precision other than float32, the tensors are rounded.

    Raises:
        FormatError: see `adapter_bytes`.
        OutputExistsError: `folder` exists and `force` is false.
        WriteError: the operating system refused a write; `folder` is unchanged.
    """
    graph, weights = adapter_bytes(adapter, precision)
    with Output(folder, force).folder() as temporary:
        (temporary / GRAPH_FILE).write_bytes(graph)
        (temporary / WEIGHTS_FILE).write_bytes(weights)


def adapter_bytes(adapter: Adapter, precision: AdapterPrecision = "float32") -> tuple[bytes, bytes]:
    """Return the contents of an adapter's two files: graphs and weights.

    Raises:
        FormatError: the format cannot represent the adapter, such as a site name with a space.
    """
    weights = tensor_bytes(narrowed(adapter.weights, precision))
    document = _to_json(adapter, hashlib.sha256(weights).hexdigest())
    data = checked_json(document)
    with within(f"adapter `{adapter.name}`"):
        record_from_json(AdapterDocument, parse_json(data, None))
    return data, weights


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter, and check its contents before they are used.

    Raises:
        FileError: the folder or one of its files is missing or cannot be read.
        FormatError: a file violates the format; subclasses are `VersionError`, `HashError` and `TensorError`.
        GraphError: a graph is malformed.
        AdapterError: graphs, sites and head do not fit together.
    """
    if not folder.is_dir():
        raise FileError(
            "is not an adapter folder", where=folder, expected=f"a folder with `{GRAPH_FILE}` and `{WEIGHTS_FILE}`"
        )
    # read once: the parsed bytes are those whose hash was checked
    paths = folder / GRAPH_FILE, folder / WEIGHTS_FILE
    graph, weights = map(_read_file, paths)
    return parse_adapter(graph, weights, paths, folder)


def parse_adapter(data: bytes, tensors: bytes, places: tuple[object, object], where: object) -> Adapter:
    """Parse an adapter from the contents of its two files, named `places` in messages, and together `where`.

    Raises:
        FormatError, GraphError, AdapterError: see `read_adapter`.
    """
    path, weights_path = places
    document = parse_json(data, path)
    with version_checked(document, ADAPTER_VERSION, path), within(path):
        record = record_from_json(AdapterDocument, document)
        head, graphs = None, {}
        if record.head is not None:
            with within("the head's graph"):
                graph = record.head.graph.graph()
            head = Head(graph, record.head.widths, record.head.task)
        for name, of_site in record.graphs.items():
            with within(f"graph `{name}`"):
                graphs[name] = of_site.graph()
        placements = _placements(record.sites)
        prefix = None if record.prefix is None else Prefix(record.prefix.tokens, record.prefix.caches)
    check_checksum(data, record.checksum, path)
    weights = widened(parse_tensors(tensors, weights_path), weights_path)
    digest = hashlib.sha256(tensors).hexdigest()
    if digest != record.weights.sha256:
        raise HashError(weights_path, found=digest, expected=record.weights.sha256)
    with within(where):
        return Adapter(
            record.name,
            record.kind,
            record.base.fingerprint,
            graphs,
            placements,
            weights,
            head,
            record.training,
            prefix,
        )


def graph_to_json(graph: AdapterGraph) -> dict[str, Any]:
    """Return the graph as a JSON object, without empty and default values."""
    nodes = [
        {
            "op": node.op,
            "inputs": list(node.inputs),
            "output": node.output,
            **({"parameters": dict(node.parameters)} if node.parameters else {}),
            **({"attributes": dict(node.attributes)} if node.attributes else {}),
        }
        for node in graph.nodes
    ]
    return {
        "inputs": list(graph.inputs),
        "parameters": {name: list(shape) for name, shape in graph.parameters.items()},
        "nodes": nodes,
        "result": graph.result,
        **({"replaces": graph.replaces} if graph.replaces != "h" else {}),
        **({"shared": list(graph.shared)} if graph.shared else {}),
    }


def graph_from_json(document: object) -> AdapterGraph:
    """Parse the graph of a site or a head from a JSON object.

    Raises:
        FormatError, GraphError: the object violates the format, or the graph is malformed.
    """
    reads = document.get("inputs") if isinstance(document, dict) else None
    is_head = isinstance(reads, list) and set(map(str, reads)) <= set(HEAD_VALUES)
    return record_from_json(HeadGraphRecord if is_head else SiteGraphRecord, document).graph()


def _to_json(adapter: Adapter, sha256: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "version": ADAPTER_VERSION,
        "name": adapter.name,
        "kind": adapter.kind,
        "base": {"fingerprint": adapter.base},
        "graphs": {name: graph_to_json(graph) for name, graph in adapter.graphs.items()},
        "sites": [
            {"site": site, "graph": placement.graph, "widths": dict(placement.widths)}
            for site, placement in adapter.placements.items()
        ],
        "training": dict(adapter.training),
        "weights": {"file": WEIGHTS_FILE, "sha256": sha256},
    }
    head = adapter.head
    if head is not None:
        document["head"] = {
            "graph": graph_to_json(head.graph),
            "widths": dict(head.widths),
            **({} if head.task is None else {"task": head.task.document()}),
        }
    if adapter.prefix is not None:
        caches = {cache: list(shape) for cache, shape in adapter.prefix.shapes.items()}
        document["prefix"] = {"tokens": adapter.prefix.tokens, "caches": caches}
    return document


def _placements(sites: tuple[SiteRecord, ...]) -> dict[str, Placement]:
    placements: dict[str, Placement] = {}
    for index, record in enumerate(sites):
        if record.site in placements:
            raise FormatError(
                "a site occurs twice",
                where=f"`$.sites[{index}]`",
                found=f"`{record.site}`",
                fix="give each site one graph",
            )
        placements[record.site] = Placement(record.graph, record.widths)
    return placements


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise FileError(
            "is missing from an adapter folder",
            where=path,
            expected=f"`{GRAPH_FILE}` and `{WEIGHTS_FILE}` side by side",
            fix="copy both files of the adapter",
        )
    return read_bytes(path)
