"""Cache of activations below the first adapter: computed once for equal rows, and kept for later calls."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

import numpy as np

from adapter_export.errors import UsageError
from adapter_export.format.manifest import FanoutRecord
from adapter_export.runtime.graphs import Arrays, Feeds, Graphs
from adapter_export.runtime.loaded_adapters import Counts
from adapter_export.words import argument, quoted


def digest_of(arrays: Iterable[np.ndarray]) -> bytes:
    """Return a SHA-256 of the shapes and contents of contiguous arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        # shapes too: arrays of different shapes may have equal bytes
        digest.update(f"{array.shape}".encode())
        digest.update(array.data)
    return digest.digest()


class Prefixes:
    """Cache of activations below the first adapter, keyed by input row, limited in bytes. Thread-safe.

    Raises:
        UsageError: the bundle has no graph `fanout`, the provider may not run it, or the base is not batch-invariant.
    """

    def __init__(self, graphs: Graphs, limit: int) -> None:
        manifest = graphs.manifest
        self._fanout = manifest.fanout if graphs.may_run("fanout") else None
        if limit and "fanout" not in graphs.row.variants:
            what = f"`{graphs.provider}` may not run the graph `fanout`"
            raise UsageError(what, found=argument("prefix_bytes"), fix="leave it out, or run with `cpu`")
        if limit < 0 or (limit and (manifest.fanout is None or not manifest.batch_invariant)):
            raise UsageError(
                "activations below the first adapter cannot be cached",
                where=argument("prefix_bytes"),
                found=limit
                if limit < 0
                else "a base that is not batch-invariant"
                if manifest.fanout is not None
                else f"a bundle with {quoted(manifest.graphs)}",
                expected="a number of bytes, and a bundle with `fanout`",
                fix="build it with "
                + argument("variants", ["slots", "inputs", "bank", "fanout"])
                + ", or leave it out",
            )
        self.limit = limit
        self._graphs = graphs
        self._cache: OrderedDict[bytes, Arrays] = OrderedDict()  # the least recently used first
        self._bytes = 0
        self._lock = Lock()
        self._counts = Counter[str]()

    @property
    def counts(self) -> Counts:
        """Hits, loads and evictions of the cache, and its current number of entries."""
        with self._lock:
            return Counts(**self._counts, resident=len(self._cache))

    def feeds(self, arrays: Arrays) -> Feeds | None:
        """Return the data inputs of the graph `fanout`; `None` if all rows are distinct and nothing is cached.

        Args:
            arrays: checked inputs, with a row for each row of the outputs.

        Raises:
            RequestError: ONNX Runtime cannot compute them.
        """
        fanout = self._fanout
        if fanout is None:
            return None
        rows = range(len(next(iter(arrays.values()))))
        keys = [digest_of(array[row] for array in arrays.values()) for row in rows]
        texts: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            texts.setdefault(key, row)
        if not self.limit and len(texts) == len(keys):
            return None
        distinct = {name: array[[*texts.values()]] for name, array in arrays.items()}
        values = self._values(distinct, list(texts), fanout) if self.limit else self._compute(distinct, fanout)
        places = {key: at for at, key in enumerate(texts)}
        fed = {**distinct, **values, fanout.rows: np.array([places[key] for key in keys], np.int64)}
        return {name: np.ascontiguousarray(array) for name, array in fed.items()}

    def _compute(self, arrays: Arrays, fanout: FanoutRecord) -> Arrays:
        return self._graphs.open_path(fanout.prefix).run(arrays, [value.name for value in fanout.values])

    def _values(self, arrays: Arrays, keys: Sequence[bytes], fanout: FanoutRecord) -> Arrays:
        """Return the activations of each row, from the cache or computed."""
        batch = self._graphs.manifest.inputs[0].axes[0]
        axes = {value.name: value.axes.index(batch) for value in fanout.values}
        with self._lock:
            cached = {key: self._cache[key] for key in keys if key in self._cache}
            for key in cached:
                self._cache.move_to_end(key)
            self._counts["hits"] += len(cached)
        missing = [at for at, key in enumerate(keys) if key not in cached]
        if missing:
            computed = self._compute({name: array[missing] for name, array in arrays.items()}, fanout)
            fresh = {
                keys[text]: {name: computed[name].take([at], axis) for name, axis in axes.items()}
                for at, text in enumerate(missing)
            }
            cached |= fresh
            self._keep(fresh)
        return {name: np.concatenate([cached[key][name] for key in keys], axis) for name, axis in axes.items()}

    def _keep(self, fresh: Mapping[bytes, Arrays]) -> None:
        with self._lock:
            self._counts["loads"] += len(fresh)
            for key, values in fresh.items():
                if key not in self._cache:  # another call may have stored it
                    self._cache[key] = values
                    self._bytes += _size(values)
            while self._bytes > self.limit:
                _, old = self._cache.popitem(last=False)
                self._bytes -= _size(old)
                self._counts["evictions"] += 1


def _size(values: Arrays) -> int:
    return sum(array.nbytes for array in values.values())
