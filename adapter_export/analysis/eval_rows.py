"""Labelled rows as an adapter is asked them, the results that a bundle or its model gives, and their judgement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter_export.errors import DataError, UsageError, argument, within
from adapter_export.format.labelled import LabelledFile, LabelledRow, some
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import Task
from adapter_export.numerics.metrics import (
    Indices,
    Judged,
    judge_choices,
    judge_classes,
    judge_label_sets,
    judge_neighbours,
    judge_numbers,
    judge_ranking,
    judge_similarities,
    judge_spans,
    judge_tags,
)
from adapter_export.numerics.runner import Runner, run
from adapter_export.runtime.answerer import Answerer, Reader, Row
from adapter_export.runtime.answers import TokenLabels, activated
from adapter_export.runtime.text_answers import ReadText, answered
from adapter_export.text import Pair

Results = Sequence[Sequence[np.ndarray]]
"""For each text that was read what the head gave: for the text, or for each of its choices."""

OnRows = Callable[[int], None]
"""Called with the number of rows that are done so far."""


@dataclass(frozen=True)
class Asked:
    """Labelled rows, read as tokens for an adapter.

    Attributes:
        rows: the rows.
        task: that of the adapter.
        read: what was read: a text for each row, or where pairs are compared by their vectors, all first texts, then
            all second ones.
        compared: whether pairs are compared.
        groups: of a ranking, for each row what it is ranked within.
    """

    rows: tuple[LabelledRow, ...]
    task: Task
    read: tuple[ReadText, ...]
    compared: bool = False
    groups: tuple[str, ...] = ()

    def only(self, rows: Indices, results: Results) -> tuple[Asked, Results]:
        """Return some of the rows, with their results."""
        at = [*rows, *(rows + len(self.rows) if self.compared else ())]
        groups = tuple(self.groups[row] for row in rows) if self.groups else ()
        kept = replace(
            self, rows=tuple(self.rows[row] for row in rows), read=tuple(self.read[one] for one in at), groups=groups
        )
        return kept, [results[one] for one in at]

    def different(self) -> Indices:
        """Return the rows that do not repeat an earlier one, as training keeps them."""
        seen: dict[Any, int] = {}
        for at, row in enumerate(self.rows):
            seen.setdefault((row.text, row.pair, row.answer), at)
        return np.array(list(seen.values()), np.int64)

    def notes(self) -> Iterator[str]:
        """Yield what the caller should know of the texts."""
        cut = sum(one.cut > 0 for one in self.read)
        if cut and self.task.input == "audio":
            yield f"{cut:,} clips are longer than the model reads and were cut there, as every client cuts them"
        elif cut:
            limit = max(len(row.encoding.ids) for one in self.read if one.cut for row in one.rows)
            yield f"{cut:,} texts are longer than {limit} tokens and were cut there, as every client cuts them"
        if self.task.type == "single_label" and len(self.rows) > 1 and len({row.answer for row in self.rows}) == 1:
            yield f"every row has the label `{self.rows[0].answer}`: the scores say nothing of the other classes"


def ask(rows: Sequence[LabelledRow], reader: Reader, adapter: str, task: Task, group: str | None) -> Asked:
    """Read labelled rows as tokens for an adapter.

    Raises:
        UsageError: the task takes pairs and the rows are none, or the other way round.
        RequestError: a text cannot be read.
    """
    compared = task.type == "embedding" and rows[0].pair is not None
    if not compared and (rows[0].pair is not None) != (task.input == "pair"):
        wanted = "one text" if task.input == "text" else "a pair of texts"
        fix = f"name the column of the second texts: {argument('pair')}"
        raise UsageError(
            f"adapter `{adapter}` answers {wanted} (`{task.type}`)",
            fix=fix if task.input == "pair" else f"leave {argument('pair')} out",
        )
    groups: tuple[str, ...] = ()
    if task.type == "ranking":
        groups = tuple(str(row.text if group is None else row.cells[group]) for row in rows)
    texts, names = _texts(rows, compared), [adapter] * len(rows) * (2 if compared else 1)
    places = [f"line {row.line}" for row in rows] * (2 if compared else 1)
    read = reader.read(texts, adapters=names, long="cut", stride=None, places=places)
    return Asked(tuple(rows), task, tuple(read), compared, groups)


def _texts(rows: Sequence[LabelledRow], compared: bool) -> list[Any]:
    """Return the text of each row; for pairs that are compared, all first texts, then all second ones."""
    return [row.text for row in rows] + [row.pair for row in rows] if compared else [_text(row) for row in rows]


def _text(row: LabelledRow) -> Any:
    if isinstance(row.text, LabelledFile):
        return row.text.path
    if row.pair is None or not isinstance(row.text, str):
        return row.text
    return Pair(row.text, row.pair) if isinstance(row.pair, str) else [Pair(row.text, choice) for choice in row.pair]


def by_bundle(asked: Asked, reader: Reader, adapter: str, progress: OnRows | None = None) -> Results:
    """Return the results of the bundle's graph, each row as it is answered alone.

    Raises:
        RequestError: ONNX Runtime cannot compute them.
    """
    rows = [Row(text, adapter) for text in _texts(asked.rows, asked.compared)]
    return [one.results for one in Answerer(reader.session, reader).answer(rows, progress)]


def by_model(
    asked: Asked,
    reader: Reader,
    adapter: Adapter,
    runner: Runner,
    outputs: Sequence[str],
    output: str,
    progress: OnRows,
) -> Results:
    """Return the results of the reference, each text in a call of its own; `outputs` are those of the base.

    Raises:
        RequestError: it cannot compute them.
    """
    found = list[list[np.ndarray]]()
    for done, one in enumerate(asked.read, 1):
        results = []
        for row in one.rows:
            result = run(runner, reader.arrays([row], adapter.name), adapter, outputs, output)[output][0]
            results.append(reader.without_padding({output: result}, row)[output])
        found.append(results)
        progress(done)
    return found


def judge(asked: Asked, results: Results) -> Judged:
    """Judge results by what is right.

    Raises:
        DataError: a label is none of the adapter's, or the rows cannot be judged.
        RequestError: a result holds NaN or Inf.
    """
    task, right = asked.task, [row.answer for row in asked.rows]
    for row, own in zip(asked.rows, results, strict=False):
        if not all(np.isfinite(result).all() for result in own):
            raise DataError("the answer is NaN or infinite", where=f"line {row.line}", fix="run `verify` on the bundle")
    match task.type:
        case "single_label":
            return judge_classes(_activated(task, results), _numbers_of(asked, task.labels), task.labels)
        case "multi_label":
            _numbers_of(asked, task.labels)
            wanted = np.array([[label in own for label in task.labels] for own in right])
            thresholds = [task.threshold(at) for at in range(len(task.labels))]
            return judge_label_sets(_activated(task, results), wanted, task.labels, thresholds)
        case "multiple_choice":
            return judge_choices([np.concatenate(own).astype(np.float64) for own in results], np.array(right, np.int64))
        case "token":
            return _judge_words(asked, results)
        case "span":
            spans = [answered(one, own).span for one, own in zip(asked.read, results, strict=True)]
            texts = [[one.text for one in own] for own in right]
            return judge_spans(["" if span is None else span[0] for span in spans], texts)
        case "regression":
            return judge_numbers(_activated(task, results), _table_of_numbers(asked, len(results[0][0])))
        case "embedding":
            vectors = np.stack([own[0] for own in results]).astype(np.float64)
            if not asked.compared:
                return judge_neighbours(vectors, right)
            unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
            first, second = np.split(unit, 2)
            return judge_similarities((first * second).sum(-1), _table_of_numbers(asked, 1)[:, 0])
        case "ranking":
            return judge_ranking(_activated(task, results)[:, 0], np.array(right, np.float64), asked.groups)


def _activated(task: Task, results: Results) -> Any:
    return activated(task, np.stack([own[0] for own in results]))


def strangers(asked: Asked) -> dict[str, int]:
    """Return the labels of rows that the adapter does not have, each with the line where it is first."""
    found: dict[str, int] = {}
    if asked.task.type in ("single_label", "multi_label", "token"):
        known = set(asked.task.labels)
        for row in asked.rows:
            for label in [row.answer] if isinstance(row.answer, str) else row.answer:
                if label not in known:
                    found.setdefault(label, row.line)
    return found


def _numbers_of(asked: Asked, labels: Sequence[str]) -> Indices:
    """The number of each row's label; of rows with several labels only their names are checked."""
    unknown = strangers(asked)
    if unknown:
        raise DataError(
            "holds labels that the adapter does not have",
            where=f"line {min(unknown.values())}",
            found=some(unknown),
            expected=some(labels),
            fix="map them to the adapter's labels, or name the column of the labels",
        )
    index = {label: number for number, label in enumerate(labels)}
    return np.array([index[row.answer] for row in asked.rows if isinstance(row.answer, str)], np.int64)


