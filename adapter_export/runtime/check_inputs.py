"""Checks of a call before it reaches the runtime: inputs, the adapter of each row, fusion weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.axes import length, names
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import Axis, InputRecord, Manifest
from adapter_export.runtime.loaded_adapters import Entry
from adapter_export.words import argument, command, quoted

Inputs = Mapping[str, np.ndarray]

_LARGEST = float(np.finfo(np.float32).max)


def check_inputs(
    inputs: Mapping[str, np.ndarray], records: Sequence[InputRecord], lengths: Bounds
) -> dict[str, np.ndarray]:
    """Return the inputs as contiguous arrays; `lengths` are the allowed lengths of the base.

    RequestError if an input is missing, unknown, empty, has a wrong type, shape or length, contains ids out of range,
    or is a mask without a token in a row.
    """
    expected = {record.name for record in records}
    if set(inputs) != expected:
        wrong = [f"no `{name}`" for name in sorted(expected - set(inputs))]
        wrong += [f"unknown `{name}`" for name in sorted(set(inputs) - expected)]
        raise RequestError(
            "the inputs are not those of the graph",
            found="; ".join(wrong),
            expected=quoted(record.name for record in records),
        )
    arrays = {record.name: np.ascontiguousarray(inputs[record.name]) for record in records}
    sizes: dict[str, int] = {}
    for record in records:
        _check_type(arrays[record.name], record)
        _check_shape(np.shape(inputs[record.name]), record, sizes, lengths)
        _check_ids(arrays[record.name], record)
        _check_mask(arrays[record.name], record)
    for record in records:  # again, since the names in sums of axes have lengths now
        _check_shape(np.shape(inputs[record.name]), record, sizes, lengths)
        for axis in record.axes:
            _check_length(axis, f"`{record.name}`, axis `{axis}`", sizes, lengths)
    for axis in lengths:  # a sum of axes, such as past and new tokens, may be the axis of no input
        if len(names(axis)) > 1 and _is_known(axis, sizes):
            _check_length(axis, f"axis `{axis}`", sizes, lengths)
    return arrays


def check_rows(
    arrays: Mapping[str, np.ndarray], choices: Sequence[object], manifest: Manifest, allow_mixed_rows: bool
) -> None:
    """Raise RequestError unless each row has a choice, and rows of different choices cannot influence each other."""
    rows = len(next(iter(arrays.values())))
    if len(choices) != rows:
        raise RequestError("a mixed batch has one choice for each row", found=len(choices), expected=rows)
    mixed = any(choice != choices[0] for choice in choices)
    if mixed and not (manifest.batch_invariant or allow_mixed_rows):
        raise RequestError(
            "the rows of a batch influence each other in this bundle: a row's results would depend on the other rows",
            found=f"precision `{manifest.base_precision}`",
            fix="give each call one `adapter`, or pass `allow_mixed_rows=True` if all rows belong to one user",
        )


def _check_type(array: np.ndarray, record: InputRecord) -> None:
    if array.dtype != record.dtype:
        raise RequestError(
            "an input has a wrong type",
            where=f"`{record.name}`",
            found=array.dtype,
            expected=record.dtype,
            fix=f'pass `{record.name}.astype("{record.dtype}")`',
        )


def _check_shape(shape: tuple[int, ...], record: InputRecord, sizes: dict[str, int], lengths: Bounds) -> None:
    """Check a shape. ONNX Runtime ignores two lengths of one axis name. Caches may be empty."""
    empty = {axis for axis, size in zip(record.axes, shape, strict=False) if size == 0 and record.role != "cache"}
    fits = len(shape) == len(record.axes) and all(0 in axis_lengths(axis, lengths) for axis in empty)
    for axis, size in zip(record.axes, shape, strict=False):
        fits = fits and size == _expected(axis, size, sizes)
    if not fits:
        named = [f"{axis} = {length(axis, sizes)}" if _is_known(axis, sizes) else str(axis) for axis in record.axes]
        some = any(0 in axis_lengths(axis, lengths) for axis in record.axes)
        least = "" if record.role == "cache" or some else ", at least 1 along each axis"
        raise RequestError(
            "an input has a wrong shape",
            where=f"`{record.name}`",
            found=list(shape),
            expected=f"[{', '.join(named)}]{least}",
        )


def _check_length(axis: Axis, where: str, sizes: Mapping[str, int], lengths: Bounds) -> None:
    """Check a length: at others than the exported ones, a base may compute wrong results without an error."""
    if isinstance(axis, str) and axis in lengths and length(axis, sizes) not in lengths[axis]:
        raise RequestError(
            "an input has a length that the base does not take",
            where=where,
            found=length(axis, sizes),
            expected=lengths[axis],
            fix="shorten or pad it; " + argument("lengths", option="axis") + " of `capture` exports other lengths",
        )


def _expected(axis: Axis, size: int, sizes: dict[str, int]) -> int:
    """Return the length that an axis must have; the actual one if its name is new."""
    if isinstance(axis, int):
        return axis
    if names(axis) == (axis,):
        return sizes.setdefault(axis, size)
    return length(axis, sizes) if _is_known(axis, sizes) else size


def _is_known(axis: Axis, sizes: Mapping[str, int]) -> bool:
    return isinstance(axis, str) and all(name in sizes for name in names(axis))


def _check_mask(array: np.ndarray, record: InputRecord) -> None:
    """Check a mask: each row needs a token, and numbers other than 0 and 1 have no common meaning."""
    if record.role != "mask" or array.dtype.kind == "f":
        return
    if not (((array == 0) | (array == 1)).all() and array.any(axis=-1).all()):
        raise RequestError(
            "a mask that leaves no token, or is none",
            where=f"`{record.name}`",
            expected="1 for tokens, 0 for padding, and at least 1 token in each row",
        )


def _check_ids(array: np.ndarray, record: InputRecord) -> None:
    """Check ids, since ONNX Runtime counts negative ones from the end of the table."""
    if record.limit is None or not array.size:
        return
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= record.limit:
        raise RequestError(
            "an id is out of range",
            where=f"`{record.name}`",
            found=lowest if lowest < 0 else highest,
            expected=f"0 to {record.limit - 1}",
            fix="use the tokenizer of the base",
        )


Weighting = Mapping[str, float] | Sequence[Mapping[str, float]]
"""Finite weights of a fusion's members by name: one mapping for all rows of a batch, or one per row."""


