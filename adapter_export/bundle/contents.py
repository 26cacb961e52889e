"""The files of a bundle: whole, and in agreement with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError

from adapter_export.bundle.golden import MASK_BELOW
from adapter_export.bundle.report import BASE, Form, InvariantResult
from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, FormatError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.inventory import MANIFEST_FILE, verify_files
from adapter_export.format.manifest import AdapterRecord, Axis, BankRecord, BankTensor, Manifest, SlotRecord
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import weighted_members
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.base.base import FINGERPRINT_KEY
from adapter_export.onnx_backend.session import open_session
from adapter_export.runtime.graphs import FAILURES, run_session

# The further graphs of a bundle, fed as a client feeds them.


@dataclass(frozen=True)
class Graph:
    """One of the further graphs.

    Attributes:
        session: on it.
        folder: the bundle.
        manifest: its manifest.
        form: which graph it is.
    """

    session: ort.InferenceSession
    folder: Path
    manifest: Manifest
    form: Form

    def run(self, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None], outputs: Sequence[str]) -> Arrays:
        """Run once.

        Args:
            arrays: the data inputs.
            chosen: the adapter of each row of the batch, none for the base; `inputs` and `baked` have the first one for
                all rows.
            outputs: those that are wanted; one that the graph lacks is left out.

        Raises:
            RequestError: the graph does not take what a client feeds it.
        """
        there = {value.name for value in self.session.get_outputs()}
        wanted = [name for name in outputs if name in there]
        return run_session(self.session, {**arrays, **self._feeds(chosen)}, wanted) if wanted else {}

    def _feeds(self, chosen: Sequence[str | None]) -> Mapping[str, np.ndarray]:
        if self.form == "inputs":
            return adapter_tensors(self.folder, self.manifest, chosen[0])
        bank = self.manifest.bank
        if bank is None or self.form == "baked":
            return {}
        return {bank.ids: np.array([bank.rows.index(name) for name in chosen], np.int64)}


def open_graph(folder: Path, manifest: Manifest, form: Form, path: str) -> Graph:
    """Open one of a bundle's graphs.

    Raises:
        FormatError: it is not an ONNX model.
        BaseModelError: ONNX Runtime cannot open it.
    """
    return Graph(open_session(read_graph(folder / path), folder), folder, manifest, form)


def read_graph(path: Path) -> ir.Model:
    """A graph of a bundle; its external data are not read.

    Raises:
        FormatError: it is not an ONNX model.
    """
    try:
        return ir.load(path)
    except (DecodeError, ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise FormatError(
            "is not an ONNX model",
            where=path,
            found=str(error).partition("\n")[0],
            fix="build the bundle again, or copy it again as a whole",
        ) from error


def bank_contents(path: Path, bank: BankRecord) -> Weights:
    """The tensors of a bank, as a graph holds them; one that it lacks is left out."""
    held = read_graph(path).graph.initializers
    values = {tensor.name: held[tensor.name].const_value for tensor in bank.tensors if tensor.name in held}
    return {name: np.asarray(value.numpy()) for name, value in values.items() if value is not None}


def adapter_tensors(folder: Path, manifest: Manifest, name: str | None) -> Weights:
    """A tensor for every slot; for the base what its default is."""
    if name is None:
        return {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in manifest.slots}
    record = next(record for record in manifest.adapters if record.name == name)
    return read_tensors(folder / record.safetensors)


# What the further graphs hold of the adapters, bit for bit.


def check_contents(
    folder: Path, manifest: Manifest, forms: Sequence[Form], records: Sequence[AdapterRecord | None]
) -> Iterator[InvariantResult]:
    """A bank and the baked graphs hold the tensors of the adapters' own files.

    Args:
        folder: the bundle.
        manifest: its manifest.
        forms: the graphs to look at.
        records: the adapters; none for the base.
    """
    if manifest.bank is not None and "bank" in forms:
        contents = bank_contents(folder / manifest.graphs["bank"], manifest.bank)
        names = [None if record is None else record.name for record in records]
        for name in names:
            if name in manifest.bank.rows:
                yield _check_row(folder, manifest, manifest.bank, name, contents)
    for record in records:
        if "baked" in forms and record is not None and record.baked is not None:
            yield _check_baked(folder, manifest, record, record.baked)


def _check_row(
    folder: Path, manifest: Manifest, bank: BankRecord, name: str | None, contents: Weights
) -> InvariantResult:
    """A row holds an adapter, and zeros where it is narrower than others."""
    row, own = bank.rows.index(name), adapter_tensors(folder, manifest, name)
    wrong = [tensor.name for tensor in bank.tensors if not _holds(contents.get(tensor.name), row, tensor, own)]
    return _result("bank rows", name or BASE, wrong, len(bank.tensors))


def _check_baked(folder: Path, manifest: Manifest, record: AdapterRecord, path: str) -> InvariantResult:
    own, held = adapter_tensors(folder, manifest, record.name), read_graph(folder / path).graph.initializers
    constants = {name: held[name].const_value for name in own if name in held}
    wrong = [name for name, tensor in own.items() if not _is(constants.get(name), tensor)]
    return _result("baked tensors", record.name, wrong, len(own))


def _result(name: str, subject: str, wrong: Sequence[str], count: int) -> InvariantResult:
    detail = f"not as in its file: {', '.join(wrong)}" if wrong else f"{count} tensors as in its file, bit for bit"
    return InvariantResult(name, subject, not wrong, detail)


def _holds(held: np.ndarray | None, row: int, tensor: BankTensor, own: Weights) -> bool:
    if held is None or row >= len(held):
        return False
    if tensor.slot is None:
        return _is_mask(held[row])
    return _is_padded(held[row], own.get(tensor.slot))


def _is_padded(found: np.ndarray, expected: np.ndarray | None) -> bool:
    if expected is None or found.ndim != expected.ndim:
        return False
    padding = [(0, wide - narrow) for wide, narrow in zip(found.shape, expected.shape, strict=True)]
    if min(behind for _, behind in padding) < 0:
        return False
    return np.pad(expected, padding).tobytes() == found.tobytes()


def _is_mask(row: np.ndarray) -> bool:
    """Zeros, then only very low numbers; how many of each is seen when it runs."""
    own = int((row == 0).sum())
    return own > 0 and not row[:own].any() and bool(np.all(row[own:] < MASK_BELOW))


def _is(constant: ir.TensorProtocol | None, tensor: np.ndarray) -> bool:
    if constant is None:
        return False
    found = np.asarray(constant.numpy())
    return found.shape == tensor.shape and found.tobytes() == tensor.tobytes()


# The graphs of a bundle are what its manifest says: inputs, outputs, slots, weights; nothing is run here.

_SHOWN = 5
"""How many faults a message lists."""


@dataclass(frozen=True)
class _Value:
    """What an input or output of a graph must be: NumPy's name of its type, and its shape."""

    dtype: str
    axes: tuple[Axis, ...]


