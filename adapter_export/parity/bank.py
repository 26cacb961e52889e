"""What the further graphs hold of the adapters, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.dtypes import Weights
from adapter_export.format.manifest import AdapterRecord, BankRecord, BankTensor, Manifest
from adapter_export.onnx.golden import MASK_BELOW
from adapter_export.parity.failure import BASE
from adapter_export.parity.graphs import adapter_tensors, bank_contents, read_graph
from adapter_export.parity.report import Form, InvariantResult


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
    banks = [manifest.graphs[form] for form in ("bank", "mixture") if form in forms]
    if manifest.bank is not None and banks:
        contents = [bank_contents(folder / file, manifest.bank) for file in banks]
        names = [None if record is None else record.name for record in records]
        for name in names:
            if name in manifest.bank.rows:
                yield _check_row(folder, manifest, manifest.bank, name, contents)
    for record in records:
        if "baked" in forms and record is not None and record.baked is not None:
            yield _check_baked(folder, manifest, record, record.baked)


def _check_row(
    folder: Path, manifest: Manifest, bank: BankRecord, name: str | None, contents: Sequence[Weights]
) -> InvariantResult:
    """A row holds an adapter, and zeros where it is narrower than others."""
    row, own = bank.rows.index(name), adapter_tensors(folder, manifest, name)
    wrong = [
        tensor.name
        for tensor in bank.tensors
        if not all(_holds(held.get(tensor.name), row, tensor, own) for held in contents)
    ]
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
