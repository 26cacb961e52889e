"""Faults in the engine that generates texts: it mixes up the rows of a call. No file of the bundle is wrong."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapter_export.plugins.selftest.fault import Copy, Place, Plant, kinds_of
from adapter_export.runtime.generation.decoder_inputs import DecoderInputs
from adapter_export.runtime.generation.decoding_batch import DecodingBatch

_PLACE = "golden-schedule"
"""The claim that rows which join and leave have the golden texts."""


def _reordered(batch: DecodingBatch, first: int) -> list[int]:
    """Return the places of a batch's rows, those from `first` on in reverse order."""
    rows = len(batch.rows)
    return [*range(min(first, rows)), *reversed(range(first, rows))]


class _SwappedCaches(DecodingBatch):
    """Swaps the caches of all rows when rows join."""

    first = 0

    def merged(self, other: DecodingBatch) -> DecodingBatch:
        batch = super().merged(other)
        order = _reordered(batch, self.first)
        batch._caches = {name: cache[order] for name, cache in batch._caches.items()}
        return batch


class _SwappedLateCaches(_SwappedCaches):
    """Swaps the caches from the third row on, which two rows would not show."""

    first = 2


class _SwappedTokens(DecodingBatch):
    """Swaps the last tokens from the third row on when rows join."""

    def merged(self, other: DecodingBatch) -> DecodingBatch:
        batch = super().merged(other)
        batch._new = batch._new[_reordered(batch, 2)]
        return batch


class _LeftCaches(DecodingBatch):
    """Drops the caches of another row when a row leaves."""

    def drop_done(self) -> None:
        if any(row.is_done for row in self.rows):
            self._caches = {name: np.roll(cache, 1, 0) for name, cache in self._caches.items()}
        super().drop_done()


class _FilledMask(DecodingBatch):
    """Does not hide the padding from the third row on."""

    def _run(self, new: np.ndarray, mask: np.ndarray) -> np.ndarray:
        mask = mask.copy()
        mask[2:] = 1
        return super()._run(new, mask)


class _PaddedBehind(DecodingBatch):
    """Pads the caches of two shorter rows or more behind their tokens; the trial of padding has single rows."""

    def merged(self, other: DecodingBatch) -> DecodingBatch:
        batch = super().merged(other)
        width, row = batch._mask.shape[1], 0
        for part in (self, other):
            rows, padding = slice(row, row + len(part.rows)), width - part._mask.shape[1]
            for record, axis in self._inputs.caches.items() if len(part.rows) > 1 else ():
                cache = batch._caches[record.name]
                cache[rows] = np.roll(cache[rows], -padding, axis)
            row += len(part.rows)
        return batch


ENGINES: Mapping[str, type[DecodingBatch]] = {
    "caches swapped when rows join": _SwappedCaches,
    "caches swapped from the third row on when rows join": _SwappedLateCaches,
    "last tokens swapped from the third row on when rows join": _SwappedTokens,
    "the caches of another row dropped when a row leaves": _LeftCaches,
    "padding shown from the third row on": _FilledMask,
    "padding behind the caches of two shorter rows or more": _PaddedBehind,
}
"""Engines that mix up rows, by the name of their fault. Those of padding need a mask."""


def _plant(name: str, batch_type: type[DecodingBatch]) -> Plant:
    def plant(copy: Copy) -> list[Place] | None:
        manifest = copy.manifest
        if manifest.generation is None or not manifest.batch_invariant or not manifest.golden.written:
            return None
        if "padding" in name and DecoderInputs.of(manifest).mask is None:
            return None
        copy.batch_type = batch_type
        return [_PLACE]

    return plant


ENGINE = kinds_of("generation", {name: _plant(name, batch_type) for name, batch_type in ENGINES.items()})
"""Faults in the generation engine."""
