"""The adapters of a session by name: those in memory, and those whose files are read when a call needs them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from threading import Lock

import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.manifest import MixRecord
from adapter_export.graph.tasks import Task
from adapter_export.runtime.leases import Counts
from adapter_export.runtime.loaded import LoadedAdapter


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
