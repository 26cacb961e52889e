"""Axis lengths: numbers, names, and sums of names such as `past_sequence + sequence`; caches of a decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

from adapter_export.format.lengths import Bounds, Lengths, axis_lengths
from adapter_export.format.manifest import Axis, InputRecord, OutputRecord, token_axis

_PLUS = " + "


def names(axis: Axis) -> tuple[str, ...]:
    """Return the names in the length of an axis: empty for a number, several for a sum."""
    return () if isinstance(axis, int) else tuple(axis.split(_PLUS))


def axis_names(records: Iterable[InputRecord | OutputRecord]) -> tuple[str, ...]:
    """Return the names of all axes of inputs or outputs, without duplicates, in order."""
    return tuple(dict.fromkeys(name for record in records for axis in record.axes for name in names(axis)))


def length(axis: Axis, lengths: Mapping[str, int]) -> int:
    """Compute the length of an axis from the lengths of its names."""
    return axis if isinstance(axis, int) else sum(lengths[name] for name in names(axis))


def estimated_elements(record: OutputRecord, lengths: Mapping[str, int]) -> int:
    """Estimate the number of elements of an output from the lengths of the inputs.

    A length that the model computes, such as that of frames from samples, counts as the longest length of the inputs.
    """
    longest = max(lengths.values(), default=1)
    lengths = {**dict.fromkeys(axis_names([record]), longest), **lengths}
    return math.prod(length(axis, lengths) for axis in record.axes)


def narrowed(inputs: Sequence[InputRecord], lengths: Bounds, tokens: int | None) -> dict[str, Lengths] | None:
    """Restrict lengths to at most `tokens` tokens per text, including the cache; `None` if no length remains."""
    axis = token_axis(inputs)
    if tokens is None or not isinstance(axis, str):
        short = tokens is not None and isinstance(axis, int) and tokens < axis
        return None if short else dict(lengths)
    sums = {total for record in inputs for total in record.axes if isinstance(total, str) and axis in names(total)}
    within_limit = {total: axis_lengths(total, lengths).within(Lengths(0, tokens)) for total in sorted(sums)}
    known = {total: each for total, each in within_limit.items() if each is not None}
    return {**lengths, **known} if len(known) == len(within_limit) else None


def with_caches(
    inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord]
) -> tuple[tuple[InputRecord, ...], tuple[OutputRecord, ...]]:
    """Find a decoder's caches: inputs that are returned as outputs, longer by the new tokens.

    An input with an axis `past` is a cache if an output has the same shape except that `past` is `past + tokens`, or
    the second axis of the mask, which covers past and new tokens. Such an axis becomes a sum wherever it occurs. Caches
    of equal shapes are matched to outputs in order. Inputs with the role `ids` name the axis of the new tokens, and
    those with the role `values` that of new windows of a file.

    Returns:
        Inputs and outputs; caches have the role `cache` and their output in `next`.
    """
    tokens, masks = _second_axes(inputs, "ids"), _second_axes(inputs, "mask")
    windows = _second_axes(inputs, "values")
    following: dict[str, str] = {}
    sums: dict[Axis, Axis] = {}
    groups: dict[tuple[str, tuple[Axis, ...]], list[InputRecord]] = {}
    for record in inputs:
        if record.role == "values":
            groups.setdefault((record.dtype, record.axes), []).append(record)
    for group in groups.values():
        pasts = {axis for axis in group[0].axes[1:] if isinstance(axis, str)}
        for past, new in product(pasts, [*tokens, *(windows - tokens)]):
            grown = [(output, _grown(group[0], output, past)) for output in outputs]
            totals = masks if len(tokens) == 1 else set[str]()  # with two texts, only a sum identifies the total
            fitting = [(output.name, axis) for output, axis in grown if _is_total(axis, past, new, totals)]
            if len(fitting) == len(group):
                following.update({record.name: name for record, (name, _) in zip(group, fitting, strict=True)})
                sums.update({axis: axis if _PLUS in axis else f"{past}{_PLUS}{new}" for _, axis in fitting})
    return (
        tuple(_described(record, following.get(record.name), sums) for record in inputs),
        tuple(replace(record, axes=tuple(sums.get(axis, axis) for axis in record.axes)) for record in outputs),
    )


def padded_axes(inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord]) -> frozenset[str]:
    """Return the axes along which a mask marks padding: all axis names of masks except the batch.

    Empty if an output has an axis that no input has, whose padding is unknown.
    """
    masks = [record for record in inputs if record.role == "mask"]
    unknown = {*axis_names(outputs)}.difference(axis_names(inputs))
    return frozenset(name for record in masks for axis in record.axes[1:] for name in names(axis) if not unknown)


def masks_of(inputs: Sequence[InputRecord], tokens: Axis | None) -> list[str]:
    """Return the masks that may cover the tokens of a value [batch, tokens, …]; `None` is an unknown token axis.

    Excludes masks of another input's tokens, such as the encoder's mask for values of the decoder.
    """
    others = {axis for record in inputs if record.role != "mask" for axis in record.axes}
    masks = [record for record in inputs if record.role == "mask"]
    return [record.name for record in masks if tokens is None or tokens in record.axes or record.axes[-1] not in others]


def _second_axes(inputs: Iterable[InputRecord], role: str) -> set[str]:
    """Return the token axes of the inputs of a role."""
    return {axis for record in inputs if record.role == role for axis in record.axes[1:2] if isinstance(axis, str)}


def _grown(record: InputRecord, output: OutputRecord, past: str) -> str:
    """Return the output's axis in place of `past`, or "" if the shapes differ elsewhere."""
    if record.dtype != output.dtype or len(record.axes) != len(output.axes):
        return ""
    apart = [(before, after) for before, after in zip(record.axes, output.axes, strict=True) if before != after]
    return str(apart[0][1]) if len(apart) == 1 and apart[0][0] == past and isinstance(apart[0][1], str) else ""


def _is_total(axis: str, past: str, new: str, masks: set[str]) -> bool:
    """Return whether an axis is the sum of past and new tokens."""
    return past != new and (axis in masks - {new} or sorted(names(axis)) == sorted((past, new)))


def _described(record: InputRecord, following: str | None, sums: Mapping[Axis, Axis]) -> InputRecord:
    axes = tuple(sums.get(axis, axis) for axis in record.axes)
    if following is None:
        return replace(record, axes=axes)
    return replace(record, axes=axes, role="cache", next=following)
