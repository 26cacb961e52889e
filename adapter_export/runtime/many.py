"""Many requests in few calls: checked, put together by length and adapter, run, and given back in their order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from adapter_export.errors import RequestError, UsageError, within
from adapter_export.format.axes import length, names
from adapter_export.format.manifest import Axis, Manifest
from adapter_export.runtime.answers import own_classes
from adapter_export.runtime.bank import Bank
from adapter_export.runtime.calls import Calls, Outputs, check_inputs
from adapter_export.runtime.catalogue import Catalogue, Entry
from adapter_export.runtime.graphs import Graphs
from adapter_export.runtime.proofs import padded_axes, padding_is_neutral, random_tensors

# A bar on stderr, for those who have nothing better at hand.

Progress = Callable[[int, int], None]
"""Is told how many of how many are done."""

_WIDTH = 40


def as_progress(progress: Progress | bool | None) -> Progress:
    """What to tell: the function itself, a bar for true, nothing for false or none."""
    if progress is True:
        return _draw
    return _say_nothing if progress is None or progress is False else progress


def _say_nothing(*_: int) -> None:
    return None


def _draw(done: int, total: int) -> None:
    filled = _WIDTH * done // max(1, total)
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}{end}")
    sys.stderr.flush()


# Where requests may be padded: along the axes of a mask, if it was tried out that padding changes nothing.

_PROBE_WIDTH = 3


class PaddingRule:
    """Tried out once for all adapters that the slots can hold, and where that fails for each adapter on its own.

    An adapter that counts padding, such as one with a gate over all tokens, must not be padded further.
    """

    def __init__(self, graphs: Graphs, catalogue: Catalogue) -> None:
        self._graphs = graphs
        self._catalogue = catalogue
        self._axes = padded_axes(graphs.manifest)
        self._all: bool | None = None
        self._known: dict[int | None, bool] = {}
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
        key = None if entry is None else entry.serial
        if key not in self._known:
            tensors = {} if entry is None else self._catalogue.resident(entry).adapter.tensors
            self._known[key] = padding_is_neutral(self._graphs, tensors)
        return self._known[key]


# Which requests go into one call: those that may, of similar length, up to a number of tokens.


@dataclass(frozen=True)
class Item:
    """A checked request.

    Attributes:
        index: its place among the requests.
        arrays: its inputs.
        entry: its adapter.
        rows: of its inputs.
        sizes: the length of each named axis, but that of the batch.
        padded: the axes along which it may be padded.
    """

    index: int
    arrays: Mapping[str, np.ndarray]
    entry: Entry | None
    rows: int
    sizes: Mapping[str, int]
    padded: frozenset[str]

    @property
    def tokens(self) -> int:
        """The length of each row: of several axes, together."""
        return max(1, sum(self.sizes.values()))

    @property
    def serial(self) -> int:
        """Tells its adapter from others."""
        return -1 if self.entry is None else self.entry.serial

    def fixed(self) -> tuple[object, ...]:
        """What must be equal in one call."""
        return self.padded, *(pair for pair in sorted(self.sizes.items()) if pair[0] not in self.padded)


@dataclass(frozen=True)
class Rules:
    """What may stand in one call.

    Attributes:
        token_budget: how many tokens, padding counted; a request that is larger has a call of its own.
        adapters: how many different ones; 1 without a bank.
        together: whether rows of several requests may be in one call at all.
    """

    token_budget: int
    adapters: int
    together: bool


def batches(items: Sequence[Item], rules: Rules) -> Iterator[list[Item]]:
    """The items call by call, similar lengths together, the shortest first.

    Raises:
        UsageError: the budget is below 1.
    """
    if rules.token_budget < 1:
        raise UsageError("a call needs room for a token", found=f"`token_budget` {rules.token_budget}", expected="≥ 1")
    one = rules.adapters == 1
    groups: dict[object, list[Item]] = {}
    for item in items:
        groups.setdefault((item.fixed(), item.serial if one else None), []).append(item)
    for group in groups.values():
        yield from _packed(sorted(group, key=lambda item: (item.tokens, item.serial, item.index)), rules)


def longest(batch: Sequence[Item]) -> dict[str, int]:
    """The length of each axis that holds all items."""
    return {axis: max(item.sizes[axis] for item in batch) for axis in batch[0].sizes}


def _packed(items: Sequence[Item], rules: Rules) -> Iterator[list[Item]]:
    """Call after call, each as large as may be."""
    batch = _Batch(rules)
    for item in items:
        if not batch.add(item):
            yield batch.items
            batch = _Batch(rules)
            batch.add(item)
    yield batch.items


class _Batch:
    """A call that is filled."""

    def __init__(self, rules: Rules) -> None:
        self.items: list[Item] = []
        self._rules = rules
        self._rows = 0
        self._sizes: dict[str, int] = {}
        self._adapters: set[int] = set()

    def add(self, item: Item) -> bool:
        """Add an item, unless the call is full."""
        rows = self._rows + item.rows
        sizes = {axis: max(size, self._sizes.get(axis, 0)) for axis, size in item.sizes.items()}
        adapters = self._adapters if item.entry is None else self._adapters | {item.serial}
        fits = rows * max(1, sum(sizes.values())) <= self._rules.token_budget and len(adapters) <= self._rules.adapters
        if self.items and not (fits and self._rules.together):
            return False
        self.items.append(item)
        self._rows, self._sizes, self._adapters = rows, sizes, adapters
        return True


# Requests become one call and its outputs theirs again: joined, padded along the axes of a mask, and taken apart.


def batch_axis(manifest: Manifest) -> str:
    """The first axis of all inputs.

    Raises:
        RequestError: they have none in common, or one of a fixed length; or the base keeps a cache of tokens.
    """
    first = {record.axes[0] if record.axes else None for record in manifest.inputs}
    axis = next(iter(first))
    if len(first) > 1 or not isinstance(axis, str) or any(record.role == "cache" for record in manifest.inputs):
        raise RequestError(
            "the requests of this base cannot be put together",
            found=", ".join(f"`{record.name}` {list(record.axes)}" for record in manifest.inputs),
            expected="a batch of any length as the first axis of all inputs, and no cache",
            fix="call `run` for each",
        )
    return axis


def rows_can_be_told_apart(manifest: Manifest, batch: str) -> bool:
    """Whether all outputs have the batch as their first axis."""
    return all(record.axes[:1] == (batch,) for record in manifest.outputs)


def sizes_of(arrays: Mapping[str, np.ndarray], manifest: Manifest, batch: str) -> dict[str, int]:
    """The length of each named axis of checked inputs, but that of the batch."""
    axes = [pair for record in manifest.inputs for pair in zip(record.axes, arrays[record.name].shape, strict=True)]
    return {axis: size for axis, size in axes if isinstance(axis, str) and names(axis) == (axis,) and axis != batch}


def joined(batch: Sequence[Item], manifest: Manifest) -> Outputs:
    """The inputs of a call, filled up with zeros, which the mask hides."""
    sizes = longest(batch)
    inputs: Outputs = {}
    for record in manifest.inputs:
        shape = [length(axis, sizes) for axis in record.axes[1:]]
        array = np.zeros((sum(item.rows for item in batch), *shape), record.dtype)
        start = 0
        for item in batch:
            own = item.arrays[record.name]
            array[(slice(start, start + item.rows), *(slice(size) for size in own.shape[1:]))] = own
            start += item.rows
        inputs[record.name] = array
    return inputs


def taken_apart(outputs: Outputs, batch: Sequence[Item], manifest: Manifest) -> Iterator[tuple[Item, Outputs]]:
    """Each item with its own outputs, without padding, in memory of their own."""
    heads = {head.output for head in manifest.heads}
    axes = {record.name: record.axes for record in manifest.outputs}
    start = 0
    for item in batch:
        rows = slice(start, start + item.rows)
        found = {name: _cut(array[rows], axes[name], item) for name, array in outputs.items() if name not in heads}
        if item.entry is not None and item.entry.output is not None:
            output = item.entry.output
            found[output] = own_classes(_cut(outputs[output][rows], axes[output], item)).copy()
        yield item, found
        start += item.rows


def _cut(rows: np.ndarray, axes: Sequence[Axis], item: Item) -> np.ndarray:
    known = [isinstance(axis, str) and all(name in item.sizes for name in names(axis)) for axis in axes[1:]]
    cut = [
        slice(length(axis, item.sizes) if is_known else None) for axis, is_known in zip(axes[1:], known, strict=True)
    ]
    return rows[(slice(None), *cut)].copy()


TOKEN_BUDGET = 512
"""How many tokens `run_many` puts into a call if nobody says it: on a CPU, larger calls save nothing."""


@dataclass(frozen=True)
class Request:
    """One request of many.

    Attributes:
        inputs: an array for each input of the base, of one row or several.
        adapter: the adapter to run with; none is the base.
    """

    inputs: Mapping[str, np.ndarray]
    adapter: str | None = None


class ManyCalls:
    """Runs any number of requests.

    Args:
        calls: runs what stands in one call.
        bank: says which adapters may stand in one.
        padding: says along which axes requests may be padded.
        resident: how many different adapters one call may have.
    """

    def __init__(self, calls: Calls, bank: Bank, padding: PaddingRule, resident: int) -> None:
        self._calls = calls
        self._manifest = calls.manifest
        self._bank = bank
        self._padding = padding
        self._resident = resident

    def items(self, requests: Iterable[Request]) -> list[Item]:
        """The requests, each checked, its adapter looked up.

        Raises:
            RequestError: one does not fit, and the message says which; or they cannot be put together at all.
        """
        batch = batch_axis(self._manifest)
        return [self._item(index, request, batch) for index, request in enumerate(requests)]

    def run(
        self, items: Sequence[Item], token_budget: int, progress: Progress, allow_mixed_rows: bool
    ) -> list[Outputs]:
        """The outputs of each item, in the order of their numbers.

        Raises:
            UsageError: the budget is below 1.
            RequestError: ONNX Runtime cannot compute them.
        """
        results: list[Outputs] = [{}] * len(items)
        done = 0
        for batch in batches(items, self._rules(items, token_budget, allow_mixed_rows)):
            entries = [item.entry for item in batch for _ in range(item.rows)]
            outputs = self._calls.together(joined(batch, self._manifest), entries)
            for item, own in taken_apart(outputs, batch, self._manifest):
                results[item.index] = own
            done += len(batch)
            progress(done, len(items))
        return results

    def _item(self, index: int, request: Request, batch: str) -> Item:
        with within(f"request {index}"):
            arrays = check_inputs(request.inputs, self._manifest.inputs)
            entry = self._calls.entry(request.adapter)
            rows = len(next(iter(arrays.values())))
            sizes = sizes_of(arrays, self._manifest, batch)
            return Item(index, arrays, entry, rows, sizes, self._padding.axes(entry))

    def _rules(self, items: Sequence[Item], token_budget: int, allow_mixed_rows: bool) -> Rules:
        together = self._manifest.batch_invariant or allow_mixed_rows
        apart = rows_can_be_told_apart(self._manifest, batch_axis(self._manifest))
        adapters = self._resident if self._bank.takes([item.entry for item in items]) else 1
        return Rules(token_budget, adapters, together and apart)
