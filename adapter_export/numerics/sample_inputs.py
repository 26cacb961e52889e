"""Inputs to try a base with: a matrix of shapes, and values that the base can take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.errors import UsageError
from adapter_export.format.axes import length, names
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import InputRecord

BATCHES = (1, 3)
LENGTHS = (1, 7, 65)
"""One token, an odd number, and one more than 64, so that no kernel's block size divides it."""

Shape = Mapping[str, int]
"""A length for each named axis."""


@dataclass(frozen=True)
class InputCase:
    """One set of inputs, under a unique name that says the shape, such as `batch3_tokens7`."""

    name: str
    arrays: Mapping[str, np.ndarray]


def input_cases(
    inputs: Sequence[InputRecord],
    *,
    seed: int,
    lengths: Bounds | None = None,
    max_tokens: int | None = None,
    shapes: Sequence[Shape] | None = None,
) -> list[InputCase]:
    """Make inputs for every shape, then one case more with rows of different lengths, padded at their ends.

    The first axis of an input counts as the batch, every other named axis as a length; axes of one name have one
    length. A decoder with a cache gets texts with nothing in the cache, then single tokens behind a past. The padded
    case is there if the base reads a mask over more than one token, and has no cache, as each decoder pads in its own
    way. `lengths` are those that the base takes, `max_tokens` is the longest that is wanted, `shapes` the length of
    every named axis case by case, else `BATCHES` × `LENGTHS`, each as near as the base takes one. Equal arguments give
    equal inputs.

    Raises `UsageError` for a named axis without a length, or below 1; 0 is the length of an empty cache.
    """
    chosen = list(shapes) if shapes is not None else _shape_matrix(inputs, lengths or {}, max_tokens)
    for shape in chosen:
        _check(inputs, shape)
    cases = [
        InputCase(_name(shape), _arrays(inputs, shape, np.random.default_rng([seed, index])))
        for index, shape in enumerate(chosen)
    ]
    return _unique([*cases, *_padded(inputs, cases)])


MOST_AT_EDGES = 512
"""The longest input of `edge_cases`, unless the smallest that a base takes is longer."""

_MOST_NUMBERS = 2**22


def edge_cases(inputs: Sequence[InputRecord], lengths: Bounds, *, seed: int) -> list[InputCase]:
    """Make inputs of batch 1 at the edges of lengths: the smallest, the largest, beside each exception.

    Other axes are as near to that as they may be. With a cache, the new tokens are as many, and then a single one
    behind a past. There are none without lengths.
    """
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    ends = {size for axis, own in lengths.items() if axis not in batch_axes for size in own.edges(MOST_AT_EDGES)}
    steps = [(0, size) for size in sorted(ends)] + [(size - 1, 1) for size in sorted(ends) if past and size > 1]
    shapes = _fitting([_sized(inputs, lengths, 1, size, behind) for behind, size in steps], lengths)
    return input_cases(inputs, seed=seed, shapes=shapes)[: len(shapes)]


def outside_case(
    inputs: Sequence[InputRecord], axis: str, size: int, lengths: Bounds, *, seed: int
) -> InputCase | None:
    """Make inputs of a length that an axis may not have, all others as they may be; none if they would be too large."""
    shape = _sized(inputs, lengths, 1, 1, 0)
    first, *others = sorted(names(axis), key=lambda name: name not in _past_axes(inputs))
    shape[first] = size - sum(shape[name] for name in others)
    largest = max(math.prod(length(each, shape) for each in record.axes) for record in inputs)
    if shape[first] < (0 if others else 1) or largest > _MOST_NUMBERS:
        return None
    return input_cases(inputs, seed=seed, shapes=[shape])[0]


def _shape_matrix(inputs: Sequence[InputRecord], lengths: Bounds, max_tokens: int | None) -> list[Shape]:
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    longest = max_tokens or max(LENGTHS)
    sizes = dict.fromkeys(min(length, longest) for length in LENGTHS) if set(_named(inputs)) - batch_axes else (1,)
    batches = BATCHES if batch_axes else (1,)
    steps = [(0, size) for size in sizes] + [(size, 1) for size in sizes if past and size < longest]
    shapes = [_sized(inputs, lengths, batch, size, behind) for behind, size in steps for batch in batches]
    return _fitting(shapes, lengths)


def _sized(inputs: Sequence[InputRecord], lengths: Bounds, batch: int, size: int, behind: int) -> dict[str, int]:
    """A length for each axis, as near to a size as the base takes one; `behind` is that of the past."""
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    return {
        axis: behind if axis in past else axis_lengths(axis, lengths).near(batch if axis in batch_axes else size)
        for axis in _named(inputs)
    }


