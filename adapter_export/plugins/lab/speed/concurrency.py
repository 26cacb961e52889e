"""Throughput and latency of a bundle at different numbers of concurrent calls and threads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from adapter_export.bundle.latency import sample
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime import Bundle, Session
from adapter_export.tables import Described, Table, html_of
from adapter_export.words import argument

ROUNDS = 5


@dataclass(frozen=True)
class Load:
    """The rows of a call.

    Attributes:
        adapter: the adapter of the rows; `None` is the base.
        rows: rows per call.
        tokens: tokens per row.
    """

    adapter: str | None
    rows: int
    tokens: int


@dataclass(frozen=True)
class Way:
    """A way to use the processors, and its throughput and latency.

    Attributes:
        calls: concurrent calls in one session.
        threads: threads of the session.
        rows_per_second: the median of the rounds.
        median: the median latency of a call in seconds.
        slow: its 95th percentile.
    """

    calls: int
    threads: int
    rows_per_second: float
    median: float
    slow: float


@dataclass(frozen=True, repr=False)
class Benchmark(Described):
    """Throughput and latency of each way to use the processors; `print` and notebooks show it.

    Attributes:
        load: the rows of each call.
        processors: the number of processors of this process.
        ways: the ways in the order of their calls.
        most_rows: the way with the most rows per second.
        fastest: the way with the lowest median latency.
    """

    load: Load
    processors: int
    ways: tuple[Way, ...]
    most_rows: Way = field(init=False)
    fastest: Way = field(init=False)

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"processors": self.processors, "ways": len(self.ways), "most_rows": self.most_rows}

    def __post_init__(self) -> None:
        object.__setattr__(self, "most_rows", max(self.ways, key=lambda way: way.rows_per_second))
        object.__setattr__(self, "fastest", min(self.ways, key=lambda way: way.median))

    def table(self) -> Table:
        """Return a row for each way; times are latencies of a call."""
        rows = [
            [f"{way.calls}", f"{way.threads}", f"{way.rows_per_second:.1f}"]
            + [f"{1000 * seconds:.2f} ms" for seconds in (way.median, way.slow)]
            for way in self.ways
        ]
        return Table(["calls", "threads", "rows/s", "median", "95 %"], rows, numbers="rrrrr")

    def advice(self) -> tuple[str, str]:
        """Return the options for `serve`, in two phrases."""
        best = (self.most_rows, self.fastest)
        options = [argument("concurrency", way.calls) + ", " + argument("threads", way.threads) for way in best]
        return "for the most rows per second: " + options[0], "for the shortest calls: " + options[1]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([str(self.table()), "", *self.advice()])

    def _repr_html_(self) -> str:
        return html_of(self.table(), *self.advice())


def ways(processors: int) -> Iterator[tuple[int, int]]:
    """Yield (calls, threads): one of each, and those that use all processors, by powers of two."""
    yield 1, 1
    calls = 1
    while calls <= processors:
        if processors > 1:
            yield calls, processors // calls
        calls *= 2


def measure_ways(bundle: Bundle, load: Load, seconds: float, reporter: Reporter = SILENT) -> Benchmark:
    """Run calls in each way for `seconds`, in rounds in which the ways take turns.

    Turns spread a temporary slowdown of the machine over all ways. `reporter` receives a step after each turn.

    Raises:
        RequestError: the bundle lacks the adapter, or takes no such rows.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tried = list(ways(processors))
    inputs = sample(bundle.manifest.inputs, load.rows, load.tokens, bundle.manifest.lengths)
    sessions = {threads: bundle.session(threads=threads) for _, threads in tried}
    for session in sessions.values():
        session.run(inputs, load.adapter)  # the first call allocates
    rates, done = np.zeros((ROUNDS, len(tried))), 0
    times: list[list[float]] = [[] for _ in tried]
    for turn in range(ROUNDS):
        for place in np.roll(np.arange(len(tried)), turn).tolist():
            calls, threads = tried[place]
            began = time.perf_counter()
            loop = partial(_calls, sessions[threads], inputs, load.adapter, began + seconds)
            with ThreadPoolExecutor(calls) as pool:
                durations = [
                    duration for running in [pool.submit(loop) for _ in range(calls)] for duration in running.result()
                ]
            rates[turn, place] = len(durations) * load.rows / (time.perf_counter() - began)
            times[place] += durations
            done += 1
            reporter.step(f"{calls} × {threads}", done, rates.size)
    medians, slow = ([float(np.quantile(durations, part)) for durations in times] for part in (0.5, 0.95))
    per_way = zip(tried, np.median(rates, axis=0).tolist(), medians, slow, strict=True)
    return Benchmark(load, processors, tuple(Way(*way, *figures) for way, *figures in per_way))


def _calls(session: Session, inputs: Mapping[str, np.ndarray], adapter: str | None, until: float) -> list[float]:
    """Run one call after another, at least one, and return the seconds of each."""
    durations = list[float]()
    while not durations or time.perf_counter() < until:
        began = time.perf_counter()
        session.run(inputs, adapter)
        durations.append(time.perf_counter() - began)
    return durations
