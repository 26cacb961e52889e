"""The adapters of a session by name: those in memory, and those whose files are read when a call needs them."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Condition, Lock
from typing import TypeVar

import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.manifest import MixRecord
from adapter_export.graph.tasks import Task
from adapter_export.runtime.loaded import LoadedAdapter

# Which adapter lies in which row of a table, which calls use it at this moment, and which one makes room next.

Filled = TypeVar("Filled")


@dataclass(frozen=True)
class Counts:
    """What a cache has done.

    Attributes:
        hits: how often an adapter was there.
        loads: how often one was put in.
        evictions: how often one was replaced.
        resident: how many are there now.
    """

    hits: int = 0
    loads: int = 0
    evictions: int = 0
    resident: int = 0


@dataclass(frozen=True)
class Statistics:
    """What became of adapters that do not have a place of their own.

    Attributes:
        files: those that are read from their files on demand, in memory.
        bank: those that are not in the bundle's bank, in the table of mixed batches.
    """

    files: Counts
    bank: Counts


class Leases:
    """The rows of a table, lent to calls. The least recently used one is replaced, and never while a call uses it.

    A call takes all its rows at once or waits, in the order of arrival: no two calls wait for each other.

    Args:
        rows: how many there are.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lent: OrderedDict[int, int] = OrderedDict()  # row by key, the least recently used first
        self._unused = list(reversed(range(rows)))
        self._users: Counter[int] = Counter()
        self._waiting: deque[object] = deque()
        self._changed = Condition()
        self._counts = Counter[str]()

    @property
    def counts(self) -> Counts:
        """What the table has done so far."""
        with self._changed:
            return Counts(**self._counts, resident=len(self._lent))

    def absent(self, keys: Sequence[int]) -> list[int]:
        """Those that lie in no row at this moment."""
        with self._changed:
            return [key for key in keys if key not in self._lent]

    def take(self, keys: Sequence[int], fill: Callable[[Mapping[int, int]], Filled]) -> tuple[list[int], Filled]:
        """Lend a row for each key; waits until there are as many. `give_back` ends it.

        Args:
            keys: what shall lie in the rows.
            fill: writes what is not there yet, by key the row to write to; nobody else takes rows meanwhile.

        Returns:
            The row of each key, and what `fill` returned.

        Raises:
            RequestError: the keys are more than all the rows.
        """
        wanted = dict.fromkeys(keys)
        if len(wanted) > self._rows:
            raise RequestError(
                "the call needs more adapters at once than the bank holds",
                found=len(wanted),
                expected=f"at most {self._rows}",
                fix="open the session with a larger `resident`, or split the batch",
            )
        with self._changed:
            self._wait_for_room(wanted)
            filled = self._fill(wanted, fill)
            self._users.update(wanted.keys())
            return [self._lent[key] for key in keys], filled

    def give_back(self, keys: Sequence[int]) -> None:
        """End what `take` began."""
        with self._changed:
            self._users -= Counter(dict.fromkeys(keys, 1))
            self._changed.notify_all()

    def forget(self, key: int) -> None:
        """Replace this one first: nobody will ask for it again."""
        with self._changed:
            if key in self._lent:
                self._lent.move_to_end(key, last=False)

    def _wait_for_room(self, wanted: Mapping[int, None]) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._has_room(wanted))
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()

    def _has_room(self, wanted: Mapping[int, None]) -> bool:
        missing = sum(key not in self._lent for key in wanted)
        return missing <= len(self._unused) or missing <= len(self._unused) + len(self._idle(wanted))

    def _idle(self, wanted: Mapping[int, None]) -> list[int]:
        """What may be replaced, in that order."""
        return [key for key in self._lent if key not in self._users and key not in wanted]

    def _fill(self, wanted: Mapping[int, None], fill: Callable[[Mapping[int, int]], Filled]) -> Filled:
        missing = [key for key in wanted if key not in self._lent]
        rows = {key: self._unused.pop() if self._unused else self._evict(wanted) for key in missing}
        finished = False
        try:
            filled = fill(rows)
            finished = True
        finally:
            if not finished:
                self._unused += rows.values()
        self._lent.update(rows)
        for key in wanted:
            self._lent.move_to_end(key)
        self._counts.update(hits=len(wanted) - len(missing), loads=len(missing))
        return filled

    def _evict(self, wanted: Mapping[int, None]) -> int:
        self._counts["evictions"] += 1
        return self._lent.pop(self._idle(wanted)[0])


