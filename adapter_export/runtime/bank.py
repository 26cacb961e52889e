"""Adapters as rows of a bank: the layout of its tensors, and a table of rows with eviction."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from threading import Condition

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError, RequestError
from adapter_export.format.manifest import BankRecord, BankTensor, HeadRecord, SlotRecord, VariantName
from adapter_export.graph.adapter import HEAD
from adapter_export.runtime.graphs import Arrays, Feeds, Graphs
from adapter_export.runtime.loaded_adapters import Adapters, Counts, Entry, Uses, head_width
from adapter_export.words import argument, quoted

MASKED = -3e38
"""Mask added to the logits of classes that a row's adapter lacks; a softmax turns them into 0."""

MASK_BELOW = -1e30
"""Threshold of masked results; no class of a row's own adapter is below it."""

Width = tuple[str, str, str]
"""A free width: a site or `head`, a graph there or an output of heads, a symbol."""

Row = tuple[Weights, HeadRecord | None]
"""Contents of a row: a tensor per slot, and the adapter's head."""


def mask_name(output: str) -> str:
    """Return the name of the bank's tensor that masks an output of heads."""
    return f"bank.{HEAD}.{output}.mask"


class RowLayout:
    """The layout of a bank's rows. Row 0 is the base; narrower adapters are padded with zeros.

    A bank has a tensor for each slot, and a mask for each output of heads of several widths.

    Raises:
        FormatError: the tensors do not match the slots and heads.
    """

    def __init__(self, slots: Iterable[SlotRecord], heads: Iterable[HeadRecord], tensors: Iterable[BankTensor]) -> None:
        self.tensors = tuple(tensors)
        self._slots = {slot.name: slot for slot in slots}
        self._outputs = {head.graph: head.output for head in heads}
        self._masked = {mask_name(output): output for output in self._outputs.values()}
        self._symbols = {
            self._masked[each.name]: str(each.axes[1]) for each in self.tensors if each.name in self._masked
        }
        self._free = [
            (slot, axis, self._width(slot, symbol))
            for slot in self._slots.values()
            for axis, symbol in enumerate(slot.axes)
            if isinstance(symbol, str)
        ]
        held = [tensor.slot for tensor in self.tensors if tensor.slot is not None]
        others = [tensor.name for tensor in self.tensors if tensor.slot is None and tensor.name not in self._masked]
        if sorted(held) != sorted(self._slots) or others:
            raise FormatError(
                "the tensors of the bank do not match the slots and heads",
                found=f"tensors: {len(held)}, slots: {len(self._slots)}; {', '.join(others) or 'no others'}",
                fix="build the bundle again with " + argument("variants", ["slots", "inputs", "bank"]),
            )

    def stacked(self, rows: Sequence[Row]) -> Weights:
        """Return tensors with the base and then the rows, float32 [1 + rows, …], as wide as the widest row."""
        arrays = self.empty(1 + len(rows), self.widths(tensors for tensors, _ in rows))
        for index, row in enumerate(rows):
            self.write(arrays, 1 + index, row)
        return arrays

    def widths(self, adapters: Iterable[Weights]) -> dict[Width, int]:
        """Return the maximum of each free width over adapters and the base."""
        widest: dict[Width, int] = {}
        for tensors in (None, *adapters):
            for slot, axis, width in self._free:
                shape = slot.neutral if tensors is None else tensors[slot.name].shape
                widest[width] = max(shape[axis], widest.get(width, 1))
        return widest

    def empty(self, rows: int, widths: Mapping[Width, int]) -> Weights:
        """Return tensors with the base in row 0 and zeros elsewhere."""
        arrays: Weights = {}
        for tensor in self.tensors:
            if tensor.slot is None:
                output = self._masked[tensor.name]
                arrays[tensor.name] = np.zeros((rows, widths.get((HEAD, output, self._symbols[output]), 1)), np.float32)
                continue
            slot = self._slots[tensor.slot]
            sizes = (axis if isinstance(axis, int) else widths[self._width(slot, axis)] for axis in slot.axes)
            arrays[tensor.name] = np.zeros((rows, *sizes), np.float32)
            arrays[tensor.name][0][tuple(slice(size) for size in slot.neutral)] = slot.neutral_value
        return arrays

    def write(self, arrays: Weights, index: int, row: Row) -> None:
        """Write an adapter into a row of tensors that are at least as wide."""
        tensors, head = row
        for tensor in self.tensors:
            target = arrays[tensor.name][index]
            values = None if tensor.slot is None else tensors[tensor.slot]
            if values is not None and values.shape == target.shape:
                target[...] = values
                continue
            # a row may contain a wider adapter that was evicted
            target[...] = 0.0
            if values is not None:
                target[tuple(slice(size) for size in values.shape)] = values
            elif head is not None and head.output == self._masked[tensor.name]:
                width = head_width(tensors, self._slots.values(), head, self._symbols[head.output])
                target[len(target) if width is None else width :] = MASKED

    def _width(self, slot: SlotRecord, symbol: str) -> Width:
        """Return the key of a free width; all heads of one output share it."""
        output = self._outputs.get(slot.graph, "") if slot.site == HEAD else ""
        if output and symbol == self._symbols.get(output):
            return HEAD, output, symbol
        return slot.site, slot.graph, symbol