def _fitting(shapes: Sequence[Shape], lengths: Bounds) -> list[Shape]:
    """Each shape once, without those in which a sum of axes has a length that the base does not take."""
    sums = [axis for axis in lengths if len(names(axis)) > 1]
    fitting = [shape for shape in shapes if all(length(axis, shape) in lengths[axis] for axis in sums)]
    return list({_name(shape): shape for shape in fitting}.values())


def _batch_axes(inputs: Sequence[InputRecord]) -> set[str]:
    return {record.axes[0] for record in inputs if record.axes and isinstance(record.axes[0], str)}


def _named(inputs: Sequence[InputRecord]) -> list[str]:
    """Every name that needs a length, once."""
    return list(dict.fromkeys(name for record in inputs for axis in record.axes for name in names(axis)))


def _past_axes(inputs: Sequence[InputRecord]) -> set[str]:
    """The axes that only caches have, which are the lengths of the past; the mask's is a sum with one."""
    caches = {axis for record in inputs if record.role == "cache" for axis in record.axes[1:]}
    others = {axis for record in inputs if record.role != "cache" for axis in record.axes}
    return {axis for axis in caches - others if isinstance(axis, str)}


def _check(inputs: Sequence[InputRecord], shape: Shape) -> None:
    past = _past_axes(inputs)
    for axis in _named(inputs):
        if shape.get(axis, -1) < (0 if axis in past else 1):
            found = shape.get(axis, "no length")
            raise UsageError("a named axis needs a length", where=f"axis `{axis}`", found=found, expected="at least 1")


def _arrays(inputs: Sequence[InputRecord], shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {record.name: _draw(record, tuple(length(axis, shape) for axis in record.axes), rng) for record in inputs}


def _draw(record: InputRecord, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(record.dtype)
    if record.role == "mask":
        return np.ones(shape, dtype)
    if record.role == "ids":
        limit = 1 if record.limit is None else record.limit  # 0 is the one index that every table has
        return rng.integers(0, limit, shape).astype(dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype)  # a number whose meaning is unknown: 0 is the one that is safest to take


def _padded(inputs: Sequence[InputRecord], cases: Sequence[InputCase]) -> Iterator[InputCase]:
    """The case with the most rows, and among those the one of middle length, with its rows cut short."""
    mask = next((record.name for record in inputs if record.role == "mask" and len(record.axes) == 2), None)
    if mask is None or any(record.role == "cache" for record in inputs):
        return
    able = [case for case in cases if case.arrays[mask].shape[1] > 1]
    if not able:
        return
    most_rows = max(case.arrays[mask].shape[0] for case in able)
    able = [case for case in able if case.arrays[mask].shape[0] == most_rows]
    case = able[(len(able) - 1) // 2]
    real = _real_tokens(*case.arrays[mask].shape)
    arrays = {record.name: _cut(record, case.arrays[record.name], real) for record in inputs}
    yield InputCase(f"{case.name}_padded", arrays)


def less_padded(case: InputCase, inputs: Sequence[InputRecord]) -> InputCase | None:
    """A case with half of the padding of each row, where the row's first token stands instead; none without padding."""
    masks = [case.arrays[record.name] for record in inputs if record.role == "mask" and len(record.axes) == 2]
    if not masks or masks[0].all():
        return None
    mask = masks[0]
    padding = mask.shape[1] - np.count_nonzero(mask, 1)
    more = (mask == 0) & (np.arange(mask.shape[1]) < (mask.shape[1] - padding // 2)[:, None])
    arrays = {
        record.name: np.where(more, case.arrays[record.name][:, :1], case.arrays[record.name])
        if record.role != "values" and case.arrays[record.name].shape == mask.shape
        else case.arrays[record.name]
        for record in inputs
    }
    return InputCase(case.name, arrays)


def _real_tokens(batch: int, tokens: int) -> npt.NDArray[np.bool_]:
    """Which tokens are real, [batch, tokens]: the first row whole, the last one a single token, evenly between."""
    lengths = np.linspace(tokens, 1, batch).round() if batch > 1 else np.array([(tokens + 1) // 2])
    return np.arange(tokens) < lengths[:, None]


def _cut(record: InputRecord, array: np.ndarray, real: npt.NDArray[np.bool_]) -> np.ndarray:
    """Masks and ids are 0 at the padding; other values stay, because a masked token must not matter."""
    if record.role == "values" or array.shape != real.shape:
        return array
    return (array * real).astype(array.dtype)


def _name(shape: Shape) -> str:
    return "_".join(f"{axis}{length}" for axis, length in shape.items()) or "fixed"


def _unique(cases: Sequence[InputCase]) -> list[InputCase]:
    """Drop cases whose names came up before: they have the same shapes."""
    return list({case.name: case for case in reversed(cases)}.values())[::-1]
