"""Batching of requests by length and adapter, and splitting of the results."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from adapter_export.errors import UsageError
from adapter_export.format.axes import length, names
from adapter_export.format.manifest import Axis, InputRecord, Manifest
from adapter_export.graph.tasks.asked import Row
from adapter_export.reporting import Reporter
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.head_results import own_classes
from adapter_export.runtime.loaded_adapters import Entry
from adapter_export.runtime.padding import Origin

TOKEN_BUDGET = 512
"""Default tokens per call of `run_many`: on a CPU, larger calls save nothing."""

CALL_TOKENS = 10
"""Fixed cost of a call on a CPU, in tokens.

A call loads each weight once and multiplies it once per token, so the cost depends on the processor rather than the
base. On one thread with AVX2 it is 10 tokens for MiniLM, and 8 to 9 for products with 42, 170 and 302 MB of weights.
Plans made with 4 to 20 take the same time to within 2 %.
"""


@dataclass(frozen=True)
class Request:
    """One request of many.

    Attributes:
        inputs: an array for each input of the base, of one row or several.
        adapter: the adapter to run with; `None` is the base.
        strength: how much of the adapter's updates is added, as in `Session.run`.
        weights: a number for each member of an adapter that is a weighted fusion, in place of its own.
        head_only: compute the result of the adapter's head, if it has one, and none of the base's outputs.
        where: names the request in messages; default: its number.
    """

    inputs: Mapping[str, np.ndarray]
    adapter: str | None = None
    strength: float = 1.0
    weights: Mapping[str, float] | None = None
    head_only: bool = False
    where: str = ""

    @classmethod
    def of_row(cls, row: Row, inputs: Mapping[str, np.ndarray], adapter: str | None, *, head_only: bool) -> Request:
        """Return the request of a row, whose adapter and inputs are known."""
        return cls(inputs, adapter, row.strength, row.weights, head_only, row.where)


@dataclass(frozen=True)
class Item:
    """A checked request, or one row of it, to be batched."""

    index: int
    """Index of the request."""
    request: Request
    arrays: Arrays
    entry: Entry | None
    rows: int
    sizes: Mapping[str, int]
    """Length of each named axis, except the batch."""
    padded: frozenset[str]
    """Axes along which it may be padded."""
    twin: int = 0
    """Index of the first request with equal inputs, if calls compute equal rows once; otherwise 0."""
    origin: Origin | None = None
    """Former positions of its tokens, if padding was removed."""

    @property
    def head_only(self) -> bool:
        """True if only the result of a head is requested."""
        return self.request.head_only and self.entry is not None and self.entry.output is not None

    @property
    def weights(self) -> Mapping[str, float] | None:
        """Weights of a fusion's members, if the request overrides them."""
        return self.request.weights

    @property
    def tokens(self) -> int:
        """Length of each row, summed over axes."""
        return max(1, sum(self.sizes.values()))

    @property
    def name(self) -> str:
        """Name of its adapter."""
        return "" if self.entry is None else self.entry.name

    @property
    def fixed(self) -> tuple[object, ...]:
        """Values that all requests of one call must share."""
        fusion = None if self.weights is None else self.entry  # the weights of a fusion are constants in a bank
        return self.padded, fusion, *(pair for pair in sorted(self.sizes.items()) if pair[0] not in self.padded)


def batches(
    items: Sequence[Item],
    manifest: Manifest,
    token_budget: int,
    adapters: int,
    allow_mixed_rows: bool,
    call_tokens: int,
) -> Iterator[list[Item]]:
    """Yield batches of items with similar lengths, the shortest first, at the lowest total cost.

    A call costs its tokens, including padding, plus `call_tokens`. It has at most `token_budget` tokens and `adapters`
    different adapters (1 without a bank); a longer row has a call of its own. UsageError if the budget is below 1.
    """
    if token_budget < 1:
        raise UsageError("`token_budget` must be greater than 0", found=token_budget)
    together = rows_are_apart(manifest) and (manifest.batch_invariant or allow_mixed_rows)
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault((item.fixed, item.entry if adapters == 1 else None), []).append(item)
    for group in groups.values():
        # similar lengths first, as padding costs most; the index makes the order the same in each run
        ordered = sorted(group, key=lambda item: (item.tokens, item.twin, item.name, item.index))
        choice = together and len(ordered) > 1
        cuts = _cheapest_cuts(ordered, token_budget, adapters, call_tokens) if choice else range(len(ordered) + 1)
        yield from (ordered[start:end] for start, end in pairwise(cuts))


