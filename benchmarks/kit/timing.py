"""Times of interleaved calls, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kit.tables import Spread, spread

Call = Callable[[], object]
Clock = Callable[[], float]
Times = Mapping[str, list[float]]
"""Seconds of every call of each name, round by round."""

_WARM_UP = 1
_FEWEST = 5
"""Minimum number of rounds, regardless of time, unless fewer were requested."""


@dataclass(frozen=True)
class Pace:
    """Number of repetitions.

    Attributes:
        rounds: maximum number of rounds.
        seconds: time after which no round starts, except the first five.
        clock: processor time of the calling thread, or wall-clock time.
    """

    rounds: int
    seconds: float
    clock: Clock


def clock_of(provider: str, threads: int) -> Clock:
    """Processor time where one thread of this process does all the work: others cannot disturb it much."""
    return time.thread_time if provider == "cpu" and threads == 1 else time.perf_counter


def interleaved(calls: Mapping[str, Call], pace: Pace, *, warm: bool = False) -> Times:
    """Time interleaved calls; each round starts with another one.

    A `warm` call runs twice, and the second run is timed. A service calls one graph repeatedly; after a dozen other
    graphs, no weights of a graph are left in the processor's cache.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names * min(_WARM_UP, pace.rounds):
        calls[name]()
    began = time.perf_counter()
    for turn in range(pace.rounds):
        if turn >= _FEWEST and time.perf_counter() - began > pace.seconds:
            break
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            if warm:
                calls[name]()
            start = pace.clock()
            calls[name]()
            times[name].append(pace.clock() - start)
    return times


def ratio(times: Times, name: str, to: str, digits: int = 2) -> Spread:
    """Return the ratios of two calls of the same rounds."""
    return spread([own / other for own, other in zip(times[name], times[to], strict=True)], digits)


def milliseconds(times: Times, name: str, digits: int = 2) -> Spread:
    """Return the duration of a call."""
    return spread([seconds * 1e3 for seconds in times[name]], digits)
