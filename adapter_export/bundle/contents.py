"""The files of a bundle are what its manifest says, and agree with each other; nothing is run here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.opened import OpenedBundle
from adapter_export.bundle.report import BASE, FORMS
from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError
from adapter_export.format.check_report import Form, InvariantRecord, verdict
from adapter_export.format.manifest import Axis, BankRecord, BankTensor, Manifest
from adapter_export.format.manifest_json import MANIFEST_FILE
from adapter_export.onnx_backend.base.base import FINGERPRINT_KEY
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.runtime.graphs import FAILURES

_SHOWN = 5
"""How many faults a message lists."""

Wanted = Mapping[str, tuple[str, Sequence[Axis]]]
"""What inputs or outputs must be: NumPy's name of the type, and the shape."""


def check_files(
    bundle: OpenedBundle, flavours: Sequence[Form], names: Sequence[str | None]
) -> Iterator[InvariantRecord]:
    """Compare every graph with the manifest, and the tensors of adapters bit by bit in their files and `flavours`.

    The manifest conforms to its schema, or it could not have been read; the files were compared with their hashes when
    the bundle was opened.

    Raises:
        FormatError: a graph cannot be read, or it is another one than the manifest describes: inputs, outputs, slots
            and their defaults, tensors of the bank, where its weights lie.
        AdapterError: the adapter as it was given is not the one that the manifest describes.
    """
    manifest, adapters = bundle.manifest, [name for name in names if name is not None]
    if not bundle.staged:
        detail = f"{len(manifest.files)} files, all as their hashes say"
        yield InvariantRecord("files", "bundle", "passed", detail)
        yield InvariantRecord("schema", MANIFEST_FILE, "passed", f"format {manifest.version}")
    yield from _check_graphs(bundle)
    for name in adapters:
        bundle.source(name)
        yield _check_twins(bundle, name)
    bank = manifest.bank
    if bank is not None and "bank" in flavours:
        held = _tensors_of(bundle.model(manifest.graphs["bank"]), [tensor.name for tensor in bank.tensors])
        yield from (_check_row(bundle, bank, name, held) for name in names if name in bank.rows)
    for name in adapters if "baked" in flavours else ():
        if (file := bundle.record(name).baked) is not None:
            own = bundle.tensors(name)
            constants = _tensors_of(bundle.model(file), own)
            wrong = [slot for slot, tensor in own.items() if not same_bits(constants.get(slot), tensor)]
            yield _tensors_result("baked tensors", name, wrong, len(own))


def _check_graphs(bundle: OpenedBundle) -> Iterator[InvariantRecord]:
    """Compare inputs, outputs, slots with their defaults, where the weights lie, which base and which slots."""
    sizes = {file.path: file.bytes for file in bundle.manifest.files}
    if bundle.staged:
        sizes = {path.name: path.stat().st_size for path in bundle.folder.iterdir()}
    for flavour, file in [(each, file) for each in FORMS for file in bundle.files_of(each)]:
        model = bundle.model(file)
        overridable = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
        faults = [
            *_interface(model, bundle.manifest, flavour),
            # tensors are read only from where they may lie
            *(list(_weights(model, sizes)) or _defaults(model, bundle.manifest, flavour, overridable)),
        ]
        if faults:
            more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise FormatError(
                "is another graph than the manifest describes",
                where=bundle.folder / file,
                found="; ".join(faults[:_SHOWN]) + more,
                expected=f"the flavour `{flavour}` as `{MANIFEST_FILE}` says it",
                fix="take the bundle from its source again, or build it again",
            )
        inputs, outputs = len(model.graph.inputs) - len(overridable), len(model.graph.outputs)
        detail = f"{inputs} inputs, {len(overridable)} overridable, {outputs} outputs"
        yield InvariantRecord("graph", file, "passed", detail)


def _interface(model: ir.Model, manifest: Manifest, flavour: Form) -> Iterator[str]:
    """Yield what is wrong with inputs and outputs, the base, and the number that the adapter files have, too."""
    wanted: dict[str, tuple[str, Sequence[Axis]]] = {one.name: (one.dtype, one.axes) for one in manifest.inputs}
    if flavour in ("slots", "inputs"):
        wanted |= {slot.name: ("float32", slot.axes) for slot in manifest.slots}
    elif flavour == "bank" and manifest.bank is not None:
        wanted[manifest.bank.ids] = ("int64", ("batch",))
        wanted |= {tensor.name: ("float32", tensor.axes) for tensor in manifest.bank.tensors}
    yield from _differences("input", model.graph.inputs, wanted)
    outputs = {one.name: (one.dtype, one.axes) for one in manifest.outputs}
    yield from _differences("output", model.graph.outputs, outputs)
    base = model.metadata_props.get(FINGERPRINT_KEY, manifest.base)
    if base != manifest.base:
        yield f"the base {base}, not {manifest.base}"
    if flavour == "slots" and manifest.model_version != model.model_version:
        yield f"`model_version` {model.model_version}, not {manifest.model_version}"


def _differences(what: str, values: Sequence[ir.Value], wanted: Wanted) -> Iterator[str]:
    found = {value.name or "": value for value in values}
    yield from (f"no {what} `{name}`" for name in wanted if name not in found)
    yield from (f"an {what} `{name}` too many" for name in found if name not in wanted)
    for name in wanted.keys() & found.keys():
        dtype, axes = wanted[name]
        known = found[name].dtype
        shown = "no type" if known is None else known.numpy().name
        dims = [dim if isinstance(dim, int) else dim.value for dim in found[name].shape or ()]
        if shown != dtype or _fixed(dims) != _fixed(axes):
            yield f"{what} `{name}` {shown} {dims}, not {dtype} {list(axes)}"


