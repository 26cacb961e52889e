"""Results of `run`: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from adapter_export.batch.table_rows import document_of as document_of
from adapter_export.batch.table_rows import json_line, shown_texts
from adapter_export.cli.output import emit_json, say, show
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import ProblemType
from adapter_export.runtime.answerer import AnsweredRow
from adapter_export.runtime.answers import Answer, Head, LabelSet, Numbers, Prediction, Score, Span, TokenLabels, Vector
from adapter_export.runtime.text_answers import Choice, TextAnswer
from adapter_export.tables import Table

_FEW = 3
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@dataclass(frozen=True)
class Result:
    """The result of one row for people: its texts, its answer, or without a task a summary of each output."""

    texts: Mapping[str, Any]
    head: Head
    said: TextAnswer | None
    outputs: Sequence[Summary]

    @classmethod
    def of(cls, found: AnsweredRow) -> Result:
        """Return that of an answered row, whose outputs are no longer needed."""
        has_task = found.head.task is not None and found.head.output is not None
        outputs = [] if has_task else [Summary.of(name, array) for one in found.outputs for name, array in one.items()]
        return cls(shown_texts(found.row), found.head, found.answer if has_task else None, outputs)

    @property
    def name(self) -> str:
        """Its text, or both texts of a pair."""
        second = self.texts.get("pair")
        return str(self.texts["text"]) if second is None else f"{self.texts['text']} | {second}"

    @property
    def type(self) -> ProblemType | None:
        """The problem type of its adapter's task; `None` without a task."""
        return None if self.head.task is None else self.head.task.type

    def answer(self) -> Answer | Choice:
        """Return the answer of the adapter to the row."""
        assert self.said is not None  # as callers have seen
        return self.said.answer

    def token_classes(self) -> list[tuple[str, Prediction]]:
        """Return its tokens, as the tokenizer writes them or by their places, with the class of each."""
        assert self.said is not None
        assert isinstance(self.said.answer, TokenLabels)
        labels = self.said.answer.tokens
        names = [token.text for token in self.said.tokens] or [f"token {place}" for place in range(len(labels))]
        return [(name, one) for name, one in zip(names, labels, strict=True) if one is not None]


@dataclass(frozen=True)
class Summary:
    """An output of a row: its name, type and shape, and the least, the mean and the greatest of its finite numbers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    numbers: tuple[float | None, float | None, float | None]

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Summary:
        """Return that of an array."""
        finite = array[np.isfinite(array)]
        least, mean, greatest = (float(getattr(finite, key)()) if finite.size else None for key in _MEASURES)
        return cls(name, array.dtype.name, array.shape, (least, mean, greatest))


_MEASURES = ("min", "mean", "max")


def write_line(found: AnsweredRow) -> None:
    """Write an answered row to stdout as a line of JSON."""
    click.echo(json_line(found), nl=False)


def show_results(found: Sequence[Any], *, as_json: bool) -> None:
    """Write all rows to stdout: their documents as one, or their results in tables."""
    if as_json:
        emit_json({"rows": found})
        return
    heads = {result.head for result in found}
    if len(heads) == 1 and found[0].said is None:
        show(_summaries(found))
        return
    show(*tables(found))
    if {result.type for result in found} == {"embedding"}:
        say("`--out FILE.npz` or `--json` gives the vectors whole.")


def _summaries(results: Sequence[Result]) -> Table:
    """List each output of each row."""
    adapter = results[0].head.adapter
    rows = [
        (result.name, one.name, one.dtype, list(one.shape), *("–" if n is None else f"{n:.4g}" for n in one.numbers))
        for result in results
        for one in result.outputs
    ]
    title = "the base alone" if adapter is None else f"adapter `{adapter}`"
    return Table(("text", "output", "type", "shape", *_MEASURES), rows, title, "llllrrr")


def stacked(rows: Sequence[tuple[str | None, Mapping[str, np.ndarray]]], manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the outputs of rows, each with the output of its head, as arrays [rows, …].

    Rows are padded with zeros after their tokens. A row holds −inf for classes that its adapter does not have, and NaN
    in the output of a head that is not its own.
    """
    heads, found = {head.output for head in manifest.heads}, dict[str, np.ndarray]()
    for name in dict.fromkeys(name for _, outputs in rows for name in outputs):
        own = [(at, outputs[name]) for at, (_, outputs) in enumerate(rows) if name in outputs]
        shape = tuple(max(sizes) for sizes in zip(*(array.shape for _, array in own), strict=True))
        found[name] = np.full((len(rows), *shape), np.nan if len(own) < len(rows) else 0, own[0][1].dtype)
        for at, array in own:
            target = found[name][at]
            target[...] = 0
            if name in heads:
                target[tuple(slice(size) for size in array.shape[:-1])] = -np.inf
            target[tuple(slice(size) for size in array.shape)] = array
    return found


