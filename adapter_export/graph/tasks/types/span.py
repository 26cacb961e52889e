"""The part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from adapter_export.errors import DataError, RequestError
from adapter_export.graph.tasks.answers import ReadText, ShownRow, Span, TextAnswer, softmax
from adapter_export.graph.tasks.cells import Cells, Found, short, text_cell
from adapter_export.graph.tasks.task_type import Mask, Measured, TaskType
from adapter_export.tables import number_of, probability_cells
from adapter_export.text import Pair
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task

LONGEST_SPAN = 30
"""The most tokens of the span that answers a question."""


@dataclass(frozen=True)
class GivenSpan:
    """An answer in a context: its text, and its first character, counted from 0."""

    text: str
    start: int


class SpanType(TaskType):
    """The span of tokens with the highest sum of a start logit and an end logit."""

    name = "span"
    output = "token_logits"
    width = 2
    pools = False
    pairs = "required"
    has_start = needs_context = True
    column = "answer"
    pipeline = "question-answering"
    model_classes = ("ForQuestionAnswering",)
    peft_type = "QUESTION_ANS"
    adapterhub_heads = ("question_answering",)

    def read(self, cells: Cells) -> Found:
        """Return a question, its context, and the spans that answer it."""
        question, context = text_cell(cells.text), text_cell(cells.pair)
        spans = _spans(cells.label, cells.start, cells.where)
        if question is None or context is None or not spans:
            return None
        placed = (_placed(text, start, context, cells.where) for text, start in spans)
        return question, context, tuple(dict.fromkeys(placed))

    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:  # noqa: ARG002
        """Return the spans of each row as they are."""
        return answers

    def group(self, text: Any) -> str:
        """Return the context."""
        return str(text.second)

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Span:  # noqa: ARG002
        """Return the best span of logits [tokens, 2] within the tokens that may be the answer."""
        context = real if context is None else context
        if context.shape != result.shape[:1]:
            raise RequestError(
                "`context` needs one value per token of the row",
                found=len(context),
                expected=number_of(len(result), "token"),
            )
        places = np.flatnonzero(context & real)
        if not len(places):
            raise RequestError("no token may be the answer", expected="a text beside the question")
        starts, ends = softmax(result[places, 0]), softmax(result[places, 1])
        shares = np.where(_within_reach(places), np.outer(starts, ends), 0.0)
        first, last = np.unravel_index(int(shares.argmax()), shares.shape)
        return Span(int(places[first]), int(places[last]), float(shares[first, last]))

    def answer_text(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> TextAnswer:
        """Return the span of highest logits of all windows: probabilities of one window say nothing of another."""
        spans: list[tuple[float, int, Span]] = []
        for at, (row, result) in enumerate(zip(read.rows, results, strict=True)):
            answer = task.answer(result, None, self.context(row, task))
            assert isinstance(answer, Span)
            spans.append((float(result[answer.first_token, 0] + result[answer.last_token, 1]), -at, answer))
        _, at, span = max(spans, key=lambda each: each[:2])
        row = read.rows[-at]
        second = read.text.second if isinstance(read.text, Pair) else read.text
        start, end = row.encoding.offsets[span.first_token][0], row.encoding.offsets[span.last_token][1]
        places = row.places or range(len(row.encoding.ids))
        whole = replace(span, first_token=places[span.first_token], last_token=places[span.last_token])
        words = (second[start:end], start, end) if isinstance(second, str) else None
        return TextAnswer(whole, read.cut, read.windows, span=words)

    def context(self, read: Any, task: Task) -> Mask:
        """Return the tokens of the second text, or of the only one; there may be none."""
        second = int(task.input == "pair")
        return np.array([part == second for part in read.encoding.sequence_ids], bool)

    def is_decided(self, task: Task, result: np.ndarray, absolute: float, context: Mask | None) -> bool:  # noqa: ARG002
        """Return true if the best span leads by more than four times the allowed deviation of a logit."""
        if context is None:
            return True
        places = np.flatnonzero(context)
        sums = np.add.outer(result[places, 0].astype(np.float64), result[places, 1])[_within_reach(places)]
        ordered = np.sort(sums)
        # two sums of two logits, each of which may be off by `absolute`
        return len(ordered) < 2 or bool(ordered[-1] - ordered[-2] > 4 * absolute)

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return exact match and F1, as SQuAD has them."""
        from adapter_export.graph.tasks.metrics import SPANS

        return SPANS

    def measured(self, read: Sequence[ReadText], results: Sequence[Sequence[np.ndarray]], right: Any) -> Measured:
        """Return the words of the span in each text."""
        spans = [
            self.answer_text(text, text.task, of_text).span
            for text, of_text in zip(read, results, strict=True)
            if text.task
        ]
        return Measured(["" if span is None else span[0] for span in spans], right)

    def judge(self, task: Task, rows: Measured) -> Judged:  # noqa: ARG002
        """Judge words by the right answers of each row."""
        from adapter_export.graph.tasks.metrics import judge_spans

        return judge_spans(rows.results, [[answer.text for answer in row] for row in rows.right])

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the words of the span, or its tokens, and its probability."""
        answer = row.text_answer.answer
        assert isinstance(answer, Span)
        words = (
            f"tokens {answer.first_token} to {answer.last_token}"
            if row.text_answer.span is None
            else row.text_answer.span[0]
        )
        return words, *probability_cells(answer.probability)


def _spans(cell: Any, start: Any, where: str) -> list[tuple[Any, Any]]:
    """Return answers with their start (may be unknown), from SQuAD's layouts or two columns."""
    pairs: list[tuple[Any, Any]]
    if isinstance(cell, Mapping):
        texts, starts = cell.get("text"), cell.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            pairs = list(zip(texts, starts, strict=True))
        else:
            pairs = [(texts, starts)]
    elif isinstance(cell, list) and all(isinstance(reference, Mapping) for reference in cell):
        pairs = [(reference.get("text"), reference.get("answer_start")) for reference in cell]
    else:
        answer = text_cell(cell)
        pairs = [] if answer is None else [(answer, start)]
    if not all(isinstance(text, str) and text.strip() for text, _ in pairs):
        expected = 'a text, or `{"text": […], "answer_start": […]}` as in SQuAD'
        raise DataError("contains no answer", where=where, found=f"`{short(cell)}`", expected=expected)
    return pairs


def _placed(text: str, start: Any, context: str, where: str) -> GivenSpan:
    """Return an answer with its position in the context."""
    shown = f"`{short(text)}`"
    if start is None or start == "":
        count = context.count(text)
        if not count:
            raise DataError("the answer is not in its context", where=where, found=shown, expected="its very words")
        if count > 1:
            fix = "name the column with its first character: " + argument("start")
            raise DataError(f"the answer is {count} times in its context", where=where, found=shown, fix=fix)
        return GivenSpan(text, context.index(text))
    whole = not isinstance(start, bool) and str(start).strip().isdecimal()
    at = int(start) if whole else -1
    excerpt = context[max(at, 0) :][: len(text)]
    if at < 0 or excerpt != text:
        raise DataError(
            "the answer is not in its context at its start",
            where=where,
            found=f"{shown} at `{short(start)}`" + ("" if at < 0 else f", where there is `{short(excerpt)}`"),
            expected="the number of its first character, counted from 0",
        )
    return GivenSpan(text, at)


def _within_reach(places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return true for each pair of places that a span may join."""
    lengths = places[None, :] - places[:, None] + 1
    return (lengths >= 1) & (lengths <= LONGEST_SPAN)


TYPE = SpanType()
