"""Many threads on one session: requests per second, and whether it matters that they name different adapters.

    python benchmarks/callers.py                                # all-MiniLM-L6-v2, from `make setup`
    python benchmarks/callers.py --model model.onnx --callers 1,2,4 --provider cuda

Every caller sends requests of one row one after the other, each operation in one thread. Times are those of the clock
on the wall. More callers than cores can only wait. A second table has three ways to use all cores.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from kit.part import Part, Settings
from kit.subject import Arrays, Subject
from kit.tables import Cell, Table, spread
from kit.timing import Pace, interleaved, ratio

from adapter_export.runtime import Session

_REQUESTS, _TOKENS = 64, 16

Choose = Callable[[int], str]


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """Requests per second over those of one caller; the time with different adapters over that with one."""
    session = subject.bundle.session(provider=settings.provider, threads=1)
    inputs, names, late = subject.inputs(1, _TOKENS), subject.names, dict[str, list[float]]()
    calls = {}
    for callers in settings.callers:
        for key, choose in (("same", lambda _: names[0]), ("other", lambda index: names[index % len(names)])):
            late[f"{key}{callers}"] = []
            calls[f"{key}{callers}"] = _load([session], inputs, choose, callers, late[f"{key}{callers}"])
    times = interleaved(calls, Pace(settings.rounds, settings.seconds, time.perf_counter))
    rows = []
    for callers in settings.callers:
        same, other = f"same{callers}", f"other{callers}"
        rows.append(
            [
                callers,
                spread([_REQUESTS / seconds for seconds in times[other]], 0),
                ratio(times, f"other{settings.callers[0]}", other),
                ratio(times, other, same),
                _percentile(late[other], 50),
                _percentile(late[other], 95),
            ]
        )
    columns = [
        "callers",
        "requests per second",
        f"over {settings.callers[0]} caller(s)",
        "another adapter each / one for all, time",
        "latency, median, ms",
        "latency, 95 %, ms",
    ]
    note = f"Requests of 1 × {_TOKENS}, each for another adapter."
    return [Table("Many callers on one session", columns, rows, note), _all_cores(subject, settings)]


def _all_cores(subject: Subject, settings: Settings) -> Table:
    """Requests per second where one operation has all cores, and where each core has a caller."""
    cores = os.cpu_count() or 1
    alone, whole = ([subject.bundle.session(provider=settings.provider, threads=n)] for n in (1, cores))
    each = [*alone, *(subject.bundle.session(provider=settings.provider, threads=1) for _ in range(cores - 1))]
    ways = {
        "a caller for each core, one thread": (alone, cores),
        "the same, and a session for each": (each, cores),
        "one caller, all cores for an operation": (whole, 1),
    }
    rows: list[list[Cell]] = [[way] for way in ways]
    first, *_ = ways
    for tokens in settings.lengths:
        inputs = subject.inputs(1, tokens)
        calls = {
            way: _load(sessions, inputs, lambda index: subject.names[index % len(subject.names)], callers, [])
            for way, (sessions, callers) in ways.items()
        }
        times = interleaved(calls, Pace(settings.rounds, settings.seconds, time.perf_counter))
        for row, way in zip(rows, ways, strict=True):
            faster = None if way == first else ratio(times, first, way)
            row += [spread([_REQUESTS / seconds for seconds in times[way]], 0), faster]
    names = [(f"{tokens} tokens, requests per second", "over the first") for tokens in settings.lengths]
    columns = ["way", *(name for pair in names for name in pair)]
    return Table("All cores", columns, rows, f"{cores} cores; requests of one row, each for another adapter.")


def _load(
    sessions: Sequence[Session], inputs: Arrays, choose: Choose, callers: int, late: list[float]
) -> Callable[[], object]:
    def request(index: int) -> None:
        began = time.perf_counter()
        sessions[index % len(sessions)].run(inputs, choose(index))
        late.append(time.perf_counter() - began)

    def run() -> None:
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(request, range(_REQUESTS)))

    return run


def _percentile(seconds: list[float], percent: int) -> float:
    return 1e3 * statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


PART = Part(__doc__ or "", ("provider", "rounds", "seconds", "lengths", "callers"), measure)

if __name__ == "__main__":
    PART.main()
