"""Images and audio in, answers out: files become an input by the steps of the bundle, without torch."""

from __future__ import annotations

import importlib
import io
import os
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import DataError, MissingExtraError, RequestError, argument, quoted
from adapter_export.format.manifest import Manifest
from adapter_export.format.media import (
    RESAMPLING,
    CenterCrop,
    Fit,
    LogMel,
    MediaRecord,
    Medium,
    Normalize,
    Rescale,
    Resize,
    ResizeShortestEdge,
    Standardize,
    Step,
)
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import ReadText, TextAnswer
from adapter_export.runtime.answerer import Answerer, LongTexts, Reading, Row
from adapter_export.runtime.batches import Progress
from adapter_export.runtime.check_inputs import Weighting, weights_of_each
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.session import Session
from adapter_export.runtime.strength import Strength, strength_of_each
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes

MediaFile = Path | str | bytes | np.ndarray
"""A file by its path, the bytes of one, or what is in it: uint8 [height, width, 3], or float32 [samples]."""

WORDS: Mapping[Medium, str] = {"image": "image", "audio": "clip"}
"""What messages call a file."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of 8 bits a channel or fewer: of others, making RGB loses what is too bright, without a word."""

_AT_ONCE, _ROWS_IN_A_CALL = 32, 8


def read_image(data: bytes, where: object) -> np.ndarray:
    """Return an image, upright and in RGB, uint8 [height, width, 3].

    Raises:
        DataError: it is no image, truncated, several images, of more bits a channel, or larger than Pillow's limit.
        MissingExtraError: Pillow is not installed.
    """
    image_of, upright = pillow("Image"), pillow("ImageOps")

    def refusal(reason: str) -> DataError:
        expected = "a whole PNG, JPEG or other file that Pillow reads"
        found = reason.partition(" <_io")[0]
        return DataError("is no image that can be read", where=where, found=found, expected=expected)

    def too_large(reason: object) -> DataError:
        return DataError("is an image that is too large", where=where, found=reason, fix="make it smaller")

    with parsing(refusal):
        try:
            image = image_of.open(io.BytesIO(data))
        except (image_of.DecompressionBombError, image_of.DecompressionBombWarning) as error:
            raise too_large(error) from error
        with image:
            most = image_of.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise too_large(f"{image.width} × {image.height} pixels, more than {most:,}")
            if image.mode not in _MODES or getattr(image, "n_frames", 1) > 1:
                found = f"{image.n_frames} images" if image.mode in _MODES else f"pixels of the mode `{image.mode}`"
                raise DataError(
                    "is not one image of 8 bits a channel", where=where, found=found, fix="save it as PNG in RGB"
                )
            return np.array(upright.exif_transpose(image).convert("RGB"))


def pillow(module: str) -> Any:
    """Return a module of Pillow, which only those who give images need."""
    try:
        return importlib.import_module(f"PIL.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", extra="image", needed_for="reading images") from error


_PCM: Mapping[int, tuple[str, int]] = {1: ("u1", 128), 2: ("<i2", 2**15), 4: ("<i4", 2**31)}
"""By the bytes of a sample: its type, and what is 1.0."""


