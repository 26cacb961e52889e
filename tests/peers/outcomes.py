"""Outcomes of the matrices of other libraries, as `results.json` stores them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapter_export.errors import AdapterExportError, ParityError

RESULTS = Path(__file__).parent / "results.json"

PASSED = "passed"
UNCHANGED = "passed; the other library computes what the base computes"
BY_NUMBER = ", by number"
"""End of an outcome: layers were matched by number, as the first error advised."""

REFUSED, NOT_MADE, WRONG = "refused: ", "not made: ", "wrong: "
"""Beginnings of the other outcomes: refused here; refused by the other library; or a defect of this package."""

Outcomes = dict[str, dict[str, str]]
"""Outcomes by base, and then by adapter."""


def refusal(error: BaseException, folder: Path) -> str:
    """Return the outcome of an error of this package, without paths; any other error is a defect."""
    if isinstance(error, ParityError) or not isinstance(error, AdapterExportError):
        return WRONG + shortened(f"{_place(error)}{error}", folder)
    facts = error.facts()
    return REFUSED + shortened(facts["what"] + (f": {facts['found']}" if "found" in facts else ""), folder)


def not_made(error: BaseException, folder: Path) -> str:
    """Return the outcome of an error of the other library."""
    return NOT_MADE + shortened(f"{type(error).__name__}: {error}", folder)


def _place(error: BaseException) -> str:
    places = [f" at {Path(frame.filename).name}" for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    return f"{type(error).__name__}{''.join(places)}: "


def shortened(text: str, folder: Path) -> str:
    """Return a text as one line of limited length, without the path of a folder."""
    line = " ".join(text.replace(str(folder), "").split())
    return line if len(line) <= 240 else f"{line[:239]}…"


def read(matrix: str) -> Outcomes:
    """Return the stored outcomes of a matrix. Bases with one outcome share its line."""
    stored: Mapping[str, Mapping[str, Mapping[str, list[str]]]] = _stored()
    return {
        base: {adapter: outcome for outcome, adapters in rows.items() for adapter in adapters}
        for base, rows in stored.get(matrix, {}).items()
    }


def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return stored


def write(matrix: str, outcomes: Mapping[str, Mapping[str, str]]) -> None:
    """Store the outcomes of bases of a matrix; others are kept."""
    stored = _stored()
    rows = stored.setdefault(matrix, {})
    for base, by_adapter in outcomes.items():
        grouped: dict[str, list[str]] = {}
        for adapter, outcome in by_adapter.items():
            grouped.setdefault(outcome, []).append(adapter)
        rows[base] = grouped
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")


def counted(outcomes: Mapping[str, str]) -> str:
    """Return the numbers of outcomes of each sort."""
    sorts = [outcome.partition(": ")[0].partition(",")[0].partition(";")[0] for outcome in outcomes.values()]
    return ", ".join(f"{sorts.count(sort)} {sort}" for sort in sorted(set(sorts)))
