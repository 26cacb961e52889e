"""Audio: decoding of WAV files to samples or a spectrogram."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from adapter_export.errors import DataError
from adapter_export.interval import Interval
from adapter_export.modalities.modality import FileModality, Step, UnknownStepsError
from adapter_export.safe_io.parsers import parsing
from adapter_export.tables import number_of

Samples = Annotated[int, Interval(1, 2**26)]
Edge = Annotated[int, Interval(1, 16_384)]
NotNegative = Annotated[float, Interval(0)]
Positive = Annotated[int, Interval(1)]

_PCM: Mapping[int, tuple[str, int]] = {1: ("u1", 128), 2: ("<i2", 2**15), 4: ("<i4", 2**31)}
"""Type of a sample and its value at 1.0, by the bytes of a sample."""

_MEL = {"n_fft", "hop_length", "chunk_length", "n_samples", "nb_max_frames", "sampling_rate", "dither", "padding_value"}
_WAVE = {"sampling_rate", "do_normalize", "padding_value"}

_FRAMES = 3000
"""Frames whose spectra are computed at a time: 30 seconds of Whisper's."""

_SECONDS = (0.25, 0.4)
"""The length of two sounds."""


@dataclass(frozen=True)
class Fit(Step):
    """Truncate an audio file to `samples` samples, or pad it with zeros up to them.

    Attributes:
        op: `fit`.
        samples: the length after this step.
    """

    op: Literal["fit"]
    samples: Samples

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Truncate or pad the samples."""
        return np.pad(values[: self.samples], (0, max(0, self.samples - len(values))))


@dataclass(frozen=True)
class Standardize(Step):
    """Compute (sample - m) / sqrt(v + epsilon), with the mean m and the variance v of the audio.

    Attributes:
        op: `standardize`.
        epsilon: such as 1e-7.
    """

    op: Literal["standardize"]
    epsilon: NotNegative

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Standardize the samples."""
        found: np.ndarray = (values - values.mean()) / np.sqrt(values.var() + self.epsilon)
        return found


