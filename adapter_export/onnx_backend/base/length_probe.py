"""Probe a graph by running it: find axes of equal length, and the lengths at which it runs.

Exporters may give one length several names or none, and do not record the size of a position table. ONNX Runtime
rejects invalid lengths, so it is run with small inputs, a bounded number of times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.axes import axis_names, names
from adapter_export.format.manifest import Axis, InputRecord
from adapter_export.numerics.sample_inputs import LENGTHS, input_cases
from adapter_export.onnx_backend.model_session import open_session, try_session

_LONGER = (65, 401, 1025, 4097, 16385)
"""Lengths to try for a graph that rejects short inputs, for example one with convolutions over audio samples."""

_MOST_POSITIONS = 4096
"""Maximum length to try: attention takes memory quadratically."""

_SECONDS = 20.0
"""Maximum seconds of the search for the longest text; results up to then count."""

Runs = Callable[[Mapping[str, int]], bool]
"""Predicate: whether a graph runs with these lengths, by axis name."""


def axes(value: ir.Value) -> tuple[Axis, ...]:
    """Return the shape of a graph's input or output; an axis without a name gets one from its position."""
    shape = () if value.shape is None else value.shape
    return tuple(
        dim if isinstance(dim, int) else str(dim.value or f"{value.name}.{index}") for index, dim in enumerate(shape)
    )


def runs_with(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> Runs:
    """Return a predicate that runs a graph; always false for a graph that ONNX Runtime cannot open."""
    try:
        session = open_session(model, folder, optimize=False, pack=False)
    except BaseModelError:  # callers that need a session report the error
        return lambda _: False

    def runs(lengths: Mapping[str, int]) -> bool:
        (case, *_) = input_cases(inputs, seed=0, shapes=[lengths])
        try:
            for arrays in _without_padding(inputs, case.arrays):
                try_session(session, arrays)
        except RequestError:
            return False
        return True

    return runs


def _without_padding(
    inputs: Sequence[InputRecord], arrays: Mapping[str, np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs filled with one id, then with another.

    Positions may be counted over non-padding tokens (RoBERTa, MPNet), so padding would hide the end of their table. A
    graph does not record its padding id, but at most one of two ids can be it.
    """
    limits = {record.name: record.limit or 1 for record in inputs if record.role == "ids"}
    for last in (1, 2) if max(limits.values(), default=1) > 1 else (1,):
        filled = {name: np.full_like(arrays[name], max(0, limit - last)) for name, limit in limits.items()}
        yield {**arrays, **filled}


def equal_axes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> dict[str, str]:
    """Return the names of axes that always equal another axis, each with that axis' name.

    Candidates are axes at the same position in several inputs. If the graph rejects different lengths for them, the
    result is the smallest set for which it runs when all of them change together.
    """
    places: dict[int, list[str]] = {}
    for record in inputs:
        for place, axis in enumerate(record.axes):
            if isinstance(axis, str) and names(axis) == (axis,) and axis not in places.setdefault(place, []):
                places[place].append(axis)
    known = axis_names(inputs)
    if all(len(group) < 2 for group in places.values()):
        return {}
    runs = runs_with(model, folder, inputs)
    # a different odd length for each axis: if that runs, none need be equal
    if runs({name: 2 * place + 3 for place, name in enumerate(known)}):
        return {}
    at = {name: place for place, group in reversed(places.items()) for name in group}
    alike = {name: 2 * at.get(name, len(known) + where) + 3 for where, name in enumerate(known)}
    if not runs(alike):
        return {}
    same: dict[str, str] = {}
    for group in places.values():
        left = [name for name in group if at[name] == at[group[0]]]
        while len(left) > 1:
            first, *others = left
            fewest = (
                chosen
                for count in range(len(others))
                for chosen in combinations(others, count)
                if runs({**alike, **{name: alike[name] + 1 for name in (first, *chosen)}})
            )
            together = next(fewest, tuple(others))
            same |= dict.fromkeys(together, first)
            left = [name for name in others if name not in together]
    return same


def rename_axes(model: ir.Model, same: Mapping[str, str]) -> None:
    """Rename axes to the axes they equal; axes of inputs without a name are named as by `axes`."""
    inputs = {value.name for value in model.graph.inputs}
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is None:
            continue
        known = (
            axes(value) if value.name in inputs else [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        )
        value.shape = ir.Shape([same.get(axis, axis) if isinstance(axis, str) else axis for axis in known])


def length_limits(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> dict[str, tuple[int, int | None]]:
    """Return the smallest and the largest length of each axis after the batch; `None` for no limit.

    The graph is assumed to run at every length between two at which it runs. A maximum is searched below the longest
    input that is tried, and at the sizes of the graph's constants, which include position tables. The result is empty
    for a graph with caches, or that does not run at all.
    """
    if any(record.role == "cache" for record in inputs):
        return {}
    batches = {record.axes[0] for record in inputs if record.axes}
    known = axis_names(inputs)
    tried = runs_with(model, folder, inputs)

    def runs(axis: str | None, size: int, others: int) -> bool:
        return tried({name: 1 if name in batches else size if name == axis else others for name in known})

    usual = next((size for size in (LENGTHS[1], 1, *_LONGER) if runs(None, 0, size)), None)
    if usual is None:
        return {}
    sizes = sorted(_sizes(model))
    searches = {axis: _Search(partial(runs, axis, others=usual), usual) for axis in known if axis not in batches}
    return {axis: (search.least(), search.most(sizes)) for axis, search in searches.items()}


def _sizes(model: ir.Model) -> set[int]:
    """Return the lengths of all axes of all constants."""
    constants = [value.const_value for value in model.graph.initializers.values()]
    constants += [
        ir.convenience.get_const_tensor(node.outputs[0]) for node in model.graph if node.op_type == "Constant"
    ]
    return {int(size) for tensor in constants if tensor is not None for size in tensor.shape.numpy()}


class _Search:
    """Search for the minimum and maximum length at which something runs; it runs at `usual`."""

    def __init__(self, runs: Callable[[int], bool], usual: int) -> None:
        self._runs, self._usual = runs, usual
        self._until = time.monotonic() + _SECONDS

    def least(self) -> int:
        """Return the smallest length."""
        if self._runs(1):
            return 1
        low, high = 1, self._usual
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._runs(middle) else (middle, high)
        return high

    def most(self, sizes: Iterable[int]) -> int | None:
        """Return the largest length if it is below one of the sizes, otherwise `None`."""
        longest = max(LENGTHS)
        good, pace = self._usual, 0.0
        # one more than the rows of a table of positions is the first length that fails
        for size in (longest, *(size + 1 for size in sizes if longest <= size <= _MOST_POSITIONS)):
            if size <= good:
                continue
            start = time.monotonic()
            if start + pace * size**2 > self._until:  # attention takes time quadratically
                return None
            if not self._runs(size):
                return self._between(good, size)
            good, pace = size, (time.monotonic() - start) / size**2
        return None

    def _between(self, good: int, bad: int) -> int:
        """Return the largest valid length between two: usually a little below the size of a table."""
        step = 1
        while bad - good > 1 and time.monotonic() < self._until:
            # from the end, where the limit usually is, in growing steps
            middle = max(bad - step, (good + bad) // 2)
            good, bad, step = (middle, bad, step) if self._runs(middle) else (good, middle, 2 * step)
        return good
