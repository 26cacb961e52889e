"""Requests for many adapters: one run of the bank against one by one, and against a run for each adapter.

    python benchmarks/mixed.py                                  # 32 requests for 32 and for 8 adapters, MiniLM
    python benchmarks/mixed.py --model model.onnx --adapters 8 --lengths 16 --provider cuda

The lengths are those of all requests, and then random ones up to the longest, all as often or by Zipf's law. `loaded`
is the same run with adapters outside of the bundle's bank, in a separate table. `run_many` chooses the calls itself.
All ways return the same results, which is checked before timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from kit.part import Part, Settings
from kit.subject import Arrays, Subject
from kit.tables import Table
from kit.timing import interleaved, milliseconds, ratio

from adapter_export.runtime import Request, Session

_SAME = 1e-3
"""Tolerance between the results of the ways: kernels sum in other orders for other shapes."""

_COLUMNS = {
    "grouped": "one run per adapter",
    "bank": "one run of the bank",
    "loaded": "one run of the bank, loaded",
    "many": "`run_many`",
}

Way = Callable[[], list[np.ndarray]]
"""Runs all requests; the first output of each."""


@dataclass(frozen=True)
class Requests:
    """Requests of one row each.

    Attributes:
        arrays: their inputs, padded to the longest.
        lengths: the tokens of each.
        names: the adapter of each.
        axes: the inputs whose second axis are the tokens.
    """

    arrays: Arrays
    lengths: Sequence[int]
    names: Sequence[str]

    def rows(self, chosen: Sequence[int]) -> Arrays:
        """The inputs of some, as long as the longest of them."""
        longest = max(self.lengths[row] for row in chosen)
        return {name: np.ascontiguousarray(array[chosen, :longest]) for name, array in self.arrays.items()}


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """The time of each way over that of one by one, for several lengths and numbers of adapters."""
    count = len(subject.adapters)
    session = subject.bundle.session(provider=settings.provider, threads=settings.threads, resident=count)
    for record in subject.bundle.manifest.adapters:
        session.load(_late(record.name), subject.bundle.folder / record.onnx_adapter, task=record.task)
    rows = []
    for words, lengths in _lengths(settings.lengths, count):
        for adapters in dict.fromkeys((count, max(1, count // 4))):
            ways = _ways(session, _requests(subject, lengths, adapters))
            _check_equal(ways)
            times = interleaved(ways, settings.pace)
            ratios = [ratio(times, name, "alone") for name in _COLUMNS]
            rows.append([f"{words}, for {adapters}", milliseconds(times, "alone", 1), *ratios])
    columns = [f"{count} requests of, for how many adapters", "one by one, ms", *_COLUMNS.values()]
    return [Table("Requests for many adapters", columns, rows, "Times over that of one by one: below 1 is faster.")]


def _late(name: str) -> str:
    return f"{name}.loaded"


def _lengths(longest: Sequence[int], count: int) -> list[tuple[str, list[int]]]:
    random, most = np.random.default_rng(0), max(longest)
    return [
        *((f"{tokens} tokens", [tokens] * count) for tokens in longest),
        (f"1 to {most} tokens", random.integers(1, most + 1, count).tolist()),
        (f"1 to {most}, most of them few", np.minimum(random.zipf(1.5, count), most).tolist()),
    ]


def _requests(subject: Subject, lengths: Sequence[int], adapters: int) -> Requests:
    whole = subject.inputs(len(lengths), max(lengths))
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    names = [subject.names[row % adapters] for row in range(len(lengths))]
    return Requests({name: (array * real).astype(array.dtype) for name, array in whole.items()}, lengths, names)


def _ways(session: Session, requests: Requests) -> dict[str, Way]:
    output = session.output(requests.names[0])
    assert output is not None  # the adapters have heads
    every, groups = range(len(requests.names)), dict[str, list[int]]()
    for row, name in enumerate(requests.names):
        groups.setdefault(name, []).append(row)
    single = [requests.rows([row]) for row in every]
    grouped = {name: requests.rows(rows) for name, rows in groups.items()}
    whole, late = requests.rows([*every]), [_late(name) for name in requests.names]
    many = [Request(inputs, name) for inputs, name in zip(single, requests.names, strict=True)]

    def per_adapter() -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for name, inputs in grouped.items():
            found.update(zip(groups[name], session.run(inputs, name)[output], strict=True))
        return [found[row] for row in every]

    return {
        "alone": lambda: [session.run(each.inputs, each.adapter)[output][0] for each in many],
        "grouped": per_adapter,
        "bank": lambda: [*session.run(whole, adapters=requests.names)[output]],
        "loaded": lambda: [*session.run(whole, adapters=late)[output]],
        "many": lambda: [outputs[output][0] for outputs in session.run_many(many)],
    }


def _check_equal(ways: dict[str, Way]) -> None:
    """Ways that do not compute the same cannot be compared."""
    expected = ways["alone"]()
    for way in ways.values():
        for one, other in zip(way(), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=_SAME)


PART = Part(__doc__ or "", ("provider", "threads", "rounds", "seconds", "lengths"), measure)

if __name__ == "__main__":
    PART.main()
