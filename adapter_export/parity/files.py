"""The files of a bundle: whole, and in agreement with each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from adapter_export.errors import AdapterError, FormatError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.inventory import verify_files
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import weighted_members
from adapter_export.onnx.session import FAILURES
from adapter_export.parity.report import InvariantResult


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