def read_audio(data: bytes, rate: int | None, where: object) -> np.ndarray:
    """Return an audio file of a WAV file, float32 [samples] from -1 to 1.

    Raises:
        DataError: it is no WAV file of PCM, truncated or empty, has several channels or another sampling rate.
    """
    fix = (
        f"convert it, such as by `ffmpeg -i FILE -ac 1{'' if rate is None else f' -ar {rate}'} -c:a pcm_s16le NEW.wav`"
    )

    def refusal(reason: str) -> DataError:
        return DataError("is no WAV file that can be read", where=where, found=reason, expected="PCM", fix=fix)

    with parsing(refusal), wave.open(io.BytesIO(data)) as file:
        facts, frames = file.getparams(), file.readframes(file.getnframes())
    if facts.sampwidth > max(_PCM):
        raise refusal(f"samples of {8 * facts.sampwidth} bits")
    if facts.nchannels != 1 or (rate is not None and facts.framerate != rate):
        found = f"{facts.nchannels} channel{'s' if facts.nchannels > 1 else ''}, {facts.framerate:,} Hz"
        expected = "1 channel" + ("" if rate is None else f", {rate:,} Hz")
        raise DataError(
            "is an audio file of another form than the model reads",
            where=where,
            found=found,
            expected=expected,
            fix=fix,
        )
    if facts.nframes == 0 or len(frames) != facts.nframes * facts.sampwidth:
        found = f"{len(frames) // facts.sampwidth:,} samples of {facts.nframes:,}"
        raise DataError("is an empty or truncated clip", where=where, found=found, fix="copy the file again as a whole")
    if facts.sampwidth == 3:  # as the upper bytes of four
        padded = np.zeros((facts.nframes, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        frames = padded.tobytes()
    dtype, one = _PCM[4 if facts.sampwidth == 3 else facts.sampwidth]
    samples = np.frombuffer(frames, dtype).astype(np.float64) / one
    return (samples - (1 if facts.sampwidth == 1 else 0)).astype(np.float32)


def read_medium(file: MediaFile, medium: Medium, rate: int | None, where: object) -> np.ndarray:
    """Return what is in a file, as `read_image` and `read_audio`; an array is checked.

    Raises:
        FileError: there is no file, or it cannot be read.
        DataError: as `read_image` and `read_audio`.
        RequestError: an array of another form.
    """
    if isinstance(file, np.ndarray):
        is_image = file.ndim == 3 and file.shape[-1] == 3 and file.dtype == np.uint8
        is_clip = file.ndim == 1 and file.dtype == np.float32
        if not (is_image if medium == "image" else is_clip) or 0 in file.shape:
            expected = "uint8 [height, width, 3]" if medium == "image" else "float32 [samples]"
            raise RequestError(
                f"is no {WORDS[medium]}", where=where, found=f"{file.dtype} {list(file.shape)}", expected=expected
            )
        return file
    data = file if isinstance(file, bytes) else read_bytes(Path(os.fspath(file)))
    return read_image(data, where) if medium == "image" else read_audio(data, rate, where)


def apply_steps(values: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Apply the steps to an image [height, width, 3] or to samples [samples]; return float32, channels first.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    is_image = values.ndim == 3
    for step in steps:
        values = _STEPS[type(step)](values, step)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if is_image else values, np.float32)


def _resize_shortest_edge(values: np.ndarray, step: ResizeShortestEdge) -> np.ndarray:
    shorter, longer = sorted(values.shape[:2])
    long = int(step.length * longer / shorter)
    height, width = (long, step.length) if values.shape[0] > values.shape[1] else (step.length, long)
    return _resize(values, Resize("resize", height, width, step.resample))


def _resize(values: np.ndarray, step: Resize) -> np.ndarray:
    resized = pillow("Image").fromarray(values).resize((step.width, step.height), RESAMPLING.index(step.resample))
    found: np.ndarray = np.array(resized)
    return found


def _center_crop(values: np.ndarray, step: CenterCrop) -> np.ndarray:
    if values.shape[0] < step.height or values.shape[1] < step.width:
        found, expected = f"{values.shape[0]} × {values.shape[1]}", f"at least {step.height} × {step.width}"
        raise DataError("an image is smaller than what is kept of it", found=found, expected=expected)
    top, left = (values.shape[0] - step.height) // 2, (values.shape[1] - step.width) // 2
    return values[top : top + step.height, left : left + step.width]


def _rescale(values: np.ndarray, step: Rescale) -> np.ndarray:
    return (values.astype(np.float64) * step.factor).astype(np.float32)


def _normalize(values: np.ndarray, step: Normalize) -> np.ndarray:
    mean, std = (np.array(numbers, np.float32) for numbers in (step.mean, step.std))
    found: np.ndarray = (values.astype(np.float32) - mean) / std
    return found


def _fit(values: np.ndarray, step: Fit) -> np.ndarray:
    return np.pad(values[: step.samples], (0, max(0, step.samples - len(values))))


def _standardize(values: np.ndarray, step: Standardize) -> np.ndarray:
    found: np.ndarray = (values - values.mean()) / np.sqrt(values.var() + step.epsilon)
    return found


def _log_mel(values: np.ndarray, step: LogMel) -> np.ndarray:
    mirrored = np.pad(values.astype(np.float64), step.fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, step.fft)[:: step.hop][:-1]
    window = np.hanning(step.fft + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    logs = np.log10(np.maximum(power @ _mel_filters(step), 1e-10)).T
    found: np.ndarray = (np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0
    return found


def _mel_filters(step: LogMel) -> np.ndarray:
    """Triangles [bins, bands] on Slaney's scale, linear below 1 kHz, each of area 1 (Slaney 1998, Auditory Toolbox)."""
    log_step = np.log(6.4) / 27

    def mels(hertz: float) -> float:
        return 3 * hertz / 200 if hertz < 1000 else 15 + float(np.log(hertz / 1000)) / log_step

    places = np.linspace(mels(step.low), mels(step.high), step.bands + 2)
    edges = np.where(places < 15, 200 * places / 3, 1000 * np.exp(log_step * (places - 15)))
    slopes = edges - np.linspace(0, step.rate // 2, step.fft // 2 + 1)[:, None]
    widths = np.diff(edges)
    triangles = np.maximum(0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    found: np.ndarray = triangles * 2 / (edges[2:] - edges[:-2])
    return found


_STEPS: Mapping[type, Callable[[np.ndarray, Any], np.ndarray]] = {
    Resize: _resize,
    ResizeShortestEdge: _resize_shortest_edge,
    CenterCrop: _center_crop,
    Rescale: _rescale,
    Normalize: _normalize,
    Fit: _fit,
    Standardize: _standardize,
    LogMel: _log_mel,
}


def check_answered(record: MediaRecord, task: Task | None, where: object) -> None:
    """Raise a `RequestError` for an adapter that reads something else, or was trained with another processor."""
    if task is None:
        return
    if task.input != record.medium:
        expected = f"what its task calls `{task.input}`"
        raise RequestError(
            "reads something else than it is given", where=where, found=f"a {WORDS[record.medium]}", expected=expected
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


class MediaReader:
    """Reads images or audio for the adapters of a bundle, and answers them with a session.

    Made by `Bundle.images` and `Bundle.audio`.

    Raises:
        RequestError: the steps of the bundle's processor are not known, or the base has other inputs beside its own.
    """

    window, token_budget = _AT_ONCE, _ROWS_IN_A_CALL

    def __init__(self, record: MediaRecord, manifest: Manifest, session: Session) -> None:
        self.record, self.session, self._base_head = record, session, manifest.head
        names = [one.name for one in manifest.inputs]
        if record.steps is None:
            raise RequestError(record.refusal, fix=f"give arrays for `{record.input}`")
        if names != [record.input]:
            found = quoted(names)
            fix = "give arrays for all inputs"
            raise RequestError(f"the base has inputs that a {WORDS[record.medium]} cannot fill", found=found, fix=fix)
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
            stride: none: clips are not read in windows.
            places: what messages call those without a path; `image 0` and so on if not given.

        Raises:
            RequestError: there are no files; an adapter is not loaded, reads texts, or had another processor.
            FileError, DataError: an audio file cannot be read.
        """
        names = list(adapters) if adapters is not None else [adapter] * len(files)
        word = WORDS[self.record.medium]
        if long == "windows" or stride is not None:
            raise RequestError(f"a {word} is not read in windows", fix=f"give {argument('long', 'cut')} or `refuse`")
        if isinstance(files, str | bytes | Path) or not len(files) or len(names) != len(files):
            raise RequestError(
                f"needs a list of {word}s, and an adapter for each or for all",
                found=f"{type(files).__name__}, {len(names)} adapters",
            )
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
            RequestError: clips of different lengths do not go together.
        """
        medium, rate = self.record.medium, self.record.sampling_rate
        found = [apply_steps(read_medium(row.file, medium, rate, row.where), self._steps) for row in rows]
        if len({one.shape for one in found}) > 1:
            lengths = sorted(one.shape[-1] for one in found)
            raise RequestError(
                "clips of different lengths do not go together, as the base reads no mask",
                found=f"{lengths[0]:,} to {lengths[-1]:,} values",
                fix="run them one by one",
            )
        return {self.record.input: np.stack(found)}

    def answer(
        self,
        files: Sequence[MediaFile],
        adapter: str | None = None,
        *,
        adapters: Sequence[str | None] | None = None,
        weights: Weighting | None = None,
        strength: Strength | None = None,
        allow_mixed_rows: bool = False,
        progress: Progress | bool | None = None,
    ) -> list[TextAnswer]:
        """Answer images or audio, each by the task of its adapter.

        Args:
            files: as in `read`.
            adapter: as in `read`.
            adapters: as in `read`.
            weights: as in `Session.run`, for adapters that are weighted fusions: for all files or for each.
            strength: as in `Session.run`, for all files or for each.
            allow_mixed_rows: as in `Session.run`.
            progress: as in `Session.run_many`.

        Raises:
            RequestError, FileError, DataError: as `read`, `arrays` and `Session.run`; or an adapter has no head.
        """
        names = list(adapters) if adapters is not None else [adapter] * len(files)
        if isinstance(files, str | bytes | Path) or not len(files) or len(names) != len(files):
            self.read(files, adapter, adapters=adapters)  # says what is wrong
        each = strength_of_each(strength, len(files)), weights_of_each(weights, len(files))
        rows = [Row(*choice) for choice in zip(files, names, *each, strict=True)]
        return Answerer(self.session, self, Reading(allow_mixed_rows=allow_mixed_rows)).answers(rows, progress)

    def without_padding(self, outputs: Mapping[str, np.ndarray], _row: MediaRow) -> Mapping[str, np.ndarray]:
        """Return the outputs of a row as they are: files are not padded."""
        return outputs

    def _row(self, file: MediaFile, where: str) -> MediaRow:
        """Count what an audio file loses, which is to be said before it is answered."""
        fit = next((step for step in self._steps if isinstance(step, Fit)), None)
        if fit is None:
            return MediaRow(file, where)
        clip = read_medium(file, self.record.medium, self.record.sampling_rate, where)
        return MediaRow(file, where, max(0, len(clip) - fit.samples))


def media_record(manifest: Manifest, medium: Medium, where: object) -> MediaRecord:
    """Return what a bundle says of its processor; a `RequestError` if it has none, or one for the other medium."""
    record, word = manifest.media, WORDS[medium]
    if record is None or record.medium != medium:
        found = "no processor" if record is None else f"a processor of {WORDS[record.medium]}s"
        raise RequestError(
            f"the bundle does not say how a {word} becomes its input",
            where=where,
            found=found,
            fix="give arrays, or capture the base again from a folder with `preprocessor_config.json`, and build again",
        )
    return record
