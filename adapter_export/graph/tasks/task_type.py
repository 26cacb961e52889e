"""The base class of task types: what a head gives, how rows are read, answered, judged and shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from adapter_export.graph.tasks.answers import Answer, ReadText, ShownRow, TextAnswer
from adapter_export.graph.tasks.cells import Cells, Found
from adapter_export.tables import Table
from adapter_export.text import Pair

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task

HeadOutput = Literal["logits", "token_logits", "embedding"]
"""Outputs of heads: `logits` [batch, classes], `token_logits` [batch, tokens, classes], `embedding` [batch, width]."""

Activation = Literal["softmax", "sigmoid", "identity"]
"""Functions that turn the result of a head into the numbers of an answer."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """Results of heads and right answers, row by row, as `TaskType.judge` takes them.

    Attributes:
        results: the result of each row, an array or a list.
        right: the encoded answer of each row, likewise.
        groups: of rows that are ranked, the group of each.
        notes: what was left out, each a clause.
    """

    results: Any
    right: Any
    groups: Sequence[str] = ()
    notes: tuple[str, ...] = ()


class TaskFacts(ABC):
    """Facts and metrics of a task type, with or without a head. Each module of `types/` defines one.

    Attributes:
        name: as users write it.
        has_head: whether a head answers it; next tokens come from the base itself.
        output: the output that its head fills.
        width: the numbers of a result, where the type fixes them: a score, or logits for the start and end of a span.
        pools: whether its head pools the tokens of a row.
        activations: those that it may have, its default first.
        trained_activation: the one of heads that are trained here, where it is not the default.
        has_labels: whether answers are classes with names.
        one_label: whether the answer to a row is exactly one of them.
        implied: whether a head of this output with labels and no type is taken for it.
        has_thresholds: whether each label has a threshold.
        is_vector: whether it has a pooling, a normalisation and a prefix, and may have a projection.
        reads_files: whether images and audio may be asked.
        pairs: whether rows have second texts: `never`, `optional` or `required`.
        has_start: whether a column may say where an answer begins.
        has_choices: whether a row has a text for each of several choices.
        has_several: whether a row is several texts, each a row of the base: choices, or an anchor and its documents.
        has_answers: whether rows have a column of answers.
        has_negatives: whether rows may have columns of texts that do not belong to the first one.
        of_pairs: the type that reads and judges its pairs without labels; `None` if it has none.
        recorded: the type that a `Task` records, where it is another one.
        needs_context: whether arrays must say which tokens may be the answer.
        ranks: whether rows are judged within groups.
        compares_pairs: whether pairs of texts may be judged by the cosine of their vectors.
        stratified: whether a split keeps a fraction of each class.
        starts_at_prior: whether a trained head starts with the frequencies of the answers as its bias.
        method: the method of `Session` for it.
        column: the heading of its answers in tables.
        pipeline: its name on the Hugging Face Hub.
        config_name: its name in `problem_type` of a `config.json`.
        model_classes: the ends of the names of model classes in transformers.
        peft_type: its name in PEFT.
        adapterhub_heads: the heads of AdapterHub.
    """

    name: str
    has_head: bool = True
    output: HeadOutput = "logits"
    width: int | None = None
    pools: bool = True
    activations: tuple[Activation, ...] = ("softmax",)
    trained_activation: Activation | None = None
    has_labels: bool = False
    one_label: bool = False
    implied: bool = False
    has_thresholds: bool = False
    is_vector: bool = False
    reads_files: bool = False
    pairs: Literal["never", "optional", "required"] = "optional"
    has_start: bool = False
    has_choices: bool = False
    has_several: bool = False
    has_answers: bool = True
    has_negatives: bool = False
    of_pairs: str | None = None
    recorded: str | None = None
    needs_context: bool = False
    ranks: bool = False
    compares_pairs: bool = False
    stratified: bool = False
    starts_at_prior: bool = False
    method: str = "answer"
    column: str = "label"
    pipeline: str | None = None
    config_name: str | None = None
    model_classes: tuple[str, ...] = ()
    peft_type: str | None = None
    adapterhub_heads: tuple[str, ...] = ()

    @property
    def pair_input(self) -> Literal["text", "pair"]:
        """The input of its tasks where nothing else says it."""
        return "pair" if self.pairs == "required" else "text"

    @property
    def picks_largest(self) -> bool:
        """True if the largest number of a result's last axis is the answer: all graphs must agree on it."""
        return self.one_label or (self.has_labels and not self.pools)

    @abstractmethod
    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:
        """Return its metrics, the primary one first."""