class Bank:
    """The graph `bank` of a bundle, in which each row of a batch has its own adapter.

    If all adapters of a call are in the bundle's bank, only their row numbers are fed. Other adapters get a row in a
    table of `resident` rows, created at the first such call. The least used row is replaced, but never while a call
    uses it. A call acquires all of its rows at once, in order of arrival, so that calls cannot deadlock. On the CPU the
    table is fed without a copy; on a device it is uploaded after each change.
    """

    def __init__(self, graphs: Graphs, adapters: Adapters, resident: int) -> None:
        self._graphs = graphs
        self._adapters = adapters
        self._size = resident
        self._widths: dict[Width, int] = {}
        self._arrays: Weights = {}
        self._feeds: Feeds = {}
        self._uses = Uses(resident)
        self._lent: OrderedDict[Entry, int] = OrderedDict()  # row by adapter, the most recently used last
        # row 0 is the base
        self._unused = list(range(resident, 0, -1))
        self._users: Counter[Entry] = Counter()
        self._waiting: deque[object] = deque()
        self._changed = Condition()
        self._counts = Counter[str]()

    @property
    def counts(self) -> Counts:
        """Hits, loads and evictions of the table."""
        with self._changed:
            return Counts(**self._counts, resident=len(self._lent))

    def forget(self, entry: Entry) -> None:
        """Evict this adapter first, since no later call can name it."""
        with self._changed:
            self._uses.forget(entry)
            if entry in self._lent:
                self._lent.move_to_end(entry, last=False)

    def takes(self, entries: Iterable[Entry | None]) -> bool:
        """Return whether rows with these adapters can share a batch."""
        bank = self._graphs.manifest.bank
        if bank is None or not self._graphs.may_run("bank"):
            return False
        fillable = bank.fillable and self._graphs.row.overrides
        return fillable or all(entry is None or entry.row is not None for entry in entries)

    def run(
        self, feeds: Feeds, entries: Sequence[Entry | None], outputs: Sequence[str], variant: VariantName = "bank"
    ) -> Arrays:
        """Compute outputs of a batch, each row with its own adapter; `None` is the base.

        The graph is `bank`, or its upper part `fanout`, whose feeds contain the row of each text.

        Raises:
            RequestError: the bundle has no bank, there are more adapters than rows in the table, they cannot share
                one, or the runtime cannot compute the inputs.
        """
        session = self._graphs.session(variant)
        bank = self._graphs.manifest.bank
        assert bank is not None  # a manifest with such a graph has one
        with self._lease(entries, bank) as (rows, tensors):
            return session.run({**feeds, **tensors, bank.ids: np.array(rows, np.int64)}, outputs)

    @contextmanager
    def _lease(self, entries: Sequence[Entry | None], bank: BankRecord) -> Iterator[tuple[list[int], Feeds]]:
        """Yield the row of each adapter, and the tensors that contain these rows until the block ends."""
        built = [0 if entry is None else entry.row for entry in entries]
        rows = [row for row in built if row is not None]
        if len(rows) == len(built):
            yield rows, {}
            return
        wanted = dict.fromkeys(entry for entry in entries if entry is not None)
        if not self._graphs.row.overrides:
            raise RequestError(
                f"`{self._graphs.provider}` takes no adapters into the bundle's bank",
                found=quoted(entry.name for entry in wanted if entry.row is None),
                expected="adapters that were built into it, at strength 1",
                fix="give each call one `adapter`, or call `run_many`",
            )
        if not bank.fillable:
            raise RequestError(
                "adapters outside the bundle's bank cannot share a batch: padding their tensors with zeros changes "
                "their results",
                fix="give each call one `adapter`, or build the bundle with all adapters that share batches",
            )
        if len(wanted) > self._size:
            raise RequestError(
                "the call has more adapters than the bank has rows",
                found=len(wanted),
                expected=f"at most {self._size}",
                fix="open the session with a larger `resident`, or split the batch",
            )
        with self._changed:
            absent = [entry for entry in wanted if entry not in self._lent]
        ahead = {entry: self._row(entry) for entry in absent}  # without the lock, so that other calls continue
        with self._changed:
            self._wait_for_room(wanted)
            # one that was evicted in the meantime is read again
            self._put_in(wanted, lambda entry: ahead.get(entry) or self._row(entry))
            self._users.update(wanted.keys())
            rows, feeds = [0 if entry is None else self._lent[entry] for entry in entries], self._feeds
        try:
            yield rows, feeds
        finally:
            with self._changed:
                self._users -= Counter(wanted.keys())
                self._changed.notify_all()

    @cached_property
    def _layout(self) -> RowLayout:
        manifest = self._graphs.manifest
        return RowLayout(manifest.slots, manifest.heads, () if manifest.bank is None else manifest.bank.tensors)

    def _row(self, entry: Entry) -> Row:
        loaded = self._adapters.load(entry)
        return loaded.tensors, loaded.head

    def _wait_for_room(self, wanted: Mapping[Entry, None]) -> None:
        def has_room() -> bool:
            missing = sum(entry not in self._lent for entry in wanted)
            return missing <= len(self._unused) or missing <= len(self._unused) + len(self._replaceable(wanted))

        ticket = object()
        # in order of arrival: otherwise a batch of many adapters might never find room
        self._waiting.append(ticket)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is ticket and has_room())
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def _replaceable(self, wanted: Mapping[Entry, None]) -> list[Entry]:
        """Return the adapters that may be evicted, in this order."""
        return [entry for entry in self._lent if entry not in self._users and entry not in wanted]

    def _put_in(self, wanted: Mapping[Entry, None], read: Callable[[Entry], Row]) -> None:
        missing = [entry for entry in wanted if entry not in self._lent]
        adapters = {entry: read(entry) for entry in missing}
        self._grow([tensors for tensors, _ in adapters.values()])
        rows = {}
        for entry in missing:
            if not self._unused:
                self._unused.append(self._lent.pop(self._uses.rarest(self._replaceable(wanted))))
                self._counts["evictions"] += 1
            rows[entry] = self._unused.pop()
            self._layout.write(self._arrays, rows[entry], adapters[entry])
        self._lent.update(rows)
        for entry in wanted:
            self._lent.move_to_end(entry)
            self._uses.add(entry)
        self._counts.update(hits=len(wanted) - len(missing), loads=len(missing))
        # on the CPU the arrays themselves are fed, without a copy
        if missing and not self._graphs.in_place:
            self._feeds = self._place_all(self._arrays)

    def _grow(self, adapters: Sequence[Weights]) -> None:
        """Widen the table in new tensors, since running calls still read the old ones."""
        widths = self._layout.widths(adapters)
        widths = {key: max(size, self._widths.get(key, 1)) for key, size in widths.items()}
        if widths == self._widths:
            return
        arrays = self._layout.empty(1 + self._size, widths)
        for tensor in self._layout.tensors:
            for row in self._lent.values():
                old = self._arrays[tensor.name][row]
                if tensor.slot is None:  # no adapter in the table has the new classes
                    arrays[tensor.name][row] = MASKED
                arrays[tensor.name][row][tuple(slice(size) for size in old.shape)] = old
        self._arrays, self._widths, self._feeds = arrays, widths, self._place_all(arrays)

    def _place_all(self, arrays: Weights) -> Feeds:
        return {name: self._graphs.place(array) for name, array in arrays.items()}
