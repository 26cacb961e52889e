"""Adapters of a session by name: checked against the slots, and kept in memory or read on demand."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import mkstemp
from threading import Lock
from weakref import finalize, ref

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, FileError, HashError, RequestError, TensorError, WriteError, within
from adapter_export.format.manifest import AdapterRecord, HeadRecord, Manifest, MixRecord, SlotRecord
from adapter_export.graph.adapter import HEAD, check_name
from adapter_export.graph.tasks import CLASSES, DEFAULT_TYPE, PROBLEM_TYPES, TASK_TYPES, ProblemType, Task
from adapter_export.providers import ProviderName, provider_named
from adapter_export.runtime.adapter_file import Bytes, Places, find_tensors, model_version_of, parse_adapter, tensors_at
from adapter_export.runtime.graphs import Values, on_device
from adapter_export.safe_io.regular_files import map_bytes, read_bytes
from adapter_export.tables import number_of
from adapter_export.words import did_you_mean, quoted

_SHOWN = 20
"""Maximum number of names that a message lists."""


@dataclass(frozen=True)
class Counts:
    """Hits, loads and evictions of a cache of adapters or texts, and the entries in it now."""

    hits: int = 0
    loads: int = 0
    evictions: int = 0
    resident: int = 0


@dataclass(frozen=True)
class Statistics:
    """The caches of a session.

    Attributes:
        files: adapters that are read from files on demand.
        bank: those of mixed batches outside the bundle's bank.
        prefixes: texts, as they are below the first adapter.
    """

    files: Counts
    bank: Counts
    prefixes: Counts = Counts()


@dataclass(frozen=True)
class Claim:
    """A caller's description of an adapter's head, which the file lacks.

    Attributes:
        labels: its labels.
        task: its task as a record, or its problem type. Default: with labels, the classification of the head.
        output: the output of the head, needed if the file has no tensors of it.
    """

    labels: Sequence[str] | None = None
    task: Task | ProblemType | None = None
    output: str | None = None

    @property
    def type(self) -> ProblemType | None:
        """The given problem type, if any."""
        return self.task.type if isinstance(self.task, Task) else self.task


@dataclass(frozen=True)
class Loaded:
    """An adapter in memory: a float32 tensor for every slot, and its head, if any."""

    tensors: Weights
    head: HeadRecord | None
    task: Task | None
    memory: str

    @cached_property
    def feeds(self) -> Values:
        """The tensors in the memory of the graph; on the CPU without a copy."""
        return {slot: on_device(tensor, self.memory) for slot, tensor in self.tensors.items()}

    @property
    def output(self) -> str | None:
        """The output of its head."""
        return None if self.head is None else self.head.output


@dataclass(frozen=True, eq=False)
class Entry:
    """An adapter under its name. A reloaded adapter of the same name is a new entry."""

    name: str
    output: str | None
    task: Task | None
    read: Callable[[], Loaded]
    """Returns the adapter; an on-demand one from its file, after comparing its SHA-256."""
    on_demand: bool = False
    row: int | None = None
    """Its row in the bundle's bank, if it has one."""
    mix: MixRecord | None = None
    """The weights that a call may override, if it is a weighted fusion of the bundle."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels in the order of its logits; empty if it has none."""
        return () if self.task is None else self.task.labels


_MEMORY = 64
"""Number of remembered uses per cached adapter."""

_MOST_MAPPED = 256
"""Maximum number of mapped files: before Python 3.13, each needs a file descriptor."""


