"""How images and audio become an input: steps as plain data, and golden media. Specified in `docs/format.md`."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from adapter_export.errors import FormatError, quoted, within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import (
    SEMVER,
    NotEmpty,
    NotNegative,
    Positive,
    RelativePath,
    Sha256,
    record_from_json,
    version_checked,
)
from adapter_export.graph.ops import Interval
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_bytes

MEDIA_VERSION = "1.0.0"
"""The version of golden media that is written, and the newest that is read."""

PROCESSOR_FILE = "preprocessor_config.json"
GOLDEN_MEDIA_FILE = "golden/media.json"

Medium = Literal["image", "audio"]
"""What a base with a processor reads."""

Edge = Annotated[int, Interval(1, 16_384)]
Samples = Annotated[int, Interval(1, 2**26)]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The filters of Pillow, in the order of its numbers, by which `resample` names them."""

ABSOLUTE = 1e-5
"""How far values of clients may be from those of the model's own library, which computes in float32 as well."""


@dataclass(frozen=True)
class Resize:
    """Resize an image of 8 bits a channel, to 8 bits a channel.

    Attributes:
        op: `resize`.
        height: that it gets.
        width: that it gets.
        resample: the filter, with support widened when an image shrinks, as Pillow's `Image.resize` computes it.
    """

    op: Literal["resize"]
    height: Edge
    width: Edge
    resample: Filter


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Resize an image as `resize` does, and keep its shape.

    Attributes:
        op: `resize_shortest_edge`.
        length: that the shorter edge gets; the longer one gets length * longer / shorter, rounded down.
        resample: the filter.
    """

    op: Literal["resize_shortest_edge"]
    length: Edge
    resample: Filter


@dataclass(frozen=True)
class CenterCrop:
    """Keep the middle of an image, which is no smaller: from row (H - height) // 2 and column (W - width) // 2 on.

    Attributes:
        op: `center_crop`.
        height: of what is kept.
        width: of what is kept.
    """

    op: Literal["center_crop"]
    height: Edge
    width: Edge


@dataclass(frozen=True)
class Rescale:
    """Multiply all values by a factor, in float64, and round to float32.

    Attributes:
        op: `rescale`.
        factor: such as 1/255.
    """

    op: Literal["rescale"]
    factor: float


@dataclass(frozen=True)
class Normalize:
    """Compute (value - mean) / std for each channel, in float32.

    Attributes:
        op: `normalize`.
        mean: of red, green and blue.
        std: of red, green and blue.
    """

    op: Literal["normalize"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Fit:
    """Cut an audio file behind so many samples, or fill it with zeros up to them.

    Attributes:
        op: `fit`.
        samples: how many.
    """

    op: Literal["fit"]
    samples: Samples


@dataclass(frozen=True)
class Standardize:
    """Compute (sample - m) / sqrt(v + epsilon), with the mean m and the variance v of the audio.

    Attributes:
        op: `standardize`.
        epsilon: such as 1e-7.
    """

    op: Literal["standardize"]
    epsilon: NotNegative


@dataclass(frozen=True)
class LogMel:
    """Turn an audio file into a log-mel spectrogram [bands, frames], as Whisper reads it.

    Power of the short-time Fourier transform (a periodic Hann window, frames centred, the audio mirrored at its ends,
    the last frame left out); a mel filter bank on Slaney's scale with Slaney's norm; log10 of at least 1e-10; at least
    the largest value - 8; (value + 4) / 4.

    Attributes:
        op: `log_mel`.
        bands: how many filters.
        fft: the length of a frame, in samples.
        hop: from the start of a frame to that of the next.
        low: where the lowest filter begins, in Hz.
        high: where the highest filter ends, in Hz.
        rate: the sampling rate, in Hz.
    """

    op: Literal["log_mel"]
    bands: Edge
    fft: Edge
    hop: Edge
    low: NotNegative
    high: NotNegative
    rate: Positive


Step = Resize | ResizeShortestEdge | CenterCrop | Rescale | Normalize | Fit | Standardize | LogMel


@dataclass(frozen=True)
class MediaRecord:
    """How an image or an audio file becomes an input.

    An image is turned upright by its EXIF orientation and made RGB, [height, width, 3], 8 bits a channel; it becomes
    [3, height, width] behind the steps. An audio file has one channel, and samples from -1 to 1 in float32.

    Attributes:
        medium: `image` or `audio`.
        input: the input of the graph that the result becomes, float32, a row for each image or audio file.
        processor: the fields of Hugging Face's `preprocessor_config.json`, those with default values included.
        digest: the sha256 of the steps and the sampling rate as JSON; without steps, of the file. An adapter whose task
            names another digest was trained on other values, and its images or audio are refused.
        sampling_rate: of clips, in Hz; other rates are refused. Null for images.
        steps: what is done, in this order. Null where it is not known, or nothing here can say it: then a client takes
            the input itself, or reads the file of the processor.
        unknown: why `steps` is null. For people.
        golden: golden media. Null where `steps` is null.
    """

    medium: Medium
    input: str
    processor: RelativePath
    digest: Sha256
    sampling_rate: Positive | None
    steps: tuple[Step, ...] | None
    unknown: str | None = None
    golden: RelativePath | None = None

    @property
    def refusal(self) -> str:
        """What a client says that is given a file where `steps` is null."""
        return f"this bundle's processor {self.unknown or 'is not known'}, which this client does not do"


@dataclass(frozen=True)
class GoldenSample:
    """An image or an audio file, and the values that the model's own library makes of it.

    Attributes:
        name: unique.
        file: the bytes of a PNG or WAV file, in base64.
        shape: of the values, without the batch.
        values: float32, little-endian, row by row, in base64.
    """

    name: Annotated[str, NotEmpty()]
    file: str
    shape: tuple[Positive, ...]
    values: str

    @classmethod
    def of(cls, name: str, file: bytes, values: np.ndarray) -> GoldenSample:
        """Make one of a file and its values."""
        data = np.ascontiguousarray(values, "<f4").tobytes()
        return cls(name, b64encode(file).decode(), values.shape, b64encode(data).decode())

    @property
    def data(self) -> bytes:
        """The file."""
        return b64decode(self.file)

    @property
    def array(self) -> np.ndarray:
        """The values, float32."""
        return np.frombuffer(b64decode(self.values), "<f4").astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class GoldenMediaAnswer:
    """What an adapter says of a sample.

    Attributes:
        sample: the name of the sample.
        answer: as every client writes it.
        decided: whether no other choice is nearer than rounding. Where it is false, the numbers alone are compared.
    """

    sample: str
    answer: Mapping[str, Any]
    decided: bool = True


@dataclass(frozen=True)
class GoldenMediaSet:
    """The answers of one adapter.

    Attributes:
        adapter: its name.
        reference: what computed them, such as `torch 2.13.0 float32`; never the exported graph.
        absolute: the allowed |found - expected| of every number of an answer.
        reason: what that follows from. For people.
        answers: one for each sample.
    """

    adapter: str
    reference: str
    absolute: NotNegative
    reason: str
    answers: tuple[GoldenMediaAnswer, ...]


@dataclass(frozen=True)
class GoldenMedia:
    """Images or clips, what the model's own library makes of them, and the answers of the reference.

    This is `golden/media.json`. Specified in docs/format.md.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        digest: that of the processor, as `media.digest` of the manifest.
        processor: the library, its version, and its class. For people.
        absolute: the allowed |found - expected| of every value.
        samples: the images or audio.
        sets: one for each adapter with a head whose task is known.
    """

    version: Annotated[str, SEMVER]
    digest: Sha256
    processor: str
    absolute: NotNegative
    samples: Annotated[tuple[GoldenSample, ...], NotEmpty()]
    sets: tuple[GoldenMediaSet, ...] = ()


def golden_media_json(media: GoldenMedia) -> bytes:
    """Return the document; the same media always give the same bytes."""
    return canonical_json(asdict(media))


def read_golden_media(path: Path) -> GoldenMedia:
    """Read golden media from a file.

    Raises:
        FileError: it cannot be read.
        FormatError: it breaks the format; `VersionError` is a kind of it.
    """
    document = parse_json(read_bytes(path), path)
    with version_checked(document, MEDIA_VERSION, path), within(path):
        found = record_from_json(GoldenMedia, document)
        _check_samples(found)
    return found


def _check_samples(media: GoldenMedia) -> None:
    names = [sample.name for sample in media.samples]
    if len(set(names)) < len(names):
        raise FormatError("a name occurs twice", where="`$.samples`")
    for index, sample in enumerate(media.samples):
        try:
            sample.data, sample.array  # noqa: B018 - which decode
        except ValueError as error:
            raise FormatError("holds no file, or no values of its shape", where=f"`$.samples[{index}]`") from error
    strangers = [one.sample for each in media.sets for one in each.answers if one.sample not in names]
    if strangers:
        raise FormatError("an answer to no sample", where="`$.sets`", found=f"`{strangers[0]}`")


@dataclass(frozen=True)
class CapturedMedia:
    """What is known of a base's processor: the record, the text of its file, and golden media if steps say it."""

    record: MediaRecord
    processor: str
    golden: GoldenMedia | None