def check_structure(folder: Path, manifest: Manifest) -> Iterator[InvariantResult]:
    """Compare every graph with the manifest, which conforms to its schema, or it could not have been read.

    Raises:
        FormatError: a graph cannot be read, or it is another one than the manifest describes: inputs, outputs, slots
            and their defaults, tensors of the bank, where its weights lie.
    """
    yield InvariantResult("schema", MANIFEST_FILE, True, f"format {manifest.version}")
    for form, file in _graphs(manifest):
        model = read_graph(folder / file)
        _check(model, manifest, form, folder / file)
        inputs = len(model.graph.inputs) - len(_overridable(model))
        detail = f"{inputs} inputs, {len(_overridable(model))} overridable, {len(model.graph.outputs)} outputs"
        yield InvariantResult("graph", file, True, detail)


def _graphs(manifest: Manifest) -> Iterator[tuple[Form, str]]:
    forms: tuple[Form, ...] = ("slots", "inputs", "bank")
    yield from ((form, manifest.graphs[form]) for form in forms if form in manifest.graphs)
    yield from (("baked", record.baked) for record in manifest.adapters if record.baked is not None)


def _check(model: ir.Model, manifest: Manifest, form: Form, path: Path) -> None:
    faults = [
        *_interface(model, manifest, form),
        *_defaults(model, manifest, form),
        *_weights(model, manifest),
        *_identity(model, manifest, form),
    ]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise FormatError(
            "is another graph than the manifest describes",
            where=path,
            found="; ".join(faults[:_SHOWN]) + more,
            expected=f"the flavour `{form}` as `{MANIFEST_FILE}` says it",
            fix="take the bundle from its source again, or build it again",
        )


