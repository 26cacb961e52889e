"""Compare the defaults of `train` with other settings and with a linear classifier, on tables of several sizes.

    python benchmarks/defaults.py run              everything whose line is not in benchmarks/defaults.jsonl yet
    python benchmarks/defaults.py run trec-400     one table
    python benchmarks/defaults.py show             the results as Markdown

Each finished training is a line of the file, so that an interrupted run resumes. All rows come from packages that
`make setup` installs; the base is all-MiniLM-L6-v2, and the test rows of a table are the same for all settings.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import practice_data
from kit.tables import NOTHING, Table
from practice_data import demo_data

import adapter_export as ae

RESULTS = Path(__file__).with_suffix(".jsonl")
FOLDER = Path("demo") / "defaults"
SEEDS = (0, 1, 2, 3, 4)
TESTED = 500
LINEAR = "linear"

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "quick": {"quick": True},
    "15 epochs, 0.002": {"epochs": 15, "learning_rate": 0.002, "patience": 3},
    "12 epochs, 0.0005": {"epochs": 12, "learning_rate": 0.0005, "patience": 12},
}
"""Arguments of `train` by the name of a setting; the second was the default before."""


@dataclass(frozen=True)
class Rows:
    """A table: the first rows of a shuffled set, behind those for the test."""

    data: str
    count: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.count}"

    def write(self) -> tuple[Path, Path]:
        """Write the table and its test rows."""
        distinct = {row.text: row.label for row in practice_data.rows(self.data)}
        rows = sorted(distinct.items())
        random.Random(0).shuffle(rows)
        train = rows[TESTED : TESTED + self.count]
        counts = [label for _, label in train]
        train = [(text, label) for text, label in train if counts.count(label) > 1]
        known = {label for _, label in train}
        paths = FOLDER / f"{self.name}.jsonl", FOLDER / f"{self.name}-test.jsonl"
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path, part in zip(paths, (train, [row for row in rows[:TESTED] if row[1] in known]), strict=True):
            path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in part), "utf-8")
        return paths


TABLES = (
    *(Rows("trec", count) for count in (50, 145, 400, 1500)),
    Rows("trec50", 1000),
    *(Rows("sentiment", count) for count in (100, 300, 1500)),
    *(Rows("spam", count) for count in (100, 1000)),
)


def runs() -> Iterator[tuple[Rows, str, int]]:
    """Yield each training: first those of one seed."""
    for seed in SEEDS:
        for table in TABLES:
            yield from ((table, setting, seed) for setting in SETTINGS)


def finished() -> list[dict[str, Any]]:
    """Return the lines of the file."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []


def run(names: list[str]) -> None:
    """Train what is missing, of the tables with these names, or of all."""
    done = {(line["table"], line["setting"], line["seed"]) for line in finished()}
    base: ae.Base | None = None
    for table, setting, seed in runs():
        if (table.name, setting, seed) in done or (names and table.name not in names):
            continue
        if base is None:
            path = FOLDER / "model.pt"
            FOLDER.mkdir(parents=True, exist_ok=True)
            base = ae.open_base(path) if path.exists() else ae.capture(demo_data.base_folder(), path)
        data, test = table.write()
        began, processor = time.perf_counter(), time.process_time()
        options = {"name": "a", "test_data": test, "seed": seed, "reporter": Quiet(), **SETTINGS[setting]}
        record = ae.train(base, data, **options).training
        line = {
            "table": table.name,
            "setting": setting,
            "seed": seed,
            "accuracy": record["test"]["accuracy"],
            "majority": record["majority"]["test"]["accuracy"],
            LINEAR: record.get("baseline", {}).get("test", {}).get("accuracy"),
            "epochs": len(record["history"]),
            "best_epoch": record["best_epoch"],
            "seconds": round(time.perf_counter() - began, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


class Quiet(ae.Reporter):
    """Ignores notes."""

    def warn(self, text: str) -> None:
        """Ignore it."""


def table_of_results(lines: list[dict[str, Any]]) -> Table:
    """Return the mean accuracy of each setting, and the seconds of the defaults."""

    def mean(table: str, setting: str, fact: str = "accuracy") -> float | None:
        values = [
            line[fact]
            for line in lines
            if line["table"] == table and line["setting"] == setting and line[fact] is not None
        ]
        return statistics.mean(values) if values else None

    def cell(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.3f}".removeprefix("0")

    rows = []
    for table in [table.name for table in TABLES if any(line["table"] == table.name for line in lines)]:
        seconds = mean(table, "default", "processor_seconds")
        rows.append(
            (
                table,
                *(cell(mean(table, "default", fact)) for fact in ("majority", LINEAR)),
                *(cell(mean(table, setting)) for setting in SETTINGS),
                NOTHING if seconds is None else f"{seconds:.0f}",
            )
        )
    seeds = 1 + max((line["seed"] for line in lines), default=0)
    note = f"Mean accuracy on {TESTED} test rows, up to {seeds} seeds; seconds of processor time of the default."
    return Table("Defaults", ("table", "majority", LINEAR, *SETTINGS, "seconds"), rows, note)


def main() -> None:
    """Run, or show."""
    command, *names = sys.argv[1:] or ["show"]
    if command == "run":
        run(names)
    print(table_of_results(finished()).markdown())


if __name__ == "__main__":
    main()