class _PrivateFile:
    """A private adapter file: checked once, then mapped, or read if many are kept."""

    def __init__(self, path: Path, check: Callable[[Bytes, object], Loaded], *, mapped: bool) -> None:
        self._path = path
        self._check = check
        self._data: Callable[[Path], Bytes] = map_bytes if mapped else read_bytes
        self._state = _state(path)
        self._layout: tuple[Places, Loaded] | None = None

    def record_check(self, data: Bytes, loaded: Loaded) -> None:
        """Store the result of a check."""
        self._layout = find_tensors(data, self._path), replace(loaded, tensors={})

    def read(self) -> Loaded:
        """Read it; errors as of the check, or FileError if it was changed or removed."""
        try:
            data = self._data(self._path)
        except FileError as error:
            raise _touched(self._path, error.what) from error
        if _state(self._path) != self._state:  # compared after opening, since the file may have been replaced before
            raise _touched(self._path, "was changed or replaced")
        if self._layout is None:
            loaded = self._check(data, self._path)
            self.record_check(data, loaded)
            return loaded
        places, without_tensors = self._layout
        return replace(without_tensors, tensors=tensors_at(data, places))


def _state(path: Path) -> tuple[int, ...] | None:
    """Return a value that changes when a file is written to or replaced, or `None` if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _touched(path: Path, change: str) -> FileError:
    return FileError(
        "the private copy of an adapter has changed",
        where=path,
        found="it " + change,
        expected="a file that no other process changes while a session is open",
        fix="open the bundle again; if temporary files are cleaned up there, set `TMPDIR` to another folder",
    )


class Uses:
    """Recent uses of adapters, including those outside the caches.

    With thousands of adapters most uses are single ones, so the most recent use predicts little.
    """

    def __init__(self, resident: int) -> None:
        self._counts: dict[ref[Entry], int] = {}  # three times as fast as a `WeakKeyDictionary`
        self._most = _MEMORY * resident
        self._sum = 0

    def add(self, entry: Entry) -> None:
        """Count a use, and halve all counts when their sum reaches the limit."""
        self._counts[ref(entry)] = self._counts.get(ref(entry), 0) + 1
        self._sum += 1
        if self._sum > self._most:
            self._counts = {each: uses // 2 for each, uses in self._counts.items() if uses > 1 and each() is not None}
            self._sum = sum(self._counts.values())

    def forget(self, entry: Entry) -> None:
        """Drop the uses of an adapter."""
        self._counts.pop(ref(entry), None)

    def rarest(self, entries: Iterable[Entry]) -> Entry:
        """Return the least used of these, the first of equals."""
        return min(entries, key=lambda entry: self._counts.get(ref(entry), 0))


class Adapters:
    """Adapters by name, of which at most `resident` on-demand ones stay in memory. Thread-safe.

    A removed adapter stays valid in running calls. The folder `private` contains copies of on-demand files, so that
    each is hashed and checked once.
    """

    def __init__(self, manifest: Manifest, provider: ProviderName, resident: int, private: Path | None = None) -> None:
        self._manifest = manifest
        self._memory = provider_named(provider).memory
        self._private = private
        self._limit = resident
        self._lock = Lock()
        self._entries: dict[str, Entry] = {}
        self._uses = Uses(resident)
        self._cache: OrderedDict[Entry, Loaded] = OrderedDict()  # the most recently used last
        self._counts = Counter[str]()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all adapters, in the order of loading."""
        return tuple(self._entries)

    @property
    def counts(self) -> Counts:
        """Statistics of on-demand adapters."""
        with self._lock:
            return Counts(**self._counts, resident=len(self._cache))

    def add_built(self, record: AdapterRecord, folder: Path, digest: str | None, *, on_demand: bool) -> None:
        """Add an adapter of the bundle by its record; `digest` is the SHA-256 of its file, if it must be compared.

        Raises:
            FileError, FormatError, AdapterError: it cannot be read, or does not fit.
        """
        claim = Claim(task=record.task, output=record.output)
        read: Callable[[], Loaded] = partial(self._read, folder / record.onnx_adapter, digest, claim)
        rows = () if self._manifest.bank is None else self._manifest.bank.rows
        row = rows.index(record.name) if record.name in rows else None
        if on_demand:
            if folder == self._private:
                read = self._private_file(folder / record.onnx_adapter, claim).read
            facts = (record.name, record.output, record.task)
            self._add(Entry(*facts, read, on_demand=True, row=row, mix=record.mix))
        else:
            loaded = read()
            facts = (record.name, loaded.output, loaded.task)
            self._add(Entry(*facts, lambda: loaded, row=row, mix=record.mix))

    def add(self, name: str, source: bytes | Path, claim: Claim, where: object, *, on_demand: bool = False) -> None:
        """Add an adapter from an `.onnx_adapter` file, or from its bytes.

        It is checked now; an on-demand one is read again when a call needs it. `where` is its name in messages.

        Raises:
            FileError, FormatError, AdapterError: it cannot be read, or does not fit.
            RequestError: the name is taken.
            WriteError: there is no room for a private copy.
        """
        check_name(name)
        data = read_bytes(source) if isinstance(source, Path) else bytes(source)  # a copy, since the buffer may change
        loaded = self._checked(claim, data, where)
        facts = (name, loaded.output, loaded.task)
        if not (on_demand and isinstance(source, Path)):
            self._add(Entry(*facts, lambda: loaded))
        elif self._private is None:
            read = partial(self._read, source, hashlib.sha256(data).hexdigest(), claim)
            self._add(Entry(*facts, read, on_demand=True))
        else:
            copy = _write_copy(data, self._private)
            file = self._private_file(copy, claim)
            file.record_check(data, loaded)
            entry = Entry(*facts, file.read, on_demand=True)
            finalize(entry, _remove, copy, os.getpid())
            self._add(entry)

    def remove(self, name: str) -> Entry:
        """Remove and return an adapter; RequestError if it is not loaded."""
        with self._lock:
            entry = self.entry(name)
            # a new mapping, since `entry` and `names` read without the lock
            self._entries = {other: remaining for other, remaining in self._entries.items() if other != name}
            self._cache.pop(entry, None)
            return entry

    def entry(self, name: str) -> Entry:
        """Return an adapter; RequestError if it is not loaded."""
        entries = self._entries
        if name not in entries:
            shown = quoted(list(entries)[:_SHOWN]) or "none"
            more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
            raise RequestError(
                "is not loaded",
                where=f"adapter `{name}`",
                expected=f"one of {shown}{more}",
                fix=did_you_mean(name, entries, "load it, or choose a loaded one"),
            )
        return entries[name]

    def load(self, entry: Entry) -> Loaded:
        """Return an adapter in memory; InputError if its file must be read and has changed."""
        if not entry.on_demand:
            return entry.read()
        with self._lock:
            self._uses.add(entry)
            file = self._cache.get(entry)
            if file is not None:
                self._cache.move_to_end(entry)
                self._counts["hits"] += 1
                return file
        file = entry.read()  # without the lock, so that other calls continue
        with self._lock:
            self._counts["loads"] += 1
            if self._entries.get(entry.name) is entry:
                self._cache[entry] = file
                self._cache.move_to_end(entry)
            while len(self._cache) > self._limit:
                # not the last one, which was just loaded
                del self._cache[self._uses.rarest(list(self._cache)[:-1] or self._cache)]
                self._counts["evictions"] += 1
        return file

    def acts_in(self, entry: Entry, graphs: Sequence[str]) -> bool:
        """Return whether an adapter has tensors that are not neutral in the slots of these graphs."""
        slots = [slot for slot in self._manifest.slots if slot.graph in graphs]
        tensors = self.load(entry).tensors if slots else {}
        return any(
            tensors[slot.name].shape != slot.neutral or (tensors[slot.name] != slot.neutral_value).any()
            for slot in slots
        )

    def _add(self, entry: Entry) -> None:
        with self._lock:
            if entry.name in self._entries:
                raise RequestError(
                    "an adapter of this name is already loaded",
                    found=f"`{entry.name}`",
                    fix="unload it, or use another name",
                )
            # a new mapping, as in `remove`
            self._entries = {**self._entries, entry.name: entry}

    def _read(self, path: Path, digest: str | None, claim: Claim) -> Loaded:
        """Read an adapter once, so that the hashed bytes are the used ones."""
        data = read_bytes(path)
        if digest is not None and (actual := hashlib.sha256(data).hexdigest()) != digest:
            raise HashError(path, found=actual, expected=digest)
        return self._checked(claim, data, path)

    def _private_file(self, path: Path, claim: Claim) -> _PrivateFile:
        return _PrivateFile(path, partial(self._checked, claim), mapped=self._limit <= _MOST_MAPPED)

    def _checked(self, claim: Claim, data: Bytes, where: object) -> Loaded:
        tensors = parse_adapter(data, where)
        head, task = _check_adapter(tensors, self._manifest, claim, where)
        version = model_version_of(data, where)
        if version != self._manifest.model_version:  # of the right shapes, it would run
            raise AdapterError(
                "was made for another bundle: its base, slot topology or site map differs",
                where=where,
                found=f"`model_version` {version}",
                expected=self._manifest.model_version,
                fix="build the adapter for this bundle",
            )
        return Loaded(tensors, head, task, self._memory)


