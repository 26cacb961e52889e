"""Answers of adapters to rows, and the texts that they belong to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.tables import Described
from adapter_export.text import Pair, SidedText, Text, TextSide

if TYPE_CHECKING:
    from adapter_export.graph.tasks.task_record import Task

Asked = Text | SidedText | Sequence[Pair]
"""A text, a pair, the words of a text, or a question with each of its choices: a list of pairs."""


class Answer(Described):
    """The answer to one row; each kind is a frozen dataclass, with `repr=False`."""

    def described(self) -> Mapping[str, object]:
        """Return the answer as JSON has it."""
        return self.document()

    @abstractmethod
    def document(self) -> dict[str, Any]:
        """Return it as JSON, the same in every client; specified in docs/reference/format.md."""

    def document_of_text(self, text_answer: TextAnswer) -> dict[str, Any]:  # noqa: ARG002 — for kinds that point into a text
        """Return the answer as JSON, with the part of the text that it refers to."""
        return self.document()

    def first(self, tokens: int) -> Answer:  # noqa: ARG002 — for kinds that have an item for each token
        """Return the answer without the padding after the first tokens."""
        return self


@dataclass(frozen=True, repr=False)
class Prediction(Answer):
    """The class of a text, or of a token.

    Attributes:
        label: the most probable class.
        probability: its probability, the softmax over the classes.
        probabilities: of every class, in the order of the logits.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"label": self.label, "probability": self.probability, "probabilities": dict(self.probabilities)}


