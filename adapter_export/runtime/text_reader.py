"""Texts in, answers out: each text becomes inputs as the record of its adapter says, and its result an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError, argument, within
from adapter_export.format.manifest import Manifest
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
    own_classes,
)
from adapter_export.runtime.batches import TOKEN_BUDGET, Progress, Request
from adapter_export.runtime.check_inputs import Weighting
from adapter_export.runtime.session import Session
from adapter_export.runtime.strength import Strength, strength_of_each
from adapter_export.text import EncodedText, Pair, Side, Text, Tokenizer, Tokens, check_inputs

LongTexts = Literal["cut", "refuse", "windows"]
"""What becomes of a text with more tokens than its adapter takes."""

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
    """What an adapter says of a text.

    Attributes:
        answer: by the type of its task; of a span, `start` and `end` are tokens of the whole text.
        cut: how many tokens of the text were left out.
        windows: how many windows the text was read in.
        tokens: of a token task the tokens that have labels: none of these is special.
        span: of a span what it says, its first character in the second text, and the first one behind it.
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
        if isinstance(self.answer, TokenLabels):
            pairs = zip(self.tokens, found["tokens"], strict=True)
            found["tokens"] = [{**one.document(), **said} for one, said in pairs]
        if self.span is not None:
            found |= dict(zip(("answer", "start", "end"), self.span, strict=True))
        return found | ({"cut": self.cut} if self.cut else {}) | ({"windows": self.windows} if self.windows > 1 else {})


@dataclass(frozen=True)
class ReadText:
    """A text as tokens: once, or in each of its windows, or for each of its choices; or a picture or a clip.

    Attributes:
        text: the text, or the name of a picture or a clip.
        rows: what the base is given: `EncodedText`, not padded, or a `MediaRow`.
        adapter: the adapter that it was read for; none is the base.
        task: that of the adapter, if it has one.
    """

    text: Asked
    rows: tuple[Any, ...]
    adapter: str | None
    task: Task | None

    @property
    def cut(self) -> int:
        """How many tokens were left out: of choices, of the one that lost most."""
        return 0 if self.windows > 1 else max(row.cut for row in self.rows)

    @property
    def windows(self) -> int:
        """How many windows it has."""
        return 1 if is_choices(self.text) else len(self.rows)


