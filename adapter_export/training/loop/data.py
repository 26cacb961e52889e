"""Texts for a training loop: with targets, split in two, in batches of similar length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from adapter_export.errors import DataError, RequestError, UsageError
from adapter_export.graph.tasks import DEFAULT_TYPE, HEAD_TYPES, TASK_TYPES, Learnt, ProblemType, Task
from adapter_export.graph.tasks.cells import some
from adapter_export.tables import number_of
from adapter_export.text import EncodedText, Side, Text, Tokenizer, check_inputs
from adapter_export.training.objectives import OBJECTIVES
from adapter_export.words import argument

if TYPE_CHECKING:
    import tokenizers

Rows = npt.NDArray[np.int64]
"""Indices of rows, or one number per row."""

_BATCHES_PER_WINDOW = 50
"""Batches that are sorted by length together: less padding than one, and more random than all."""

_CHUNK = 256


@dataclass(frozen=True)
class Call:
    """Rows that go through the model together.

    Attributes:
        inputs: the base's inputs, by name.
        places: index of each row among the requested rows; for questions with choices, index of each choice among all
            choices.
    """

    inputs: dict[str, Tensor]
    places: Rows


class Examples(Protocol):
    """Rows of any kind for the training loop."""

    @property
    def problem(self) -> Learnt:
        """Task type of the rows."""

    @property
    def lengths(self) -> Rows:
        """Length of each row; rows of similar length share a batch."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows and their targets; a run resumes only if it is equal."""

    def only(self, rows: Rows) -> Self:
        """Return some of the rows, in the given order."""

    def calls(self, rows: Rows, *, pads: bool) -> Iterator[Call]:
        """Yield some rows in one call; unless `pads`, in one call per length."""

    def positions(self, rows: Rows) -> int:
        """Return the tokens of some rows with padding, for each of which the base has outputs; 0 for files."""

    def matched(self, results: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the model's results for some rows in the form that the loss needs, and the targets."""


class LabelledExamples(Examples, Protocol):
    """Labelled rows of a file: texts, or images or audio.

    Attributes:
        texts: the texts or files.
        answers: answers as encoded by the task type.
        cut: indices of rows that exceed the maximum length.
        lost: indices of rows whose answers were truncated, so that they cannot be learned.
        highest: highest token id, by input; empty for files.
        sizes: distinct lengths of rows.
    """

    @property
    def texts(self) -> Sequence[Any]: ...  # noqa: D102 — as above

    @property
    def answers(self) -> Any: ...  # noqa: D102

    @property
    def cut(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def lost(self) -> Sequence[int]: ...  # noqa: D102

    @property
    def highest(self) -> Mapping[str, int]: ...  # noqa: D102

    @property
    def sizes(self) -> frozenset[int]: ...  # noqa: D102

    @property
    def limit(self) -> str:
        """Maximum length of a row without truncation."""

    @property
    def word(self) -> str:
        """Name of a row in messages."""

    @property
    def task_facts(self) -> dict[str, Any]:
        """Facts of a task that is trained on them: preprocessing, and the digest of the tokenizer or processor."""


class RowSource(Protocol):
    """A tokenizer or a processor that makes examples from labelled rows."""

    @property
    def medium(self) -> str | None:
        """Modality of files; `None` for texts."""

    @property
    def digest(self) -> str | None:
        """Digest of the tokenizer or the processor."""

    def examples(self, texts: Sequence[Any], answers: Any, problem: ProblemType, side: Side) -> LabelledExamples:
        """Return rows for training; `side` is the side on which texts are truncated.

        Raises:
            RequestError, DataError: a row cannot be read, or the base has an input that it cannot fill.
        """

    def record(self) -> dict[str, Any]:
        """Return the preprocessing of rows, for the training record."""


@dataclass(frozen=True)
class TextSource:
    """Source of texts: a tokenizer, the base's inputs, and the task whose template joins a pair into a text."""

    tokenizer: Tokenizer
    names: tuple[str, ...]
    medium: str | None = None
    prompt: Task | None = None

    @property
    def digest(self) -> str | None:
        """Digest of the tokenizer."""
        return self.tokenizer.digest

    def examples(self, texts: Sequence[Any], answers: Any, problem: ProblemType, side: Side) -> TextExamples:
        """Return the texts with their numbers of tokens."""
        return TextExamples.of(texts, answers, self.tokenizer, self.names, problem, side, self.prompt)

    def record(self) -> dict[str, Any]:
        """Return the maximum length and the digest of the tokenizer."""
        return {"max_tokens": self.tokenizer.max_tokens, "tokenizer": self.tokenizer.digest}


@dataclass(frozen=True)
class TrainingData:
    """Training rows and validation rows."""

    training: Examples
    validation: Examples


@dataclass(frozen=True)
class TextExamples:
    """Texts, encoded batch by batch as in the runtime; a call is padded to its longest row.

    Attributes:
        texts: texts, pairs of texts, words of each, pairs of each question with every choice, or an anchor and its
            documents.
        answers: classes or choices [rows], labels that apply [rows, labels], numbers [rows, numbers], relevances
            [rows], the classes of the words of each row, the spans that answer each row, or the numbers of an anchor
            and its documents [rows, texts].
        lengths: number of tokens of each row; for a question, of its longest choice.
        tokenizer: makes the tokens.
        names: the base's inputs.
        cut: indices of rows that exceed the tokenizer's maximum length.
        lost: indices of rows whose answers were truncated, so that they cannot be learned.
        highest: highest token id and token type, by input.
        sizes: distinct numbers of tokens of all texts.
        problem: task type of the rows.
        side: side on which a text is truncated.
        prompt: the task whose template joins a pair into a text, if there is one.
    """

    texts: Sequence[Any]
    answers: Any
    lengths: Rows
    tokenizer: Tokenizer
    names: tuple[str, ...]
    cut: Sequence[int] = ()
    lost: Sequence[int] = ()
    highest: Mapping[str, int] = field(default_factory=dict)
    sizes: frozenset[int] = frozenset()
    problem: ProblemType = DEFAULT_TYPE
    side: Side = "right"
    prompt: Task | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[Any],
        answers: Any,
        tokenizer: Tokenizer,
        names: tuple[str, ...],
        problem: ProblemType = DEFAULT_TYPE,
        side: Side = "right",
        prompt: Task | None = None,
    ) -> TextExamples:
        """Count the tokens of each text and store everything together.

        Raises:
            RequestError: the base has an input that text cannot fill, a text has no tokens, or a prompt does not fit.
        """
        lengths, cut, lost, sizes = np.zeros(len(texts), np.int64), dict[int, None](), list[int](), set[int]()
        highest = {"input_ids": 0, "token_type_ids": 0}
        examples = cls(texts, answers, lengths, tokenizer, names, problem=problem, side=side, prompt=prompt)
        check_inputs(names)
        for start in range(0, len(texts), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(texts)))
            encoded = examples._encoded(rows)
            counts = np.array([len(row.encoding.ids) for row in encoded])
            lengths[rows] = np.maximum.reduceat(counts, np.cumsum([0, *examples._counts(rows)[:-1]]))
            sizes.update(counts.tolist())
            places = np.repeat(rows, examples._counts(rows)).tolist()
            cut |= dict.fromkeys(at for row, at in zip(encoded, places, strict=True) if row.cut)
            for row in encoded:
                highest["input_ids"] = max([highest["input_ids"], *row.encoding.ids])
                highest["token_type_ids"] = max([highest["token_type_ids"], *row.encoding.type_ids])
            if len(encoded) == len(rows):
                pairs = zip(encoded, places, strict=True)
                lost += [at for row, at in pairs if OBJECTIVES[problem].lost(row.encoding, answers[at])]
        if cut and prompt is not None:
            raise RequestError(
                "rows exceed the maximum length, and prompts are not truncated",
                found=f"{len(cut)} of {number_of(len(texts), 'row')}",
                expected=f"at most {examples.limit}, including the template",
                fix="raise " + argument("max_tokens") + ", or shorten the rows",
            )
        return replace(examples, cut=tuple(cut), lost=lost, highest=highest, sizes=frozenset(sizes))

    @property
    def word(self) -> str:
        """Name of a row in messages."""
        return "text"

    @property
    def task_facts(self) -> dict[str, Any]:
        """Facts of a task that is trained on the texts."""
        words = self.tokenizer
        facts = {"max_tokens": words.max_tokens, "truncation": self.side, "tokenizer": words.digest}
        return facts if self.prompt is None else {**facts, "template": self.prompt.template}

    @property
    def limit(self) -> str:
        """Maximum length of a text without truncation."""
        return f"{self.tokenizer.max_tokens} tokens"

    def only(self, rows: Rows) -> TextExamples:
        """Return some of the rows, in the given order."""
        texts = [self.texts[row] for row in rows]
        answers: Any = self.answers
        answers = answers[rows] if isinstance(answers, np.ndarray) else [answers[row] for row in rows]
        return replace(self, texts=texts, answers=answers, lengths=self.lengths[rows])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, their numbers of tokens and the answers; a run resumes only if it is equal."""
        answers = [self.answers] if isinstance(self.answers, np.ndarray) else self.answers
        texts = [text.encode() if isinstance(text, str) else json.dumps(text).encode() for text in self.texts]
        answered = (one.tobytes() if isinstance(one, np.ndarray) else repr(one).encode() for one in answers)
        return digest_of([*texts, self.lengths.tobytes(), *answered])

    def calls(self, rows: Rows, *, pads: bool) -> Iterator[Call]:
        """Yield some rows in one call, inputs [rows, tokens], or [choices, tokens]; unless `pads`, one call per length.

        Raises:
            RequestError: the base does not accept texts of this length.
        """
        encodings = [row.encoding for row in self._encoded(rows)]
        for places in of_one_call(np.array([len(one.ids) for one in encodings]), pads=pads):
            arrays = self.tokenizer.arrays([encodings[place] for place in places], self.names, pads=pads)
            yield Call({name: torch.from_numpy(array) for name, array in arrays.items()}, places)

    def positions(self, rows: Rows) -> int:
        """Return the tokens of the texts of some rows, with padding."""
        return sum(self._counts(rows)) * int(self.lengths[rows].max())

    def matched(self, results: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the results of a head for some rows, and the targets.

        They are [rows, …] and [rows, …]; for `token`, a row per labelled token; for `multiple_choice`, a score per
        choice, −∞ where another question has more choices; for `span`, [rows, longest, 2], −∞ at tokens outside the
        context, and the first and last token of the answer [rows, 2], `IGNORED` if it was truncated.
        """
        return OBJECTIVES[self.problem].matched(self, results, rows)

    def encodings(self, rows: Rows) -> list[tokenizers.Encoding]:
        """Return the library's encodings of some rows, padded to the longest of them."""
        return self.tokenizer.padded([row.encoding for row in self._encoded(rows)])

    def _flat(self, rows: Rows) -> list[Text]:
        if TASK_TYPES[self.problem].has_several:
            return [pair for row in rows for pair in self.texts[row]]
        texts = [self.texts[row] for row in rows]
        return texts if self.prompt is None else [self.prompt.filled(*pair) for pair in texts]

    def _counts(self, rows: Rows) -> list[int]:
        """Return the number of texts of each row: one, one per choice, or those of an anchor and its documents."""
        return [len(self.texts[row]) if TASK_TYPES[self.problem].has_several else 1 for row in rows]

    def _encoded(self, rows: Rows) -> list[EncodedText]:
        texts = self._flat(rows)
        return self.tokenizer.rows(texts, sides=[self.side] * len(texts))


