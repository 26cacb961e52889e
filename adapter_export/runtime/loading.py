"""From the bytes of an adapter file to an adapter that a session can run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from adapter_export.errors import HashError
from adapter_export.format.files import read_bytes
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.graph.adapter import check_name
from adapter_export.runtime.adapter_file import model_version_of, parse_adapter
from adapter_export.runtime.catalogue import Entry, Resident
from adapter_export.runtime.loaded import Claim, check_adapter, check_model_version
from adapter_export.runtime.providers import Provider, on_device


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