def tables(results: Sequence[Result]) -> Iterator[Table | str]:
    """Return what to show; where the rows ran through different adapters, one line for each row."""
    problem = results[0].type if len({result.head for result in results}) == 1 else None
    match problem:
        case "single_label" if len(results) <= _FEW:
            for result in results:
                yield from (result.name, _shares(result.answer(), "label"))
        case "multi_label" if len(results) <= _FEW:
            for result in results:
                yield from (result.name, _shares(result.answer(), "label"))
        case "single_label" | "multi_label" | "ranking" | "multiple_choice" | "span":
            rows = [(result.name, *_cells(result)) for result in results]
            columns = {"ranking": "score", "multiple_choice": "choice", "span": "answer"}
            yield Table(("text", columns.get(problem, "label"), "probability", ""), rows, numbers="llr")
        case "token":
            for result in results:
                cells = [(token, one.label, *_share(one.probability)) for token, one in result.token_classes()]
                yield from (result.name, Table(("token", "label", "probability", ""), cells, numbers="llr"))
        case "regression":
            numbers_of = [_values(result) for result in results]
            count = len(numbers_of[0])
            columns_of = ["number"] if count == 1 else [f"number {place}" for place in range(count)]
            found = zip(results, numbers_of, strict=True)
            numbers = [[result.name, *(f"{number:.6g}" for number in values)] for result, values in found]
            yield Table(("text", *columns_of), numbers, numbers="l" + "r" * count)
        case "embedding":
            lengths = [f"{float(np.linalg.norm(_values(result))):.4g}" for result in results]
            vectors_of = zip(results, lengths, strict=True)
            vectors = [(result.name, len(_values(result)), length, _cells(result)[0]) for result, length in vectors_of]
            yield Table(("text", "width", "length", "vector"), vectors, numbers="lrr")
        case None:
            mixed = [(result.name, result.head.adapter or "the base alone", *_cells(result)) for result in results]
            yield Table(("text", "adapter", "result", "probability", ""), mixed, numbers="lllr")


def _shares(said: Answer | Choice, column: str) -> Table:
    """List the classes of a text, the most probable first; of several labels, those that apply are marked."""
    assert isinstance(said, Prediction | LabelSet)
    ranked = sorted(said.probabilities.items(), key=lambda item: -item[1])
    applies = set(said.labels) if isinstance(said, LabelSet) else set()
    rows = [(f"{label} ✓" if label in applies else label, *_share(number)) for label, number in ranked]
    return Table((column, "probability", ""), rows, numbers="lr")


def _values(result: Result) -> np.ndarray:
    said = result.answer()
    assert isinstance(said, Numbers | Vector)
    return said.numbers if isinstance(said, Numbers) else said.vector


def bar(probability: float) -> str:
    """Return a bar whose length is a probability, in eighths of a character."""
    full, eighths = divmod(round(probability * _BAR * 8), 8)
    return "█" * full + _EIGHTHS[eighths]


def _share(probability: float) -> tuple[str, str]:
    return f"{probability:.3f}", bar(probability)


def _cells(result: Result) -> tuple[str, str, str]:
    """Return the result in a line: what it is, and of a class its probability."""
    if result.said is None:
        return ", ".join(f"{one.name} {list(one.shape)}" for one in result.outputs), "", ""
    said = result.answer()
    match said:
        case Prediction():
            return said.label, *_share(said.probability)
        case LabelSet():
            shares = [said.probabilities[label] for label in said.labels]
            return ", ".join(said.labels) or "none", *(_share(min(shares)) if shares else ("", ""))
        case TokenLabels():
            return " ".join(f"{token}/{one.label}" for token, one in result.token_classes()), "", ""
        case Span():
            text = (
                f"tokens {said.first_token} to {said.last_token}" if result.said.span is None else result.said.span[0]
            )
            return text, *_share(said.probability)
        case Choice():
            choices = result.texts.get("choices", ())
            return choices[said.choice], *_share(said.probabilities[said.choice])
        case Score():
            return f"{said.score:.4f}", "", ""
        case _:
            values = _values(result)
            more = " …" if len(values) > _NUMBERS_SHOWN else ""
            return " ".join(f"{number:.4f}" for number in values[:_NUMBERS_SHOWN]) + more, "", ""