def weights_of_each(
    weights: Weighting | Sequence[Mapping[str, float] | None] | None, rows: int
) -> Sequence[Mapping[str, float] | None]:
    """Return the weights of each row, if any; RequestError unless there is one mapping or one per row."""
    if weights is None or isinstance(weights, Mapping):
        return [weights] * rows
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not is_list or not all(mapping is None or isinstance(mapping, Mapping) for mapping in weights):
        expected = "a mapping of member to number, or a list of one mapping per row"
        raise RequestError("no weights of a fusion", where="`weights`", found=f"{weights!a}"[:100], expected=expected)
    if len(weights) != rows:
        raise RequestError("a mixed batch has one choice for each row", found=len(weights), expected=rows)
    return weights


def _is_weight(weight: object) -> bool:
    number = weight.item() if isinstance(weight, np.generic) else weight
    return isinstance(number, float | int) and abs(number) <= _LARGEST


def weight_tensors(entry: Entry, weights: Weighting) -> dict[str, np.ndarray]:
    """Return the tensors for every slot of fusion weights, float32 [1, members] or [batch, members].

    RequestError if the adapter is not a weighted fusion of the bundle, or a row lacks a finite weight for a member.
    """
    record = entry.mix
    if record is None:
        fuse = command('compose("fuse", [A, B], name=NAME)', "compose fuse A B -o OUT")
        raise RequestError(
            "has no weights that a call could give",
            where=f"adapter `{entry.name}`",
            expected="a weighted fusion of the bundle",
            fix="make one with " + fuse + ", and `build` or `add` it",
        )
    of_rows = [weights] if isinstance(weights, Mapping) else list(weights)
    for row, of_row in enumerate(of_rows):
        # no default for a missing member; comparisons with NaN are false
        if set(of_row) != set(record.members) or not all(_is_weight(weight) for weight in of_row.values()):
            raise RequestError(
                "a fusion needs a finite weight for each of its members",
                where=None if isinstance(weights, Mapping) else f"row {row}",
                found=", ".join(f"`{name}`: {weight}" for name, weight in of_row.items()) or "none",
                expected=quoted(record.members),
            )
    array = np.array([[of_row[name] for name in record.members] for of_row in of_rows], np.float32)
    return dict.fromkeys(record.slots, array)
