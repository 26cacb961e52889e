"""Images and audio for a training loop, preprocessed by the base's transformers processor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adapter_export.format.manifest import InputRecord
from adapter_export.format.media import CapturedMedia
from adapter_export.format.tabular.labelled import LabelledFile
from adapter_export.graph.tasks import ProblemType
from adapter_export.text import Side
from adapter_export.torch_backend.base.own_processors import OwnProcessor
from adapter_export.training.loop.data import Call, Rows, of_one_call


@dataclass(frozen=True)
class MediaSource:
    """Preprocessing of a base for images or audio, and its processor."""

    media: CapturedMedia
    processor: OwnProcessor
    one_length: bool

    @classmethod
    def of(cls, media: CapturedMedia, inputs: Sequence[InputRecord]) -> MediaSource:
        """Create the processor from its file, for a base with these inputs.

        Raises:
            BaseModelError: transformers cannot create it.
        """
        axes = next(one.axes for one in inputs if one.name == media.record.input)
        one_length = not media.record.modality.has_rate or all(isinstance(axis, int) for axis in axes[1:])
        return cls(media, OwnProcessor(media.processor, media.record.modality), one_length)

    @property
    def medium(self) -> str | None:
        """Modality of the files."""
        return self.media.record.medium

    @property
    def digest(self) -> str | None:
        """Digest of the processor."""
        return self.media.record.digest

    def examples(self, texts: Sequence[Any], answers: Any, problem: ProblemType, side: Side) -> MediaExamples:  # noqa: ARG002
        """Return the files, each read once."""
        return MediaExamples.of(texts, answers, self, problem)

    def record(self) -> dict[str, Any]:
        """Return an empty record: the record of the task has the digest of the processor."""
        return {}

    def contents(self, file: LabelledFile) -> np.ndarray:
        """Return the pixels or samples of a file.

        Raises:
            DataError: it cannot be read; the message names it.
        """
        return self.media.record.read(file.path, file.path)


@dataclass(frozen=True)
class MediaExamples:
    """Files, preprocessed batch by batch.

    Attributes:
        texts: the files.
        answers: classes [rows], labels that apply [rows, labels], or numbers [rows, numbers].
        lengths: samples of each audio file, unless the processor makes them equally long; otherwise 1.
        source: preprocesses the files.
        problem: task type of the rows.
        cut: indices of files that exceed the model's maximum length.
        lost: empty: no answer is affected by truncation.
        highest: empty: files have no tokens.
    """

    texts: Sequence[LabelledFile]
    answers: Any
    lengths: Rows
    source: MediaSource
    problem: ProblemType
    cut: Sequence[int] = ()
    lost: Sequence[int] = ()
    highest: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, texts: Sequence[LabelledFile], answers: Any, source: MediaSource, problem: ProblemType
    ) -> MediaExamples:
        """Read each file once, so that unreadable files are reported before the first step.

        Raises:
            DataError: a file cannot be read.
        """
        limit = source.media.record.modality.limit(source.media.record.steps or ())
        sizes = np.array([source.contents(file).size for file in texts], np.int64)
        lengths = np.ones(len(texts), np.int64) if source.one_length else sizes
        cut = () if limit is None else np.flatnonzero(sizes > limit).tolist()
        return cls(texts, answers, lengths, source, problem, cut)

    @property
    def limit(self) -> str:
        """Maximum length of a file without truncation."""
        record = self.source.media.record
        limit = record.modality.limit(record.steps or ())
        return "" if limit is None else f"{limit:,} samples"

    @property
    def word(self) -> str:
        """Name of a row in messages."""
        return self.source.media.record.modality.word

    @property
    def task_facts(self) -> dict[str, Any]:
        """Facts of a task that is trained on the files."""
        return {"input": self.source.media.record.medium, "processor": self.source.media.record.digest}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the files, their answers and the processor; a run resumes only if it is equal."""
        digest = hashlib.sha256(self.source.media.record.digest.encode())
        for file in self.texts:
            digest.update(file.sha256.encode())
        digest.update(np.ascontiguousarray(self.answers).tobytes())
        return digest.hexdigest()

    def only(self, rows: Rows) -> MediaExamples:
        """Return some of the rows, in the given order."""
        answers = np.asarray(self.answers)[rows]
        return replace(self, texts=[self.texts[row] for row in rows], answers=answers, lengths=self.lengths[rows])

    @property
    def sizes(self) -> frozenset[int]:
        """Distinct lengths."""
        return frozenset(self.lengths.tolist())

    def calls(self, rows: Rows, *, pads: bool) -> Iterator[Call]:
        """Yield some rows in one call; unless `pads`, in one call per length.

        Raises:
            DataError: a file can no longer be read.
            BaseModelError: the processor rejects one.
        """
        name = self.source.media.record.input
        for places in of_one_call(self.lengths[rows], pads=pads):
            contents = [self.source.contents(self.texts[row]) for row in rows[places]]
            yield Call({name: torch.from_numpy(self.source.processor(contents, name))}, places)

    def positions(self, rows: Rows) -> int:  # noqa: ARG002 — a file has one narrow result, or few
        """Return 0: the outputs of files are not bounded by their samples."""
        return 0

    def matched(self, results: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the results of a head for some rows, and the targets."""
        return results, torch.from_numpy(np.asarray(self.answers)[rows]).to(results.device)