@dataclass(frozen=True, repr=False)
class LabelSet(Answer):
    """The labels that apply to a text, any number of them.

    Attributes:
        labels: those whose probability reaches their threshold, in the order of the logits.
        probabilities: of every label, the sigmoid of its logit.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"labels": list(self.labels), "probabilities": dict(self.probabilities)}


@dataclass(frozen=True, repr=False)
class TokenLabels(Answer):
    """The class of each token; `None` where the mask says that it is padding."""

    tokens: tuple[Prediction | None, ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"tokens": [None if label is None else label.document() for label in self.tokens]}

    def document_of_text(self, text_answer: TextAnswer) -> dict[str, Any]:
        """Return it as JSON, each label with its token."""
        if not text_answer.tokens:
            return self.document()
        pairs = zip(text_answer.tokens, self.tokens, strict=True)
        return {"tokens": [{**token.document(), **({} if of is None else of.document())} for token, of in pairs]}

    def first(self, tokens: int) -> TokenLabels:
        """Return the labels of the first tokens."""
        return TokenLabels(self.tokens[:tokens])


@dataclass(frozen=True, repr=False)
class Span(Answer):
    """The part of a row that answers a question: the places of its first and its last token, and its probability.

    The probability is the product of the softmax of the start and of the end over the tokens that may be the answer; of
    all spans of at most `LONGEST_SPAN` tokens, this one has the highest.
    """

    first_token: int
    last_token: int
    probability: float

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"first_token": self.first_token, "last_token": self.last_token, "probability": self.probability}

    def document_of_text(self, text_answer: TextAnswer) -> dict[str, Any]:
        """Return it as JSON, by the words and characters of the text."""
        if text_answer.span is None:
            return self.document()
        words, start, end = text_answer.span
        return {"answer": words, "start": start, "end": end, "probability": self.probability}


@dataclass(frozen=True, repr=False)
class Numbers(Answer):
    """The numbers of a regression, float64 [numbers]."""

    numbers: np.ndarray

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"numbers": self.numbers.tolist()}


@dataclass(frozen=True, repr=False)
class Vector(Answer):
    """An embedding, float32 [width]."""

    vector: np.ndarray

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"vector": self.vector.tolist()}


@dataclass(frozen=True, repr=False)
class TokenVectors(Answer):
    """A vector for each token that counts, float32 [tokens, width]."""

    vectors: np.ndarray

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"vectors": self.vectors.tolist()}

    def document_of_text(self, text_answer: TextAnswer) -> dict[str, Any]:
        """Return it as JSON, with the token of each vector."""
        if not text_answer.tokens:
            return self.document()
        return {"vector_tokens": [token.text for token in text_answer.tokens], **self.document()}


@dataclass(frozen=True, repr=False)
class SparseVector(Answer):
    """The weights above 0 of a vector with a number for each vocabulary entry.

    Attributes:
        ids: the entries, int64, those with the largest weights first.
        weights: their weights, float32.
        width: number of vocabulary entries.
    """

    ids: np.ndarray
    weights: np.ndarray
    width: int

    def document(self) -> dict[str, Any]:
        """Return it as JSON: weights by id."""
        return {"weights": dict(zip(map(str, self.ids.tolist()), self.weights.tolist(), strict=True))}


@dataclass(frozen=True, repr=False)
class Score(Answer):
    """Relevance of a pair of texts, or of a choice before the softmax over all choices of its question."""

    score: float

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"score": self.score}


@dataclass(frozen=True, repr=False)
class Choice(Answer):
    """The answer to a question with several choices.

    Attributes:
        choice: the best of them, from 0.
        probabilities: of each, the softmax over their scores.
    """

    choice: int
    probabilities: tuple[float, ...]

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"choice": self.choice, "probabilities": list(self.probabilities)}


@dataclass(frozen=True)
class Token:
    """A token of a text, and where it stands.

    Attributes:
        text: as the tokenizer writes it.
        start: its first character, from 0, or within its word, where words were given; `None` without a text.
        end: the first character after it.
        word: the word that it is of, where words were given.
        id: its id, where it was tokenized.
    """

    text: str
    start: int | None = None
    end: int | None = None
    word: int | None = None
    id: int | None = None

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"token": self.text, **({} if self.start is None else {"start": self.start, "end": self.end})}


@dataclass(frozen=True, repr=False)
class TextAnswer(Described):
    """The answer of an adapter to a text, an image, audio or a row of arrays.

    Attributes:
        answer: by the type of its task; the places of a span are tokens of the whole text.
        cut: how many tokens of the text were left out.
        windows: how many windows the text was read in.
        tokens: for a token task on a text, the tokens that have labels, none of which is special; for a vector per
            token, those that have one.
        span: for a span of a text its words, its first character in the second text, and the one after its last.
    """

    answer: Answer
    cut: int = 0
    windows: int = 1
    tokens: tuple[Token, ...] = ()
    span: tuple[str, int, int] | None = None

    def described(self) -> Mapping[str, object]:
        """Return the answer as JSON has it."""
        return self.document()

    def document(self) -> dict[str, Any]:
        """Return it as JSON, as every client writes it; `cut` and `windows` where there is something to say."""
        facts = self.answer.document_of_text(self)
        return facts | ({"cut": self.cut} if self.cut else {}) | ({"windows": self.windows} if self.windows > 1 else {})


@dataclass(frozen=True)
class ReadText:
    """A text as tokens: once, or in each of its windows, or for each of its choices; or an image or audio.

    Attributes:
        text: the text, or the name of an image or audio.
        rows: what the base is given: `EncodedText`, not padded, or a `MediaRow`.
        adapter: the adapter that it was read for; `None` is the base.
        task: that of the adapter, if it has one.
        side: whether it is a query or a document, if known.
    """

    text: Asked
    rows: tuple[Any, ...]
    adapter: str | None
    task: Task | None
    side: TextSide | None = None

    @property
    def cut(self) -> int:
        """Number of tokens that were left out; for choices, of the one that lost most."""
        return 0 if self.windows > 1 else max(row.cut for row in self.rows)

    @property
    def windows(self) -> int:
        """Number of windows."""
        return 1 if is_choices(self.text) else len(self.rows)

    def answered(self, results: Sequence[np.ndarray]) -> TextAnswer:
        """Return the answer to the text, from the result of each row: `[classes]`, `[tokens, classes]` or `[width]`.

        Raises:
            RequestError: a result is NaN or infinite, or no token may be the answer.
        """
        assert self.task is not None  # an adapter without a task does not answer
        return self.task.kind.answer_text(self, self.task, results)


@dataclass(frozen=True)
class ShownRow:
    """A row with its answer, for people.

    Attributes:
        name: its text, or both texts of a pair.
        text_answer: the answer.
        choices: the choices of a question.
        token_text: returns the text of a vocabulary entry. Default: its id.
    """

    name: str
    text_answer: TextAnswer
    choices: Sequence[str] = field(default=())
    token_text: Callable[[int], str] = str


def is_choices(text: Asked) -> bool:
    """Return true if a text is a question with each of its choices."""
    several = isinstance(text, list | tuple) and not isinstance(text, Pair) and len(text) > 0
    return several and all(isinstance(pair, Pair) for pair in text)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return `1 / (1 + exp(−x))` of each number, in float64, without overflow."""
    shifted = np.exp(-np.abs(logits.astype(np.float64)))
    shares: np.ndarray = np.where(logits >= 0, 1 / (1 + shifted), shifted / (1 + shifted))
    return shares


def prediction(logits: np.ndarray, labels: Sequence[str]) -> Prediction:
    """Return the most probable class of logits [classes]."""
    shares = softmax(logits)
    best = int(shares.argmax())
    return Prediction(labels[best], float(shares[best]), dict(zip(labels, map(float, shares), strict=True)))