def captured_media_json(media: CapturedMedia) -> str:
    """Return the document, as archives hold it."""
    return canonical_json(asdict(media)).decode()


def parse_captured_media(text: str, where: str) -> CapturedMedia:
    """Read what an archive says of a processor.

    Raises:
        FormatError: it breaks the format.
    """
    with within(where):
        found = record_from_json(CapturedMedia, parse_json(text.encode(), where))
        if found.golden is not None:
            _check_samples(found.golden)
    return found


def processor_digest(steps: Sequence[Step] | None, sampling_rate: int | None, file: str) -> str:
    """Return `MediaRecord.digest`; `file` is the text of the processor's file."""
    said = {"sampling_rate": sampling_rate, "steps": None if steps is None else [asdict(step) for step in steps]}
    return hashlib.sha256(canonical_json({"file": file} if steps is None else said)).hexdigest()


# What the fields of Hugging Face's processors say, as steps. Whether a class does what its fields say is not taken on
# trust: `own_media` compares the result with that of the class.

_NO_STEPS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "data_format", "input_data_format"),
    *("return_tensors", "disable_grouping", "device", "default_to_square", "do_convert_rgb", "padding_side"),
    *("return_attention_mask", "feature_size", "image_seq_length", "num_channels"),
}
"""Fields that say nothing of what is computed of one image or audio file in RGB or mono."""

