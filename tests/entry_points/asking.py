"""Entry points, and the comparison of their answers with the oracle."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from asked_bundles import Bundle
from oracle import Row, answer

from adapter_export.errors import AdapterExportError

Document = Mapping[str, Any]


class RefusedError(Exception):
    """An entry point answers none of the rows that it was asked, and says why."""


def anything(bundle: Bundle, row: Row) -> bool:
    """Every row."""
    return True


@dataclass(frozen=True)
class EntryPoint:
    """An entry point to the answers of a bundle.

    Attributes:
        name: name in the table.
        ask: answers rows in the fewest possible requests; the third argument is the fixture. Raises RefusedError.
        form: whether rows are sent as text or ids.
        takes: whether it can express a row.
        needs: its fixture.
        tasks: supported task types, which some bundles lack. Default: all.
        same_kernels: whether it uses ONNX Runtime. Another runtime rounds differently in graphs other than float32.
    """

    name: str
    ask: Callable[[Bundle, Sequence[Row], Any], Sequence[Document]]
    form: Literal["text", "arrays"] = "text"
    takes: Callable[[Bundle, Row], bool] = anything
    needs: str | None = None
    tasks: tuple[str, ...] = ()
    same_kernels: bool = True


@dataclass(frozen=True)
class Fault:
    """A row with a wrong answer, or one that is refused although there is a right one."""

    row: Row
    refused: bool
    what: str


@dataclass(frozen=True)
class Outcome:
    """Outcome of all rows of a bundle at one entry point."""

    rows: int
    faults: tuple[Fault, ...]
    tasks: frozenset[str] = frozenset()
    """The types of tasks of the rows; `base` for those without an adapter whose base has no task."""

    @property
    def wrong(self) -> int:
        """Number of wrong answers."""
        return sum(not one.refused for one in self.faults)

    @property
    def refused(self) -> int:
        """Number of rows rejected although they have a correct answer."""
        return sum(one.refused for one in self.faults)

    def __str__(self) -> str:
        if not self.rows:
            return "–"
        refused = f" ({self.refused} refused)" if self.refused else ""
        return f"{self.wrong}/{self.rows}{refused}"


def outcome(entry: EntryPoint, bundle: Bundle, tool: Any = None) -> Outcome:
    """Ask an entry point all rows of a bundle that it can express."""
    cases = [case for case in bundle.cases(entry.form) if entry.takes(bundle, case.row)]
    answered = [case for case in cases if case.right is not None]
    rows = [case.row for case in answered]
    faults: list[Fault] = []
    try:
        found: list[Document | RefusedError] = list(entry.ask(bundle, rows, tool)) if rows else []
    except (RefusedError, AdapterExportError) as error:
        refusal = refused_by(error)
        found = [_alone(entry, bundle, row, tool) for row in rows]
        if not any(isinstance(one, RefusedError) for one in found):
            found = [refusal] * len(rows)  # one by one they are answered
    assert len(found) == len(rows), entry.name
    for case, one in zip(answered, found, strict=True):
        assert case.right is not None
        if isinstance(one, RefusedError):
            faults.append(Fault(case.row, True, str(one)))
            continue
        tolerance = bundle.tolerance(case.row, same_kernels=entry.same_kernels)
        fault = difference(one, case.right.document, tolerance, case.right.margin > 2 * tolerance)
        if fault:
            faults.append(Fault(case.row, False, fault))
    for case in cases:
        if case.right is None:
            one = _alone(entry, bundle, case.row, tool)
            if not isinstance(one, RefusedError):
                faults.append(Fault(case.row, False, "is answered, although padding changes its answer"))
            elif not re.search(case.reason, str(one)):
                faults.append(Fault(case.row, False, f"is refused for another reason: {one}"))
    return Outcome(len(cases), tuple(faults), frozenset(_task(bundle, case.row) for case in cases))


def _task(bundle: Bundle, row: Row) -> str:
    recipe = bundle.oracle.recipe(row)
    return "base" if recipe is None else str(recipe.task["type"])


def _alone(entry: EntryPoint, bundle: Bundle, row: Row, tool: Any) -> Document | RefusedError:
    try:
        return entry.ask(bundle, [row], tool)[0]
    except (RefusedError, AdapterExportError) as error:
        return refused_by(error)


def refused_by(error: Exception) -> RefusedError:
    """Return the refusal of an entry point; an error of the package is one in its own words."""
    return error if isinstance(error, RefusedError) else RefusedError(str(error))


def difference(found: Any, expected: Any, close: float, decided: bool, at: str = "") -> str | None:
    """Where an answer differs from the right one: numbers by more than `close`; labels and places if it is decided."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            return f"{at}: found {_short(found)}, expected the keys {sorted(expected)}"
        pairs = [(found[key], value, f"{at}.{key}") for key, value in expected.items()]
    elif isinstance(expected, list) and expected and isinstance(expected[0], str):
        return None if found == expected or not decided else f"{at}: found {found}, expected {expected}"
    elif isinstance(expected, list):
        own = without_padding(found, len(expected), at)
        if not isinstance(own, list) or len(own) != len(expected):
            return f"{at}: found {_short(found)}, expected {len(expected)} values"
        pairs = [(one, other, f"{at}[{place}]") for place, (one, other) in enumerate(zip(own, expected, strict=True))]
    elif isinstance(expected, float):
        near = isinstance(found, int | float) and math.isfinite(found) and abs(found - expected) <= close
        return None if near else f"{at}: found {found}, expected {expected:.6g}"
    else:
        always = expected is None or at.endswith((".adapter", ".task", ".cut", ".token"))
        return None if found == expected or not (decided or always) else f"{at}: found {found}, expected {expected}"
    faults = (difference(one, other, close, decided, where) for one, other, where in pairs)
    return next((fault for fault in faults if fault is not None), None)


