"""Many rows: put together by length and adapter, and written line by line as they are done."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from adapter_export.cli.choices import Choice
from adapter_export.cli.output import Bar, progress_bar
from adapter_export.cli.results import full_facts, result_of
from adapter_export.cli.rows import Rows
from adapter_export.cli.run_batches import row_outputs
from adapter_export.errors import within
from adapter_export.runtime import Request, Session
from adapter_export.runtime.many import TOKEN_BUDGET

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