class TextReader:
    """Reads texts for the adapters of a bundle, by the record of each, and answers them with a session.

    Made by `Bundle.texts`.
    """

    window, token_budget = 1024, TOKEN_BUDGET
    """How many texts are answered at once, whose outputs are in memory together, and in calls of how many tokens."""

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest, session: Session) -> None:
        self.tokenizer, self.session = tokenizer, session
        self._own_head = manifest.head
        self._digest = None if manifest.text is None else manifest.text.digest
        self._inputs = [record.name for record in manifest.inputs]

    def read(
        self,
        texts: Sequence[Asked],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        long: LongTexts = "cut",
        stride: int | None = None,
        places: Sequence[str] = (),
    ) -> list[ReadText]:
        """Make tokens of texts, as the task of each one's adapter says.

        Args:
            texts: for a task of one text: texts, or the words of each; for a task of pairs: pairs, or for each question
                of a multiple-choice task a list of pairs.
            adapter: the adapter of all texts; without it, and without `adapters`, the base's own head, or the base.
            adapters: instead, one for each text.
            long: a text of more tokens than its adapter takes is cut, refused, or read in windows.
            stride: how many tokens neighbouring windows share; a quarter of a window if not given.
            places: what messages call each text; `text 0` and so on if not given.

        Raises:
            RequestError: a text is none, is of another kind than its task wants, or is too long and `long` refuses it;
                an adapter is not loaded, or was trained with another tokenizer.
        """
        names = list(adapters) if adapters is not None else [adapter] * len(texts)
        if isinstance(texts, str | Pair) or not texts or len(names) != len(texts):
            what = (
                "no texts" if isinstance(texts, str | Pair) or not texts else "there is not one adapter for each text"
            )
            found = f"{len(names)} adapters for {len(texts)} texts" if texts else "none"
            raise RequestError(what, found=found, expected="a list of texts, and an adapter for each or for all")
        places = places or [f"text {at}" for at in range(len(texts))]
        names = [self._own_head if name is None else name for name in names]
        tasks = {name: self._task(name) for name in dict.fromkeys(names)}
        asked = [
            prepared(text, tasks[name], name, place) for text, name, place in zip(texts, names, places, strict=True)
        ]
        check_inputs(self._inputs)
        named = [
            (piece, tasks[name], place)
            for name, pieces, place in zip(names, asked, places, strict=True)
            for piece in pieces
        ]
        found_rows = iter(
            encoded(self.tokenizer, [(piece, task) for piece, task, _ in named], [place for *_, place in named])
        )
        read: list[ReadText] = []
        for text, name, pieces, place in zip(texts, names, asked, places, strict=True):
            own = tuple(next(found_rows) for _ in pieces)
            cut = [row for row in own if row.cut]
            if cut and long == "refuse":
                limit = max(len(row.encoding.ids) for row in cut)
                raise RequestError(
                    "has more tokens than are taken",
                    where=place if name is None else f"{place}, adapter `{name}`",
                    found=f"{max(row.found for row in cut):,} tokens",
                    expected=f"at most {limit:,}, special tokens included",
                    fix=f"shorten it, or give {argument('long', 'windows', option='long_texts')} or `cut`",
                )
            if cut and long == "windows":
                own = self._windows(text, pieces, tasks[name], stride, place)
            read.append(ReadText(text, own, name, tasks[name]))
        return read

    def arrays(self, rows: Iterable[EncodedText]) -> Tokens:
        """Return the inputs of a call with these rows, padded to the longest, int64 [batch, tokens].

        Raises:
            RequestError: the base has inputs that text cannot fill, or takes no mask, and the rows differ in length.
        """
        return self.tokenizer.arrays([row.encoding for row in rows], self._inputs)

    def answer(
        self,
        texts: Sequence[Asked],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        weights: Weighting | None = None,
        strength: Strength | None = None,
        long: LongTexts = "cut",
        stride: int | None = None,
        allow_mixed_rows: bool = False,
        token_budget: int = TOKEN_BUDGET,
        progress: Progress | bool | None = None,
    ) -> list[TextAnswer]:
        """Answer texts, each by the task of its adapter.

        Of a text in windows, a class, a set of labels, numbers and a vector are those of the mean over its windows, of
        probabilities, numbers and vectors (of length 1 again, where the task says so); the label of a token is that of
        the window in which it stands farthest from an edge; a span is the one whose logits are highest in any window.

        Args:
            texts: as in `read`.
            adapter: as in `read`.
            adapters: as in `read`.
            long: as in `read`.
            stride: as in `read`.
            weights: as in `Session.run`, for an `adapter` that is a weighted fusion: for all texts.
            strength: as in `Session.run`, for all texts or for each.
            allow_mixed_rows: as in `Session.run`.
            token_budget: as in `Session.run_many`.
            progress: as in `Session.run_many`.

        Raises:
            RequestError: as `read` and `Session.run`; or an adapter has no head, or nobody knows what its results mean.
        """
        read = self.read(texts, adapter, adapters=adapters, long=long, stride=stride)
        return answer_all(self, read, weights, allow_mixed_rows, token_budget, progress, strength)

    def _task(self, name: str | None) -> Task | None:
        """Return what an adapter's texts are made tokens by; RequestError if that is another tokenizer."""
        if name is None:
            return None
        task = self.session.task(name)
        if task is not None and task.tokenizer not in (None, self._digest):
            raise RequestError(
                "was trained with another tokenizer than the bundle's, which would give it other ids",
                where=f"adapter `{name}`",
                found=f"tokenizer {str(self._digest)[:12]}…",
                expected=f"{str(task.tokenizer)[:12]}…",
                fix="build the bundle with the tokenizer that the adapter was trained with, or give arrays",
            )
        return task

    def _windows(
        self, text: Asked, pieces: Sequence[Text], task: Task | None, stride: int | None, place: str
    ) -> tuple[EncodedText, ...]:
        if is_choices(text):
            raise RequestError(
                "a question with choices is not read in windows",
                where=place,
                fix=f"give {argument('long', 'cut', option='long_texts')}, or shorten the texts",
            )
        limit = None if task is None else task.max_tokens
        return tuple(self.tokenizer.windows(pieces[0], limit, stride, place=place))


class Reader(Protocol):
    """What makes inputs of texts, pictures or clips for the adapters of a bundle."""

    session: Session
    window: int
    token_budget: int

    def read(self, asked: Any, adapter: str | None = None, /) -> list[ReadText]:
        """Take up what is asked for an adapter."""

    def arrays(self, rows: Any, /) -> Mapping[str, np.ndarray]:
        """Return the inputs of a call."""


def own_tokens(result: np.ndarray, row: Any, reader: Reader) -> np.ndarray:
    """Return what a head gives for the tokens of a row, without those that it was filled up with."""
    if result.ndim < 2 or not isinstance(reader, TextReader):
        return result
    return result[reader.tokenizer.real(len(row.encoding.ids), len(result))]


