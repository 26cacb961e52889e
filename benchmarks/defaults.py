"""Compare the defaults of `train` with other settings, a search, full fine-tuning and a linear classifier.

    python benchmarks/defaults.py run              everything whose line is not in benchmarks/defaults.jsonl yet
    python benchmarks/defaults.py run trec-400 default sweep       some tables, settings and bases
    python benchmarks/defaults.py show             the results as Markdown

Each finished training is a line of the file, so that an interrupted run resumes. All rows come from packages that
`make setup` installs, and the test rows of a table are the same for all settings. The bases are all-MiniLM-L6-v2, and
its lower three layers. `sweep` is the best of twelve trials by its validation rows; `full` trains all weights.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import practice_data
from kit.tables import NOTHING, Table
from practice_data import demo_data
from safetensors.numpy import load_file, save_file

import adapter_export as ae

RESULTS = Path(__file__).with_suffix(".jsonl")
FOLDER = Path("demo") / "defaults"
SEEDS = (0, 1, 2, 3, 4)
TESTED = 500
LINEAR = "linear"
CLEAR = 1.0
"""Smallest absolute mean rating of a text with a sentiment."""

SWEEP, FULL = "sweep", "full"
TRIALS = 12
SEARCH: Mapping[str, Any] = {"kinds": ("houlsby", "pfeiffer"), "bottlenecks": "4..64", "learning_rates": "3e-4..3e-3"}
"""The space of the search."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "quick": {"quick": True},
    "15 epochs, 0.002": {"epochs": 15, "learning_rate": 0.002, "patience": 3},
    "12 epochs, 0.0005": {"epochs": 12, "learning_rate": 0.0005, "patience": 12},
    "pfeiffer 16": {"kind": "pfeiffer", "bottleneck": 16},
    SWEEP: {},
    FULL: {},
}
"""Arguments of `train` by the name of a setting; the second was the default before. The last two are other calls."""


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
        distinct = dict(labelled(self.data))
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
    *(Rows("domain", count) for count in (100, 1000)),
    Rows("tweets", 300),
    Rows("amazon", 300),
)

BASES: Mapping[str, int | None] = {"minilm": None, "minilm-3": 3}
"""Layers of all-MiniLM-L6-v2 in each base; `None` for all."""


def labelled(name: str) -> Iterator[tuple[str, str]]:
    """Yield texts with labels: those of the practice data, the sign of a clear rating, or the domain of a text."""
    if name == "domain":
        for domain in practice_data.DOMAINS:
            yield from ((row.text, domain) for row in practice_data.rows(domain))
    elif name in practice_data.DOMAINS:
        for row in practice_data.rows(name):
            if abs(float(row.label)) >= CLEAR:
                yield row.text, "positive" if float(row.label) > 0 else "negative"
    else:
        yield from ((row.text, row.label) for row in practice_data.rows(name))


def opened(name: str) -> ae.Base:
    """Return a base, captured on the first call."""
    path = FOLDER / f"{name}.pt"
    if path.exists():
        return ae.open_base(path)
    source, layers = demo_data.base_folder(), BASES[name]
    FOLDER.mkdir(parents=True, exist_ok=True)
    if layers is not None:
        source = shutil.copytree(source, FOLDER / name, dirs_exist_ok=True)
        config = json.loads((source / "config.json").read_text("utf-8"))
        (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), "utf-8")
        weights = load_file(source / "model.safetensors")
        dropped = tuple(f"encoder.layer.{layer}." for layer in range(layers, config["num_hidden_layers"]))
        kept = {key: tensor for key, tensor in weights.items() if not any(part in key for part in dropped)}
        save_file(kept, source / "model.safetensors", {"format": "pt"})
    return ae.capture(source, path)


def runs() -> Iterator[tuple[str, Rows, str, int]]:
    """Yield each training: first those of one seed and one base."""
    for seed in SEEDS:
        for base in BASES:
            for table in TABLES:
                yield from ((base, table, setting, seed) for setting in SETTINGS)


