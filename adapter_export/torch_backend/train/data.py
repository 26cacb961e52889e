"""Texts as a training loop wants them: with their targets, split in two, cut into batches of like length."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapter_export.errors import DataError
from adapter_export.text import Text, Tokenizer
from adapter_export.torch_backend.train.objectives import IGNORED

Rows = npt.NDArray[np.int64]
"""Indices of rows, or one number per row."""

_BATCHES_PER_WINDOW = 50
_CHUNK = 256


@dataclass(frozen=True)
class TextExamples:
    """Texts, made tokens batch by batch as the runtime makes them; a batch is padded to its own longest row.

    Attributes:
        texts: the texts, or the words of each.
        answers: classes [rows], numbers [rows, numbers], or the classes of the words of each row.
        lengths: the number of tokens of each row.
        tokenizer: makes the tokens.
        names: the base's inputs.
        cut: how many texts were longer than the tokenizer's limit.
    """

    texts: Sequence[Text]
    answers: np.ndarray | Sequence[Rows]
    lengths: Rows
    tokenizer: Tokenizer
    names: tuple[str, ...]
    cut: int = 0

    @classmethod
    def of(
        cls, texts: Sequence[Text], answers: np.ndarray | Sequence[Rows], tokenizer: Tokenizer, names: tuple[str, ...]
    ) -> TextExamples:
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
        return cls(texts, answers, np.array(lengths, np.int64), tokenizer, names, cut)

    def only(self, rows: Rows) -> TextExamples:
        """Some of the rows, in the order given."""
        texts = [self.texts[row] for row in rows]
        answers: Any = self.answers
        answers = answers[rows] if isinstance(answers, np.ndarray) else [answers[row] for row in rows]
        return replace(self, texts=texts, answers=answers, lengths=self.lengths[rows])

    @property
    def fingerprint(self) -> str:
        """The sha256 of the texts, their numbers of tokens and the answers; a run resumes only where it is the same."""
        answers = [self.answers] if isinstance(self.answers, np.ndarray) else self.answers
        texts = [text.encode() if isinstance(text, str) else json.dumps(text).encode() for text in self.texts]
        return _sha256([*texts, self.lengths.tobytes(), *(one.tobytes() for one in answers)])

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """The base's inputs for some rows, by name, [rows, tokens]."""
        arrays = self.tokenizer.batch([self.texts[row] for row in rows], self.names)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def targets(self, rows: Rows) -> Tensor:
        """What is to be learnt of some rows: classes [rows] or [rows, tokens], or numbers [rows, numbers].

        The class of a word is at its first token (Devlin et al. 2019, §5.3); other tokens have `IGNORED`.
        """
        if isinstance(self.answers, np.ndarray):
            return torch.from_numpy(self.answers[rows])
        encodings = self.tokenizer.encode([self.texts[row] for row in rows])
        targets = np.full((len(rows), len(encodings[0].ids)), IGNORED, np.int64)
        for target, encoding, row in zip(targets, encodings, rows, strict=True):
            words = encoding.word_ids
            for place, word in enumerate(words):
                if word is not None and word not in words[:place]:
                    target[place] = self.answers[row][word]
        return torch.from_numpy(targets)


def class_indices(labels: Sequence[str], names: Sequence[str], where: str) -> Rows:
    """The class of each label; raises DataError for a label that is not among the names."""
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


def label_names(labels: Sequence[str], where: str, *, rows: int = 2) -> tuple[str, ...]:
    """The different labels in order, numbers by value, words by letter.

    Raises:
        DataError: there are fewer than two, or one has fewer rows than `rows`, the least that a split needs of each.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        raise DataError("holds fewer than two classes", where=where, found=", ".join(f"`{label}`" for label in counts))
    single = sorted(label for label, count in counts.items() if count < rows)
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
    """Split rows in two, class by class, so that both halves have every class; returns rows in rising order.

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


def training_batches(lengths: Rows, size: int, seed: Sequence[int]) -> list[Rows]:
    """Every row once, in batches whose rows are of like length, in the random order that a seed gives.

    Rows are shuffled, sorted by length within windows of many batches, and the batches shuffled again: little padding,
    and still another composition of batches in every epoch. The last batch of a window may be smaller.
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


def _sha256(chunks: Sequence[bytes]) -> str:
    """Of the chunks and their lengths."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little") + chunk)
    return digest.hexdigest()