def _table_of_numbers(asked: Asked, count: int) -> Any:
    for row in asked.rows:
        if len(row.answer) != count:
            found = f"{len(row.answer)} numbers"
            raise DataError("has another number of numbers", where=f"line {row.line}", found=found, expected=count)
    return np.array([row.answer for row in asked.rows], np.float64)


def _judge_words(asked: Asked, results: Results) -> Judged:
    """Judge each word by its first token; a word that was cut has none, and is left out."""
    _numbers_of(asked, asked.task.labels)
    index = {label: number for number, label in enumerate(asked.task.labels)}
    columns: tuple[list[Any], list[Any], list[Any]] = [], [], []
    for row, read, own in zip(asked.rows, asked.read, results, strict=True):
        with within(f"line {row.line}"):
            found = answered(read, own)
        assert isinstance(found.answer, TokenLabels)
        words: dict[int, Any] = {}
        for token, said in zip(found.tokens, found.answer.tokens, strict=True):
            if token.word is not None:
                words.setdefault(token.word, said)
        columns[0].append(np.array([index[said.label] for said in words.values()], np.int64))
        columns[1].append(np.array([index[row.answer[word]] for word in words], np.int64))
        columns[2].append(np.array([said.probability for said in words.values()]))
    answered_labels, right, sure = columns
    lost = sum(len(row.answer) for row in asked.rows) - sum(map(len, right))
    judged = judge_tags(answered_labels, right, asked.task.labels, sure)
    return replace(judged, notes=(f"{lost:,} words lie in what was cut and were left out",)) if lost else judged


def shown_text(row: LabelledRow) -> str:
    """Return the texts of a row in one line."""
    if isinstance(row.text, LabelledFile):
        return str(row.text)
    parts = [row.text] if row.pair is None else [row.text, row.pair]
    return " | ".join(part if isinstance(part, str) else " ".join(part) for part in parts)


def slice_values(rows: Sequence[LabelledRow], column: str) -> list[str]:
    """Return what a column says of each row."""
    values: Mapping[Any, str] = {None: "(empty)", "": "(empty)"}
    cells = [row.cells[column] for row in rows]
    return [values.get(cell, str(cell)) if isinstance(cell, str | None) else str(cell) for cell in cells]
