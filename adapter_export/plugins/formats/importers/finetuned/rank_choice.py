"""Ranks of changed layers within a limit of rank or size."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from adapter_export.errors import AdapterError, UsageError
from adapter_export.plugins.formats.importers.finetuned.low_rank import WeightChange
from adapter_export.tables import number_of
from adapter_export.tables import size as size_text
from adapter_export.words import argument

_BYTES = 4
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHOWN_RANKS = (4, 16, 64)
"""Ranks whose size and loss a refusal shows."""


@dataclass(frozen=True)
class RankLimits:
    """Limits of an adapter.

    Attributes:
        rank: highest rank of a layer; `None` for no limit.
        size: bytes of all tensors; `None` for no limit.
        dense: whether changes of full rank are carried as full matrices.
    """

    rank: int | None = None
    size: int | None = None
    dense: bool = False

    @property
    def is_lossy(self) -> bool:
        """True if a change may be approximated."""
        return self.rank is not None or self.size is not None


def limits_of(rank: int | None, size: str | None, dense: bool, model_bytes: int) -> RankLimits:
    """Return the limits of a call; a size is `4MB`, or `5%` of the model's bytes.

    Raises:
        UsageError: a limit is invalid, or excludes another one.
    """
    if dense and (rank is not None or size is not None):
        raise UsageError(
            argument("dense", True) + " carries changes without loss, and excludes limits",
            found=argument("rank", rank) if rank is not None else argument("size", size),
            fix="remove one of them",
        )
    if rank is not None and rank < 1:
        raise UsageError(argument("rank") + " is too small", found=rank, expected="at least 1")
    return RankLimits(rank, None if size is None else _bytes(size, model_bytes), dense)


def _bytes(text: str, model_bytes: int) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) *(%|[kKMG]?B?)", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(argument("size") + " is no size", found=f"`{text}`", expected="a size such as `4MB` or `5%`")
    if match[2] == "%":
        return int(float(match[1]) / 100 * model_bytes)
    unit = match[2].upper()
    return int(float(match[1]) * _UNITS[unit if unit in _UNITS else f"{unit}B"])


@dataclass(frozen=True)
class LayerSpectrum:
    """The change of a layer, and what one more rank of it costs.

    Attributes:
        change: the difference of its weights.
        rank_bytes: bytes of one rank at all of its calls.
        vector_bytes: bytes of its factors and bias, whose graph has at least rank 1.
    """

    change: WeightChange
    rank_bytes: int
    vector_bytes: int = 0

    @property
    def fixed_bytes(self) -> int:
        """Bytes at the lowest rank."""
        return self.vector_bytes + self.rank_bytes if self.vector_bytes else 0

    def most(self, limits: RankLimits) -> int:
        """Return the highest rank within a limit of rank."""
        rank = len(self.change.sizes) if self.change.rank is None else self.change.rank
        return rank if limits.rank is None else min(rank, limits.rank)


def choose_ranks(layers: Sequence[LayerSpectrum], limits: RankLimits, fixed_bytes: int, where: object) -> list[int]:
    """Return the rank of each layer: within a size, those with the largest change for their bytes.

    A layer that `dense` carries whole gets its full rank. `fixed_bytes` are those of other tensors.

    Raises:
        AdapterError: changes have full rank, and there is no limit; or the size is too small for the other tensors.
    """
    if not limits.is_lossy:
        if not limits.dense and any(layer.change.rank is None for layer in layers):
            raise _full_rank(layers, fixed_bytes, where)
        return [layer.most(limits) for layer in layers]
    if limits.size is None:
        return [layer.most(limits) for layer in layers]
    fixed_bytes += sum(layer.fixed_bytes for layer in layers)
    left = limits.size - fixed_bytes
    if left < 0:
        raise AdapterError(
            "has tensors that are larger than the size",
            where=where,
            found=f"{size_text(fixed_bytes)} of a head, biases and norms",
            expected=f"at most {size_text(limits.size)}",
            fix="raise " + argument("size") + ", or pass " + argument("without_head", True),
        )
    return _within(layers, [layer.most(limits) for layer in layers], left)


def _within(layers: Sequence[LayerSpectrum], most: Sequence[int], left: int) -> list[int]:
    """Return the ranks that carry the most of the changes' norm for their bytes.

    The singular values of a layer fall, so that the best choice of single values is one of ranks.
    """
    ranks = [min(1, highest) if layer.vector_bytes else 0 for layer, highest in zip(layers, most, strict=True)]

    def gain(at: int) -> float:
        return float(layers[at].change.sizes[ranks[at]]) ** 2 / layers[at].rank_bytes

    queue = [(-gain(at), at) for at in range(len(layers)) if ranks[at] < most[at]]
    heapq.heapify(queue)
    while queue:
        _, at = heapq.heappop(queue)
        if layers[at].rank_bytes > left:
            continue
        left -= layers[at].rank_bytes
        ranks[at] += 1
        if ranks[at] < most[at]:
            heapq.heappush(queue, (-gain(at), at))
    return ranks


def _full_rank(layers: Sequence[LayerSpectrum], fixed_bytes: int, where: object) -> AdapterError:
    full = [layer for layer in layers if layer.change.rank is None]
    return AdapterError(
        "changes weights by matrices of full rank",
        where=where,
        found=f"{len(full)} of {number_of(len(layers), 'changed layer')}; " + "; ".join(_curve(layers, fixed_bytes)),
        expected="changes of low rank, such as a merged LoRA, or a limit for their best approximation",
        fix="pass "
        + argument("rank", _SHOWN_RANKS[1])
        + " or "
        + argument("size", "5%")
        + ", and rows to measure the loss with; or carry them whole: "
        + argument("dense", True),
    )


def _curve(layers: Sequence[LayerSpectrum], fixed_bytes: int) -> Iterator[str]:
    """Yield size and captured norm of some ranks."""
    for rank in _SHOWN_RANKS:
        ranks = [layer.most(RankLimits(rank)) for layer in layers]
        total = fixed_bytes + sum(
            layer.vector_bytes + max(chosen, bool(layer.vector_bytes)) * layer.rank_bytes
            for chosen, layer in zip(ranks, layers, strict=True)
        )
        parts = [(each.change.norm, each.change.captured(chosen)) for chosen, each in zip(ranks, layers, strict=True)]
        yield f"rank {rank}: {size_text(total)}, {captured_norm(parts):.0%} of the norm"


def captured_norm(parts: Iterable[tuple[float, float]]) -> float:
    """Return the norm of approximations relative to that of changes; each part is a norm and its captured share."""
    squares = [(norm**2, (norm * captured) ** 2) for norm, captured in parts]
    whole, kept = (sum(column) for column in zip(*squares, strict=True)) if squares else (0.0, 0.0)
    return float((kept / whole) ** 0.5) if whole else 1.0
