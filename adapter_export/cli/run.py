"""`adapter-export run`: a bundle on texts or arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import click

from adapter_export.api.base import check_free
from adapter_export.api.option import Option
from adapter_export.cli.options import Force, Json, check_together, command
from adapter_export.cli.output import emit_json, progress_bar, say, show
from adapter_export.errors import UsageError, within
from adapter_export.graph.tasks import TOKEN_TYPES, ProblemType

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.cli.results import Head, Result
    from adapter_export.cli.rows import Rows, Text
    from adapter_export.runtime import Session

Batch: TypeAlias = "tuple[range, dict[str, np.ndarray]]"
"""The rows of one call, and its outputs by name."""

_BASE = "-"
_ROWS_AT_ONCE = 32
_WINDOW = 2048
"""How many rows are sorted by length at a time: more would need more memory, and hardly save more padding."""


@command(
    "adapter-export run bundle --adapter trec --text 'How far is the moon?' --text 'Who wrote Faust?'",
    "adapter-export run bundle --adapters trec,sentiment,- --text 'How far?' --text 'Well done.' --text 'And?'",
    "adapter-export run bundle --adapter fused --weights calm=0.3,warm=0.7 --text 'How far is the moon?'",
    "adapter-export run bundle --data requests.jsonl --adapter-column adapter --many > answers.jsonl",
    "adapter-export run bundle --adapter sentiment < sentences.txt",
    "adapter-export run bundle --arrays inputs.npz --out outputs.npz",
    "adapter-export run bundle --adapter-file new.onnx_adapter --labels no,yes --text 'Is it new?'",
)
def run(
    bundle: Path,
    *,
    adapter: Annotated[
        str | None, Option("An adapter for all rows; the base alone if nothing is chosen.", "NAME")
    ] = None,
    adapters: Annotated[str | None, Option("An adapter for each row, `-` for the base, in one call.", "A,B,-")] = None,
    adapter_column: Annotated[
        str | None, Option("The column of `--data` that names the adapter of each row.", "NAME")
    ] = None,
    weights: Annotated[
        Mapping[str, float] | None,
        Option("Weights for all members of an `--adapter` that is a weighted fusion, in the place of its own."),
    ] = None,
    adapter_file: Annotated[
        Path | None, Option("Load this `.onnx_adapter` file, built for the same graph, too.", "FILE")
    ] = None,
    labels: Annotated[tuple[str, ...] | None, "The names of its classes, in the order of its logits."] = None,
    task: Annotated[ProblemType | None, "What it answers; by its labels if not given."] = None,
    texts: Annotated[
        Sequence[str], Option("A text; may be repeated. Without it, each line of stdin is one.", flags="--text")
    ] = (),
    data: Annotated[Path | None, Option("Texts: lines of a `.txt`, or rows of a csv, tsv or jsonl.", "FILE")] = None,
    text_column: Annotated[str, Option("Its column with the texts.", "NAME")] = "text",
    arrays: Annotated[
        Path | None, Option("A `.npz` or `.safetensors` with an array for each input, not texts.", "FILE")
    ] = None,
    out: Annotated[Path | None, Option("Write all outputs to this `.npz` or `.safetensors`.", "FILE")] = None,
    many: Annotated[
        bool, "For many rows: batched by length, each a request of its own; one JSON document a line."
    ] = False,
    token_budget: Annotated[int | None, Option("Most tokens in a call of `--many`.", "N", least=1)] = None,
    allow_mixed_rows: Annotated[
        bool, "Put rows of different adapters in one call although the base lets rows influence each other."
    ] = False,
    provider: Annotated[Literal["cpu", "cuda"], "Where to compute."] = "cpu",
    threads: Annotated[
        int | None, Option("Threads of one operation; ONNX Runtime's choice if not given.", least=1)
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run BUNDLE on texts or arrays, with its adapters or with the base alone.

    An adapter's result is that of its task: the labels of texts or of their tokens with their probabilities,
    numbers, or the beginning of each vector. The base alone, and an adapter without a head, print a summary of the
    outputs. Rows with different adapters need the bundle's graph `bank`.
    """
    from adapter_export.cli import rows as reading
    from adapter_export.runtime import Bundle

    check_together(
        apart=(
            ("adapter", "adapters", "adapter_column"),
            ("texts", "data", "arrays"),
            ("many", "out"),
            ("many", "weights"),
        ),
        needs={
            "labels": ("adapter_file", "names the classes of"),
            "task": ("adapter_file", "is that of"),
            "adapter_column": ("data", "is one of"),
            "token_budget": ("many", "is that of"),
            "weights": ("adapter", "are those of an"),
        },
    )
    if out is not None:
        reading.check_suffix(out)
        check_free(out, force=force)
    opened = Bundle.open(bundle)
    found: list[Text] = []
    rows: Rows
    if arrays is not None:
        rows = reading.ArrayRows(opened, reading.read_arrays(arrays))
    else:
        found = reading.read_texts(texts) if data is None else reading.read_file(data, text_column, adapter_column)
        rows = reading.TextRows(opened, found)
    session = opened.session(provider=provider, threads=threads, on_demand=True)
    if adapter_file is not None:
        name = adapter_file.name.partition(".")[0]
        name = f"{name}.loaded" if name in session.adapters else name
        session.load(name, adapter_file, labels=labels, task=task)
        adapter = adapter or name  # a file that is given and nothing chosen is meant to be used
    if adapters is not None:
        names = _for_each_row(adapters, len(rows))
    elif adapter_column is not None:
        names = _of_table(found, session)
    else:
        names = (adapter,) * len(rows)
    call = _Call(session, rows, names, [record.name for record in opened.manifest.base_outputs], allow_mixed_rows)
    if many:
        call.write_lines(token_budget)
        return
    batches = call.batches(weights, size=len(rows) if out or arrays else _ROWS_AT_ONCE)
    if out is not None:
        reading.write_arrays(out, batches[0][1], force=force)
    call.show(batches, as_json=as_json)


