"""The further graphs of a bundle, fed as a client feeds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError
from adapter_export.format.manifest import BankRecord, Manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx.session import open_session, run_session
from adapter_export.parity.report import Form
from adapter_export.reference.runner import Arrays


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

    def run_one_twice(
        self, arrays: Mapping[str, np.ndarray], name: str | None, bank: BankRecord, outputs: Sequence[str]
    ) -> Arrays:
        """Run the mixture on a bank that holds one adapter twice, with shares that add up to one.

        Raises:
            RequestError: as `run`.
        """
        row, batch = bank.rows.index(name), len(next(iter(arrays.values())))
        held = bank_contents(self.folder / self.manifest.graphs["mixture"], bank)
        twice = {key: np.repeat(tensor[row : row + 1], 2, axis=0) for key, tensor in held.items()}
        shares = np.tile(np.array([[0.25, 0.75]], np.float32), (batch, 1))  # exact in binary
        return run_session(self.session, {**arrays, **twice, bank.weights: shares}, list(outputs))

    def _feeds(self, chosen: Sequence[str | None]) -> Mapping[str, np.ndarray]:
        if self.form == "inputs":
            return adapter_tensors(self.folder, self.manifest, chosen[0])
        bank = self.manifest.bank
        if bank is None or self.form == "baked":
            return {}
        rows = np.array([bank.rows.index(name) for name in chosen], np.int64)
        if self.form == "bank":
            return {bank.ids: rows}
        return {bank.weights: np.eye(len(bank.rows), dtype=np.float32)[rows]}


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
