"""One text for eight adapters: one call for all of them against a call for each, and a text that comes again.

    python benchmarks/fanout.py                                         # adapters in the upper half of MiniLM
    python benchmarks/fanout.py --model model.onnx --lengths 128

Below the lowest layer in which an adapter acts, `fan_out` computes the text once. The last column is a call with one
adapter on a text of which that is kept from before, over the same call on a new text. The ways give the same results,
which is seen before they are timed.
"""

from __future__ import annotations

import numpy as np
from kit.adapters import random_houlsby
from kit.part import Part, Settings
from kit.subject import Arrays, Subject, built, inputs_of
from kit.tables import Table
from kit.timing import Call, interleaved, milliseconds, ratio

from adapter_export.runtime import Session

_SAME = 1e-3
"""Tolerance between the results of the ways: kernels sum in other orders for other shapes."""

_MOST = 8
_KEPT_BYTES = 2**26


def measure(subject: Subject, settings: Settings) -> list[Table]:
    """The time of each way over that of a call for each adapter, for several lengths."""
    layers = 1 + max(site.layer or 0 for site in subject.base.sites.sublayers)
    width = next(iter(subject.adapters[0].placements.values())).widths["b"]
    count = min(_MOST, len(subject.adapters))
    adapters = tuple(
        random_houlsby(f"a{number}", subject.base, width, number, lowest=layers // 2) for number in range(count)
    )
    bundle = built(subject.base, adapters, subject.folder / "fanout", variants=["slots", "bank", "fanout"])
    plain, keeping = (bundle.session(threads=settings.threads, prefix_bytes=size) for size in (0, _KEPT_BYTES))
    names, rows = [adapter.name for adapter in adapters], []
    for tokens in settings.lengths:
        ways = _ways(plain, keeping, inputs_of(bundle, 1, tokens), inputs_of(bundle, count, tokens), names)
        times = interleaved(ways, settings.pace)
        ratios = [ratio(times, "bank", "alone"), ratio(times, "fanout", "alone"), ratio(times, "kept", "one")]
        rows.append([f"1 × {tokens}", milliseconds(times, "alone", 1), *ratios])
    columns = ["text", "a call for each, ms", "one run of the bank", "`fan_out`", "a text that is kept, over one call"]
    title = f"One text for {count} adapters"
    words = f"Times over that of a call for each; adapters in the upper {layers - layers // 2} of {layers} layers."
    return [Table(title, columns, rows, words)]


def _ways(plain: Session, keeping: Session, text: Arrays, others: Arrays, names: list[str]) -> dict[str, Call]:
    alone = {name: plain.run(text, name) for name in names}
    for found in (plain.fan_out(text, names), {name: keeping.run(text, name) for name in names}):
        for name, outputs in alone.items():  # ways that do not compute the same cannot be compared
            for output, value in outputs.items():
                np.testing.assert_allclose(found[name][output], value, rtol=0, atol=_SAME * np.abs(value).max())
    return {
        "alone": lambda: [plain.run(text, name) for name in names],
        "bank": lambda: plain.run(others, adapters=names),  # rows that are not alike
        "fanout": lambda: plain.fan_out(text, names),
        "one": lambda: plain.run(text, names[0]),
        "kept": lambda: keeping.run(text, names[0]),
    }


PART = Part(__doc__ or "", ("provider", "threads", "rounds", "seconds", "lengths"), measure)

if __name__ == "__main__":
    PART.main()
