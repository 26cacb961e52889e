"""A further adapter for a bundle: `add` against `build` anew, and against loading it into a session that runs.

    python benchmarks/adding.py                                 # all-MiniLM-L6-v2, from `make setup`
    python benchmarks/adding.py --model model.onnx --repeats 5

The commands run as users run them, each in a process of its own, and take turns. A base from torch is measured as a
torch archive and as the ONNX file that was exported from it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kit.part import Part, Settings
from kit.subject import Subject
from kit.tables import Cell, Table, spread


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of all processors."""

    clock: float
    processors: float


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """Seconds of each command, and over those of building from the same file."""
    sources = dict.fromkeys((subject.source, subject.base.path))
    ways = {(verb, source): run for source in sources for verb, run in _ways(subject, source).items()}
    spent: dict[tuple[str, Path], list[Spent]] = {way: [] for way in ways}
    for _ in range(settings.repeats):
        for way, run in ways.items():
            spent[way].append(run())
    rows: list[list[Cell]] = [_row(verb, source, spent) for verb, source in ways]
    rows.append(["load into a running session", None, *_loading(subject, settings), None])
    columns = ["way", "from", "s", "of all processors, s", "over `build`"]
    note = "A bundle of one adapter gets a second one: built anew with both, or `add`ed."
    return [Table("A further adapter for a bundle", columns, rows, note)]


def _ways(subject: Subject, source: Path) -> dict[str, Callable[[], Spent]]:
    first, second = (str(subject.folder / adapter.name) for adapter in (subject.adapters * 2)[:2])
    second = f"second={second}"

    def build() -> Spent:
        out = subject.folder / "anew"
        found = _command("build", source, "--adapters", f"{first},{second}", "-o", out)
        shutil.rmtree(out)
        return found

    def add() -> Spent:
        bundle = subject.folder / "grown"
        shutil.copytree(subject.small.folder, bundle, copy_function=os.link)
        found = _command("add", bundle, second, "--against", source)
        shutil.rmtree(bundle)
        return found

    return {"`build`": build, "`add`": add}


def _command(*words: object) -> Spent:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "adapter_export", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"error: `{' '.join(command)}` failed: {done.stderr or done.stdout}")
    return Spent(clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _row(verb: str, source: Path, spent: dict[tuple[str, Path], list[Spent]]) -> list[Cell]:
    own, anew = spent[verb, source], spent["`build`", source]
    over = spread([one.processors / other.processors for one, other in zip(own, anew, strict=True)])
    seconds = [spread([one.clock for one in own]), spread([one.processors for one in own])]
    return [verb, "torch archive" if source.suffix == ".pt" else "ONNX file", *seconds, None if own is anew else over]


def _loading(subject: Subject, settings: Settings) -> list[Cell]:
    session = subject.small.session(threads=1)
    path = subject.small.folder / subject.small.manifest.adapters[0].onnx_adapter
    spent = []
    for _ in range(settings.repeats):
        began, working = time.perf_counter(), time.thread_time()
        session.load("second", path)
        spent.append(Spent(time.perf_counter() - began, time.thread_time() - working))
        session.unload("second")
    return [spread([one.clock for one in spent], 4), spread([one.processors for one in spent], 4)]


PART = Part(__doc__ or "", ("repeats",), measure)

if __name__ == "__main__":
    PART.main()
