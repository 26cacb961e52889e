"""The outputs of heads in a batch whose rows have different adapters: what is not a row's own cannot be mistaken."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from adapter_export.format.manifest import Manifest

_NOT_A_CLASS = -1e30
"""Below this is what a bank gives for classes that a row's adapter does not have."""


def wanted_outputs(manifest: Manifest, filled: Sequence[Collection[str]]) -> list[str]:
    """The base's outputs, and those of heads that some row fills."""
    some = set().union(*filled)
    base = {record.name for record in manifest.base_outputs}
    return [record.name for record in manifest.outputs if record.name in base or record.name in some]


def only_own_results(
    outputs: dict[str, np.ndarray], manifest: Manifest, filled: Sequence[Collection[str]]
) -> dict[str, np.ndarray]:
    """Outputs in which the results of heads are as wide as the widest of their rows.

    Args:
        outputs: as a bank gives them.
        manifest: the bundle's.
        filled: for each row the outputs that its adapter's head fills.

    Returns:
        The base's outputs as they are. In those of heads, NaN for rows that do not fill them, and −inf for the classes
        that a row's adapter does not have.
    """
    heads = {head.output for head in manifest.heads}
    return {
        name: _own(array, np.array([name in row for row in filled])) if name in heads else array
        for name, array in outputs.items()
    }


def own_classes(row: np.ndarray) -> np.ndarray:
    """What a row's adapter has of a result [classes] or [tokens, classes]."""
    return row[..., : _width(row)]


def _own(array: np.ndarray, own: np.ndarray) -> np.ndarray:
    result = np.where(array < _NOT_A_CLASS, -np.inf, array).astype(array.dtype)
    result[~own] = np.nan
    return np.ascontiguousarray(result[..., : _width(result[own])])


def _width(results: np.ndarray) -> int:
    """How many classes are anybody's: those behind them are −inf in all rows."""
    axes = tuple(range(results.ndim - 1))
    return int(np.count_nonzero(~np.isneginf(results).all(axis=axes)))
