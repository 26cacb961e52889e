"""Pairwise selection: few cells in which every pair of values occurs that occurs in any cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from cells import Cell, all_cells
from configurations import MODELS, Published

REPRESENTATIVES = (
    "google-bert/bert-base-uncased",
    "cross-encoder/ms-marco-MiniLM-L6-v2",
    "Qwen/Qwen2.5-0.5B",
    "google-t5/t5-small",
    "google/vit-base-patch16-224",
    "openai/whisper-base",
)
"""A model of each kind: a capture takes seconds, so the pairs of all models would take an hour."""

Values = tuple[str, ...]
Pair = tuple[int, str, int, str]


def selection(rows: Sequence[Values]) -> list[Values]:
    """Return rows that cover every pair of values in `rows`: again and again, the row with the most uncovered pairs."""
    pairs = {row: pairs_of(row) for row in rows}
    uncovered = {pair for own in pairs.values() for pair in own}
    chosen = list[Values]()
    while uncovered:
        best = max(rows, key=lambda row: len(pairs[row] & uncovered))  # the first of equals
        uncovered -= pairs[best]
        chosen.append(best)
    return chosen


def pairs_of(row: Values) -> frozenset[Pair]:
    """Return all pairs of values of a row, with their columns."""
    return frozenset((*first, *second) for first, second in combinations(enumerate(row), 2))


def selected_cells() -> Mapping[str, list[Cell]]:
    """Return the selected cells of each representative model."""
    rows = {(name, *_values(cell)): (name, cell) for name in REPRESENTATIVES for cell in all_cells(MODELS[name])}
    cells: dict[str, list[Cell]] = {name: [] for name in REPRESENTATIVES}
    for row in selection(list(rows)):
        name, cell = rows[row]
        cells[name].append(cell)
    return cells


def _values(cell: Cell) -> Values:
    return cell.precision, cell.variant, cell.task


def kinds(names: Sequence[str]) -> set[str]:
    """Return the kinds of models."""
    models: list[Published] = [MODELS[name] for name in names]
    return {model.kind for model in models}