def _cheapest_cuts(items: Sequence[Item], token_budget: int, adapters: int, call_tokens: int) -> list[int]:
    """Return the start of each call and the end of the last, by dynamic programming over ends."""
    sizes = np.array([[*item.sizes.values()] or [1] for item in items])
    rows = np.cumsum([0, *(item.rows for item in items)])
    costs, starts = np.zeros(len(items) + 1), [0]
    first = 0  # earlier starts are too large for this end and all later ones
    for end in range(1, len(items) + 1):
        while len({item.entry for item in items[first:end]} - {None}) > adapters:
            first += 1
        longest = np.maximum.accumulate(sizes[first:end][::-1])[::-1].sum(axis=1)
        tokens = longest * (rows[end] - rows[first:end])
        over = int((tokens[:-1] > token_budget).sum())
        first, tokens = first + over, tokens[over:]
        ways = costs[first:end] + tokens + call_tokens
        starts.append(first + int(ways.argmin()))
        costs[end] = ways.min()
    cuts = [len(items)]
    while cuts[-1]:
        cuts.append(starts[cuts[-1]])
    return cuts[::-1]


def batch_axis(manifest: Manifest) -> str | None:
    """Return the batch axis, the first one of all inputs.

    `None` if there is no such axis, its length is fixed, or there is a cache: each request then has a call of its own.
    """
    first = {record.axes[0] if record.axes else None for record in manifest.inputs}
    axis = next(iter(first))
    cached = any(record.role == "cache" for record in manifest.inputs)
    return axis if len(first) == 1 and isinstance(axis, str) and not cached else None


def rows_are_apart(manifest: Manifest) -> bool:
    """Return whether every output has a row for each row of a call."""
    axis = batch_axis(manifest)
    return axis is not None and all(record.axes[:1] == (axis,) for record in manifest.outputs)


def sizes_of(arrays: Mapping[str, np.ndarray], inputs: Sequence[InputRecord], batch: str | None) -> dict[str, int]:
    """Return the length of each named axis of the inputs, except the batch."""
    pairs = (pair for record in inputs for pair in zip(record.axes, arrays[record.name].shape, strict=True))
    return {axis: size for axis, size in pairs if isinstance(axis, str) and names(axis) == (axis,) and axis != batch}


def joined(batch: Sequence[Item], manifest: Manifest) -> Arrays:
    """Return the inputs of a call, padded with zeros after the tokens, where the mask hides them."""
    sizes = {axis: max(item.sizes[axis] for item in batch) for axis in batch[0].sizes}
    inputs: Arrays = {}
    for record in manifest.inputs:
        shape = [length(axis, sizes) for axis in record.axes[1:]]
        array = np.zeros((sum(item.rows for item in batch), *shape), record.dtype)
        start = 0
        for item in batch:
            part = item.arrays[record.name]
            array[(slice(start, start + item.rows), *(slice(size) for size in part.shape[1:]))] = part
            start += item.rows
        inputs[record.name] = array
    return inputs


def taken_apart(outputs: Arrays, batch: Sequence[Item], manifest: Manifest) -> Iterator[tuple[Item, Arrays]]:
    """Yield each item with copies of its outputs, without padding."""
    heads = {head.output for head in manifest.heads}
    axes = {record.name: record.axes for record in manifest.outputs}
    start = 0
    for item in batch:
        rows = slice(start, start + item.rows)
        wanted = [name for name in outputs if name not in heads and not item.head_only]
        arrays = {name: _cut(outputs[name][rows], axes[name], item) for name in wanted}
        if item.entry is not None and item.entry.output is not None:
            output = item.entry.output
            arrays[output] = own_classes(_cut(outputs[output][rows], axes[output], item)).copy()
        yield item, arrays
        start += item.rows


def by_request(items: Sequence[Item], outputs: Sequence[Arrays], manifest: Manifest) -> list[Arrays]:
    """Return the outputs of each request, joined from those of its items in order.

    Tokens are at the positions of the request; outputs are 0 at removed padding.
    """
    axes = {record.name: record.axes for record in manifest.outputs}
    by_index: list[list[Arrays]] = []
    for item, pieces in zip(items, outputs, strict=True):
        if item.index == len(by_index):
            by_index.append([])
        origin = item.origin
        by_index[-1].append(
            pieces if origin is None else {name: origin.put_back(array, axes[name]) for name, array in pieces.items()}
        )
    return [
        parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in by_index
    ]


def _cut(rows: np.ndarray, axes: Sequence[Axis], item: Item) -> np.ndarray:
    cut = [slice(None)]
    for axis in axes[1:]:
        is_known = isinstance(axis, str) and all(name in item.sizes for name in names(axis))
        cut.append(slice(length(axis, item.sizes) if is_known else None))
    return rows[tuple(cut)].copy()


_WIDTH = 40


class ProgressBar(Reporter):
    """Draws a bar on stderr."""

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:  # noqa: ARG002
        """Draw the fraction of finished work."""
        if total is not None:
            filled = _WIDTH * done // max(1, total)
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}{end}")
            sys.stderr.flush()
