"""Many adapters in use, of which a session keeps few: what a request costs more than with few that all stay.

    python benchmarks/tenants.py                                # 1,024 adapters of MiniLM, 64 of them resident
    python benchmarks/tenants.py --tenants 10000 --shapes 1x16,8x64

Adapters are chosen by Zipf's law: the second half as often as the first, the third a third as often. A request of one
row names its adapter, one of several rows has an adapter for each row. All are loaded on demand; each file is copied
once, so the folder for temporary files needs room for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from kit.part import Part, Settings
from kit.subject import Arrays, Subject
from kit.tables import Table, spread
from kit.timing import Call, interleaved, milliseconds

from adapter_export.runtime import Session
from adapter_export.runtime.graphs import Graphs, OrtGraph, open_session

_FEW, _RESIDENT = 8, 64
_REQUESTS = 32
"""In one block, whose time is taken as a whole."""


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """The time of a request, and of the slowest in twenty, over that of few adapters."""
    folder = subject.bundle.folder
    graphs = Graphs(  # one for both: two sessions of ONNX Runtime on one file differ by hundredths
        subject.bundle.manifest,
        settings.provider,
        lambda path: OrtGraph(
            open_session(folder / path, settings.provider, "all", settings.threads), settings.provider
        ),
    )
    few, many = (_session(subject, graphs, count) for count in (_FEW, settings.tenants))
    rows = []
    for batch, tokens in settings.shapes:
        inputs, each = subject.inputs(batch, tokens), dict[str, list[float]](few=[], many=[])
        ways = {
            "few": _block(few, inputs, batch, _FEW, settings, each["few"]),
            "many": _block(many, inputs, batch, settings.tenants, settings, each["many"]),
        }
        before = _counts(many, batch)
        times = interleaved(ways, settings.pace)
        loads, hits = (now - then for now, then in zip(_counts(many, batch), before, strict=True))
        slow = [float(np.quantile(each[name], 0.95)) for name in ("few", "many")]
        rows.append(
            [
                f"{batch} × {tokens}",
                milliseconds({"few": [seconds / _REQUESTS for seconds in times["few"]]}, "few"),
                spread([many / few for few, many in zip(times["few"], times["many"], strict=True)], 2),
                f"{slow[1] / slow[0]:.2f}",
                f"{loads / (loads + hits):.0%}",
            ]
        )
    title = f"{settings.tenants:,} adapters in use, {_RESIDENT} of them resident"
    columns = ["batch × tokens", f"{_FEW} of {_FEW} resident, ms", title, "slowest in 20", "not resident"]
    return [Table("Many adapters", columns, rows, "Times over those of a request with few adapters.")]


def _session(subject: Subject, graphs: Graphs, count: int) -> Session:
    session = subject.bundle.session_on(graphs, resident=_RESIDENT)
    records = subject.bundle.manifest.adapters
    for at in range(count):
        record = records[at % len(records)]
        session.load(_name(at), subject.bundle.folder / record.onnx_adapter, task=record.task, on_demand=True)
    return session


def _counts(session: Session, batch: int) -> tuple[int, int]:
    """Return how often adapters were loaded so far, and how often they were already in memory."""
    found = session.statistics.files if batch == 1 else session.statistics.bank
    return found.loads, found.hits


def _name(at: int) -> str:
    return f"tenant{at}"


def _block(session: Session, inputs: Arrays, batch: int, count: int, settings: Settings, each: list[float]) -> Call:
    """Some requests, one after the other, whose times are added to `each`."""
    names, clock = _zipf(count), settings.pace.clock

    def block() -> None:
        for _ in range(_REQUESTS):
            chosen = [next(names) for _ in range(batch)]
            start = clock()
            if batch == 1:
                session.run(inputs, chosen[0])
            else:
                session.run(inputs, adapters=chosen)
            each.append(clock() - start)

    return block


def _zipf(count: int) -> Iterator[str]:
    """The names of adapters, drawn with a probability of 1 over their number."""
    random, weights = np.random.default_rng(0), 1 / np.arange(1, count + 1)
    while True:
        for at in random.choice(count, 4096, p=weights / weights.sum()):
            yield _name(int(at))


PART = Part(__doc__ or "", ("provider", "threads", "rounds", "seconds", "shapes", "tenants"), measure)

if __name__ == "__main__":
    PART.main()
