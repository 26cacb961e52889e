"""Trace every constant and slot of a bundle bit by bit to the tensors that it was built from.

`build` looks up each constant among the tensors of the model and records its derivation. A check replays the
derivation, exports the graph again if the same library versions are installed, and compares both with the bundle.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import onnx_ir as ir

from adapter_export.bundle.bundle_reader import OpenedBundle, task_facts
from adapter_export.bundle.proof.manifest_checks import check_sites
from adapter_export.bundle.variants import VARIANTS
from adapter_export.bundle.variants.variant import RebuiltGraph, Variant
from adapter_export.dtypes import Weights, same_bits
from adapter_export.errors import AdapterExportError, BaseModelError
from adapter_export.format.check_report import Finding, SpanRecord, Status
from adapter_export.format.derivation import DERIVATION_FILE, DERIVATION_VERSION, ConstantRecord, Derivation
from adapter_export.format.manifest import OutputRecord, VariantName
from adapter_export.format.manifest_json import MANIFEST_FILE
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.slot_form import rounded
from adapter_export.onnx_backend.base.external import read_model, readable, settle_external_data
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.rewrite.checksums import add_checksums
from adapter_export.onnx_backend.rewrite.fanout import crossing_values
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import SlotPlan, slot_tensors
from adapter_export.safe_io.regular_files import sha256_of
from adapter_export.tables import number_of
from adapter_export.words import joined, quoted

_FEW = 16
"""Minimum number of elements to look up: equality of small scalars and shapes is no evidence of their origin."""

_SAMPLE = 64
_SHOWN = 3


_OURS = ("adapter-export", "onnx", "onnx-ir")


class _Mapped(Mapping[str, np.ndarray]):
    """Arrays mapped from their files on access, so that not all are in memory at once."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return values_of(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Origin:
    """Origin of a base: the model's tensors by name, a digest of its program, and library versions."""

    tensors: Mapping[str, np.ndarray]
    program: str
    made_by: tuple[str, ...] = ()
    optimized: bool = False

    @classmethod
    def of(cls, base: OnnxBase) -> Origin:
        """Return the origin of an ONNX file, read before it is modified."""
        model = read_model(base.path, partial(BaseModelError, "is not an ONNX model", where=base.path))
        settle_external_data(model, base.path)
        return cls(_Mapped(constants(model)), sha256_of(base.path))

    def derivation(self, model: ir.Model, golden: Sequence[str]) -> Derivation:
        """Return the derivation of each constant of a graph with slots; `golden` are the golden cases."""
        finder = _Finder.of(self.tensors)
        records = (finder.record(name, values_of(tensor)) for name, tensor in constants(model).items())
        made_by = libraries((*_OURS, *self.made_by))
        return Derivation(DERIVATION_VERSION, self.program, made_by, self.optimized, tuple(records), tuple(golden))


@dataclass(frozen=True)
class Source:
    """The user's model; `export_again` exports its base once more, with operators fused or not."""

    origin: Origin
    export_again: Callable[[bool], OnnxBase]