def _fixed(axes: Sequence[int | str | None]) -> list[int | None]:
    """Fixed lengths are to be equal, and what is free in one is to be free in the other; names are for people."""
    return [axis if isinstance(axis, int) else None for axis in axes]


def _defaults(model: ir.Model, manifest: Manifest, flavour: Form, overridable: Sequence[str]) -> Iterator[str]:
    """What can be overridden is what should be, and its default does nothing."""
    bank = manifest.bank
    slots = manifest.slots if flavour == "slots" else ()
    tensors = bank.tensors if flavour == "bank" and bank is not None else ()
    wanted = [slot.name for slot in slots] + [tensor.name for tensor in tensors]
    yield from (f"`{name}` cannot be overridden" for name in wanted if name not in overridable)
    yield from (f"`{name}` can be overridden" for name in overridable if name not in wanted)
    held = _tensors_of(model, wanted)
    for slot in slots:
        if slot.name in held and not same_bits(held[slot.name], np.full(slot.neutral, slot.neutral_value, np.float32)):
            yield f"`{slot.name}` has another default than {list(slot.neutral)} of {slot.neutral_value:g}"
    for tensor in tensors:
        shape = held[tensor.name].shape if tensor.name in held else None
        if bank is not None and shape is not None and shape[:1] != (len(bank.rows),):
            yield f"`{tensor.name}` {list(shape)} does not have {len(bank.rows)} rows"


def _weights(model: ir.Model, sizes: Mapping[str, int]) -> Iterator[str]:
    """Tensors outside of the graph's file lie in files that the manifest vouches for, and within them."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    attributes = [each for node in model.graph.all_nodes() for each in node.attributes.values()]
    tensors += [each.value for each in attributes if each.type == ir.AttributeType.TENSOR]
    for tensor in tensors:
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if location not in sizes:
            yield f"`{tensor.name}` lies in `{location}`, which the manifest does not list"
        elif (tensor.offset or 0) + (tensor.length or tensor.nbytes) > sizes[location]:
            yield f"`{tensor.name}` ends behind the end of `{location}`"


def same_bits(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Return whether two arrays are equal in type, shape and every bit; false if one is missing."""
    if first is None or second is None:
        return False
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


def _check_twins(bundle: OpenedBundle, name: str) -> InvariantRecord:
    """The two files of an adapter, for ONNX Runtime and for everyone else, hold the same tensors, bit for bit."""
    path, others = bundle.folder / bundle.record(name).onnx_adapter, bundle.tensors(name)
    try:
        adapter = ort.AdapterFormat.read_adapter(str(path))  # the values point into it, so it must outlive them
        own = {name: value.numpy().copy() for name, value in adapter.get_parameters().items()}
    except FAILURES as error:
        raise FormatError(
            "is not an adapter file of ONNX Runtime",
            where=path,
            found=str(error).partition("\n")[0],
            fix="build the bundle again",
        ) from error
    apart = sorted(slot for slot in own.keys() | others.keys() if not same_bits(own.get(slot), others.get(slot)))
    detail = f"two files that differ: {', '.join(apart)}" if apart else f"{len(own)} tensors, bit for bit"
    return InvariantRecord("adapter files", name, verdict(not apart and bool(own)), detail)


def _tensors_of(model: ir.Model, names: Iterable[str]) -> Weights:
    """The values of initializers; those that the graph lacks are left out."""
    held = model.graph.initializers
    values = {name: held[name].const_value for name in names if name in held}
    return {name: np.asarray(value.numpy()) for name, value in values.items() if value is not None}


def _check_row(bundle: OpenedBundle, bank: BankRecord, name: str | None, held: Weights) -> InvariantRecord:
    """A row of the bank holds an adapter, and zeros where it is narrower than others."""
    row, own = bank.rows.index(name), bundle.tensors(name)
    wrong = [each.name for each in bank.tensors if not _holds(held.get(each.name), row, each, own)]
    return _tensors_result("bank rows", name or BASE, wrong, len(bank.tensors))


def _holds(held: np.ndarray | None, row: int, tensor: BankTensor, own: Weights) -> bool:
    if held is None or row >= len(held):
        return False
    found = held[row]
    if tensor.slot is None:  # a mask: zeros, then only very low numbers; how many of each is seen when it runs
        classes = int((found == 0).sum())
        return classes > 0 and not found[:classes].any() and bool(np.all(found[classes:] < MASK_BELOW))
    expected = own.get(tensor.slot)
    if expected is None or found.ndim != expected.ndim:
        return False
    padding = [(0, wide - narrow) for wide, narrow in zip(found.shape, expected.shape, strict=True)]
    return all(behind >= 0 for _, behind in padding) and np.pad(expected, padding).tobytes() == found.tobytes()


def _tensors_result(name: str, subject: str, wrong: Sequence[str], count: int) -> InvariantRecord:
    detail = f"not as in its file: {', '.join(wrong)}" if wrong else f"{count} tensors as in its file, bit for bit"
    return InvariantRecord(name, subject, verdict(not wrong), detail)
