"""What `build` tries out once, so that whoever runs a bundle can read it in the manifest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from adapter_export.bundle.opened import OpenedBundle
from adapter_export.bundle.report import BASE, InvariantResult
from adapter_export.dtypes import Weights
from adapter_export.errors import RequestError
from adapter_export.format.axes import names
from adapter_export.format.manifest import Manifest
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.graft.bank import is_fillable
from adapter_export.onnx_backend.runner import Pieces, weights_are_many
from adapter_export.onnx_backend.slots import read_plan
from adapter_export.runtime.batches import padded_axes
from adapter_export.runtime.graphs import run_session

RunAll = Callable[[Sequence[Arrays]], list[Arrays]]
"""Computes a list of requests by the graph with slots."""

_WIDTH = 3
_TOKENS, _MORE_TOKENS = 5, 9
_STD = 0.2
_RELATIVE = {"fp32": 2e-5, "fp16": 1e-2}
_RELATIVE_QUANTISED = 5e-2
"""A changed order of summation moves values across the rounding of integers."""


def with_padding(bundle: OpenedBundle) -> Manifest:
    """Return the manifest of a bundle with what padding changes: a row of 5 tokens is compared with it padded to 9."""
    model = bundle.slots_model
    if bundle.staged and weights_are_many(model):
        return _with_padding(bundle.manifest, Pieces(model, bundle.folder).run_all)
    session = bundle.session(bundle.manifest.graphs["slots"])
    return _with_padding(bundle.manifest, lambda requests: [run_session(session, feeds) for feeds in requests])


def check_proofs(bundle: OpenedBundle) -> Iterator[InvariantResult]:
    """Check that padding and zeros change nothing where the manifest says so: it is tried out again."""
    said, found, bank = bundle.manifest, with_padding(bundle), bundle.manifest.bank
    counting = set(found.counts_padding) - set(said.counts_padding)
    passed = not said.padding_neutral or (found.padding_neutral and not counting)
    changed = f"padding changes `{'`, `'.join(sorted(counting)) or BASE}`"
    yield InvariantResult("padding", BASE, passed, "as the manifest says" if passed else changed)
    if bank is not None:
        passed = not bank.fillable or is_fillable(read_plan(bundle.slots_model, bundle.folder))
        detail = "as the manifest says" if passed else "zeros behind narrower tensors change a result"
        yield InvariantResult("filling up", BASE, passed, detail)


def _with_padding(manifest: Manifest, run: RunAll) -> Manifest:
    """Random tensors are in all slots at once; only where padding changes a result is it tried out what counts it."""
    heads = {head.graph: head.output for head in manifest.heads}
    base = {record.name for record in manifest.base_outputs}
    tensors = _random_tensors(manifest)
    unknown = replace(manifest, padding_neutral=False, counts_padding=())
    if not padded_axes(manifest) or any(record.role == "cache" for record in manifest.inputs):
        return unknown
    try:
        if not _changes(manifest, run, [(tensors, base | set(heads.values()))])[0]:
            return replace(unknown, padding_neutral=True)
        variants: list[tuple[Weights, set[str]]] = [({}, base)]
        graphs = list(dict.fromkeys(slot.graph for slot in manifest.slots))
        for graph in graphs:
            own = {slot.name: tensors[slot.name] for slot in manifest.slots if slot.graph == graph}
            variants.append((own, base | {heads[graph]} if graph in heads else base))
        of_base, *of_graphs = _changes(manifest, run, variants)
    except RequestError:  # a base that does not take requests of these lengths
        return unknown
    counting = tuple(graph for graph, changes in zip(graphs, of_graphs, strict=True) if changes)
    if of_base or not counting:
        return unknown
    return replace(unknown, padding_neutral=True, counts_padding=counting)


def _changes(manifest: Manifest, run: RunAll, variants: Sequence[tuple[Weights, Collection[str]]]) -> list[bool]:
    """Return for each set of tensors whether padding changes one of its outputs."""
    first = {record.axes[0] for record in manifest.inputs if record.axes}
    free = {name for record in manifest.inputs for axis in record.axes for name in names(axis)}
    shapes = [{name: 1 if name in first else _TOKENS for name in free}]
    short = input_cases(manifest.inputs, seed=0, shapes=shapes)[0].arrays
    padded, longer = padded_axes(manifest), {}
    for record in manifest.inputs:
        sizes = zip(record.axes, short[record.name].shape, strict=True)
        behind = [(0, _MORE_TOKENS - size if axis in padded else 0) for axis, size in sizes]
        longer[record.name] = np.pad(short[record.name], behind)
    found = run([{**arrays, **tensors} for tensors, _ in variants for arrays in (short, longer)])
    relative = _RELATIVE.get(manifest.base_precision, _RELATIVE_QUANTISED)
    return [
        not all(_are_close(of_longer[name], of_short[name], relative) for name in outputs)
        for (_, outputs), of_short, of_longer in zip(variants, found[::2], found[1::2], strict=True)
    ]


def _are_close(found: np.ndarray, expected: np.ndarray, relative: float) -> bool:
    own = found[tuple(slice(size) for size in expected.shape)]
    return bool(np.abs(own - expected).max() <= relative * np.abs(expected).max())


def _random_tensors(manifest: Manifest) -> Weights:
    """Return random numbers for every slot, all free widths being one; the rows of a fusion's weights are no width."""
    by_row = {name for adapter in manifest.adapters if adapter.mix is not None for name in adapter.mix.slots}
    rng = np.random.default_rng(0)
    tensors = {}
    for slot in manifest.slots:
        shape = tuple(_WIDTH if isinstance(axis, str) else axis for axis in slot.axes)
        shape = (1, *shape[1:]) if slot.name in by_row else shape
        tensors[slot.name] = (_STD * rng.standard_normal(shape)).astype(np.float32)
    return tensors
