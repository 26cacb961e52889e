"""A new bundle proves itself: ONNX Runtime opens it and gives what the golden vectors say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.entry import check_rows_apart
from adapter_export.bundle.golden import Golden
from adapter_export.dtypes import Weights
from adapter_export.errors import BaseModelError, ParityError, RequestError
from adapter_export.format.manifest import AdapterRecord, BankRecord, Manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.runner import Pieces, weights_are_many
from adapter_export.onnx_backend.session import open_session
from adapter_export.runtime.graphs import run_session

# The further graphs of a new bundle prove themselves, as the one with slots does.

Vectors = Mapping[str | None, Golden]
"""Golden vectors by adapter; none stands for the base."""

RunAll = Callable[[Sequence[Arrays]], list[Arrays]]

Item = TypeVar("Item")

_RESULT_BYTES = 2**26
"""How many bytes of results of a bank are in memory at a time, or those of one adapter."""


def check_flavours(folder: Path, manifest: Manifest, vectors: Vectors) -> None:
    """Run every graph but the one with slots on the golden vectors.

    Raises:
        ParityError: an output deviates by more than is allowed.
        BaseModelError: ONNX Runtime cannot open a graph, or a bank cannot tell the rows of a batch apart.
    """
    if "inputs" in manifest.graphs:
        _check_inputs(_opened(folder, manifest.graphs["inputs"]), folder, manifest, vectors)
    if manifest.bank is not None and "bank" in manifest.graphs:
        _check_bank(_opened(folder, manifest.graphs["bank"]), manifest.bank, vectors, mixed=manifest.batch_invariant)
    for record in manifest.adapters:
        if record.baked is not None:
            golden = vectors[record.name]
            results = _opened(folder, record.baked)([dict(case.arrays) for case in golden.cases])
            golden.compare(results, f"adapter `{record.name}`, baked in")


def _opened(folder: Path, path: str) -> RunAll:
    """A graph, which computes a list of requests; piece by piece where it has many weights."""
    model = ir.load(folder / path)
    if weights_are_many(model):
        open_session(model, folder)  # that the whole can be opened is not seen from its pieces
        return Pieces(model, folder).run_all
    session = open_session(model, folder)
    return lambda requests: [run_session(session, feeds) for feeds in requests]


def _check_inputs(run: RunAll, folder: Path, manifest: Manifest, vectors: Vectors) -> None:
    tensors: dict[str | None, Arrays] = {
        None: {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in manifest.slots}
    }
    tensors.update({record.name: read_tensors(folder / record.safetensors) for record in manifest.adapters})
    for name, golden in vectors.items():
        results = run([{**case.arrays, **tensors[name]} for case in golden.cases])
        golden.compare([_of_golden(result, golden) for result in results], f"{_words(name)} as required inputs")


def _check_bank(run: RunAll, bank: BankRecord, vectors: Vectors, *, mixed: bool) -> None:
    """Each adapter alone, and then row by row one after the other, which shows whether the rows stay apart."""
    deals: list[Sequence[str | None]] = [[name] for name in bank.rows]
    for some in _grouped([*deals, bank.rows] if mixed else deals, vectors):
        _check_rows(run, bank, vectors, some)


def _check_rows(run: RunAll, bank: BankRecord, vectors: Vectors, deals: Sequence[Sequence[str | None]]) -> None:
    requests = [(names, index, case) for names in deals for index, case in enumerate(vectors[None].cases)]
    row_of = {name: row for row, name in enumerate(bank.rows)}
    with _rows_apart():
        results = run(
            [
                {**case.arrays, bank.ids: np.array([row_of[name] for name in _dealt(case, names)], np.int64)}
                for names, _, case in requests
            ]
        )
    for (names, index, case), result in zip(requests, results, strict=True):
        for row, name in enumerate(_dealt(case, names)):
            words = "in a mixed batch of the bank" if len(names) > 1 else "in the bank"
            vectors[name].compare_row(index, row, result, f"{_words(name)} {words}")


def _grouped(items: Sequence[Item], vectors: Vectors) -> Iterator[Sequence[Item]]:
    """As many at a time as there is room for their results; a graph in pieces is opened anew for each group."""
    size = sum(array.nbytes for outputs in vectors[None].outputs for array in outputs.values())
    count = max(1, _RESULT_BYTES // max(1, size))
    return (items[start : start + count] for start in range(0, len(items), count))


@contextmanager
def _rows_apart() -> Iterator[None]:
    """A graph that cannot compute what the base can has no row of a request where an adapter looks for one."""
    try:
        yield
    except RequestError as error:
        raise BaseModelError(
            "has no batch as the first axis where an adapter acts, so that a bank cannot tell rows apart",
            found=error.found,
            fix="build with `--flavours slots,inputs`",
        ) from error


def _dealt(case: InputCase, names: Sequence[str | None]) -> Iterator[str | None]:
    """A name for each row of the batch, beginning anew when they are used up."""
    return (names[row % len(names)] for row in range(_batch(case)))


def _batch(case: InputCase) -> int:
    return len(next(iter(case.arrays.values())))


def _of_golden(result: Arrays, golden: Golden) -> Arrays:
    return {name: result[name] for name in golden.absolute}


def _words(name: str | None) -> str:
    return "no adapter" if name is None else f"adapter `{name}`"


Compute = Callable[[Mapping[str, np.ndarray]], Arrays]


def self_check(folder: Path, manifest: Manifest, vectors: Mapping[str | None, Golden]) -> None:
    """Run the base and every adapter, each by both of its files, on the golden vectors.

    A graph with many weights is run piece by piece, so that they are not in memory all at once.

    Args:
        folder: the bundle.
        manifest: its manifest.
        vectors: the golden vectors by adapter; none stands for the base.

    Raises:
        ParityError: an output deviates by more than is allowed.
        BaseModelError: ONNX Runtime cannot open the graph.
    """
    model = ir.load(folder / manifest.graphs["slots"])
    if weights_are_many(model):
        _check_in_pieces(model, folder, manifest, vectors)
    else:
        _check_whole(open_session(model, folder), folder, manifest, vectors)


def _check_whole(
    session: ort.InferenceSession, folder: Path, manifest: Manifest, vectors: Mapping[str | None, Golden]
) -> None:
    vectors[None].verify(lambda inputs: run_session(session, inputs), "no adapter")
    for record in manifest.adapters:
        golden = vectors[record.name]
        golden.verify(_by_native_file(session, folder, record), f"adapter `{record.name}`")
        golden.verify(_by_tensors(session, folder, record), f"adapter `{record.name}` as plain tensors")
        if record.mix is not None and manifest.batch_invariant:
            tensors = read_tensors(folder / record.safetensors)
            check_rows_apart(lambda feeds: run_session(session, feeds), record.mix, tensors, golden)


def _check_in_pieces(model: ir.Model, folder: Path, manifest: Manifest, vectors: Mapping[str | None, Golden]) -> None:
    """Each piece is opened once for all that is to be run; both files of an adapter are read, and must be equal.

    The whole graph is opened as well, since none of its pieces shows that it can be, but it computes nothing.
    """
    open_session(model, folder)
    tensors: dict[str | None, Weights] = {None: {}}
    tensors.update({record.name: _equal_tensors(folder, record) for record in manifest.adapters})
    requests = [(name, {**case.arrays, **tensors[name]}) for name in tensors for case in vectors[name].cases]
    results = Pieces(model, folder).run_all([feeds for _, feeds in requests])
    for name in tensors:
        own = [result for (other, _), result in zip(requests, results, strict=True) if other == name]
        vectors[name].compare(own, "no adapter" if name is None else f"adapter `{name}`")


def _equal_tensors(folder: Path, record: AdapterRecord) -> Weights:
    adapter = ort.AdapterFormat.read_adapter(str(folder / record.onnx_adapter))  # it must outlive its parameters
    native = {name: np.array(value.numpy()) for name, value in adapter.get_parameters().items()}
    plain = read_tensors(folder / record.safetensors)
    if native.keys() != plain.keys() or any(not np.array_equal(native[name], plain[name]) for name in native):
        raise ParityError(
            f"adapter `{record.name}`", found="two files that differ", expected="the same tensors in both"
        )
    return native


def _by_native_file(session: ort.InferenceSession, folder: Path, record: AdapterRecord) -> Compute:
    adapter = ort.LoraAdapter()
    adapter.Load(str(folder / record.onnx_adapter))

    def run(inputs: Mapping[str, np.ndarray]) -> Arrays:
        options = ort.RunOptions()
        options.add_active_adapter(adapter)  # `options` does not keep the adapter alive; this closure does
        return run_session(session, inputs, options=options)

    return run


def _by_tensors(session: ort.InferenceSession, folder: Path, record: AdapterRecord) -> Compute:
    tensors = read_tensors(folder / record.safetensors)
    return lambda inputs: run_session(session, {**inputs, **tensors})