def _for_each_row(listed: str, rows: int) -> tuple[str | None, ...]:
    adapters, where = [name.strip() for name in listed.split(",")], "`--adapters`"
    if "" in adapters:
        raise UsageError("an adapter without a name", where=where, found=f"`{listed}`", expected=f"`a,b,{_BASE}`")
    if len(adapters) != rows:
        raise UsageError(
            "there is not one adapter for each row",
            where=where,
            found=f"{len(adapters)} adapters for {rows} rows",
            fix=f"name one for each, `{_BASE}` for the base; `--adapter` is for all rows",
        )
    return tuple(None if name == _BASE else name for name in adapters)


def _of_table(texts: Sequence[Text], session: Session) -> tuple[str | None, ...]:
    """Return the adapter of each text; one that is not loaded is an error before anything is computed."""
    for text in {text.adapter: text for text in reversed(texts)}.values():
        if text.adapter is not None:
            with within(text.where):
                session.task(text.adapter)
    return tuple(text.adapter for text in texts)


def _has_tokens(head: Head) -> bool:
    return head.task is not None and head.task.type in TOKEN_TYPES


@dataclass(frozen=True)
class _Call:
    """Rows, the adapter of each (none is the base), and the outputs that every row has."""

    session: Session
    rows: Rows
    names: tuple[str | None, ...]
    base: Sequence[str]
    allow_mixed_rows: bool

    def heads(self) -> list[Head]:
        """Return what the result of each row means."""
        from adapter_export.cli.results import head_of

        known = {name: head_of(self.session, name) for name in dict.fromkeys(self.names)}
        return [known[name] for name in self.names]

    def batches(self, weights: Mapping[str, float] | None, size: int) -> list[Batch]:
        """Run the rows in their order, `size` at a time."""
        found: list[Batch] = []
        for start in range(0, len(self.rows), size):
            end = min(start + size, len(self.rows))
            names, arrays = self.names[start:end], self.rows.inputs(start, end)
            if len(set(names)) == 1:
                outputs = self.session.run(arrays, names[0], weights=weights)
            else:
                outputs = self.session.run(arrays, adapters=names, allow_mixed_rows=self.allow_mixed_rows)
            found.append((range(start, end), outputs))
        return found

    def show(self, batches: Sequence[Batch], *, as_json: bool) -> None:
        """Write the result of each row, or without any head a summary of the outputs."""
        from adapter_export.cli import results

        heads = self.heads()
        if len(set(heads)) == 1 and heads[0].task is None:
            results.show_outputs(heads[0].adapter, [outputs for _, outputs in batches], as_json=as_json)
            return
        found = [result for batch in batches for result in self._results(*batch, heads)]
        if as_json:
            emit_json(results.document(found))
            return
        show(*results.tables(found))
        if {result.type for result in found} == {"embedding"}:
            say("`--out FILE.npz` or `--json` gives the vectors whole.")

    def _results(self, rows: range, outputs: dict[str, np.ndarray], heads: list[Head]) -> Iterator[Result]:
        heads = heads[rows.start : rows.stop]
        output = heads[0].output
        if len(set(heads)) == 1 and output is not None:  # a base may have its rows along another axis than the first
            heads = heads[:1] * len(outputs[output])
        has_tokens = any(_has_tokens(head) for head in heads)
        tokens = self.rows.tokens(rows.start, rows.stop) if has_tokens else [()] * len(heads)
        for row, head in enumerate(heads):
            yield head.result(self.rows.name(rows.start + row), outputs, row, self.base, tokens[row])

    def write_lines(self, token_budget: int | None) -> None:
        """Run each row as a request of its own, and write one JSON document a line, in their order."""
        from adapter_export.cli.results import full_facts
        from adapter_export.runtime import Request

        heads = self.heads()
        budget = {} if token_budget is None else {"token_budget": token_budget}
        finished = 0

        def advance(done: int, _: int) -> None:
            nonlocal finished
            bar.advance(start + done - finished)
            finished = start + done

        with progress_bar("running", len(self.rows)) as bar:
            for start in range(0, len(self.rows), _WINDOW):
                window = range(start, min(start + _WINDOW, len(self.rows)))
                requests = [Request(self.rows.inputs(row, row + 1), self.names[row]) for row in window]
                with within(f"rows from {start} on"):
                    found = self.session.run_many(
                        requests, progress=advance, allow_mixed_rows=self.allow_mixed_rows, **budget
                    )
                for row, outputs in zip(window, found, strict=True):
                    tokens = self.rows.tokens(row, row + 1)[0] if _has_tokens(heads[row]) else ()
                    result = heads[row].result(self.rows.name(row), outputs, 0, self.base, tokens)
                    click.echo(json.dumps(full_facts(result), ensure_ascii=False, allow_nan=False))
