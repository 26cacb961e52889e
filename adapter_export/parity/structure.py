"""The graphs of a bundle are what its manifest says: inputs, outputs, slots, weights; nothing is run here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.errors import FormatError
from adapter_export.format.canonical import read_json
from adapter_export.format.inventory import MANIFEST_FILE
from adapter_export.format.manifest import Axis, Manifest, SlotRecord
from adapter_export.format.schema import validate
from adapter_export.onnx.base import FINGERPRINT_KEY
from adapter_export.parity.graphs import read_graph
from adapter_export.parity.report import Form, InvariantResult

_SHOWN = 5
"""How many faults a message lists."""


@dataclass(frozen=True)
class _Value:
    """What an input or output of a graph must be: NumPy's name of its type, and its shape."""

    dtype: str
    axes: tuple[Axis, ...]


def check_structure(folder: Path, manifest: Manifest) -> Iterator[InvariantResult]:
    """Hold the manifest against its schema, and every graph against the manifest.

    Raises:
        FormatError: the manifest breaks the schema, a graph cannot be read, or it is another one than the manifest
            describes: inputs, outputs, slots and their defaults, tensors of the bank, where its weights lie.
    """
    path = folder / MANIFEST_FILE
    validate(read_json(path), "bundle-manifest", path)
    yield InvariantResult("schema", MANIFEST_FILE, True, f"format {manifest.version}")
    for form, file in _graphs(manifest):
        model = read_graph(folder / file)
        _check(model, manifest, form, folder / file)
        inputs = len(model.graph.inputs) - len(_overridable(model))
        detail = f"{inputs} inputs, {len(_overridable(model))} overridable, {len(model.graph.outputs)} outputs"
        yield InvariantResult("graph", file, True, detail)


def _graphs(manifest: Manifest) -> Iterator[tuple[Form, str]]:
    forms: tuple[Form, ...] = ("slots", "inputs", "bank", "mixture")
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
    if form == "mixture":
        choice = {bank.weights: _Value("float32", ("batch", "adapters"))}
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
    wanted = {"slots": tuple(slot.name for slot in manifest.slots), "bank": tensors, "mixture": tensors}.get(form, ())
    found = _overridable(model)
    yield from (f"`{name}` cannot be overridden" for name in wanted if name not in found)
    yield from (f"`{name}` can be overridden" for name in found if name not in wanted)
    for slot in manifest.slots if form == "slots" else ():
        value = model.graph.initializers.get(slot.name)
        if value is not None and value.const_value is not None and not _is_neutral(value.const_value, slot):
            yield f"`{slot.name}` has another default than {list(slot.neutral)} of {slot.neutral_value:g}"
    if bank is not None and form in ("bank", "mixture"):
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
    if form == "slots" and manifest.model_version not in (None, model.model_version):
        yield f"`model_version` {model.model_version}, not {manifest.model_version}"
