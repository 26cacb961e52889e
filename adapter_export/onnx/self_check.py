"""A new bundle proves itself: ONNX Runtime opens it and gives what the golden vectors say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.dtypes import Weights
from adapter_export.errors import ParityError
from adapter_export.format.manifest import AdapterRecord, Manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx.golden import Golden
from adapter_export.onnx.mix import check_rows_apart
from adapter_export.onnx.pieces import Pieces, weights_are_many
from adapter_export.onnx.session import open_session, run_session
from adapter_export.reference.runner import Arrays

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
