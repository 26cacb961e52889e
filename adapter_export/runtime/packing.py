"""Which requests go into one call: those that may, of similar length, up to a number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import UsageError
from adapter_export.runtime.catalogue import Entry


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