def without_padding(found: Any, count: int, at: str) -> Any:
    """Answers to tokens without those to padding, which are null, and outputs without those of padding."""
    if not isinstance(found, list) or len(found) <= count:
        return found
    of_output = at.startswith(".outputs.") and "[" not in at
    return found[:count] if of_output or all(one is None for one in found[count:]) else found


def _short(value: Any) -> str:
    text = str(sorted(value) if isinstance(value, Mapping) else value)
    return text if len(text) < 100 else f"{text[:100]}…"


def together(
    rows: Sequence[Row], key: Callable[[Row], Hashable], ask: Callable[[Sequence[Row]], Sequence[Document]]
) -> list[Document]:
    """Ask rows that have a key in common in one request, and return the answers in the order of the rows."""
    groups: dict[Hashable, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(key(row), []).append(at)
    found: list[Document] = [{}] * len(rows)
    for places in groups.values():
        for at, one in zip(places, ask([rows[at] for at in places]), strict=True):
            found[at] = one
    return found


def shape(row: Row) -> str:
    """Return the form of a question: a text, a pair, or a question with choices."""
    return "text" if isinstance(row.asked, str) else "pair" if isinstance(row.asked, tuple) else "choices"


def weighing(row: Row) -> Hashable:
    """The weights of a row, with its adapter where there are any."""
    return None if row.weights is None else (row.adapter, *sorted(row.weights.items()))


def length(bundle: Bundle, row: Row) -> int:
    """Return the property shared by rows padded together: their length if there is no mask."""
    return 0 if "attention_mask" in bundle.oracle.inputs else bundle.arrays(row)["input_ids"].shape[1]


def stacked(bundle: Bundle, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """The inputs of rows in one batch, padded after their tokens with zeros."""
    each = [bundle.arrays(row) for row in rows]
    width = max(one["input_ids"].shape[1] for one in each)
    names = each[0]
    return {
        name: np.concatenate([np.pad(one[name], [(0, 0), (0, width - one[name].shape[1])]) for one in each])
        for name in names
    }


def context_of(bundle: Bundle, row: Row, width: int | None = None) -> list[int] | None:
    """For a question, a 1 for each token that may be the answer; zeros for padding."""
    recipe = bundle.oracle.recipe(row)
    if recipe is None or recipe.task["type"] != "span":
        return None
    own = bundle.oracle.tokens(row)[0].context
    return own + [0] * ((width or bundle.arrays(row)["input_ids"].shape[1]) - len(own))


def answer_of_result(bundle: Bundle, row: Row, result: np.ndarray) -> Document:
    """The answer that the result of a head gives by the oracle's rules; that of padding is left out."""
    recipe = bundle.oracle.recipe(row)
    assert recipe is not None
    (tokens,) = bundle.oracle.tokens(row)
    own = result[: len(tokens.encoding.ids)] if recipe.task["type"] in ("token", "span") else result
    return {"adapter": recipe.name, "task": recipe.task["type"], **answer(recipe.task, own, tokens, None).document}
