"""Base classes of task types: output of the head, reading of rows, answers, scores and tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError
from adapter_export.graph.tasks.answers import Answer, ReadText, ShownRow, TextAnswer
from adapter_export.graph.tasks.cells import Cells, Found
from adapter_export.tables import Table
from adapter_export.text import Pair

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.graph.tasks.task_record import Task

HeadOutput = Literal["logits", "token_logits", "embedding", "token_embeddings"]
"""Outputs of heads: `logits` [batch, classes], `token_logits` [batch, tokens, classes], `embedding` [batch, width] and
`token_embeddings` [batch, tokens, width]."""

PER_TOKEN: frozenset[HeadOutput] = frozenset({"token_logits", "token_embeddings"})
"""Outputs with a result for each token."""

Activation = Literal["softmax", "sigmoid", "identity"]
"""Functions that turn the result of a head into the numbers of an answer."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """Results of heads and right answers per row, the input of `TaskType.judge`.

    Attributes:
        results: the result of each row, an array or a list.
        right: the encoded answer of each row, likewise.
        groups: of rows that are ranked, the group of each.
        notes: skipped rows, each a clause.
    """

    results: Any
    right: Any
    groups: Sequence[str] = ()
    notes: tuple[str, ...] = ()


class TaskFacts(ABC):
    """Facts and metrics of a task type, with or without a head. Each module of `types/` defines one.

    Attributes:
        name: as users write it.
        has_head: a head answers it; the base itself predicts next tokens.
        output: the output that its head fills.
        width: the numbers of a result, where the type fixes them: a score, or logits for the start and end of a span.
        pools: its head pools the tokens of a row.
        activations: those that it may have, its default first.
        trained_activation: the one of heads that are trained here, where it is not the default.
        has_labels: answers are classes with names.
        one_label: the answer to a row is exactly one class.
        implied: default type of a head with this output and labels.
        has_thresholds: each label has a threshold.
        embeds: its vectors are compared with those of other texts: it has prefixes and a normalisation.
        reads_vocabulary: its head reads the base's logits of the vocabulary, and has no weights.
        has_fixed_head: a new head is that of its paper, without options except the width of its vectors.
        vector_width: default width of the vectors of a new head; `None` is that of the base.
        is_vector: it embeds a row as one dense vector, which may be projected, normalised and truncated.
        reads_files: it also reads images and audio.
        pairs: second texts of rows: `never`, `optional` or `required`.
        has_start: a column may contain the start of an answer.
        has_choices: a row has a text for each of several choices.
        has_several: a row is several rows of the base: choices, or an anchor and its documents.
        has_answers: rows have a column of answers.
        has_negatives: rows may have columns of negatives.
        of_pairs: type that reads and scores pairs without labels; `None` without one.
        recorded: type in the `Task`, if it differs.
        needs_context: arrays require a mask of the tokens that may be the answer.
        has_golden_texts: answers are short enough for golden texts; of others, golden vectors cover the results.
        has_golden_batches: likewise, for golden batches.
        ranks: rows are ranked within groups.
        compares_pairs: pairs of texts may be scored by the cosine of their vectors.
        stratified: a split keeps a fraction of each class.
        starts_at_prior: a new head starts with the frequencies of the answers as its bias.
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
    embeds: bool = False
    reads_vocabulary: bool = False
    has_fixed_head: bool = False
    vector_width: int | None = None
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
    has_golden_texts: bool = True
    has_golden_batches: bool = True
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
        return "pair" if self.pairs == "required" and not self.embeds else "text"

    @property
    def picks_largest(self) -> bool:
        """True if the answer is the argmax of a result's last axis, on which all graphs must agree."""
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
        """Return the rows of a line: one, or one per document of a query; errors as of `read`."""
        return [self.read(cells)]

    def tokenized(self, text: Any, pair: Any, answer: Any, prefixes: tuple[str, str]) -> Any:  # noqa: ARG002
        """Return the tokenizer's input for a row: for a question with choices, a pair of it with each choice.

        Args:
            text: the text, the words of a text, or a file.
            pair: the second text, or the choices.
            answer: the training target of the row.
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
        """Return training targets, an array or a list with an item per row.

        Raises:
            DataError: an answer has an unknown label, or answers do not go together.
        """

    def truths(self, answers: Sequence[Any], labels: tuple[str, ...], where: str) -> Any:
        """Return right answers for `judge`."""
        return self.encode(answers, labels, where)

    def numbers(self, answers: Sequence[Any]) -> int:  # noqa: ARG002 — for regressions
        """Return the number of numbers in an answer; 0 if the type fixes it."""
        return 0

    def group(self, text: Any) -> str | None:  # noqa: ARG002 — for types whose rows belong together
        """Return the key of rows that a split must not separate; `None` without one."""
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
            # the logits of 0 and 1 are infinite
            inside = np.clip(shares, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
            logits: np.ndarray = np.log(inside) - np.log1p(-inside)
            return logits
        middle: np.ndarray = np.mean(results, axis=0)
        return middle

    def context(self, read: Any, task: Task) -> Mask | None:  # noqa: ARG002 — for types that point into a text
        """Return a mask of the tokens that may be the answer; `None` if the type needs none."""
        return None

    def is_decided(self, task: Task, result: np.ndarray, absolute: float, context: Mask | None) -> bool:  # noqa: ARG002
        """Return true if the choice in an answer is the same when each number deviates by `absolute`."""
        return True

    def compared(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> np.ndarray:  # noqa: ARG002
        """Return the part of a text's results that is compared with those of other texts."""
        return results[0]

    def similarity(self, query: Answer, document: Answer) -> float:  # noqa: ARG002 — for embeddings
        """Return the score of two answers of a type that embeds.

        Raises:
            RequestError: its answers are not compared.
        """
        raise RequestError("answers of this task are not compared", found=f"`{self.name}`", expected="an embedding")

    # Metrics

    def measured(self, read: Sequence[ReadText], results: Sequence[Sequence[np.ndarray]], right: Any) -> Measured:  # noqa: ARG002
        """Return the results of texts, one for each of its windows or choices, as `judge` takes them."""
        return Measured([of_text[0] for of_text in results], right)

    def check_right(self, answer: Any, result: np.ndarray) -> None:
        """Raise DataError if a right answer cannot be compared with a result."""

    @abstractmethod
    def judge(self, task: Task, rows: Measured) -> Judged:
        """Score results against the right answers.

        Raises:
            DataError: the rows cannot be scored.
        """

    # Tables for people

    @abstractmethod
    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return an answer, its probability and a bar; the last two may be empty."""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield the tables and headings that show answers of one adapter."""
        cells = [(row.name, *self.cells(row)) for row in rows]
        yield Table(("text", self.column, "probability", ""), cells, numbers="llr")