@dataclass(frozen=True)
class LogMel(Step):
    """Turn an audio file into a log-mel spectrogram [bands, frames], as Whisper reads it.

    Power of the short-time Fourier transform (a periodic Hann window, frames centred, the audio mirrored at its ends,
    the last frame left out); a mel filter bank on Slaney's scale with Slaney's norm; log10 of at least 1e-10; at least
    the largest value - 8; (value + 4) / 4.

    Attributes:
        op: `log_mel`.
        bands: number of filters.
        fft: the length of a frame, in samples.
        hop: distance between frame starts, in samples.
        low: start of the lowest filter, in Hz.
        high: end of the highest filter, in Hz.
        rate: the sampling rate, in Hz.
    """

    op: Literal["log_mel"]
    bands: Edge
    fft: Edge
    hop: Edge
    low: NotNegative
    high: NotNegative
    rate: Positive

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the spectrogram."""
        mirrored = np.pad(values.astype(np.float64), self.fft // 2, mode="reflect")
        # without the last frame, as in `WhisperFeatureExtractor`
        frames = np.lib.stride_tricks.sliding_window_view(mirrored, self.fft)[:: self.hop][:-1]
        # the periodic Hann window, whose last value would be that of the next period
        window = np.hanning(self.fft + 1)[:-1]
        filters, parts = _mel_filters(self), range(0, len(frames), _FRAMES)
        # in parts, since the spectra of an hour take gigabytes
        powers = (np.abs(np.fft.rfft(frames[at : at + _FRAMES] * window)) ** 2 @ filters for at in parts)
        # floor, range and scale are those of `WhisperFeatureExtractor`
        logs = np.log10(np.maximum(np.concatenate(list(powers)), 1e-10)).T
        found: np.ndarray = (np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0
        return found


class AudioModality(FileModality):
    """Audio of one channel, samples from -1 to 1."""

    name = "audio"
    inputs = ("audio",)
    word = "audio file"
    pipeline = "audio-classification"
    form = "float32 [samples]"
    option = "Audio file (WAV). Repeatable."
    steps = (Fit, Standardize, LogMel)
    has_rate = True
    processor_field = "feature_extractor_type"
    processor_inputs = ("input_features", "input_values")

    def is_contents(self, array: np.ndarray) -> bool:
        """Return whether an array is a row of samples."""
        return array.ndim == 1 and array.dtype == np.float32

    def size(self, data: bytes, rate: int | None, where: object) -> int:
        """Return the number of samples of a WAV file; errors as of `read`."""
        return int(_checked(data, rate, where)[0].nframes)

    def read(self, data: bytes, rate: int | None, where: object, most: int | None = None) -> np.ndarray:
        """Return the samples of a WAV file, at most the first `most`, float32 [samples] from -1 to 1.

        Raises:
            DataError: the file is not PCM WAV, is truncated or empty, or has several channels or another sampling rate.
        """
        facts, frames = _checked(data, rate, where)
        width = facts.sampwidth
        frames = frames if most is None else frames[: most * width]
        if width == 3:  # as the upper bytes of four
            padded = np.zeros((len(frames) // width, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
            frames = padded.tobytes()
        dtype, one = _PCM[4 if width == 3 else width]
        samples = np.frombuffer(frames, dtype).astype(np.float32)  # rounded once: `one` is a power of two
        samples /= np.float32(one)
        if width == 1:
            # WAV stores 8 bits unsigned, with silence at 128
            samples -= 1
        return samples

    def limit(self, steps: Sequence[Step]) -> int | None:
        """Return the maximum number of samples read from a file."""
        return next((step.samples for step in steps if isinstance(step, Fit)), None)

    def without_limit(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Return steps that neither cut the sound nor pad it."""
        return [step for step in steps if not isinstance(step, Fit)]

    def known_fields(self, fields: Mapping[str, Any]) -> set[str]:
        """Return the fields of feature extractors."""
        return _MEL if "n_fft" in fields else _WAVE

    def named_steps(self, fields: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the steps of a feature extractor of spectrograms or of samples."""
        if "n_fft" not in fields:
            if fields.get("do_normalize"):
                # the epsilon of `Wav2Vec2FeatureExtractor`
                yield Standardize("standardize", 1e-7)
            return
        if fields.get("dither"):
            raise UnknownStepsError("adds noise (`dither`)")
        yield Fit("fit", fields["chunk_length"] * fields["sampling_rate"])
        bands, fft, hop, rate = (fields[name] for name in ("feature_size", "n_fft", "hop_length", "sampling_rate"))
        # the frequencies are constants in `WhisperFeatureExtractor`
        yield LogMel("log_mel", bands, fft, hop, 0.0, 8000.0, rate)

    def samples(self, rate: int | None) -> dict[str, bytes]:
        """Return tones in noise of 0.25 and 0.5 seconds, 16-bit WAV."""
        assert rate is not None
        drawn, files = np.random.default_rng(0), {}
        for title, seconds, pitch in (("low", 0.25, 220), ("high", 0.5, 1760)):
            times = np.arange(int(seconds * rate)) / rate
            samples = 0.4 * np.sin(2 * np.pi * pitch * times) + drawn.normal(0, 0.05, len(times))
            file = io.BytesIO()
            with wave.open(file, "wb") as writer:
                writer.setnchannels(1)
                writer.setsampwidth(2)
                writer.setframerate(rate)
                writer.writeframes((samples * 32767).astype("<i2").tobytes())
            files[title] = file.getvalue()
        return files

    def noise(self, number: int, rate: int | None) -> np.ndarray:
        """Return samples of noise."""
        assert rate is not None
        return np.random.default_rng(number).standard_normal(int(rate * _SECONDS[number])).astype(np.float32)


def _checked(data: bytes, rate: int | None, where: object) -> tuple[Any, bytes]:
    """Return the parameters of a WAV file and its frames; errors as of `AudioModality.read`."""
    resampled = "" if rate is None else f" -ar {rate}"
    fix = f"convert it, such as by `ffmpeg -i FILE -ac 1{resampled} -c:a pcm_s16le NEW.wav`"

    def refusal(reason: str) -> DataError:
        return DataError("is not a readable WAV file", where=where, found=reason, expected="PCM", fix=fix)

    with parsing(refusal), wave.open(io.BytesIO(data)) as file:
        facts, frames = file.getparams(), file.readframes(file.getnframes())
    if facts.sampwidth > max(_PCM):
        raise refusal(f"samples of {8 * facts.sampwidth} bits")
    if facts.nchannels != 1 or (rate is not None and facts.framerate != rate):
        facts_found = f"{facts.nchannels} channel{'s' if facts.nchannels > 1 else ''}, {facts.framerate:,} Hz"
        expected = "1 channel" + ("" if rate is None else f", {rate:,} Hz")
        raise DataError(
            "does not match the audio format of the model", where=where, found=facts_found, expected=expected, fix=fix
        )
    if facts.nframes == 0 or len(frames) != facts.nframes * facts.sampwidth:
        facts_found = f"{number_of(len(frames) // facts.sampwidth, 'sample')} of {facts.nframes:,}"
        raise DataError(
            "is an empty or truncated audio file", where=where, found=facts_found, fix="copy the file again as a whole"
        )
    return facts, frames


def _mel_filters(step: LogMel) -> np.ndarray:
    """Triangles [bins, bands] on Slaney's scale, linear below 1 kHz, each of area 1 (Slaney 1998, Auditory Toolbox)."""
    # 27 logarithmic steps from 1 to 6.4 kHz; below, 15 linear ones of 200/3 Hz
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


MODALITY = AudioModality()
