"""Keys and values before the first token, as a past of the base: the reference of adapters with a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import numpy as np

from adapter_export.errors import AdapterError
from adapter_export.format.axes import names
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.adapter import PREFIX, TOKENS, Adapter
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

Values = TypeVar("Values", bound=np.ndarray)


def prefixed_caches(inputs: Sequence[InputRecord], shapes: Mapping[str, Sequence[int | str]]) -> dict[InputRecord, int]:
    """Return the caches that a prefix precedes, with their axis of tokens.

    Raises:
        AdapterError: the base has no cache of the tokens that its only mask covers, other caches, or other inputs.
    """
    caches = {record: _past_axis(record, inputs) for record in inputs if record.role == "cache"}
    roles = [record.role for record in inputs if record.role != "cache"]
    known = {
        record.name: tuple(TOKENS if at == axis else length for at, length in enumerate(record.axes) if at)
        for record, axis in caches.items()
        if axis is not None
    }
    if not caches or len(known) != len(caches) or sorted(roles) != ["ids", "mask"]:
        raise AdapterError(
            "a prefix needs a base with a cache, token ids and a mask of past and new tokens",
            found=f"inputs {quoted(record.name for record in inputs)}",
            expected="a decoder that was captured with its cache",
            fix="capture the language model without " + argument("bare", True),
        )
    if known != {cache: tuple(shape) for cache, shape in shapes.items()}:
        raise AdapterError(
            "a prefix has keys and values for other caches than those of the base",
            found=_described(shapes),
            expected=_described(known),
            fix="pass the base that it was trained on",
        )
    return {record: axis for record, axis in caches.items() if axis is not None}


def cache_shapes(inputs: Sequence[InputRecord]) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes that a prefix has for the caches of a base, in their order; empty without caches."""
    shapes = {}
    for record in inputs:
        axis = _past_axis(record, inputs) if record.role == "cache" else None
        if axis is not None:
            shapes[record.name] = tuple(TOKENS if at == axis else size for at, size in enumerate(record.axes) if at)
    return shapes


def with_prefix(
    inputs: Mapping[str, np.ndarray], adapter: Adapter | None, records: Sequence[InputRecord]
) -> Mapping[str, np.ndarray]:
    """Return the inputs with which the base computes what it computes with an adapter's prefix.

    Raises:
        AdapterError: see `prefixed_caches`.
    """
    if adapter is None or adapter.prefix is None:
        return inputs
    longer = dict(inputs)
    for record, axis in prefixed_caches(records, adapter.prefix.shapes).items():
        past = inputs[record.name]
        tensor = adapter.weights[f"{PREFIX}.{record.name}"].astype(past.dtype)
        rows = np.broadcast_to(tensor, (len(past), *tensor.shape))
        longer[record.name] = np.concatenate([rows, past], axis)
    mask = next(record.name for record in records if record.role == "mask")
    ones = np.ones((len(inputs[mask]), adapter.prefix.tokens), inputs[mask].dtype)
    longer[mask] = np.concatenate([ones, inputs[mask]], 1)
    return longer


def without_prefix(
    outputs: Mapping[str, Values], adapter: Adapter | None, records: Sequence[InputRecord]
) -> dict[str, Values]:
    """Return outputs of the base whose caches do not contain the prefix."""
    if adapter is None or adapter.prefix is None:
        return dict(outputs)
    shorter = dict(outputs)
    for record, axis in prefixed_caches(records, adapter.prefix.shapes).items():
        name = str(record.next)
        if name in outputs:
            array = outputs[name]
            kept = (slice(None),) * axis + (slice(adapter.prefix.tokens, None),)
            shorter[name] = cast("Values", np.ascontiguousarray(array[kept]))
    return shorter


def at_sites(adapter: Adapter | None) -> Adapter | None:
    """Return the part of an adapter that acts at sites and in a head; `None` for the base and for a prefix only."""
    return None if adapter is None else adapter.without_prefix()


def _past_axis(record: InputRecord, inputs: Sequence[InputRecord]) -> int | None:
    """Return the axis of a cache whose length is that of the past in the mask; `None` if there is none."""
    masks = [mask for mask in inputs if mask.role == "mask" and len(mask.axes) == 2]
    sums = [names(mask.axes[1]) for mask in masks]
    axes = [
        at
        for at, axis in enumerate(record.axes)
        if at and isinstance(axis, str) and any(axis in total and len(total) > 1 for total in sums)
    ]
    return axes[0] if len(axes) == 1 and len(masks) == 1 else None


def _described(shapes: Mapping[str, Sequence[int | str]]) -> str:
    first = next(iter(shapes.items()), None)
    return number_of(len(shapes), "cache") + ("" if first is None else f", such as `{first[0]}` {list(first[1])}")
