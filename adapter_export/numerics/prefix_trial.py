"""Trial of a base with a prefix: hidden tokens between the prefix and a text change nothing.

Rows of one call have prefixes of different lengths and padding before their texts, so that hidden tokens follow a
prefix. A base that counts them, or attends within a window, would give a row other results than by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from adapter_export.errors import AdapterError
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.prefix_inputs import prefixed_caches
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.tables import number_of

_FEW, _TOKENS = 3, 4
_TOLERANCE = 1e-3
"""Difference that is rounding, relative to the largest result."""

_LONGEST = 2**16
"""Hidden tokens at most, if the base has no limit: more than any window in use."""

_CACHE = 2**30
"""Bytes of the caches of the hidden tokens at most."""


def check_prefixes(
    runner: Runner, records: Sequence[InputRecord], adapters: Sequence[Adapter], longest: int | None
) -> None:
    """Compare a text with the same text after a few hidden tokens, and after as many as fit.

    Args:
        runner: computes the base.
        records: inputs of the base.
        adapters: of which any may have a prefix.
        longest: maximum tokens of a text without its prefix.

    Raises:
        AdapterError: the base takes no prefix, or a row with one would depend on the other rows of a call.
    """
    caches: Mapping[InputRecord, int] = {}
    for prefix in [adapter.prefix for adapter in adapters if adapter.prefix is not None]:
        caches = prefixed_caches(records, prefix.shapes)
    if not caches:
        return
    adapter = next(adapter for adapter in adapters if adapter.prefix is not None)
    most = min((longest or _LONGEST) - _TOKENS, _CACHE // max(1, sum(map(_bytes, caches))))
    near = _results(runner, records, adapter, 0)
    allowed = _TOLERANCE * max(float(np.abs(array).max()) for array in near.values())
    for hidden in sorted({min(_FEW, most), most} - {0}):
        far = _results(runner, records, adapter, hidden)
        apart = max(float(np.abs(near[name] - far[name]).max()) for name in near)
        if not apart <= allowed:
            raise AdapterError(
                "has keys and values that the base reads less from a distance: it counts hidden tokens, or attends "
                "within a window",
                where=f"adapter `{adapter.name}`",
                found=f"results that differ by {apart:.1e} after {number_of(hidden, 'hidden token')}",
                expected="a base that attends to all tokens of the mask, and counts only these",
                fix="train a LoRA, an IA3 or a bottleneck adapter instead",
            )


def _results(runner: Runner, records: Sequence[InputRecord], adapter: Adapter, hidden: int) -> Arrays:
    """Return the outputs that are no caches for a random text after hidden tokens."""
    following = {record.next for record in records}
    outputs = runner.run(_inputs(records, hidden), adapter)
    return {name: array.astype(np.float64) for name, array in outputs.items() if name not in following}


def _inputs(records: Sequence[InputRecord], hidden: int) -> Arrays:
    arrays: Arrays = {}
    for at, record in enumerate(records):
        rng = np.random.default_rng(at)
        if record.role == "ids":
            arrays[record.name] = rng.integers(0, record.limit or 2, (1, _TOKENS)).astype(record.dtype)
        elif record.role == "mask":
            mask = np.arange(hidden + _TOKENS) >= hidden
            arrays[record.name] = mask[None].astype(record.dtype)
        else:
            # a cache has the axes of a row, fixed lengths and the past
            sizes = [axis if isinstance(axis, int) else hidden for axis in record.axes[1:]]
            arrays[record.name] = rng.standard_normal([1, *sizes]).astype(record.dtype)
    return arrays


def _bytes(record: InputRecord) -> int:
    """Return the bytes of a cache for each token."""
    return math.prod(axis for axis in record.axes if isinstance(axis, int)) * np.dtype(record.dtype).itemsize