def _write_copy(data: bytes, folder: Path) -> Path:
    """Write a file with a name that no other session uses, in this process or a fork."""
    copy = folder
    try:
        handle, name = mkstemp(".onnx_adapter", "on-demand-", folder)
        copy = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    except OSError as error:
        if copy != folder:
            _remove(copy, os.getpid())
        raise WriteError(copy, error.strerror or error) from error
    return copy


def _remove(copy: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork
        with suppress(OSError):
            copy.unlink()


def _check_adapter(
    tensors: Weights, manifest: Manifest, claim: Claim, where: object
) -> tuple[HeadRecord | None, Task | None]:
    """Check an adapter against the graph and the claim about its head; return its head and task, if any.

    Raises:
        TensorError: a tensor is missing, unknown, misshapen, named like a data input, or contains NaN or Inf; all
            faults are listed.
        AdapterError: labels and classes differ, the task is unknown or does not fit the head, or several heads are
            filled.
    """
    faults = list(_faults(tensors, manifest))
    if faults:
        raise TensorError(
            "does not fit this bundle's graph",
            where=where,
            found="; ".join(faults),
            expected=f"a float32 tensor for each slot, {len(manifest.slots)} in all, as `manifest.json` lists them",
            fix="build the adapter for this bundle",
        )
    head = _head(tensors, manifest, claim, where)
    with within(where):
        task = _task_of(claim, head)
    if task is None or head is None:
        return head, task
    classes = head_width(tensors, manifest.slots, head, CLASSES) or 0
    task_classes = len(task.labels) or task.kind.width or classes
    if classes != task_classes:
        what = "labels and classes differ" if task.labels else f"is no head for `{task.type}`"
        actual = number_of(task_classes, "label") if task.labels else f"{number_of(classes, 'number')} in each result"
        raise AdapterError(what, where=where, found=actual, expected=f"{classes if task.labels else task_classes}")
    return head, task


def _task_of(claim: Claim, head: HeadRecord | None) -> Task | None:
    """Return the claimed task of a head as a record."""
    if claim.type is not None and claim.type not in PROBLEM_TYPES:
        raise AdapterError("unknown problem type", found=f"`{claim.type}`", expected=", ".join(PROBLEM_TYPES))
    problem = claim.type
    if problem is None and claim.labels is not None:
        implied = [name for name, kind in TASK_TYPES.items() if kind.implied and head and kind.output == head.result]
        problem = (*implied, DEFAULT_TYPE)[0]
    if problem is None:
        return None
    output = TASK_TYPES[problem].output
    if head is None or head.result != output:
        raise AdapterError(
            f"has no head for `{problem}`",
            found="no head" if head is None else f"a head that gives `{head.result}`",
            expected=f"a head that gives `{output}`",
            fix="pass another task, or the file of another adapter",
        )
    if isinstance(claim.task, Task):
        return claim.task if claim.labels is None else replace(claim.task, labels=_names(claim.labels))
    return Task(problem, _names(claim.labels or ()))


def _names(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str):
        raise AdapterError("the labels are not one name for each class", found=repr(labels), expected="a list of names")
    return tuple(labels)


def head_width(tensors: Weights, slots: Iterable[SlotRecord], head: HeadRecord, symbol: str) -> int | None:
    """Return the length of a free axis of a head in the tensors of an adapter, or `None` if no tensor has it."""
    for slot in slots:
        if slot.site == HEAD and slot.graph == head.graph and symbol in slot.axes:
            return int(tensors[slot.name].shape[slot.axes.index(symbol)])
    return None


def _faults(tensors: Weights, manifest: Manifest) -> Iterator[str]:
    slots = {slot.name: slot for slot in manifest.slots}
    inputs = {record.name for record in manifest.inputs}
    yield from (f"`{name}` is missing" for name in slots if name not in tensors)
    for name in tensors:
        # ONNX Runtime would let the tensor override that input without an error
        if name in inputs:
            yield f"`{name}` is the name of a data input"
        elif name not in slots:
            yield f"`{name}` is left over"
    # ONNX Runtime does not notice two sizes for one axis name, or fails deep inside a kernel
    sizes: dict[tuple[str, str, str], int] = {}
    for slot in manifest.slots:
        if slot.name not in tensors:
            continue
        tensor = tensors[slot.name]
        axes = list(zip(slot.axes, tensor.shape, strict=False))
        idle = tensor.shape == slot.neutral and bool((tensor == slot.neutral_value).all())
        fixed = idle or all(isinstance(axis, str) or axis == size for axis, size in axes)
        if tensor.ndim != len(slot.axes) or not fixed or 0 in tensor.shape:
            yield f"`{slot.name}` has shape {list(tensor.shape)}, not {list(slot.axes)}"
        if tensor.dtype != np.float32:
            yield f"`{slot.name}` is {tensor.dtype}, not float32"
        # ONNX Runtime computes with NaN without an error
        elif not np.isfinite(tensor).all():
            yield f"`{slot.name}` holds NaN or Inf"
        for axis, size in axes:
            if isinstance(axis, str) and (first_size := sizes.setdefault((slot.site, slot.graph, axis), size)) != size:
                yield f"`{slot.name}` has `{axis}` = {size}, another tensor there {first_size}"


def _head(tensors: Weights, manifest: Manifest, claim: Claim, where: object) -> HeadRecord | None:
    """Return the adapter's head.

    A head without tensors leaves no trace in the file: it is chosen if no other fits the claim. Of several, the one by
    which adapters of this task in the bundle answer fits best.
    """
    slots = [slot for slot in manifest.slots if slot.site == HEAD]
    busy = {slot.graph for slot in slots if tensors[slot.name].shape != slot.neutral or tensors[slot.name].any()}
    heads_with_tensors = [head for head in manifest.heads if head.graph in busy]
    if len(heads_with_tensors) > 1:
        graphs = quoted(head.graph for head in heads_with_tensors)
        raise AdapterError(
            "fills several heads", where=where, found=graphs, expected="one, the others at their defaults"
        )
    if heads_with_tensors:
        return heads_with_tensors[0]
    claimed = [head for head in manifest.heads if claim.output == head.output]
    output = TASK_TYPES[claim.type].output if claim.type in PROBLEM_TYPES else None
    slotted = {slot.graph for slot in slots}
    bare = [head for head in manifest.heads if head.graph not in slotted and head.result == output]
    of_task = {record.output for record in manifest.adapters if record.task and record.task.type == claim.type}
    fitting = claimed or [head for head in bare if head.output in of_task] or bare
    return fitting[0] if len(fitting) == 1 or claimed else None