def answer_all(
    reader: Reader,
    read: Sequence[ReadText],
    weights: Weighting | None,
    allow_mixed_rows: bool,
    token_budget: int,
    progress: Progress | bool | None,
    strength: Strength | None = None,
) -> list[TextAnswer]:
    """Answer what was read; the arguments and errors are those of `TextReader.answer`."""
    for name in dict.fromkeys(one.adapter for one in read):
        reader.session.answering(name)
    strengths = strength_of_each(strength, len(read))
    answers = []
    step = len(read) if isinstance(reader, TextReader) else reader.window  # pictures are large
    for start in range(0, len(read), step):
        some = read[start : start + step]
        if weights is None:
            each = zip(some, strengths[start : start + step], strict=True)
            requests = [Request(reader.arrays([row]), one.adapter, share) for one, share in each for row in one.rows]
            outputs = iter(
                reader.session.run_many(
                    requests, token_budget=token_budget, progress=progress, allow_mixed_rows=allow_mixed_rows
                )
            )
        else:
            outputs = iter(
                reader.session.run(reader.arrays([row]), one.adapter, weights=weights, strength=strength)
                for one in some
                for row in one.rows
            )
        for at, one in enumerate(some, start):
            output = reader.session.output(str(one.adapter)) or ""
            results = [own_tokens(own_classes(next(outputs)[output][0]), row, reader) for row in one.rows]
            with within(f"text {at}" if isinstance(reader, TextReader) else str(one.text)):
                answers.append(answered(one, results))
    return answers


def encoded(
    tokenizer: Tokenizer, pieces: Sequence[tuple[Text, Task | None]], places: Sequence[str] = ()
) -> list[EncodedText]:
    """Encode texts that are prepared, cut by the limit and on the side of their tasks; `places` are for messages.

    Raises:
        RequestError: as `Tokenizer.rows`.
    """
    limits = [None if task is None else task.max_tokens for _, task in pieces]
    sides: list[Side] = [tokenizer.side if task is None else task.truncation for _, task in pieces]
    return tokenizer.rows([text for text, _ in pieces], limits=limits, sides=sides, places=places)


def prepared(text: Asked, task: Task | None, adapter: str | None, place: str) -> Sequence[Text]:
    """Return what is made tokens of a text: it with its prefix, or each of its choices.

    Raises:
        RequestError: it is a pair and the task takes one text, or the other way round.
    """
    if task is None:
        return _pairs(text) if is_choices(text) else [cast(Text, text)]
    choices = is_choices(text)
    if (isinstance(text, Pair) or choices) != (task.input == "pair") or (choices and task.type != "multiple_choice"):
        wanted = {"text": "one text", "pair": "a pair of texts"}[task.input]
        if task.type == "multiple_choice":
            wanted = "a pair of texts, or a list of such pairs"
        raise RequestError(
            "is of another kind than the task takes",
            where=place,
            found="a list of pairs" if choices else "a pair of texts" if isinstance(text, Pair) else "one text",
            expected=f"{wanted}, as adapter `{adapter}` (`{task.type}`) takes",
        )
    if choices:
        return _pairs(text)
    return [task.prefix + text if isinstance(text, str) else cast(Text, text)]


def is_choices(text: Asked) -> bool:
    """Return whether a text is a question with each of its choices."""
    several = isinstance(text, list | tuple) and not isinstance(text, Pair) and len(text) > 0
    return several and all(isinstance(one, Pair) for one in text)


def _pairs(text: Asked) -> list[Pair]:
    return [one for one in text if isinstance(one, Pair)]


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


def context_of(row: EncodedText) -> npt.NDArray[np.bool_]:
    """Return which tokens may be the answer to a question: those of the second text, or of the only one."""
    parts = row.encoding.sequence_ids
    return np.array([part == max(one for one in parts if one is not None) for part in parts], bool)


def _span(task: Task, read: ReadText, results: Sequence[np.ndarray]) -> TextAnswer:
    """Return the span of highest logits of all windows: probabilities of one window say nothing of another."""
    found: list[tuple[float, int, Span]] = []
    for at, (row, result) in enumerate(zip(read.rows, results, strict=True)):
        one = answer(task, result, None, context_of(row))
        assert isinstance(one, Span)
        found.append((float(result[one.start, 0] + result[one.end, 1]), -at, one))
    _, at, span = max(found, key=lambda each: each[:2])
    row = read.rows[-at]
    second = read.text.second if isinstance(read.text, Pair) else read.text
    start, end = row.encoding.offsets[span.start][0], row.encoding.offsets[span.end][1]
    places = row.places or range(len(row.encoding.ids))
    whole = replace(span, start=places[span.start], end=places[span.end])
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