def _interface(model: ir.Model, manifest: Manifest, form: Form) -> Iterator[str]:
    """Inputs and outputs by name, type and shape."""
    wanted = {record.name: _Value(record.dtype, record.axes) for record in manifest.inputs} | _own(manifest, form)
    yield from _differences("input", model.graph.inputs, wanted)
    results = {record.name: _Value(record.dtype, record.axes) for record in manifest.outputs}
    yield from _differences("output", model.graph.outputs, results)


def _own(manifest: Manifest, form: Form) -> dict[str, _Value]:
    """The inputs of one form beside the data, overridable ones among them."""
    if form in ("slots", "inputs"):
        return {slot.name: _Value("float32", slot.axes) for slot in manifest.slots}
    bank = manifest.bank
    if form == "baked" or bank is None:
        return {}
    choice = {bank.ids: _Value("int64", ("batch",))}
    return choice | {tensor.name: _Value("float32", tensor.axes) for tensor in bank.tensors}


def _differences(what: str, values: Sequence[ir.Value], wanted: Mapping[str, _Value]) -> Iterator[str]:
    found = {value.name or "": value for value in values}
    yield from (f"no {what} `{name}`" for name in wanted if name not in found)
    yield from (f"an {what} `{name}` too many" for name in found if name not in wanted)
    for name in wanted.keys() & found.keys():
        dtype, dims = found[name].dtype, _dims(found[name])
        if dtype is None or dtype.numpy().name != wanted[name].dtype or not _fits(dims, wanted[name].axes):
            shown = "no type" if dtype is None else dtype.numpy().name
            yield f"{what} `{name}` {shown} {dims}, not {wanted[name].dtype} {list(wanted[name].axes)}"


def _dims(value: ir.Value) -> list[int | str | None]:
    shape = () if value.shape is None else value.shape
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _fits(dims: Sequence[int | str | None], axes: Sequence[Axis]) -> bool:
    """Fixed lengths are equal, and what is free in one is free in the other; names are for people."""
    return [dim if isinstance(dim, int) else None for dim in dims] == [
        axis if isinstance(axis, int) else None for axis in axes
    ]


def _overridable(model: ir.Model) -> list[str]:
    return [value.name or "" for value in model.graph.inputs if value.is_initializer()]


def _defaults(model: ir.Model, manifest: Manifest, form: Form) -> Iterator[str]:
    """What can be overridden is what should be, and its default does nothing."""
    bank = manifest.bank
    tensors = () if bank is None else tuple(tensor.name for tensor in bank.tensors)
    wanted = {"slots": tuple(slot.name for slot in manifest.slots), "bank": tensors}.get(form, ())
    found = _overridable(model)
    yield from (f"`{name}` cannot be overridden" for name in wanted if name not in found)
    yield from (f"`{name}` can be overridden" for name in found if name not in wanted)
    for slot in manifest.slots if form == "slots" else ():
        value = model.graph.initializers.get(slot.name)
        if value is not None and value.const_value is not None and not _is_neutral(value.const_value, slot):
            yield f"`{slot.name}` has another default than {list(slot.neutral)} of {slot.neutral_value:g}"
    if bank is not None and form == "bank":
        yield from _bank_rows(model, tensors, len(bank.rows))