def constants(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Return every constant of a graph and its subgraphs: non-input initializers and tensor attributes of nodes."""
    fed = {value.name for value in model.graph.inputs}
    tensors = {
        name: value.const_value
        for graph in model.graphs()
        for name, value in graph.initializers.items()
        if name not in fed and value.const_value is not None
    }
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                tensors[node.outputs[0].name or node.name or ""] = attribute.value
    return tensors


def values_of(tensor: ir.TensorProtocol) -> np.ndarray:
    """Return the elements of a constant; large ones are memory-mapped."""
    return np.asarray(readable(tensor).numpy())


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of the installed libraries among `names`."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class _Finder:
    """Looks up a constant among the tensors of a model, by type and shape first."""

    tensors: Mapping[str, np.ndarray]
    by_shape: Mapping[tuple[str, tuple[int, ...]], Sequence[str]]

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> _Finder:
        by_shape: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for name, tensor in tensors.items():
            by_shape.setdefault((tensor.dtype.name, tensor.shape), []).append(name)
        return cls(tensors, by_shape)

    def record(self, name: str, array: np.ndarray) -> ConstantRecord:
        """Return the first derivation that matches; a tensor of the same name is preferred."""
        for way in self._ways(name, array):
            if same_bits(rebuilt(way, self.tensors, array), array):
                return way
        return ConstantRecord(name, "made", sha256=_digest(array))

    def _ways(self, name: str, array: np.ndarray) -> Iterator[ConstantRecord]:
        if name in self.tensors and self.tensors[name].shape == array.shape:
            yield ConstantRecord(name, "as is", (name,))
        if array.size < _FEW:
            return
        if (source := self._alike(array)) is not None:
            yield ConstantRecord(name, "as is", (source,))
        if array.ndim == 2 and (source := self._alike(array.T)) is not None:
            yield ConstantRecord(name, "transposed", (source,), transposed=True)
        yield from self._parts(name, array)
        yield from self._slices(name, array)

    def _alike(self, array: np.ndarray) -> str | None:
        """Return the first tensor of the same shape that matches, comparing a few elements before all of them."""
        at = np.unravel_index(np.linspace(0, array.size - 1, min(_SAMPLE, array.size)).astype(int), array.shape)
        sample = array[at].tobytes()
        for name in self.by_shape.get((array.dtype.name, array.shape), ()):
            if self.tensors[name][at].tobytes() == sample and same_bits(self.tensors[name], array):
                return name
        return None

    def _parts(self, name: str, array: np.ndarray) -> Iterator[ConstantRecord]:
        """Yield concatenations that fused operators read, such as query, key and value."""
        for axis in range(array.ndim):
            # query, key and value, or key and value, which a fusion packs
            for count in (3, 2):
                if array.shape[axis] % count == 0 and array.size // count >= _FEW:
                    parts = np.split(array, count, axis)
                    for turned in (False, True) if array.ndim == 2 else (False,):
                        sources = [self._alike(part.T if turned else part) for part in parts]
                        if None not in sources:
                            names = tuple(source or "" for source in sources)
                            yield ConstantRecord(name, "concatenated", names, transposed=turned, axis=axis)

    def _slices(self, name: str, array: np.ndarray) -> Iterator[ConstantRecord]:
        """Yield slices of a longer tensor along one axis, and reshaped tensors with the same elements."""
        large = (names for (dtype, shape), names in self.by_shape.items() if dtype == array.dtype.name
                 and math.prod(shape) >= array.size)  # fmt: skip
        for source in itertools.chain.from_iterable(large):
            tensor = self.tensors[source]
            if tensor.size == array.size and tensor.shape != array.shape:
                yield ConstantRecord(name, "reshaped", (source,))
            if tensor.ndim != array.ndim:
                continue
            longer = [axis for axis in range(array.ndim) if tensor.shape[axis] != array.shape[axis]]
            if len(longer) == 1:
                (axis,) = longer
                first = np.take(array, [0], axis)
                others = tuple(other for other in range(array.ndim) if other != axis)
                for start in np.flatnonzero((tensor == first).all(others))[:_SHOWN]:
                    yield ConstantRecord(name, "sliced", (source,), axis=axis, start=int(start))


def rebuilt(record: ConstantRecord, tensors: Mapping[str, np.ndarray], like: np.ndarray) -> np.ndarray | None:
    """Return the constant that a record describes; `None` if the model lacks its tensors or they have other shapes."""
    try:
        parts = [tensors[name].T if record.transposed else tensors[name] for name in record.sources]
        array = np.concatenate(parts, record.axis or 0) if len(parts) > 1 else parts[0]
        if record.start is not None and record.axis is not None:
            array = array[(slice(None),) * record.axis + (slice(record.start, record.start + like.shape[record.axis]),)]
        return array.reshape(like.shape) if record.how == "reshaped" else array
    except (KeyError, IndexError, ValueError):
        return None


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def check_tensors(
    bundle: OpenedBundle, source: Source, variants: Sequence[VariantName], *, brief: bool
) -> Iterator[Finding]:
    """Yield a finding for each constant of the graph with slots, and for the nodes and constants of each graph.

    A brief check skips exporting the graph again, which is slow for a torch base.
    """
    plan, file = bundle.plan, bundle.manifest.graphs["slots"]
    derivation = bundle.derivation()
    export = _NewExport.of(bundle, source, plan, derivation, brief=brief)
    yield export.finding(file)
    tensors, records = source.origin.tensors, dict[str, ConstantRecord]()
    same = derivation is not None and derivation.program == source.origin.program
    if derivation is not None:
        # a bundle built from another file of this model may record tensors that only that file has
        held = (record for record in derivation.constants if same or tensors.keys() >= {*record.sources})
        records = {record.name: record for record in held}
    finder = _Finder.of(tensors)
    if export.base is not None and export.model is not None:
        yield check_sites(bundle, export.base, export.model)
    for name, tensor in constants(bundle.slots_model).items():
        array = values_of(tensor)
        known = records.get(name) or (None if same else finder.record(name, array))
        yield _constant(file, name, array, known, tensors, export)
    for kind in variants:
        variant = VARIANTS[kind]
        for rebuilt in variant.rebuild(bundle, export.base) if kind != "slots" and not variant.by_text else ():
            yield from _as_in_slots(bundle, variant, rebuilt, export.why)


@dataclass(frozen=True)
class _NewExport:
    """The graph with slots, exported again; `why` is set if that is impossible, `differs` to the first difference."""

    base: OnnxBase | None
    model: ir.Model | None
    constants: Mapping[str, ir.TensorProtocol]
    differs: str | None
    why: str
    by: str

    @classmethod
    def of(
        cls, bundle: OpenedBundle, source: Source, plan: SlotPlan, derivation: Derivation | None, *, brief: bool
    ) -> _NewExport:
        here = {} if derivation is None else libraries(list(derivation.made_by))
        by = ", ".join(f"{name} {number}" for name, number in here.items()) or "this release"
        if brief:
            why = "a quick check does not export the graph again"
        elif derivation is not None and here != derivation.made_by:
            other = [f"{name} {number}" for name, number in derivation.made_by.items() if here.get(name) != number]
            why = f"exported by {', '.join(other)}; installed: {by}"
        elif derivation is not None and derivation.program != source.origin.program:
            why = "the bundle was built from a different program with these weights, or from a different capture"
        else:
            try:
                base = source.export_again(derivation is not None and derivation.optimized)
                model = insert_slots(base, plan)
                if bundle.manifest.checksums is not None:
                    model = add_checksums(model, plan.slots, bundle.manifest.checksums, base.inputs)
            except AdapterExportError as error:
                return cls(None, None, {}, None, "the model cannot be exported again: " + error.message, by)
            differs = next(node_differences(bundle.slots_model, model), None)
            if differs is None or derivation is not None:
                return cls(base, model, constants(model), differs, "", by)
            why = f"the bundle does not record its libraries, and its graph differs from the export of {by}: {differs}"
        return cls(None, None, {}, None, why, by)

    def finding(self, file: str) -> Finding:
        claim = "every node matches a new export of the model"
        if self.model is None:
            return Finding("nodes", file, claim, "unverified", file, self.why)
        status: Status = "exact" if self.differs is None else "failed"
        detail = self.differs or f"{number_of(len(self.model.graph), 'node')} as in the export of {self.by}"
        return Finding("nodes", file, claim, status, file, detail)


def _constant(
    file: str,
    name: str,
    array: np.ndarray,
    record: ConstantRecord | None,
    tensors: Mapping[str, np.ndarray],
    export: _NewExport,
) -> Finding:
    """Compare a constant with its recorded derivation and with the graph that is exported again."""
    exported, direct = export.constants.get(name), record is not None and bool(record.sources)
    origin = "a scalar, shape or tensor folded by the exporter" if record is None or not direct else _words(record)

    def result(status: Status, detail: str) -> Finding:
        return Finding("constant", f"{file}/{name}", origin, status, f"{file}: {name}", detail)

    if record is not None and direct:
        expected = rebuilt(record, tensors, array)
        if expected is None:
            return result("failed", f"recorded as {origin}; the model has no such tensor")
        if not same_bits(expected, array):
            return result("failed", f"differs from {origin} of the model: {_difference(array, expected)}")
    if exported is not None and not same_bits(values := values_of(exported), array):
        return result("failed", f"differs from a new export of the model: {_difference(array, values)}")
    if direct:
        return result("exact", f"{origin}, {number_of(array.size, 'element')}, bit-exact")
    if exported is not None:
        return result(
            "exact",
            f"{number_of(array.size, 'element')} as in the export of {export.by}, bit-exact",
        )
    if record is None:
        reason = export.why or "a new export has no constant of this name"
        return result("unverified", f"`{DERIVATION_FILE}` does not cover it; " + reason)
    if record.sha256 not in (None, _digest(array)):
        return result("failed", f"the bytes do not match `{DERIVATION_FILE}`")
    return result("unverified", export.why or "a new export has no constant of this name")


def _words(record: ConstantRecord) -> str:
    names = quoted(record.sources)
    where = "" if record.axis is None else f" along axis {record.axis}"
    start = "" if record.start is None else f" from {record.start}"
    turned = ", each transposed" if record.transposed and record.how != "transposed" else ""
    return f"{names} {record.how}{where}{start}{turned}"


def _difference(actual: np.ndarray, expected: np.ndarray) -> str:
    """Describe the difference of two arrays in one clause."""
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        return f"{actual.dtype.name} {list(actual.shape)}, expected {expected.dtype.name} {list(expected.shape)}"
    step = actual.dtype.itemsize
    # bytes instead of numbers: equal NaNs are equal, and −0 differs from 0
    first, second = (np.frombuffer(each.tobytes(), np.uint8).reshape(-1, step) for each in (actual, expected))
    wrong = np.flatnonzero((first != second).any(1))
    at = np.unravel_index(int(wrong[0]), actual.shape)
    index = ", ".join(map(str, at))
    numbers = f"[{index}] is {actual[at]!s}, expected {expected[at]!s}"
    return f"{len(wrong):,} of {number_of(actual.size, 'element')}, the first {numbers}"


def node_differences(actual: ir.Model, expected: ir.Model) -> Iterator[str]:
    """Yield the differences between the nodes of two graphs in order; their constants are compared separately."""
    pairs = list(zip(actual.graph.all_nodes(), expected.graph.all_nodes(), strict=False))
    for left, right in pairs:
        first, second = (ir.serde.serialize_node(node) for node in (left, right))
        for attribute in (*first.attribute, *second.attribute):
            attribute.ClearField("t")
        if first.SerializeToString(deterministic=True) != second.SerializeToString(deterministic=True):
            name = left.name or left.outputs[0].name
            yield f"node `{name}` ({_at(left)}): {_node_difference(first, second)}"
    counts = [sum(1 for _ in model.graph.all_nodes()) for model in (actual, expected)]
    if counts[0] != counts[1]:
        longer = list((actual if counts[0] > counts[1] else expected).graph.all_nodes())[len(pairs)]
        yield f"nodes: {counts[0]}, expected {counts[1]}: `{longer.name or longer.outputs[0].name}` ({_at(longer)})"
    for what in ("inputs", "outputs"):
        names = [[value.name for value in getattr(model.graph, what)] for model in (actual, expected)]
        if names[0] != names[1]:
            yield f"{what} {names[0]}, expected {names[1]}"


def _at(node: ir.Node) -> str:
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    return node.op_type if scopes is None else f"{node.op_type}, {scopes}"


def _node_difference(actual: object, expected: object) -> str:
    for descriptor in actual.DESCRIPTOR.fields:  # type: ignore[attr-defined]
        first, second = (getattr(each, descriptor.name) for each in (actual, expected))
        if first != second:
            texts = [" ".join(str(each).split())[:120] or "nothing" for each in (first, second)]
            return f"`{descriptor.name}` is {texts[0]}, expected {texts[1]}"
    return "different bytes"


def _as_in_slots(bundle: OpenedBundle, variant: Variant, rebuilt: RebuiltGraph, why: str) -> Iterator[Finding]:
    """Yield findings on whether a graph has the constants of the graph with slots and matches a new export.

    `why` is the reason if nothing was exported again.
    """
    file, tensors, shared = rebuilt.file, constants(bundle.model(rebuilt.file)), constants(bundle.slots_model)
    common = variant.common(shared)
    wrong = [f"`{name}`" for name in common if name not in tensors or not _is_same(tensors[name], shared[name])]
    names = ", ".join(wrong[:_SHOWN])
    yield Finding(
        "constants",
        file,
        "the constants match the graph with slots",
        "failed" if wrong else "exact",
        f"{file}: {names}" if wrong else file,
        f"{len(wrong)} differ: {names}" if wrong else f"{len(common)}, bit-exact",
        (SpanRecord("constants", len(common) - len(wrong), len(common)),),
    )
    claim = f"every node matches {rebuilt.source}"
    if rebuilt.model is None:
        yield Finding("nodes", file, claim, "unverified", file, why)
    else:
        yield _as_rebuilt(bundle, rebuilt, rebuilt.model, "nodes", claim)


def _as_rebuilt(bundle: OpenedBundle, rebuilt: RebuiltGraph, expected: ir.Model, check: str, claim: str) -> Finding:
    """Compare every node and constant of a graph with those of the graph exported again."""
    model, wanted = bundle.model(rebuilt.file), constants(expected)
    stored = constants(model)
    apart = [f"`{name}`" for name in wanted.keys() | stored.keys()
             if name not in wanted or name not in stored or not _is_same(wanted[name], stored[name])]  # fmt: skip
    differs = next(node_differences(model, expected), None)
    if apart and differs is None:
        differs = f"constants that differ: {', '.join(sorted(apart)[:_SHOWN])}"
    status: Status = "exact" if differs is None else "failed"
    detail = differs or f"{number_of(len(model.graph), 'node')}, {number_of(len(stored), 'constant')}, bit-exact"
    return Finding(check, rebuilt.file, claim, status, rebuilt.file, detail)


def check_cut(bundle: OpenedBundle) -> Iterator[Finding]:
    """Yield findings on whether the graphs below and above the first adapter match a new split of the bank."""
    fanout = bundle.manifest.fanout
    assert fanout is not None  # a bundle with these graphs has `fanout`
    values: tuple[OutputRecord, ...] = ()
    for rebuilt in VARIANTS["fanout"].rebuild(bundle, None):
        assert rebuilt.model is not None  # it is derived from the bank
        claim = f"every node and constant matches {rebuilt.source}"
        yield _as_rebuilt(bundle, rebuilt, rebuilt.model, "cut", claim)
        if rebuilt.file == fanout.prefix:
            values = crossing_values(rebuilt.model)
    same = fanout.values == values
    detail = "matches the graph `bank`" if same else f"is {list(fanout.values)}, but the bank gives {list(values)}"
    yield Finding(
        "manifest",
        "fanout.values",
        "`fanout.values` match the graph `bank`",
        "exact" if same else "failed",
        f"{MANIFEST_FILE}: fanout.values",
        detail,
    )


def _is_same(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    """Return whether two tensors are bit-identical; the same range of one file need not be read."""
    places = [
        (each.path, each.offset, each.dtype, each.shape)
        for each in (first, second)
        if isinstance(each, ir.ExternalTensor)
    ]
    return (len(places) == 2 and places[0] == places[1]) or same_bits(values_of(first), values_of(second))


def check_slots(bundle: OpenedBundle, names: Sequence[str], adapters: Mapping[str, Adapter]) -> Iterator[Finding]:
    """Yield findings on whether each adapter's files contain its folded weights, from the user or the bundle's copy."""
    plan = bundle.plan
    for name in names:
        record, source = bundle.record(name), bundle.source(name)
        tensors, where = bundle.tensors(name), record.safetensors
        expected = slot_tensors(plan, source)
        wrong = [slot for slot in expected if not same_bits(tensors.get(slot), expected[slot])]
        claim = "every slot contains the folded weights of the bundle's adapter"
        yield replace(_slots(name, where, tensors, expected, wrong), claim=claim)
        claim = "the adapter matches the user's"
        if name not in adapters:
            detail = "compared only with copies inside the bundle; pass your adapters"
            yield Finding.unverified("source", name, detail, claim, record.source)
            continue
        adapter, head = adapters[name], adapters[name].head
        facts = task_facts(None if head is None else head.task, record.task)
        facts += [("kind", adapter.kind, record.kind), ("base", adapter.base, record.base)]
        other = [what for what, actual, recorded in facts if actual != recorded]
        try:
            expected = slot_tensors(plan, rounded(adapter, record.precision))
        except AdapterExportError as error:
            expected, other = {}, [error.message]
        wrong = [slot for slot in expected if not same_bits(tensors.get(slot), expected[slot])]
        yield replace(_slots(name, where, tensors, expected, [*other, *wrong]), check="source", claim=claim)


def _slots(name: str, where: str, actual: Weights, expected: Weights, wrong: Sequence[str]) -> Finding:
    both = next((slot for slot in wrong if slot in actual and slot in expected), None)
    more = "" if both is None else f"; `{both}`: {_difference(actual[both], expected[both])}"
    names = joined("`" + slot + "`" for slot in wrong[:_SHOWN]) + (" …" if len(wrong) > _SHOWN else "")
    detail = f"{len(wrong)} differ: " + names + more if wrong else f"{number_of(len(expected), 'tensor')}, bit-exact"
    span = SpanRecord("tensors", len(expected) - len(set(wrong) & expected.keys()), len(expected))
    return replace(Finding.exact("slots", name, not wrong, detail, where=where), coverage=(span,))
