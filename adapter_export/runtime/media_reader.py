"""Images and audio in, answers out: files become an input by the steps of the bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import RequestError, argument, quoted
from adapter_export.format.manifest import Manifest
from adapter_export.format.media import MediaRecord
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import ReadText
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.modalities.modality import MediaFile
from adapter_export.runtime.answerer import LongTexts, Reader
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.session import Session

_AT_ONCE, _ROWS_IN_A_CALL = 32, 8


def check_answered(record: MediaRecord, task: Task | None, where: object) -> None:
    """Raise a `RequestError` for an adapter that reads something else, or was trained with another processor."""
    if task is None:
        return
    if task.input != record.medium:
        expected = f"what its task calls `{task.input}`"
        raise RequestError(
            "reads something else than it is given", where=where, found=f"{record.modality.word}s", expected=expected
        )
    if task.processor not in (None, record.digest):
        raise RequestError(
            "was trained with another processor than the bundle's, which would give it other values",
            where=where,
            found=f"processor {record.digest[:12]}…",
            expected=f"{str(task.processor)[:12]}…",
            fix="build the bundle from the base that the adapter was trained on, or give arrays",
        )


@dataclass(frozen=True)
class MediaRow:
    """An image or an audio file that is read when a call needs it; `cut` is how many samples of it are not read."""

    file: MediaFile
    where: str
    cut: int = 0


class MediaReader(Reader):
    """Reads images or audio for the adapters of a bundle, and answers them with a session.

    Made by `Bundle.files`.

    Raises:
        RequestError: the steps of the bundle's processor are not known, or the base has other inputs beside its own.
    """

    window, token_budget = _AT_ONCE, _ROWS_IN_A_CALL

    def __init__(self, record: MediaRecord, manifest: Manifest, session: Session) -> None:
        self.record, self.session, self._base_head = record, session, manifest.head
        self.word = record.modality.word
        names = [one.name for one in manifest.inputs]
        if record.steps is None:
            raise RequestError(record.refusal, fix=f"give arrays for `{record.input}`")
        if names != [record.input]:
            found = quoted(names)
            fix = "give arrays for all inputs"
            raise RequestError(f"the base has inputs that {record.modality.word}s cannot fill", found=found, fix=fix)
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
        """Take up files for an adapter, or for one each; their contents are read by `arrays`.

        Args:
            files: at least one.
            adapter: the adapter of all; without it, and without `adapters`, the base head, or the base.
            adapters: instead, one for each file.
            long: an audio file that is longer than the model reads is cut, or refused.
            stride: audio files are not read in windows.
            places: what messages call those without a path; `image 0` and so on if not given.

        Raises:
            RequestError: there are no files; an adapter is not loaded, reads texts, or had another processor.
            FileError, DataError: an audio file cannot be read.
        """
        word = self.word
        if long == "windows" or stride is not None:
            raise RequestError(f"{word}s are not read in windows", fix=f"give {argument('long', 'cut')} or `refuse`")
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
                raise RequestError("is longer than the model reads", where=row.where, found=f"{row.cut:,} samples more")
            read.append(ReadText(path or row.where, (row,), name, tasks[name]))
        return read

    def arrays(self, rows: Sequence[MediaRow], _adapter: str | None = None) -> Arrays:
        """Return the input of a call with these rows, float32, a row for each.

        Raises:
            FileError, DataError: a file cannot be read.
            RequestError: audio files of different lengths do not go together.
        """
        modality = self.record.modality
        found = [modality.apply(self.record.read(row.file, row.where), self._steps) for row in rows]
        if len({one.shape for one in found}) > 1:
            lengths = sorted(one.shape[-1] for one in found)
            raise RequestError(
                "audio files of different lengths do not go together, as the base reads no mask",
                found=f"{lengths[0]:,} to {lengths[-1]:,} values",
                fix="run them one by one",
            )
        return {self.record.input: np.stack(found)}

    def _row(self, file: MediaFile, where: str) -> MediaRow:
        """Count what an audio file loses, which is to be said before it is answered."""
        limit = self.record.modality.limit(self._steps)
        if limit is None:
            return MediaRow(file, where)
        return MediaRow(file, where, max(0, len(self.record.read(file, where)) - limit))


def media_record(manifest: Manifest, medium: str, where: object) -> MediaRecord:
    """Return what a bundle says of its processor; a `RequestError` if it has none, or one for the other medium."""
    if medium not in FILE_MODALITIES:
        found, expected = f"`{medium}`", quoted(FILE_MODALITIES)
        raise RequestError("is no modality of files", found=found, expected=expected)
    record, word = manifest.media, FILE_MODALITIES[medium].word
    if record is None or record.medium != medium:
        found = "no processor" if record is None else f"a processor of {record.modality.word}s"
        raise RequestError(
            f"the bundle does not say how {word}s become its input",
            where=where,
            found=found,
            fix="give arrays, or capture the base again from a folder with `preprocessor_config.json`, and build again",
        )
    return record
