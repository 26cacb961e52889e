"""Answers to texts, from the results of the rows of each: its windows or its choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import Task
from adapter_export.runtime.answers import (
    Answer,
    Score,
    Span,
    TokenLabels,
    activated,
    answer,
    choose,
    document,
)
from adapter_export.text import EncodedText, Pair, Text

Asked = Text | Sequence[Pair]
"""A text, a pair, the words of a text, or a question with each of its choices: a list of pairs."""


@dataclass(frozen=True)
class Choice:
    """The answer to a question with several choices.

    Attributes:
        choice: the best of them, from 0.
        probabilities: of each, the softmax over their scores.
    """

    choice: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Token:
    """A token of a text, and where it stands.

    Attributes:
        text: as the tokenizer writes it.
        start: its first character, from 0, or within its word, where words were given; none without a text.
        end: the first character behind it.
        word: the word that it is of, where words were given.
    """

    text: str
    start: int | None = None
    end: int | None = None
    word: int | None = None

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"token": self.text, **({} if self.start is None else {"start": self.start, "end": self.end})}


@dataclass(frozen=True)
class TextAnswer:
    """The answer of an adapter to a text, an image, an audio file or a row of arrays.

    Attributes:
        answer: by the type of its task; the places of a span are tokens of the whole text.
        cut: how many tokens of the text were left out.
        windows: how many windows the text was read in.
        tokens: for a token task on a text, the tokens that have labels: none of these is special.
        span: for a span of a text its words, its first character in the second text, and the one after its last.
    """

    answer: Answer | Choice
    cut: int = 0
    windows: int = 1
    tokens: tuple[Token, ...] = ()
    span: tuple[str, int, int] | None = None

    def document(self) -> dict[str, Any]:
        """Return it as JSON, as every client writes it; `cut` and `windows` where there is something to say."""
        found: dict[str, Any]
        if isinstance(self.answer, Choice):
            found = {"choice": self.answer.choice, "probabilities": list(self.answer.probabilities)}
        else:
            found = document(self.answer)
        if isinstance(self.answer, TokenLabels) and self.tokens:
            pairs = zip(self.tokens, found["tokens"], strict=True)
            found["tokens"] = [{**one.document(), **said} for one, said in pairs]
        if self.span is not None:
            said, start, end = self.span
            found = {"answer": said, "start": start, "end": end, "probability": found["probability"]}
        return found | ({"cut": self.cut} if self.cut else {}) | ({"windows": self.windows} if self.windows > 1 else {})


@dataclass(frozen=True)
class ReadText:
    """A text as tokens: once, or in each of its windows, or for each of its choices; or an image or an audio file.

    Attributes:
        text: the text, or the name of an image or an audio file.
        rows: what the base is given: `EncodedText`, not padded, or a `MediaRow`.
        adapter: the adapter that it was read for; `None` is the base.
        task: that of the adapter, if it has one.
    """

    text: Asked
    rows: tuple[Any, ...]
    adapter: str | None
    task: Task | None

    @property
    def cut(self) -> int:
        """Number of tokens that were left out; for choices, of the one that lost most."""
        return 0 if self.windows > 1 else max(row.cut for row in self.rows)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return 1 if is_choices(self.text) else len(self.rows)


def is_choices(text: Asked) -> bool:
    """Return whether a text is a question with each of its choices."""
    several = isinstance(text, list | tuple) and not isinstance(text, Pair) and len(text) > 0
    return several and all(isinstance(one, Pair) for one in text)


def asked_of(document: object) -> Asked:
    """Return what a JSON value asks: a text, `{"text": …, "pair": …}` or `{"text": …, "choices": […]}`.

    Raises:
        RequestError: it is something else, such as a list, which could be words or a pair.
    """
    if isinstance(document, str):
        return document
    if isinstance(document, Mapping) and isinstance(first := document.get("text"), str):
        pair, choices = document.get("pair"), document.get("choices")
        if len(document) == 2 and isinstance(pair, str):
            return Pair(first, pair)
        if (
            len(document) == 2
            and isinstance(choices, list)
            and choices
            and all(isinstance(one, str) for one in choices)
        ):
            return [Pair(first, choice) for choice in choices]
    raise RequestError(
        "is no text",
        found=f"{document!a}"[:100],
        expected='a string, `{"text": …, "pair": …}` or `{"text": …, "choices": […]}`',
    )


def answered(read: ReadText, results: Sequence[np.ndarray]) -> TextAnswer:
    """Return the answer to a text from the results of its rows, each `[classes]`, `[tokens, classes]` or `[width]`.

    Raises:
        RequestError: as `runtime.answers.answer`.
    """
    task = read.task
    assert task is not None  # one who has none does not answer
    if is_choices(read.text):
        scores = [one for one in (answer(task, result) for result in results) if isinstance(one, Score)]
        best, shares = choose(scores)
        return TextAnswer(Choice(best, tuple(shares)), read.cut)
    if task.type == "span":
        return _span(task, read, results)
    if task.type == "token":
        return _tokens(task, read, results)
    result = results[0] if len(results) == 1 else mean(task, results)
    return TextAnswer(answer(task, result), read.cut, read.windows)


def mean(task: Task, results: Sequence[np.ndarray]) -> np.ndarray:
    """Return the result whose probabilities, numbers or vector are the mean of those of several results."""
    shares: np.ndarray = np.mean([activated(task, result) for result in results], axis=0)
    if task.activation == "softmax" and task.type == "single_label":
        logs: np.ndarray = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
        return logs
    if task.activation == "sigmoid":
        inside = np.clip(shares, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
        logits: np.ndarray = np.log(inside) - np.log1p(-inside)
        return logits
    if task.type == "embedding":
        length = float(np.linalg.norm(shares))
        return (shares / length if task.normalised and length > 0 else shares).astype(results[0].dtype)
    middle: np.ndarray = np.mean(results, axis=0)
    return middle


def context_of(row: EncodedText, task: Task) -> npt.NDArray[np.bool_]:
    """Return which tokens may be the answer to a question: those of the second text, or of the only one; maybe none."""
    second = int(task.input == "pair")
    return np.array([part == second for part in row.encoding.sequence_ids], bool)


def _span(task: Task, read: ReadText, results: Sequence[np.ndarray]) -> TextAnswer:
    """Return the span of highest logits of all windows: probabilities of one window say nothing of another."""
    found: list[tuple[float, int, Span]] = []
    for at, (row, result) in enumerate(zip(read.rows, results, strict=True)):
        one = answer(task, result, None, context_of(row, task))
        assert isinstance(one, Span)
        found.append((float(result[one.first_token, 0] + result[one.last_token, 1]), -at, one))
    _, at, span = max(found, key=lambda each: each[:2])
    row = read.rows[-at]
    second = read.text.second if isinstance(read.text, Pair) else read.text
    start, end = row.encoding.offsets[span.first_token][0], row.encoding.offsets[span.last_token][1]
    places = row.places or range(len(row.encoding.ids))
    whole = replace(span, first_token=places[span.first_token], last_token=places[span.last_token])
    said = (second[start:end], start, end) if isinstance(second, str) else None
    return TextAnswer(whole, read.cut, read.windows, span=said)


def _tokens(task: Task, read: ReadText, results: Sequence[np.ndarray]) -> TextAnswer:
    """Return the label of each token that is not special, from the window in which it stands farthest from an edge."""
    best: dict[int, tuple[int, int, int]] = {}
    for at, row in enumerate(read.rows):
        places, special = row.places or range(len(row.encoding.ids)), row.encoding.special_tokens_mask
        margins = row.margins or [0] * len(special)
        for token, place in enumerate(places):
            if not special[token]:
                best[place] = max(best.get(place, (-1, 0, 0)), (margins[token], -at, token))
    tokens, logits = [], []
    has_words = not isinstance(read.text, str | Pair)
    for place in sorted(best):
        _, at, token = best[place]
        encoding = read.rows[-at].encoding
        start, end = encoding.offsets[token]
        tokens.append(Token(encoding.tokens[token], start, end, encoding.word_ids[token] if has_words else None))
        logits.append(results[-at][token])
    if not tokens:
        return TextAnswer(TokenLabels(()), read.cut, read.windows)
    return TextAnswer(answer(task, np.stack(logits)), read.cut, read.windows, tuple(tokens))
