"""From the bytes of an adapter file to an adapter that a session can run."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flatbuffers import encode, number_types
from flatbuffers.table import Table

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError, HashError, TensorError
from adapter_export.format.files import read_bytes
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.graph.adapter import check_name
from adapter_export.runtime.catalogue import Entry, Resident
from adapter_export.runtime.graphs import Provider, on_device
from adapter_export.runtime.loaded import Claim, check_adapter, check_model_version

# Read ONNX Runtime's adapter files, `.onnx_adapter`, from bytes that were checked before.
#
# The layout is `onnxruntime/lora/adapter_format/adapter_schema.fbs`, a flatbuffer. ONNX Runtime itself maps the file
# into
# memory, so that whoever overwrites it changes weights under a live session, and before 1.24.3 it reads past the end of
# a crafted file. Here every tensor is held against the bytes that are there, and copied.

_IDENTIFIER = b"TORT"
_FORMAT_VERSION = 1
_FLOAT = 1

# A field's place in the table that finds it: 4 bytes of sizes, then 2 bytes per field.
_FORMAT, _MODEL_VERSION, _PARAMETERS = 4, 8, 10
_NAME, _DIMS, _DATA_TYPE, _RAW_DATA = 4, 6, 8, 10

_BROKEN = (struct.error, ValueError, TypeError, IndexError, OverflowError)
"""What reading at a place that is not in the file raises."""


def parse_adapter(data: bytes, where: object) -> Weights:
    """The tensors of an adapter file, by name, each in memory of its own.

    Args:
        data: the bytes of the file.
        where: names it in messages.

    Raises:
        FormatError: it is not an adapter file, is truncated or damaged, or is of another format version.
        TensorError: a name occurs twice, a tensor is not float32, or has another size than its shape says.
    """
    if data[4:8] != _IDENTIFIER:
        raise FormatError(
            "is not an ONNX Runtime adapter file",
            where=where,
            found=f"{len(data)} bytes that begin with `{data[:8]!r}`",
            expected="`TORT` at byte 4",
            fix="give a file that `adapter-export build` or `onnxruntime.AdapterFormat` wrote",
        )
    try:
        return _tensors(data, where)
    except _BROKEN as error:
        raise FormatError(
            "is truncated or damaged", where=where, found=error, fix="take the file from its source again"
        ) from error


def model_version_of(data: bytes) -> int:
    """The number of the graph that an adapter file was made for, of bytes that `parse_adapter` takes."""
    return int(_root(data).GetSlot(_MODEL_VERSION, 0, number_types.Int32Flags))


def _root(data: bytes) -> Table:
    return Table(data, encode.Get(number_types.UOffsetTFlags.packer_type, data, 0))


def _tensors(data: bytes, where: object) -> Weights:
    root = _root(data)
    version = root.GetSlot(_FORMAT, 0, number_types.Int32Flags)
    if version != _FORMAT_VERSION:
        raise FormatError("is of an unknown format version", where=where, found=version, expected=_FORMAT_VERSION)
    tensors: Weights = {}
    for name, tensor in _parameters(root, where):
        if name in tensors:
            raise TensorError("holds two tensors of one name", where=where, found=f"`{name}`")
        tensors[name] = tensor
    return tensors


def _parameters(root: Table, where: object) -> Iterator[tuple[str, np.ndarray]]:
    place = root.Offset(_PARAMETERS)
    for index in range(root.VectorLen(place) if place else 0):
        start = root.Vector(place) + index * number_types.UOffsetTFlags.bytewidth
        yield _parameter(Table(root.Bytes, root.Indirect(start)), where)


def _parameter(table: Table, where: object) -> tuple[str, np.ndarray]:
    # a string has the layout of a vector of bytes, and vectors are held against the end of the file
    name = table.GetVectorAsNumpy(number_types.Uint8Flags, _place(table, _NAME)).tobytes().decode()
    dims = [int(dim) for dim in table.GetVectorAsNumpy(number_types.Int64Flags, _place(table, _DIMS))]
    raw = table.GetVectorAsNumpy(number_types.Uint8Flags, _place(table, _RAW_DATA))
    kind = table.GetSlot(_DATA_TYPE, 0, number_types.Int32Flags)
    if kind != _FLOAT:
        found = f"`{name}` of type {kind}"
        raise TensorError("holds a tensor of another type", where=where, found=found, expected=f"{_FLOAT} (float32)")
    if min(dims, default=0) < 1 or math.prod(dims) * np.float32().nbytes != raw.nbytes:
        raise TensorError(
            "holds a tensor whose size is not that of its shape",
            where=where,
            found=f"`{name}` {dims} in {raw.nbytes} bytes",
            expected="at least 1 along each axis, 4 bytes for each element",
        )
    return name, np.frombuffer(raw.tobytes(), "<f4").astype(np.float32).reshape(dims)


def _place(table: Table, field: int) -> int:
    place = int(table.Offset(field))
    if not place:
        raise IndexError("a tensor without name, shape or data")
    return place


@dataclass(frozen=True)
class Loader:
    """Makes entries of a catalogue.

    Attributes:
        manifest: the bundle's.
        provider: where its graphs run.
        next_serial: gives numbers that no adapter has.
    """

    manifest: Manifest
    provider: Provider
    next_serial: Callable[[], int]

    def from_bytes(self, name: str, data: bytes, claim: Claim, where: object) -> Entry:
        """An adapter that stays in memory.

        Raises:
            FormatError, AdapterError: it does not fit.
        """
        check_name(name)
        found = self._resident(data, claim, where)
        return self._entry(name, found, None, found, lambda: found)

    def from_file(self, name: str, path: Path, claim: Claim) -> Entry:
        """An adapter that is read and checked now, and read again when a call needs it.

        Raises:
            FileError, FormatError, AdapterError: it cannot be read, or does not fit.
        """
        check_name(name)
        data = read_bytes(path)
        digest = hashlib.sha256(data).hexdigest()
        found = self._resident(data, claim, path)
        return self._entry(name, found, None, None, lambda: self._read(path, digest, claim))

    def built(self, record: AdapterRecord, folder: Path, digest: str | None, *, on_demand: bool) -> Entry:
        """An adapter of the bundle.

        Args:
            record: what the manifest says of it.
            folder: the bundle.
            digest: the sha256 of its file, if that is to be held against it.
            on_demand: whether it is read when a call needs it only; what it is for is in the manifest.

        Raises:
            FileError, FormatError, AdapterError: it cannot be read, or does not fit.
        """
        claim = Claim(record.labels, record.task, record.output)
        path = folder / record.onnx_adapter
        rows = () if self.manifest.bank is None else self.manifest.bank.rows
        row = rows.index(record.name) if record.name in rows else None
        if not on_demand:
            found = self._read(path, digest, claim)
            return replace(self._entry(record.name, found, row, found, lambda: found), mix=record.mix)
        serial = self.next_serial()
        facts = (record.output, record.task, record.labels)
        return Entry(record.name, serial, *facts, row, None, lambda: self._read(path, digest, claim), record.mix)

    def _entry(
        self, name: str, found: Resident, row: int | None, held: Resident | None, read: Callable[[], Resident]
    ) -> Entry:
        adapter = found.adapter
        return Entry(name, self.next_serial(), adapter.output, adapter.task, adapter.labels, row, held, read)

    def _read(self, path: Path, digest: str | None, claim: Claim) -> Resident:
        """Read once: what is hashed is what is used."""
        data = read_bytes(path)
        found = hashlib.sha256(data).hexdigest()
        if digest is not None and found != digest:
            raise HashError(path, found=found, expected=digest)
        return self._resident(data, claim, path)

    def _resident(self, data: bytes, claim: Claim, where: object) -> Resident:
        adapter = check_adapter(parse_adapter(data, where), self.manifest, claim, where)
        check_model_version(model_version_of(data), self.manifest, where)
        return Resident(adapter, {slot: on_device(tensor, self.provider) for slot, tensor in adapter.tensors.items()})
