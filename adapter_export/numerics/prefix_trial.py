"""Trial of a base with a prefix: hidden tokens after it change nothing, and every layer reads it in the longest text.

Rows of one call have prefixes of different lengths, with hidden tokens between a shorter one and the text. A base that
counts these, or attends within a window, would give a row other results than by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from adapter_export.errors import AdapterError
from adapter_export.format.axes import names
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.prefix_inputs import prefixed_caches
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.words import quoted

_HIDDEN, _TOKENS = 3, 4
_TOLERANCE = 1e-3
"""Difference that is rounding, relative to the largest result."""

_LONGEST = 2**16
_CACHE = 2**30
"""Tokens of the longest text of the trial, if the base has no limit, and bytes of its caches."""

_FIX = "train a LoRA, an IA3 or a bottleneck adapter instead"


def check_prefixes(
    runner: Runner, records: Sequence[InputRecord], adapters: Sequence[Adapter], longest: int | None
) -> None:
    """Try once for all adapters with a prefix; `longest` is the maximum tokens of a text, with the prefix.

    Raises:
        AdapterError: the base takes no prefix, or a row with one would depend on others, or forget it.
    """
    prefixed = [adapter for adapter in adapters if adapter.prefix is not None]
    for adapter in prefixed:
        assert adapter.prefix is not None
        prefixed_caches(records, adapter.prefix.shapes)
    if not prefixed:
        return
    caches = prefixed_caches(records, prefixed[0].prefix.shapes)  # type: ignore[union-attr]
    _check_hidden(runner, records, prefixed[0])
    forgetting = list(_forgetting(runner, records, caches, longest))
    if forgetting:
        raise AdapterError(
            "has keys and values that the base forgets in a long text: it attends within a window",
            where=f"adapter `{prefixed[0].name}`",
            found=f"no effect of the first token in {quoted(forgetting)}",
            expected="a base whose tokens attend to all earlier ones",
            fix=_FIX,
        )


def _check_hidden(runner: Runner, records: Sequence[InputRecord], adapter: Adapter) -> None:
    """Compare a text after the prefix with the same text after hidden tokens."""
    near, far = (_results(runner, records, _inputs(records, past, _TOKENS), adapter) for past in (0, _HIDDEN))
    apart = max(float(np.abs(near[name] - far[name]).max()) for name in near)
    allowed = _TOLERANCE * max(float(np.abs(array).max()) for array in near.values())
    if not apart <= allowed:
        raise AdapterError(
            "has keys and values at a distance from the text that the base measures with hidden tokens",
            where=f"adapter `{adapter.name}`",
            found=f"results that differ by {apart:.1e} after {_HIDDEN} hidden tokens",
            expected="positions that are counted by the mask",
            fix=_FIX,
        )


def _forgetting(
    runner: Runner, records: Sequence[InputRecord], caches: Mapping[InputRecord, int], longest: int | None
) -> Iterator[str]:
    """Yield the caches, two at a time, whose first token does not change the result of the last token of a text."""
    of_token = sum(_bytes(record) for record in caches)
    past = max(1, min((longest or _LONGEST) - 1, _CACHE // of_token))
    inputs = _inputs(records, past, 1)
    expected = _results(runner, records, inputs, None)
    ordered = list(caches)
    for start in range(0, len(ordered), 2):
        changed = dict(inputs)
        for record in ordered[start : start + 2]:
            first = (slice(None),) * caches[record] + (slice(0, 1),)
            changed[record.name] = inputs[record.name].copy()
            # a large value, since one of many tokens has a small weight
            changed[record.name][first] = 4 * np.sign(inputs[record.name][first]) * math.sqrt(past)
        results = _results(runner, records, changed, None)
        if all(np.array_equal(results[name], expected[name]) for name in expected):
            yield from (record.name for record in ordered[start : start + 2])


def _inputs(records: Sequence[InputRecord], past: int, tokens: int) -> Arrays:
    """Return random inputs of one row; a past beside several tokens is hidden."""
    arrays: Arrays = {}
    new = next(record.axes[1] for record in records if record.role == "ids")
    for at, record in enumerate(records):
        rng = np.random.default_rng(at)
        if record.role == "ids":
            arrays[record.name] = rng.integers(0, record.limit or 2, (1, tokens)).astype(record.dtype)
        elif record.role == "mask":
            mask = np.ones((1, past + tokens), record.dtype)
            mask[:, : past if tokens > 1 else 0] = 0
            arrays[record.name] = mask
        else:
            grown = [axis if isinstance(axis, int) else past if new not in names(axis) else 1 for axis in record.axes]
            arrays[record.name] = rng.standard_normal([1, *grown[1:]]).astype(record.dtype)
    return arrays


def _results(
    runner: Runner, records: Sequence[InputRecord], inputs: Mapping[str, np.ndarray], adapter: Adapter | None
) -> Arrays:
    """Return the outputs that are no caches."""
    following = {record.next for record in records}
    outputs = runner.run(inputs, adapter)
    return {name: array.astype(np.float64) for name, array in outputs.items() if name not in following}


def _bytes(record: InputRecord) -> int:
    return math.prod(axis for axis in record.axes if isinstance(axis, int)) * np.dtype(record.dtype).itemsize