def _is_neutral(tensor: ir.TensorProtocol, slot: SlotRecord) -> bool:
    array = np.asarray(tensor.numpy())
    return array.shape == slot.neutral and bool((array == slot.neutral_value).all())


def _bank_rows(model: ir.Model, tensors: Sequence[str], rows: int) -> Iterator[str]:
    for name in tensors:
        value = model.graph.initializers.get(name)
        shape = None if value is None or value.const_value is None else tuple(value.const_value.shape.numpy())
        if shape is not None and shape[:1] != (rows,):
            yield f"`{name}` {list(shape)} does not have {rows} rows"


def _weights(model: ir.Model, manifest: Manifest) -> Iterator[str]:
    """Tensors outside of the graph's file lie in files that the manifest vouches for, and within them."""
    sizes = {file.path: file.bytes for file in manifest.files}
    for tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if location not in sizes:
            yield f"`{tensor.name}` lies in `{location}`, which the manifest does not list"
        elif (tensor.offset or 0) + (tensor.length or tensor.nbytes) > sizes[location]:
            yield f"`{tensor.name}` ends behind the end of `{location}`"


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol | None]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values())
    for node in model.graph.all_nodes():
        yield from (each.value for each in node.attributes.values() if each.type == ir.AttributeType.TENSOR)


def _identity(model: ir.Model, manifest: Manifest, form: Form) -> Iterator[str]:
    """The base, and the number that adapter files carry."""
    base = model.metadata_props.get(FINGERPRINT_KEY, manifest.base)
    if base != manifest.base:
        yield f"the base {base}, not {manifest.base}"
    if form == "slots" and manifest.model_version != model.model_version:
        yield f"`model_version` {model.model_version}, not {manifest.model_version}"


def check_files(folder: Path, manifest: Manifest) -> InvariantResult:
    """Every file of the bundle has the hash that the manifest gives.

    Raises:
        FileError: a file is missing.
        FormatError: a file has been changed; `HashError` is a kind of it.
    """
    verify_files(manifest, folder)
    return InvariantResult("files", "bundle", True, f"{len(manifest.files)} files, all as their hashes say")


def read_source(folder: Path, record: AdapterRecord) -> Adapter:
    """The adapter as it was given to the build.

    Raises:
        FileError, FormatError: it cannot be read.
        AdapterError: it is not the one that the manifest describes.
    """
    adapter = read_adapter(folder / record.source)
    labels = None if adapter.head is None else adapter.head.labels or None
    task = None if adapter.head is None else adapter.head.task
    facts: list[tuple[str, object, object]] = [("base", adapter.base, record.base)]
    facts += [("task", task, record.task), ("labels", labels, record.labels)]
    if record.mix is not None:  # which column weighs which member: no number would tell
        facts.append(("order of members", weighted_members(adapter), record.mix.members))
    for what, found, expected in facts:
        if found != expected:
            raise AdapterError(
                f"has another {what} than the manifest says",
                where=folder / record.source,
                found=found,
                expected=expected,
                fix="build the bundle again",
            )
    return adapter


def check_twins(folder: Path, record: AdapterRecord) -> InvariantResult:
    """The two files of an adapter, for ONNX Runtime and for everyone else, hold the same tensors, bit for bit."""
    own, others = _native_tensors(folder / record.onnx_adapter), read_tensors(folder / record.safetensors)
    apart = [name for name in own.keys() | others.keys() if not _same(own.get(name), others.get(name))]
    detail = f"{len(own)} tensors, bit for bit" if not apart else f"different: {', '.join(sorted(apart))}"
    return InvariantResult("adapter files", record.name, not apart and bool(own), detail)


def _native_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))  # the values point into it, so it must outlive them
        return {name: value.numpy().copy() for name, value in adapter.get_parameters().items()}
    except FAILURES as error:
        raise FormatError(
            "is not an adapter file of ONNX Runtime",
            where=path,
            found=str(error).partition("\n")[0],
            fix="build the bundle again",
        ) from error


def _same(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return (
        first is not None
        and second is not None
        and (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    )