def finished() -> list[dict[str, Any]]:
    """Return the lines of the file."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []


def run(names: list[str]) -> None:
    """Train what is missing, of the tables, settings and bases with these names; of all where none is named."""
    done = {(line.get("base", "minilm"), line["table"], line["setting"], line["seed"]) for line in finished()}
    kinds = (BASES, [table.name for table in TABLES], SETTINGS)
    wanted = [[name for name in names if name in known] or known for known in kinds]
    bases: dict[str, ae.Base] = {}
    for base, table, setting, seed in runs():
        if (base, table.name, setting, seed) in done:
            continue
        if any(name not in known for name, known in zip((base, table.name, setting), wanted, strict=True)):
            continue
        if base not in bases:
            bases[base] = opened(base)
        began, processor = time.perf_counter(), time.process_time()
        facts = trained(bases[base], table, setting, seed)
        line = {
            "base": base,
            "table": table.name,
            "setting": setting,
            "seed": seed,
            **facts,
            "seconds": round(time.perf_counter() - began, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
        }
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def trained(base: ae.Base, table: Rows, setting: str, seed: int) -> dict[str, Any]:
    """Train with a setting; return the scores of the test rows, and the epochs."""
    data, test = table.write()
    options: dict[str, Any] = {"test_data": test, "seed": seed, "reporter": Quiet()}
    if setting == SWEEP:
        del options["seed"]
        with tempfile.TemporaryDirectory() as folder:
            found = ae.sweep(base, data, Path(folder) / "sweep", trials=TRIALS, seeds=(seed,), **SEARCH, **options)
            record = ae.load_adapter(Path(folder) / "sweep" / "runs" / found.adapter).training
    elif setting == FULL:
        record = ae.distil(base, data, **options).training
    else:
        record = ae.train(base, data, name="a", **options, **SETTINGS[setting]).training
    return {
        "accuracy": record["test"]["accuracy"],
        "majority": record["majority"]["test"]["accuracy"],
        LINEAR: record.get("baseline", {}).get("test", {}).get("accuracy"),
        "epochs": len(record["history"]),
        "best_epoch": record["best_epoch"],
    }


class Quiet(ae.Reporter):
    """Ignores notes."""

    def warn(self, text: str) -> None:
        """Ignore it."""


def table_of_results(lines: list[dict[str, Any]]) -> Table:
    """Return the mean accuracy of each setting, and the seconds of the defaults."""

    def mean(place: tuple[str, str], setting: str, fact: str = "accuracy") -> float | None:
        values = [line[fact] for line in lines if at(line) == place and line["setting"] == setting]
        values = [value for value in values if value is not None]
        return statistics.mean(values) if values else None

    def at(line: Mapping[str, Any]) -> tuple[str, str]:
        return line.get("base", "minilm"), line["table"]

    def cell(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.3f}".removeprefix("0")

    rows = []
    for place in [
        (base, table.name) for base in BASES for table in TABLES if (base, table.name) in set(map(at, lines))
    ]:
        seconds = mean(place, "default", "processor_seconds")
        rows.append(
            (
                *place,
                *(cell(mean(place, "default", fact)) for fact in ("majority", LINEAR)),
                *(cell(mean(place, setting)) for setting in SETTINGS),
                NOTHING if seconds is None else f"{seconds:.0f}",
            )
        )
    seeds = 1 + max((line["seed"] for line in lines), default=0)
    note = f"Mean accuracy on {TESTED} test rows, up to {seeds} seeds; seconds of processor time of the default."
    return Table("Defaults", ("base", "table", "majority", LINEAR, *SETTINGS, "seconds"), rows, note)


def main() -> None:
    """Run, or show."""
    command, *names = sys.argv[1:] or ["show"]
    if command == "run":
        run(names)
    print(table_of_results(finished()).markdown())


if __name__ == "__main__":
    main()