def balanced(examples: Any, labels: Sequence[str]) -> dict[str, float]:
    """Return a weight for each label so that all labels have equal total weight.

    Raises:
        UsageError: labels of the task have no weights.
    """
    weights = HEAD_TYPES[examples.problem].class_weights(examples.answers, len(labels))
    if weights is None:
        raise _weightless(examples.problem)
    return {label: float(weight) for label, weight in zip(labels, weights, strict=True)}


def class_weights(wanted: Mapping[str, float], problem: Learnt, labels: Sequence[str]) -> Tensor:
    """Return the weight of each class in the loss [classes].

    Raises:
        UsageError: the task has no classes, or a label is not among them.
    """
    where = argument("class_weights")
    if not TASK_TYPES[problem].has_labels:
        raise _weightless(problem)
    unknown = sorted(set(wanted) - set(labels))
    if unknown:
        raise UsageError("the data do not have these labels", where=where, found=some(unknown), expected=some(labels))
    return torch.tensor([float(wanted.get(label, 1)) for label in labels])


def _weightless(problem: Learnt) -> UsageError:
    where, found = argument("class_weights"), f"the task `{problem}`"
    return UsageError("class weights apply only to labels of texts and words", where=where, found=found)


def split(classes: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows in two, class by class, so that both halves have every class; returns rows in ascending order.

    The second half gets a fraction of each class, which has at least two rows: at least one row and never all.
    """
    generator = np.random.default_rng(seed)
    second = []
    for number in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == number))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        second.append(rows[:count])
    chosen = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(classes)), chosen), chosen


def split_groups(groups: Sequence[object], fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows in two, keeping rows of one group together; the second half gets a fraction of the groups.

    Raises:
        DataError: there is only one group.
    """
    number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        raise DataError("a single group of rows cannot be split for training and validation", expected="at least two")
    of_row = np.array([number[group] for group in groups])
    _, chosen = split(np.zeros(len(number), np.int64), fraction, seed)
    second = np.isin(of_row, chosen)
    return np.flatnonzero(~second), np.flatnonzero(second)


def training_batches(lengths: Rows, size: int, seed: Sequence[int]) -> list[Rows]:
    """Return every row once, in batches of similar length, in a random order that depends on the seed.

    Rows are shuffled, sorted by length within windows of many batches, and the batches are shuffled again: little
        padding, but different batches in every epoch. The last batch of a window may be smaller.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    window = size * _BATCHES_PER_WINDOW
    batches = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        batches += _cut(rows[np.argsort(lengths[rows], kind="stable")], size)
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_batches(lengths: Rows, size: int) -> list[Rows]:
    """Return every row once, in batches sorted by length."""
    return _cut(np.argsort(lengths, kind="stable"), size)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def of_one_call(lengths: Rows, *, pads: bool) -> list[Rows]:
    """Return the indices of rows that share a call: all of them, or unless `pads`, those of each length."""
    if pads:
        return [np.arange(len(lengths))]
    return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]


def in_order(results: Sequence[Tensor], calls: Sequence[Call]) -> Tensor:
    """Return the results of calls as one tensor in the order of the rows, zero-padded to the longest."""
    if len(results) == 1:
        return results[0]
    longest = max(one.shape[1] for one in results)
    alike = [pad(one, (0, 0, 0, longest - one.shape[1])) if one.ndim > 2 else one for one in results]
    return torch.cat(alike)[torch.from_numpy(np.argsort(np.concatenate([call.places for call in calls])))]


def digest_of(chunks: Sequence[bytes]) -> str:
    """Return the SHA-256 of some bytes and their boundaries."""
    digest = hashlib.sha256()
    for chunk in chunks:
        # with its length, so that other boundaries give another digest
        digest.update(len(chunk).to_bytes(8, "little") + chunk)
    return digest.hexdigest()
