"""Rows run batch after batch in their order, and what is shown of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from adapter_export.cli.choices import Choice
from adapter_export.cli.output import Bar, console, emit_json, progress_bar, table
from adapter_export.cli.results import Head, Result, Token, document, full_facts, result_of, summaries
from adapter_export.cli.results import show as show_tables
from adapter_export.cli.rows import Arrays, Rows
from adapter_export.errors import within
from adapter_export.runtime import Request, Session
from adapter_export.runtime.answers import own_classes
from adapter_export.runtime.batches import TOKEN_BUDGET

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Batch:
    """What one call gave.

    Attributes:
        start: its first row.
        end: the row after its last one.
        outputs: by name.
    """

    start: int
    end: int
    outputs: Arrays


def run_batches(session: Session, rows: Rows, choice: Choice, *, together: bool) -> list[Batch]:
    """Run all rows.

    Args:
        session: the session.
        rows: the rows.
        choice: what each runs through.
        together: in one call, so that the outputs have one length.
    """
    size = len(rows) if together else _ROWS_AT_ONCE
    found = []
    for start in range(0, len(rows), size):
        end = min(start + size, len(rows))
        found.append(Batch(start, end, choice.part(start, end).run(session, rows.inputs(start, end))))
    return found


def show(rows: Rows, heads: Sequence[Head], batches: Sequence[Batch], base: Sequence[str], *, as_json: bool) -> None:
    """Write what was found: the result of each row, or without any head a summary of the outputs.

    Args:
        rows: the rows.
        heads: what each ran through.
        batches: what was found.
        base: the outputs that every row has.
        as_json: write one JSON document.
    """
    if {head.task for head in heads} == {None} and len(set(heads)) == 1:
        _show_outputs(heads[0].adapter, batches, as_json=as_json)
        return
    results = [result for batch in batches for result in _results(rows, heads, batch, base)]
    if as_json:
        emit_json(document(results))
    else:
        show_tables(results)


def row_outputs(outputs: Mapping[str, np.ndarray], row: int, head: Head, base: Sequence[str]) -> Arrays:
    """What there is to say of a row: the result of its own head in its own width; without a task, all its outputs."""
    found = {name: outputs[name][row] for name in base if head.task is None}
    if head.output is not None:
        found[head.output] = own_classes(outputs[head.output][row])
    return found


def _results(rows: Rows, heads: Sequence[Head], batch: Batch, base: Sequence[str]) -> Iterator[Result]:
    own = list(heads[batch.start : batch.end])
    output = own[0].output
    if len(set(own)) == 1 and output is not None:  # a base may have its rows along another axis than the first
        own = own[:1] * len(batch.outputs[output])
    has_tokens = any(head.task == "token_classification" for head in own)
    tokens: list[list[Token]] = rows.tokens(batch.start, batch.end) if has_tokens else [[]] * len(own)
    for index, head in enumerate(own):
        outputs = row_outputs(batch.outputs, index, head, base)
        yield result_of(rows.name(batch.start + index), head, outputs, tokens[index])


def _show_outputs(adapter: str | None, batches: Sequence[Batch], *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {**summary, "batch": index} for index, batch in enumerate(batches) for summary in summaries(batch.outputs)
    ]
    if as_json:
        emit_json({"adapter": adapter, "outputs": rows})
        return
    cells = [(r["output"], r["dtype"], r["shape"], *(_number(r[key]) for key in ("min", "mean", "max"))) for r in rows]
    title = "the base alone" if adapter is None else f"adapter `{adapter}`"
    console().print(table(title, ("output", "type", "shape", "min", "mean", "max"), cells, numbers="lllrrr"))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


# Many rows: put together by length and adapter, and written line by line as they are done.

_WINDOW = 2048
"""How many rows are sorted by length at a time: more would hold more in memory, and hardly save more padding."""


def run_lines(
    session: Session,
    rows: Rows,
    choice: Choice,
    base: Sequence[str],
    *,
    token_budget: int | None,
) -> None:
    """Write one JSON document a line for each row, in their order.

    Args:
        session: the session.
        rows: the rows; each is a request of its own.
        choice: the adapter of each.
        base: the outputs that every row has.
        token_budget: the most tokens in a call.
    """
    heads = choice.heads(session)
    with progress_bar("running", len(rows)) as bar:
        for start in range(0, len(rows), _WINDOW):
            window = range(start, min(start + _WINDOW, len(rows)))
            requests = [Request(rows.inputs(row, row + 1), choice.rows[row]) for row in window]
            with within(f"rows from {start} on"):
                found = session.run_many(
                    requests,
                    token_budget=token_budget or TOKEN_BUDGET,
                    progress=_Tell(bar),
                    allow_mixed_rows=choice.allow_mixed_rows,
                )
            for row, outputs in zip(window, found, strict=True):
                head = heads[row]
                tokens = rows.tokens(row, row + 1)[0] if head.task == "token_classification" else ()
                result = result_of(rows.name(row), head, row_outputs(outputs, 0, head, base), tokens)
                click.echo(json.dumps(full_facts(result), ensure_ascii=False, allow_nan=False))


class _Tell:
    """Tells a bar of all rows what is done of a window."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._done = 0

    def __call__(self, done: int, _: int) -> None:
        self._bar.advance(done - self._done)
        self._done = done
