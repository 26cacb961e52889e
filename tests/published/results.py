"""Stored outcomes of the product: `results.json`, with a line for each task of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cells import VARIANTS, Cell, Outcome, Outcomes
from configurations import MODELS
from tasks import tasks_of

RESULTS = Path(__file__).parent / "results.json"

Rows = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Variants of each precision, separated by blanks, by task and outcome (`passed`, `refused: …`)."""


def to_rows(outcomes: Mapping[Cell, Outcome]) -> Rows:
    """Return outcomes by task, outcome and precision."""
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for cell, outcome in sorted(outcomes.items(), key=lambda item: _order(item[0])):
        text = f"{outcome.verdict}: {outcome.reason}" if outcome.reason else outcome.verdict
        variants = rows.setdefault(cell.task, {}).setdefault(text, {})
        variants[cell.precision] = f"{variants.get(cell.precision, '')} {cell.variant}".lstrip()
    return rows


def _order(cell: Cell) -> tuple[str, str, int]:
    return cell.task, cell.precision, VARIANTS.index(cell.variant)


def from_rows(rows: Rows) -> Outcomes:
    """Return the outcome of each cell."""
    return {
        Cell(task, precision, variant): Outcome(*text.split(": ", 1))
        for task, texts in rows.items()
        for text, precisions in texts.items()
        for precision, variants in precisions.items()
        for variant in variants.split()
    }


def read() -> dict[str, Outcomes]:
    """Read the outcomes of each model; none before the first run."""
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return {name: from_rows(rows) for name, rows in stored.items()}


def write(results: Mapping[str, Mapping[Cell, Outcome]]) -> None:
    """Write the outcomes of all models, with one line for each task; tasks without a run are empty."""
    blocks = []
    for name, model in MODELS.items():
        rows = {**{task: {} for task in tasks_of(model)}, **to_rows(results.get(name, {}))}
        lines = ",\n".join(f"  {json.dumps(task)}: {json.dumps(row, ensure_ascii=False)}" for task, row in rows.items())
        blocks.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    RESULTS.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
