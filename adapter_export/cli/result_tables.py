"""The results of `run` as tables: bars for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.table import Table

from adapter_export.cli.output import console, say, table
from adapter_export.cli.results import Result, classes, numbers, token_classes
from adapter_export.graph.tasks import Task

_FEW = 3
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


def show(results: Sequence[Result]) -> None:
    """Write tables; where the rows ran through different adapters, one line for each row."""
    heads = {result.head for result in results}
    (_SHOW[results[0].head.task] if len(heads) == 1 else _show_mixed)(results)


def bar(probability: float) -> str:
    """A bar whose length is a probability, in eighths of a character."""
    full, eighths = divmod(round(probability * _BAR * 8), 8)
    return "█" * full + _EIGHTHS[eighths]


def _show_classes(results: Sequence[Result]) -> None:
    found = [(result.name, classes(result)) for result in results]
    if len(found) > _FEW:
        rows = [(name, one.label, f"{one.probability:.3f}", bar(one.probability)) for name, one in found]
        console().print(table(None, ("text", "label", "probability", ""), rows, numbers="llr"))
        return
    for name, one in found:
        ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
        cells = [(label, f"{probability:.3f}", bar(probability)) for label, probability in ranked]
        _show_one(name, table(None, ("label", "probability", ""), cells, numbers="lr"))


def _show_tokens(results: Sequence[Result]) -> None:
    for result in results:
        rows = [
            (token.text, one.label, f"{one.probability:.3f}", bar(one.probability))
            for token, one in token_classes(result)
        ]
        _show_one(result.name, table(None, ("token", "label", "probability", ""), rows, numbers="llr"))


def _show_numbers(results: Sequence[Result]) -> None:
    count = len(numbers(results[0]))
    columns = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
    rows = [(result.name, *(f"{number:.6g}" for number in numbers(result))) for result in results]
    console().print(table(None, ("text", *columns), rows, numbers="l" + "r" * count))


def _show_vectors(results: Sequence[Result]) -> None:
    rows = [
        (result.name, len(row), f"{float(np.linalg.norm(row)):.4g}", _beginning(row))
        for result, row in ((result, numbers(result)) for result in results)
    ]
    console().print(table(None, ("text", "width", "length", "vector"), rows, numbers="lrr"))
    say("`--out FILE.npz` or `--json` gives the vectors whole.")


def _show_mixed(results: Sequence[Result]) -> None:
    rows = [
        (result.name, result.head.adapter or "the base alone", *_LINE[result.head.task](result)) for result in results
    ]
    console().print(table(None, ("text", "adapter", "result", "probability", ""), rows, numbers="lllr"))


def _class_cells(result: Result) -> tuple[str, str, str]:
    one = classes(result)
    return one.label, f"{one.probability:.3f}", bar(one.probability)


def _token_cells(result: Result) -> tuple[str, str, str]:
    return " ".join(f"{token.text}/{one.label}" for token, one in token_classes(result)), "", ""


def _number_cells(result: Result) -> tuple[str, str, str]:
    return _beginning(numbers(result)), "", ""


def _output_cells(result: Result) -> tuple[str, str, str]:
    return ", ".join(f"{one['output']} {one['shape']}" for one in result.outputs), "", ""


def _beginning(row: np.ndarray) -> str:
    more = " …" if len(row) > _NUMBERS_SHOWN else ""
    return " ".join(f"{number:.4f}" for number in row[:_NUMBERS_SHOWN]) + more


def _show_one(name: str, found: Table) -> None:
    out = console()
    out.print(name, style="bold", markup=False, soft_wrap=True)
    out.print(found)
    out.print()


_SHOW: Mapping[Task | None, Callable[[Sequence[Result]], None]] = {
    "sequence_classification": _show_classes,
    "token_classification": _show_tokens,
    "regression": _show_numbers,
    "embedding": _show_vectors,
    None: _show_mixed,
}

_LINE: Mapping[Task | None, Callable[[Result], tuple[str, str, str]]] = {
    "sequence_classification": _class_cells,
    "token_classification": _token_cells,
    "regression": _number_cells,
    "embedding": _number_cells,
    None: _output_cells,
}
