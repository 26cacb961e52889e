"""Times of calls that take turns, so that whatever else the machine does meets all of them alike."""

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
"""Rounds that are run however long they take, unless fewer were asked for."""


@dataclass(frozen=True)
class Pace:
    """How often something is repeated.

    Attributes:
        rounds: at most.
        seconds: no round begins after these, but for the first five.
        clock: what seconds are: those of the calling thread's processor time, or of the clock on the wall.
    """

    rounds: int
    seconds: float
    clock: Clock


def clock_of(provider: str, threads: int) -> Clock:
    """Processor time where one thread of this process does all the work: others cannot disturb it much."""
    return time.thread_time if provider == "cpu" and threads == 1 else time.perf_counter


def interleaved(calls: Mapping[str, Call], pace: Pace, *, warm: bool = False) -> Times:
    """Time calls in turns; each round begins with another one.

    A `warm` one is called twice in its turn, and the second call is timed. A service calls one graph again and again;
    behind a dozen others, each with weights of its own, none of a graph's are in the processor's cache.
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
    """How much longer one call took than another one of the same round."""
    return spread([own / other for own, other in zip(times[name], times[to], strict=True)], digits)


def milliseconds(times: Times, name: str, digits: int = 2) -> Spread:
    """How long a call took."""
    return spread([seconds * 1e3 for seconds in times[name]], digits)
