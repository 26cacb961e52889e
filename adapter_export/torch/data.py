"""Labelled examples as a training loop wants them: split by class, cut into batches of like length."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapter_export.errors import DataError
from adapter_export.text import Tokenizer

Rows = npt.NDArray[np.int64]
"""Indices of rows, or one number per row."""

_BATCHES_PER_WINDOW = 50
_CHUNK = 256


class Examples(Protocol):
    """Inputs of a base with a class for each row."""

    @property
    def classes(self) -> Rows:
        """The class of each row, counted from 0."""

    @property
    def lengths(self) -> Rows:
        """What each row costs, such as its tokens; rows of like length share batches."""

    @property
    def fingerprint(self) -> str:
        """Differs where rows differ; a run goes on from a checkpoint only if it is the same."""

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """The base's inputs for some rows, by name."""


@dataclass(frozen=True)
class ArrayExamples:
    """Examples that are arrays already.

    Attributes:
        arrays: each of the base's inputs, [rows, …].
        classes: the class of each row.
    """

    arrays: Mapping[str, np.ndarray]
    classes: Rows

    @property
    def lengths(self) -> Rows:
        """The same for every row."""
        return np.ones_like(self.classes)

    @property
    def fingerprint(self) -> str:
        """The sha256 of the arrays and classes."""
        return _sha256([*(self.arrays[name].tobytes() for name in sorted(self.arrays)), self.classes.tobytes()])

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """The base's inputs for some rows, by name."""
        return {name: torch.from_numpy(array[rows]) for name, array in self.arrays.items()}


@dataclass(frozen=True)
class TextExamples:
    """Texts, made tokens batch by batch as the runtime makes them; a batch is padded to its own longest row.

    Attributes:
        texts: the texts.
        classes: the class of each row.
        lengths: the number of tokens of each row.
        tokenizer: makes the tokens.
        names: the base's inputs.
        cut: how many texts were longer than the tokenizer's limit.
    """

    texts: Sequence[str]
    classes: Rows
    lengths: Rows
    tokenizer: Tokenizer
    names: tuple[str, ...]
    cut: int = 0

    @classmethod
    def of(cls, texts: Sequence[str], classes: Rows, tokenizer: Tokenizer, names: tuple[str, ...]) -> TextExamples:
        """Count the tokens of each text and keep all together.

        Raises:
            RequestError: the base has an input that text cannot fill, or a text has no tokens.
        """
        tokenizer.batch(texts[:1], names)
        lengths, cut = [], 0
        for start in range(0, len(texts), _CHUNK):
            for encoding in tokenizer.encode(texts[start : start + _CHUNK]):
                lengths.append(sum(encoding.attention_mask))
                cut += bool(encoding.overflowing)
        return cls(texts, classes, np.array(lengths, np.int64), tokenizer, names, cut)

    def only(self, rows: Rows) -> TextExamples:
        """Some of the rows, in the order given."""
        texts = [self.texts[row] for row in rows]
        return replace(self, texts=texts, classes=self.classes[rows], lengths=self.lengths[rows])

    @property
    def fingerprint(self) -> str:
        """The sha256 of the texts, their numbers of tokens and classes."""
        return _sha256([*map(str.encode, self.texts), self.lengths.tobytes(), self.classes.tobytes()])

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """The base's inputs for some rows, by name, [rows, tokens]."""
        arrays = self.tokenizer.batch([self.texts[row] for row in rows], self.names)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def class_indices(labels: Sequence[str], names: Sequence[str], where: str) -> Rows:
    """The class of each label.

    Raises:
        DataError: a label is not among the names.
    """
    index = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise DataError(
            "holds labels that the training data does not",
            where=where,
            found=", ".join(f"`{label}`" for label in unknown),
            expected=", ".join(f"`{name}`" for name in names),
        )
    return np.array([index[label] for label in labels], np.int64)


def label_names(labels: Sequence[str], where: str) -> tuple[str, ...]:
    """The different labels in order; numbers by value, words by letter.

    Raises:
        DataError: there are fewer than two, or one has a single row, which cannot be in both halves of a split.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError("holds fewer than two classes", where=where, found=", ".join(map("`{}`".format, counts)))
    single = sorted(label for label, count in counts.items() if count == 1)
    if single:
        raise DataError(
            "a class has one row only, so it cannot be both trained on and validated",
            where=where,
            found=", ".join(f"`{label}`" for label in single),
            expected="at least two rows of each class",
            fix="add rows of that class, or take it out",
        )
    numbers = all(label.removeprefix("-").isdecimal() for label in counts)
    return tuple(sorted(counts, key=int if numbers else str))


def split(classes: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows in two, class by class, so that both halves have every class.

    Args:
        classes: the class of each row; every class has at least two.
        fraction: of each class, what goes to the second half, but at least one row and never all.
        seed: decides which.

    Returns:
        The rows of the first half and of the second, each in rising order.
    """
    generator = np.random.default_rng(seed)
    second = []
    for number in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == number))
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        second.append(rows[:count])
    chosen = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(classes)), chosen), chosen


def training_batches(lengths: Rows, size: int, seed: Sequence[int]) -> list[Rows]:
    """Every row once, in batches whose rows are of like length, in random order.

    Rows are shuffled, sorted by length within windows of many batches, and the batches shuffled again: little padding,
    and still another composition of batches in every epoch.

    Args:
        lengths: the length of each row.
        size: rows in a batch; the last of a window may hold fewer.
        seed: decides the order; the same seed gives the same batches.
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
    """Every row once, sorted by length."""
    return _cut(np.argsort(lengths, kind="stable"), size)


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _sha256(parts: Sequence[bytes]) -> str:
    """Of parts whose borders count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
