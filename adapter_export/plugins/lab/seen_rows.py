"""Training and validation rows among the rows that an adapter is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from adapter_export.errors import TrainingRowsError
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.format.tabular.labelled import LabelledRow, RememberedRows
from adapter_export.graph.compose import data_of
from adapter_export.words import argument

Part = Literal["training", "validation"]
_PARTS: tuple[Part, ...] = ("training", "validation")

_TOLERATED = 0.05
"""The share of training rows that a gate tolerates: short texts such as greetings repeat by chance."""


@dataclass(frozen=True)
class SeenRows:
    """Training and validation rows of an adapter, among the rows that it is measured on.

    Attributes:
        file: the part that was read from this very file; null for another file.
        rows: the number of measured rows.
        training: how many of them are training rows; null if the record has no digests of rows.
        validation: number of validation rows, which selected the epoch; null likewise.
        estimated: true if the counts follow from a sample of the rows.
    """

    file: Part | None
    rows: int
    training: int | None
    validation: int | None
    estimated: bool

    @classmethod
    def of(cls, training: Mapping[str, Any], data: EvalData, *, compared: bool) -> SeenRows | None:
        """Look up rows in a training record; `None` if it names no data.

        Args:
            training: training record of an adapter; that of a composition includes its members' records.
            data: the rows.
            compared: true if the texts of pairs are compared, each of which may have been trained on by itself.
        """
        sources = data_of(training)
        if not sources:
            return None
        ways = [data.rows, *([list(_texts(data.rows))] if compared else [])]
        learnt, held_out = (
            max(filter(None, (_count(sources, part, rows, len(data.rows)) for rows in ways)), default=None)
            for part in _PARTS
        )
        return cls(
            file=next((part for part in _PARTS if _has_file(sources, part, data)), None),
            rows=len(data.rows),
            training=None if learnt is None else learnt[0],
            validation=None if held_out is None else held_out[0],
            estimated=any(count is not None and count[1] for count in (learnt, held_out)),
        )

    @property
    def is_training(self) -> bool:
        """True if the rows are training rows, so that scores say little about others."""
        return self.file == "training" or (self.training or 0) > _TOLERATED * self.rows

    def notes(self, adapter: str) -> Iterator[str]:
        """Yield a clause on training rows, and one on validation rows, if there are any."""
        if self.file == "training":
            counted = "" if self.training is None else f" ({self._of(self.training)} rows)"
            yield f"these are training rows of `{adapter}`: this is the file that it was trained on{counted}"
        elif self.training:
            yield f"{self._of(self.training)} rows are training rows of `{adapter}`, so its scores flatter"
        if self.file == "validation":
            yield f"these are validation rows of `{adapter}`: they selected the epoch, so its scores flatter a little"
        elif self.validation:
            yield (
                f"{self._of(self.validation)} rows are validation rows of `{adapter}`, which selected the epoch, so "
                "its scores flatter a little"
            )

    def fault(self, where: str) -> TrainingRowsError:
        """Return the error for a gate on these rows."""
        return TrainingRowsError(
            "a gate on training rows shows nothing about new ones",
            where=where,
            found="the training file"
            if self.training is None
            else f"{self._of(self.training)} rows in the training data",
            expected="rows that the adapter has not learnt from",
            fix="give other rows, or " + argument("allow_training_rows", True) + " if memorising is what you test",
        )

    def _of(self, count: int) -> str:
        return f"{'about ' if self.estimated else ''}{count:,} of {self.rows:,}"


def _texts(rows: Sequence[LabelledRow]) -> Iterator[LabelledRow]:
    """Yield both texts of each pair as rows of their own."""
    for row in rows:
        yield replace(row, pair=None)
        if isinstance(row.pair, str):
            yield replace(row, text=row.pair, pair=None)


def _has_file(sources: Sequence[Mapping[str, Any]], part: Part, data: EvalData) -> bool:
    parts = (source.get(part) for source in sources)
    return any(isinstance(entry, Mapping) and entry.get("sha256") == data.sha256 for entry in parts)


def _count(
    sources: Sequence[Mapping[str, Any]], part: Part, rows: Sequence[LabelledRow], measured: int
) -> tuple[int, bool] | None:
    """Return the number of measured rows in a part (the maximum over records), and true if it is an estimate.

    `None` if no record has digests, or none of these rows could be looked up.
    """
    counts = []
    for source in sources:
        entry = source.get(part)
        remembered = RememberedRows.from_json(entry.get("row_digests")) if isinstance(entry, Mapping) else None
        if remembered is not None:
            hits, known = remembered.count(rows)
            if known:
                counts.append((round(hits / known * measured), known < len(rows)))
    return max(counts, default=None)
