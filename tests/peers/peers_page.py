"""`docs/reference/peers.md`: which adapters of the other libraries' tests answer as in these libraries.

    python tests/peers/peers_page.py

writes it from `results.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from adapterhub_configurations import BASES, METHODS
from outcomes import NOT_MADE, PASSED, REFUSED, Outcomes, read
from peft_configurations import PEFT_BASES, configurations

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "peers.md"

TASKS = {
    "FEATURE_EXTRACTION": "features",
    "SEQ_CLS": "classification",
    "CAUSAL_LM": "causal LM",
    "SEQ_2_SEQ_LM": "encoder–decoder",
}
DECODERS = ("gpt2", "llama", "mistral")
MEDIA = {"translation": "encoder–decoders", "image": "images", "speech": "Whisper"}

Columns = Mapping[str, Sequence[str]]
"""Bases by the name of their column."""


def page() -> str:
    """Return the text of the page."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    peft, hub = read("peft"), read("adapterhub")
    reasons: dict[str, int] = {}
    yield """\
# Adapters of other libraries' tests

```sh
make peers        # runs the tests of PEFT 0.21 and AdapterHub 1.3, and compares the outcomes with this page
```

Each library makes the adapters of its own test suite on the architectures of that suite, with weights of standard
deviation 0.2, saves them, and answers padded rows of several lengths. The adapters are imported, built and verified,
and must give the same answers in ONNX Runtime.

✓ is every base of the column; "4 of 5" leaves out the bases for which a [reason](#reasons) is named; – is an adapter
that the library itself cannot make or load. `tests/peers/results.json` has the outcome of each base.
"""
    for title, outcomes in (("PEFT", peft), ("AdapterHub", hub)):
        every = list(chain.from_iterable(by_adapter.values() for by_adapter in outcomes.values()))
        yield f"## {title}\n"
        yield (
            f"{len(outcomes)} bases, {len(every)} adapters: {_count(every, PASSED)} give the library's answers, "
            f"{_count(every, REFUSED)} are refused, and {_count(every, NOT_MADE)} the library does not make.\n"
        )
        yield from _table(_rows(title), _columns(title), outcomes, reasons)
        yield ""
    yield "## Reasons\n"
    yield from (f"{number}. {reason}" for reason, number in reasons.items())


def _count(outcomes: Sequence[str], beginning: str) -> int:
    return sum(outcome.startswith(beginning) for outcome in outcomes)


def _rows(title: str) -> Sequence[str]:
    return list(METHODS) if title == "AdapterHub" else [configuration.name for configuration in configurations()]


def _columns(title: str) -> Columns:
    if title == "PEFT":
        return {
            words: [name for name, base in PEFT_BASES.items() if base.task == task] for task, words in TASKS.items()
        }
    groups: dict[str, list[str]] = {"encoders": [], "decoders": []}
    for name, base in BASES.items():
        text = "decoders" if name in DECODERS else "encoders"
        groups.setdefault(MEDIA.get(base.kind, text), []).append(name)
    return groups


def _table(rows: Sequence[str], columns: Columns, outcomes: Outcomes, reasons: dict[str, int]) -> Iterator[str]:
    yield f"| adapter | {' | '.join(f'{name} ({len(bases)})' for name, bases in columns.items())} |"
    yield "|---" * (1 + len(columns)) + "|"
    for row in rows:
        cells = [
            _cell([outcomes[base][row] for base in bases if row in outcomes[base]], reasons)
            for bases in columns.values()
        ]
        yield f"| {row} | {' | '.join(cells)} |"


def _cell(outcomes: Sequence[str], reasons: dict[str, int]) -> str:
    passed, refused = _count(outcomes, PASSED), [text for text in outcomes if text.startswith(REFUSED)]
    if not outcomes:
        return ""
    numbers = sorted({reasons.setdefault(_reason(text), len(reasons) + 1) for text in refused})
    words = f"refused: {', '.join(map(str, numbers))}" if refused else ""
    if passed == len(outcomes):
        return "✓"
    if not passed:
        return words or "–"
    return f"{passed} of {len(outcomes)}" + (f"; {words}" if words else "")


def _reason(outcome: str) -> str:
    """Return the reason of a refusal, without the values and names of a base."""
    what = outcome.removeprefix(REFUSED).partition(": `")[0].partition("; `")[0]
    return re.sub(r"^\d+ tensors? do(es)? not match", "tensors do not match", what)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
