"""Images and audio in, answers out: files become an input by the steps of the bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.manifest import Manifest
from adapter_export.format.media import MediaRecord
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import ReadText
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.modalities.modality import MediaFile
from adapter_export.runtime.answerer import LongTexts, Reader
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.session import Session
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

_AT_ONCE, _ROWS_IN_A_CALL = 32, 8


def check_answered(record: MediaRecord, task: Task | None, where: object) -> None:
    """Raise RequestError if an adapter has another input, or was trained with another processor."""
    if task is None:
        return
    if task.input != record.medium:
        expected = f"`{task.input}`"
        raise RequestError(
            "the adapter has another input", where=where, found=f"{record.modality.word}s", expected=expected
        )
    if task.processor not in (None, record.digest):
        raise RequestError(
            "was trained with another processor, whose values differ from the bundle's",
            where=where,
            found=f"processor {record.digest[:12]}…",
            expected=f"{str(task.processor)[:12]}…",
            fix="build the bundle from the base that the adapter was trained on, or pass arrays",
        )


@dataclass(frozen=True)
class MediaRow:
    """An image or an audio file, read when a call needs it; `cut` is the number of truncated samples."""

    file: MediaFile
    where: str
    cut: int = 0


class MediaReader(Reader):
    """Preprocesses images or audio for the adapters of a bundle, and answers them; made by `Bundle.files`.

    Raises:
        RequestError: the steps of the bundle's processor are unknown, or the base has further inputs.
    """

    window, token_budget = _AT_ONCE, _ROWS_IN_A_CALL

    def __init__(self, record: MediaRecord, manifest: Manifest, session: Session) -> None:
        self.record, self.session, self._base_head = record, session, manifest.head
        self.word = record.modality.word
        names = [base_input.name for base_input in manifest.inputs]
        if record.steps is None:
            raise RequestError(record.refusal, fix=f"pass arrays for `{record.input}`")
        if names != [record.input]:
            actual = quoted(names)
            fix = "pass arrays for all inputs"
            raise RequestError(f"the base has inputs that {record.modality.word}s cannot fill", found=actual, fix=fix)
        self._steps = record.steps

    def read(
        self,
        files: Sequence[MediaFile],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        long: LongTexts = "cut",
        stride: int | None = None,
        places: Sequence[str] = (),
    ) -> list[ReadText]:
        """Register files with their adapters; `arrays` reads their contents.

        Args:
            files: at least one.
            adapter: the adapter of all files. Default: the base head, or the base.
            adapters: one adapter per file instead.
            long: truncate (`cut`) or refuse audio that is longer than the model's input.
            stride: must be `None`, since audio is not split into windows.
            places: names in messages of files without a path. Default: `image 0` and so on.

        Raises:
            RequestError: there are no files; an adapter is not loaded, reads texts, or had another processor.
            FileError, DataError: an audio file cannot be read.
        """
        word = self.word
        if long == "windows" or stride is not None:
            fix = "pass " + argument("long", "cut") + " or `refuse`"
            raise RequestError(f"{word}s are not split into windows", fix=fix)
        names = self._names(files, adapter, adapters)
        names = [self._base_head if name is None else name for name in names]
        tasks = {name: None if name is None else self.session.task(name) for name in dict.fromkeys(names)}
        for name, task in tasks.items():
            check_answered(self.record, task, f"adapter `{name}`")
        read = []
        for at, (file, name) in enumerate(zip(files, names, strict=True)):
            path = None if isinstance(file, bytes | np.ndarray) else str(file)
            row = self._row(file, path or (places[at] if places else f"{word} {at}"))
            if row.cut and long == "refuse":
                raise RequestError(
                    "exceeds the input length", where=row.where, found=f"{number_of(row.cut, 'sample')} more"
                )
            read.append(ReadText(path or row.where, (row,), name, tasks[name]))
        return read

    def arrays(self, rows: Sequence[MediaRow], _adapter: str | None = None) -> Arrays:
        """Return the input of a call with these rows, float32 [rows, …].

        Raises:
            FileError, DataError: a file cannot be read.
            RequestError: audio files of different lengths cannot share a call.
        """
        modality = self.record.modality
        samples = [modality.apply(self.record.read(row.file, row.where), self._steps) for row in rows]
        if len({array.shape for array in samples}) > 1:
            lengths = sorted(array.shape[-1] for array in samples)
            raise RequestError(
                "audio files of different lengths cannot share a call, since the base has no mask",
                found=f"{lengths[0]:,} to {number_of(lengths[-1], 'value')}",
                fix="run them one by one",
            )
        return {self.record.input: np.stack(samples)}

    def _row(self, file: MediaFile, where: str) -> MediaRow:
        """Return a row with its number of truncated samples, which is reported before the answer."""
        limit = self.record.modality.limit(self._steps)
        if limit is None:
            return MediaRow(file, where)
        return MediaRow(file, where, max(0, self.record.size(file, where) - limit))


def media_record(manifest: Manifest, medium: str, where: object) -> MediaRecord:
    """Return the preprocessing record of a bundle; RequestError if it has none for this modality."""
    if medium not in FILE_MODALITIES:
        actual, expected = f"`{medium}`", quoted(FILE_MODALITIES)
        raise RequestError("unknown modality of files", found=actual, expected=expected)
    record, word = manifest.media, FILE_MODALITIES[medium].word
    if record is None or record.medium != medium:
        actual = "no processor" if record is None else f"a processor of {record.modality.word}s"
        raise RequestError(
            f"the bundle has no preprocessing record for {word}s",
            where=where,
            found=actual,
            fix="pass arrays, or capture the base again from a folder with `preprocessor_config.json`, and build again",
        )
    return record