_IMAGE = {
    *("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"),
    *("do_normalize", "image_mean", "image_std"),
}
_MEL = {"n_fft", "hop_length", "chunk_length", "n_samples", "nb_max_frames", "sampling_rate", "dither", "padding_value"}
_WAVE = {"sampling_rate", "do_normalize", "padding_value"}


class UnknownStepsError(ValueError):
    """What a processor does is nothing that steps can say; the text completes "this processor …"."""


def steps_of(fields: Mapping[str, Any], medium: Medium) -> tuple[Step, ...]:
    """Return the steps that the fields of a processor name.

    Raises:
        UnknownStepsError: they name something else.
    """
    is_mel = medium == "audio" and "n_fft" in fields
    known = _IMAGE if medium == "image" else _MEL if is_mel else _WAVE
    others = {
        name: value for name, value in fields.items() if name not in known | _NO_STEPS and not name.startswith("_")
    }
    strange = [name for name, value in others.items() if value not in (None, False)]
    if strange:
        raise UnknownStepsError(f"has the field `{strange[0]}`")
    try:
        if medium == "image":
            return tuple(_image_steps(fields))
        return tuple(_mel_steps(fields) if is_mel else _wave_steps(fields))
    except UnknownStepsError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UnknownStepsError(f"has fields that cannot be read ({type(error).__name__}: {error})") from error


def _image_steps(fields: Mapping[str, Any]) -> Iterator[Step]:
    least: tuple[int, ...] = ()
    if fields.get("do_resize"):
        size = {key: value for key, value in fields["size"].items() if value is not None}
        if set(size) not in ({"height", "width"}, {"shortest_edge"}):
            raise UnknownStepsError(f"resizes by {quoted(size)}")
        least = (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],)
        resample: Any = RESAMPLING[fields["resample"]]
        one = ResizeShortestEdge("resize_shortest_edge", *least, resample) if len(least) == 1 else None
        yield one or Resize("resize", least[0], least[-1], resample)
    if fields.get("do_center_crop"):
        height, width = fields["crop_size"]["height"], fields["crop_size"]["width"]
        if not least or height > least[0] or width > least[-1]:
            raise UnknownStepsError("crops more than an image may have, and fills the rest")
        yield CenterCrop("center_crop", height, width)
    if fields.get("do_rescale"):
        yield Rescale("rescale", float(fields["rescale_factor"]))
    if fields.get("do_normalize"):
        mean, std = (fields[name] for name in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3:
            raise UnknownStepsError(f"reads images of {len(mean)} channels")
        yield Normalize("normalize", tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]


def _wave_steps(fields: Mapping[str, Any]) -> Iterator[Step]:
    if fields.get("do_normalize"):
        yield Standardize("standardize", 1e-7)


def _mel_steps(fields: Mapping[str, Any]) -> Iterator[Step]:
    if fields.get("dither"):
        raise UnknownStepsError("adds noise (`dither`)")
    yield Fit("fit", fields["chunk_length"] * fields["sampling_rate"])
    bands, fft, hop, rate = (fields[name] for name in ("feature_size", "n_fft", "hop_length", "sampling_rate"))
    yield LogMel("log_mel", bands, fft, hop, 0.0, 8000.0, rate)


def said(steps: tuple[Step, ...]) -> str:
    """Return steps in words, for people."""
    return " → ".join(step.op for step in steps) or "nothing"
