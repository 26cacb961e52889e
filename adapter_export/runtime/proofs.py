"""What must hold of a bundle before the runtime fills anything up, tried out on the graph itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import RequestError
from adapter_export.format.axes import names
from adapter_export.format.manifest import Manifest
from adapter_export.numerics.sample_inputs import InputCase, input_cases
from adapter_export.runtime.adapters import Adapters, Entry
from adapter_export.runtime.batches import padded_axes
from adapter_export.runtime.graphs import Graphs, on_device, run_values

_NARROW, _WIDE = 3, 5
_TOKENS, _MORE_TOKENS = 5, 9
_STD = 0.2
_RELATIVE = {"fp32": 2e-5, "fp16": 1e-2}
_RELATIVE_QUANTISED = 5e-2
"""A changed order of summation moves values across the rounding of integers."""


def check_widths_can_be_filled(graphs: Graphs) -> None:
    """Refuse a bundle whose adapters compute something else from tensors that are filled up with zeros.

    Random adapters of one width, in all slots at once, must give what they give when they are filled up to another.

    Raises:
        RequestError: they do not; a norm over the bottleneck is such a case.
    """
    manifest = graphs.manifest
    case = _case(manifest, _TOKENS)
    narrow = random_tensors(manifest, _NARROW)
    wide = {name: _filled_up(narrow[name], shape) for name, shape in _shapes(manifest, _WIDE).items()}
    expected, found = _run(graphs, case.arrays, narrow), _run(graphs, case.arrays, wide)
    for name, array in expected.items():
        if not _are_close(found[name][..., : array.shape[-1]], array, manifest):
            raise RequestError(
                "adapters of other widths than those in the bundle's bank cannot stand in one with others: zeros in "
                "their tensors change what they compute",
                where=f"output `{name}`",
                fix="give each call one `adapter`, or build the bundle with all adapters that shall share batches",
            )


def padding_is_neutral(graphs: Graphs, tensors: Weights) -> bool:
    """Whether padding tokens, which the mask hides, change nothing with these tensors in the slots."""
    manifest, padded = graphs.manifest, padded_axes(graphs.manifest)
    short = _case(manifest, _TOKENS).arrays
    lengths = [
        [
            _MORE_TOKENS if axis in padded else size
            for axis, size in zip(record.axes, short[record.name].shape, strict=True)
        ]
        for record in manifest.inputs
    ]
    longer = {
        record.name: _filled_up(short[record.name], shape)
        for record, shape in zip(manifest.inputs, lengths, strict=True)
    }
    expected, found = _run(graphs, short, tensors), _run(graphs, longer, tensors)
    return all(
        _are_close(found[name][tuple(slice(size) for size in array.shape)], array, manifest)
        for name, array in expected.items()
    )


def random_tensors(manifest: Manifest, width: int) -> Weights:
    """Random numbers for every slot, all free widths being this one."""
    rng = np.random.default_rng(0)
    return {
        name: (_STD * rng.standard_normal(shape)).astype(np.float32) for name, shape in _shapes(manifest, width).items()
    }


def _shapes(manifest: Manifest, width: int) -> dict[str, tuple[int, ...]]:
    """Of all slots at a width; the rows of a fusion's weights are no width."""
    by_row = {name for adapter in manifest.adapters if adapter.mix is not None for name in adapter.mix.slots}
    shapes = {}
    for slot in manifest.slots:
        shape = tuple(width if isinstance(axis, str) else axis for axis in slot.axes)
        shapes[slot.name] = (1, *shape[1:]) if slot.name in by_row else shape
    return shapes


def _case(manifest: Manifest, tokens: int) -> InputCase:
    """One row."""
    first = {record.axes[0] for record in manifest.inputs if record.axes}
    free = {name for record in manifest.inputs for axis in record.axes for name in names(axis)}
    return input_cases(manifest.inputs, seed=0, shapes=[{name: 1 if name in first else tokens for name in free}])[0]


def _run(graphs: Graphs, arrays: Mapping[str, np.ndarray], tensors: Weights) -> dict[str, np.ndarray]:
    feeds = {name: on_device(array, "cpu") for name, array in {**arrays, **tensors}.items()}
    return run_values(graphs.session("slots"), feeds, [record.name for record in graphs.manifest.outputs])


def _filled_up(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    return np.pad(array, [(0, size - found) for size, found in zip(shape, array.shape, strict=True)])


def _are_close(found: np.ndarray, expected: np.ndarray, manifest: Manifest) -> bool:
    relative = _RELATIVE.get(manifest.base_precision, _RELATIVE_QUANTISED)
    return bool(np.abs(found - expected).max() <= relative * np.abs(expected).max())


_PROBE_WIDTH = 3


class PaddingRule:
    """Tried out once for all adapters that the slots can hold, and where that fails for each adapter on its own.

    An adapter that counts padding, such as one with a gate over all tokens, must not be padded further.
    """

    def __init__(self, graphs: Graphs, adapters: Adapters) -> None:
        self._graphs = graphs
        self._adapters = adapters
        self._axes = padded_axes(graphs.manifest)
        self._all: bool | None = None
        self._known: dict[Entry | None, bool] = {}
        self._lock = Lock()

    def axes(self, entry: Entry | None) -> frozenset[str]:
        """The axes along which requests with this adapter may be padded."""
        if not self._axes:
            return self._axes
        with self._lock:
            if self._all is None:
                self._all = padding_is_neutral(self._graphs, random_tensors(self._graphs.manifest, _PROBE_WIDTH))
            return self._axes if self._all or self._holds(entry) else frozenset()

    def _holds(self, entry: Entry | None) -> bool:
        key = entry
        if key not in self._known:
            tensors = {} if entry is None else self._adapters.loaded(entry).tensors
            self._known[key] = padding_is_neutral(self._graphs, tensors)
        return self._known[key]