@dataclass(frozen=True)
class Resident:
    """An adapter with its tensors where the graph runs; on the CPU they lie in the arrays of `adapter` itself."""

    adapter: LoadedAdapter
    feeds: Mapping[str, ort.OrtValue]


@dataclass(frozen=True)
class Entry:
    """An adapter that is loaded, or can be.

    Attributes:
        name: what calls name it by.
        serial: tells it from every other one, those that had its name before among them.
        output: the output that holds the result of its head; none if it has no head.
        task: what its head is for; none if it has no head, or nobody said it.
        labels: the names of its classes, if it has any and they are known.
        row: where the bank of the bundle holds it; none if it does not.
        held: the adapter, for those that stay in memory.
        read: reads the others, and holds them against their hashes.
        mix: the weights that a call may give it, if it is a weighted fusion of the bundle.
    """

    name: str
    serial: int
    output: str | None
    task: Task | None
    labels: tuple[str, ...] | None
    row: int | None
    held: Resident | None
    read: Callable[[], Resident]
    mix: MixRecord | None = None


class Catalogue:
    """Adapters by name. Thread-safe; an adapter that is removed lives on in the calls that use it.

    Args:
        resident: how many of those that do not stay in memory are kept there at a time.
    """

    def __init__(self, resident: int) -> None:
        self._limit = resident
        self._serials = count()
        self._lock = Lock()
        self._entries: dict[str, Entry] = {}
        self._read: OrderedDict[int, Resident] = OrderedDict()  # by serial, the least recently used first
        self._counts = Counter[str]()

    @property
    def names(self) -> tuple[str, ...]:
        """Those of all adapters, in the order of loading."""
        return tuple(self._entries)

    @property
    def counts(self) -> Counts:
        """What became of the adapters that do not stay in memory."""
        with self._lock:
            return Counts(**self._counts, resident=len(self._read))

    def next_serial(self) -> int:
        """A number that no adapter has."""
        return next(self._serials)

    def add(self, entry: Entry) -> None:
        """Add an adapter.

        Raises:
            RequestError: there is one of its name.
        """
        with self._lock:
            if entry.name in self._entries:
                raise RequestError(
                    "an adapter of this name is loaded already",
                    found=f"`{entry.name}`",
                    fix="unload it, or use another name",
                )
            self._entries = {**self._entries, entry.name: entry}

    def remove(self, name: str) -> Entry:
        """Remove an adapter.

        Raises:
            RequestError: there is none of this name.
        """
        with self._lock:
            entry = self.entry(name)
            self._entries = {other: kept for other, kept in self._entries.items() if other != name}
            self._read.pop(entry.serial, None)
            return entry

    def entry(self, name: str) -> Entry:
        """The adapter of a name.

        Raises:
            RequestError: there is none.
        """
        entries = self._entries
        if name not in entries:
            raise RequestError(
                "is not loaded",
                where=f"adapter `{name}`",
                expected=f"one of {_list(entries)}",
                fix="load it, or choose one that is loaded",
            )
        return entries[name]

    def resident(self, entry: Entry) -> Resident:
        """An adapter in memory; its file is read if it is not there.

        Raises:
            InputError: the file cannot be read, or is not what it was.
        """
        if entry.held is not None:
            return entry.held
        with self._lock:
            found = self._read.get(entry.serial)
            if found is not None:
                self._read.move_to_end(entry.serial)
                self._counts["hits"] += 1
                return found
        found = entry.read()  # others go on meanwhile
        with self._lock:
            self._keep(entry, found)
        return found

    def _keep(self, entry: Entry, found: Resident) -> None:
        self._counts["loads"] += 1
        if self._entries.get(entry.name) is entry:
            self._read[entry.serial] = found
            self._read.move_to_end(entry.serial)
        while len(self._read) > self._limit:
            self._read.popitem(last=False)
            self._counts["evictions"] += 1


_SHOWN = 20


def _list(entries: Mapping[str, Entry]) -> str:
    names = [f"`{name}`" for name in entries]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
