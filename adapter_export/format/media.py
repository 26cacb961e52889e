"""Preprocessing of images and audio as data, and golden media. Specified in `docs/reference/format.md`."""

from __future__ import annotations

import hashlib
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import numpy as np

from adapter_export.errors import FormatError, within
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
from adapter_export.modalities import FILE_MODALITIES, STEPS
from adapter_export.modalities.modality import FileModality, MediaFile, Step, data_of
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular, read_bytes

MEDIA_VERSION = "1.0.0"
"""Version of golden media written, and the newest supported."""

ARCHIVED_MEDIA = "media.json"
"""Record of a model's processor, in `extra/` of a torch archive."""

PROCESSOR_FILE = "preprocessor_config.json"
GOLDEN_MEDIA_FILE = "golden/media.json"

_MOST_ARCHIVED = 256 * 2**20
"""Maximum size of a processor's record in an archive."""

ABSOLUTE = 1e-5
"""Maximum difference between a client and the model's library, both in float32."""


if TYPE_CHECKING:
    Medium = str
else:  # the reader and the schemas use these hints
    Medium = Literal[tuple(FILE_MODALITIES)]
    Step = Union[STEPS]  # noqa: UP007 — of types that are found


@dataclass(frozen=True)
class MediaRecord:
    """Preprocessing of an image or an audio file into an input.

    Images are rotated by their EXIF orientation and converted to 8-bit RGB, [height, width, 3]; the result of the steps
    is transposed to [3, height, width]. Audio has one channel of float32 samples from -1 to 1.

    Attributes:
        medium: `image` or `audio`.
        input: float32 graph input of the result, with one row for each image or audio file.
        processor: file with the fields of Hugging Face's `preprocessor_config.json`, including defaults.
        digest: SHA-256 of the steps and the sampling rate as JSON; without steps, of the processor file. An adapter
            whose task has another digest was trained on other values, and its images or audio are rejected.
        sampling_rate: sampling rate of audio in Hz; other rates are rejected. Null for images.
        steps: processing steps, in order. Null if they are unknown or cannot be expressed: clients then accept the
            preprocessed input, or use the processor file.
        unknown: reason why `steps` is null. Informative.
        golden: file of golden media; null if `steps` is null.
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
    def modality(self) -> FileModality:
        """Modality of the files."""
        return FILE_MODALITIES[self.medium]

    def read(self, file: MediaFile, where: object) -> np.ndarray:
        """Return the contents of a file, without samples that the steps cut; errors as of `FileModality.contents`."""
        most = None if self.steps is None else self.modality.limit(self.steps)
        return self.modality.contents(file, self.sampling_rate, where, most)

    def size(self, file: MediaFile, where: object) -> int:
        """Return the pixels of an image or the samples of an audio file; errors as of `FileModality.contents`."""
        if isinstance(file, np.ndarray):
            return len(self.modality.contents(file, self.sampling_rate, where))
        return self.modality.size(data_of(file), self.sampling_rate, where)

    @property
    def refusal(self) -> str:
        """Return the message for a file if `steps` is null."""
        return f"this bundle's processor {self.unknown or 'is not known'}, which this client does not support"


@dataclass(frozen=True)
class GoldenSample:
    """An image or audio file, and its values from the model's library.

    Attributes:
        name: unique name.
        file: contents of a PNG or WAV file, in base64.
        shape: shape of the values, without the batch axis.
        values: float32 values, little-endian and row-major, in base64.
    """

    name: Annotated[str, NotEmpty()]
    file: str
    shape: tuple[Positive, ...]
    values: str

    @classmethod
    def of(cls, name: str, file: bytes, values: np.ndarray) -> GoldenSample:
        """Make a sample from a file and its values."""
        data = np.ascontiguousarray(values, "<f4").tobytes()
        return cls(name, b64encode(file).decode(), values.shape, b64encode(data).decode())

    @property
    def data(self) -> bytes:
        """Contents of the file."""
        return b64decode(self.file)

    @property
    def array(self) -> np.ndarray:
        """Values, float32."""
        return np.frombuffer(b64decode(self.values), "<f4").astype(np.float32).reshape(self.shape)


@dataclass(frozen=True)
class GoldenMediaAnswer:
    """The answer of an adapter to a sample.

    Attributes:
        sample: the name of the sample.
        answer: the answer in the format of clients.
        decided: whether rounding cannot change a choice; if false, only numbers are compared.
    """

    sample: str
    answer: Mapping[str, Any]
    decided: bool = True


@dataclass(frozen=True)
class GoldenMediaSet:
    """The answers of one adapter.

    Attributes:
        adapter: name of the adapter.
        reference: program that computed the answers, such as `torch 2.13.0 float32`; never the exported graph.
        absolute: maximum |found - expected| of every number in an answer.
        reason: derivation of `absolute`. Informative.
        answers: one answer for each sample.
    """

    adapter: str
    reference: str
    absolute: NotNegative
    reason: str
    answers: tuple[GoldenMediaAnswer, ...]


@dataclass(frozen=True)
class GoldenMedia:
    """Images or audio files, their values from the model's library, and the answers of the reference.

    This is `golden/media.json`. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        digest: digest of the processor, equal to `media.digest` of the manifest.
        processor: library, version and class of the processor. Informative.
        absolute: maximum |found - expected| of every value.
        samples: the images or audio files.
        sets: one set for each adapter with a head and a task.
    """

    version: Annotated[str, SEMVER]
    digest: Sha256
    processor: str
    absolute: NotNegative
    samples: Annotated[tuple[GoldenSample, ...], NotEmpty()]
    sets: tuple[GoldenMediaSet, ...] = ()


def golden_media_json(media: GoldenMedia) -> bytes:
    """Return the document; the bytes are deterministic."""
    return canonical_json(asdict(media))


def read_golden_media(path: Path) -> GoldenMedia:
    """Read golden media from a file.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file violates the format; `VersionError` is a subclass.
    """
    document = parse_json(read_bytes(path), path)
    with version_checked(document, MEDIA_VERSION, path), within(path):
        golden = record_from_json(GoldenMedia, document)
        _check_samples(golden)
    return golden


def _check_samples(media: GoldenMedia) -> None:
    names = [sample.name for sample in media.samples]
    if len(set(names)) < len(names):
        raise FormatError("a name occurs twice", where="`$.samples`")
    for index, sample in enumerate(media.samples):
        try:
            sample.data, sample.array  # noqa: B018 - which decode
        except ValueError as error:
            raise FormatError("the file or its values cannot be decoded", where=f"`$.samples[{index}]`") from error
    unknown = [answer.sample for each in media.sets for answer in each.answers if answer.sample not in names]
    if unknown:
        raise FormatError("an answer to an unknown sample", where="`$.sets`", found=f"`{unknown[0]}`")


@dataclass(frozen=True)
class CapturedMedia:
    """Processor of a base: its record, its file, and golden media if its steps are known."""

    record: MediaRecord
    processor: str
    golden: GoldenMedia | None


def captured_media_json(media: CapturedMedia) -> str:
    """Return the document for an archive."""
    return canonical_json(asdict(media)).decode()


def parse_captured_media(text: str, where: str) -> CapturedMedia:
    """Parse the record of a processor in an archive.

    Raises:
        FormatError: the record violates the format.
    """
    with within(where):
        captured = record_from_json(CapturedMedia, parse_json(text.encode(), where))
        if captured.golden is not None:
            _check_samples(captured.golden)
    return captured


def archived_medium(path: Path) -> Medium | None:
    """Return the modality of the processor in a torch archive, or `None` for texts; reads only its record.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file is not an archive, or the record violates the format.
    """

    def refusal(reason: str) -> FormatError:
        return FormatError("is not a readable archive", where=path, found=reason)

    with open_regular(path) as file, parsing(refusal), zipfile.ZipFile(file) as archive:
        named = (entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{ARCHIVED_MEDIA}"))
        inside = next(named, None)
        if inside is None:
            return None
        if inside.file_size > _MOST_ARCHIVED:
            raise refusal(f"{inside.file_size:,} bytes of `{ARCHIVED_MEDIA}`")
        text = archive.read(inside).decode()
    return parse_captured_media(text, f"`extra/{ARCHIVED_MEDIA}`").record.medium


def processor_digest(steps: Sequence[Step] | None, sampling_rate: int | None, file: str) -> str:
    """Compute `MediaRecord.digest`; `file` is the text of the processor file."""
    facts = {"sampling_rate": sampling_rate, "steps": None if steps is None else [asdict(step) for step in steps]}
    return hashlib.sha256(canonical_json({"file": file} if steps is None else facts)).hexdigest()


def format_steps(steps: tuple[Step, ...]) -> str:
    """Format steps for display."""
    return " → ".join(asdict(step)["op"] for step in steps) or "nothing"