class TaskType(TaskFacts):
    """A task that a head answers: reading of rows, answers, scoring and tables."""

    # Rows of tables

    @abstractmethod
    def read(self, cells: Cells) -> Found:
        """Return the texts and the answer of a row; `None` if the row is incomplete.

        Raises:
            DataError: a cell does not have the form that the type reads.
        """

    def rows(self, cells: Cells) -> Sequence[Found]:
        """Return what the cells of a line say: one row, or one for each document of a query; errors as of `read`."""
        return [self.read(cells)]

    def tokenized(self, text: Any, pair: Any, answer: Any, prefixes: tuple[str, str]) -> Any:  # noqa: ARG002
        """Return the tokenizer's input for a row: for a question with choices, a pair of it with each choice.

        Args:
            text: the text, the words of a text, or a file.
            pair: the second text, or the choices.
            answer: what is to be learnt of the row.
            prefixes: text before the first text of a row, and before its documents.
        """
        if pair is None or not isinstance(text, str):
            return prefixes[0] + text if isinstance(text, str) else text
        return Pair(text, pair) if isinstance(pair, str) else tuple(Pair(text, choice) for choice in pair)

    def labels_of(self, answer: Any) -> Iterable[str]:  # noqa: ARG002 — for types with labels
        """Return the labels in the answer of a row."""
        return ()

    def label_names(self, answers: Sequence[Any], where: str, *, split: bool) -> tuple[str, ...]:  # noqa: ARG002
        """Return the different labels of rows, in order; `split` is true if rows are still to be split in two.

        Raises:
            DataError: there are too few labels, or too few rows of one.
        """
        return ()

    @abstractmethod
    def encode(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return answers as a model learns them, an array or a list with an item for each row.

        Raises:
            DataError: an answer has an unknown label, or answers do not go together.
        """

    def truths(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return right answers as `judge` takes them."""
        return self.encode(answers, labels, where)

    def numbers(self, answers: Sequence[Any]) -> int:  # noqa: ARG002 — for regressions
        """Return how many numbers an answer has; 0 if the type says it."""
        return 0

    def group(self, text: Any) -> str | None:  # noqa: ARG002 — for types whose rows belong together
        """Return the part of a text by which rows belong together, which no split separates."""
        return None

    def check_rows(self, texts: Sequence[Any], answers: Sequence[Any], part: str) -> None:
        """Raise DataError if a part of the rows cannot be measured."""

    def class_weights(self, answers: Any, count: int) -> np.ndarray | None:  # noqa: ARG002 — for types with labels
        """Return a weight for each of `count` labels by which all count alike; `None` if labels have no weights."""
        return None

    # Answers

    @abstractmethod
    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> Answer:
        """Return the answer to one row.

        Args:
            task: its task.
            result: logits or numbers [classes], logits [tokens, classes], or a vector [width].
            real: which tokens are not padding, [tokens].
            context: which tokens may be the answer, [tokens]; default: all real ones.

        Raises:
            RequestError: no token may be the answer.
        """

    def answer_text(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> TextAnswer:
        """Return the answer to a text from the results of its rows: its windows or its choices."""
        result = results[0] if len(results) == 1 else self.mean(task, results)
        return TextAnswer(task.answer(result), read.cut, read.windows)

    def mean(self, task: Task, results: Sequence[np.ndarray]) -> np.ndarray:
        """Return the result whose numbers are the mean of those of several windows."""
        if task.activation == "sigmoid":
            shares: np.ndarray = np.mean([task.activated(result) for result in results], axis=0)
            inside = np.clip(shares, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
            logits: np.ndarray = np.log(inside) - np.log1p(-inside)
            return logits
        middle: np.ndarray = np.mean(results, axis=0)
        return middle

    def context(self, read: Any, task: Task) -> Mask | None:  # noqa: ARG002 — for types that point into a text
        """Return which tokens of an `EncodedText` may be the answer; `None` if the type does not ask for it."""
        return None

    def is_decided(self, task: Task, result: np.ndarray, absolute: float, context: Mask | None) -> bool:  # noqa: ARG002
        """Return whether the choice in an answer stays the same if each number is off by `absolute`."""
        return True

    # Metrics

    def measured(self, read: Sequence[ReadText], results: Sequence[Sequence[np.ndarray]], right: Any) -> Measured:  # noqa: ARG002
        """Return the results of texts, one for each of its windows or choices, as `judge` takes them."""
        return Measured([own[0] for own in results], right)

    def check_right(self, answer: Any, result: np.ndarray) -> None:
        """Raise DataError if a right answer cannot be compared with a result."""

    @abstractmethod
    def judge(self, task: Task, rows: Measured) -> Judged:
        """Judge results by what is right.

        Raises:
            DataError: the rows cannot be judged.
        """

    # Tables for people

    @abstractmethod
    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return an answer in a line: what it is, its probability, and a bar; the latter may be empty."""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield the tables and headings that show answers of one adapter."""
        cells = [(row.name, *self.cells(row)) for row in rows]
        yield Table(("text", self.column, "probability", ""), cells, numbers="llr")
