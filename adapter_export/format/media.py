"""Preprocessing of images and audio as plain data, and golden media. Specified in `docs/reference/format.md`."""

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
from adapter_export.modalities.modality import FileModality, MediaFile, Step
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import open_regular, read_bytes

MEDIA_VERSION = "1.0.0"
"""The version of golden media that is written, and the newest that is read."""

ARCHIVED_MEDIA = "media.json"
"""The preprocessing of a model's own processor, in `extra/` of a torch archive."""

PROCESSOR_FILE = "preprocessor_config.json"
GOLDEN_MEDIA_FILE = "golden/media.json"

_MOST_ARCHIVED = 256 * 2**20
"""The most bytes of the record of a processor in an archive."""

ABSOLUTE = 1e-5
"""Allowed difference between values of clients and of the model's own library, which computes in float32 as well."""


if TYPE_CHECKING:
    Medium = str
else:  # the reader and the schemas take the choices from these hints
    Medium = Literal[tuple(FILE_MODALITIES)]
    Step = Union[STEPS]  # noqa: UP007 — of types that are found


@dataclass(frozen=True)
class MediaRecord:
    """Preprocessing of an image or an audio file into an input.

    An image is turned upright by its EXIF orientation and made RGB, [height, width, 3], 8 bits a channel; it becomes
    [3, height, width] behind the steps. An audio file has one channel, and samples from -1 to 1 in float32.

    Attributes:
        medium: `image` or `audio`.
        input: the input of the graph that the result becomes, float32, a row for each image or audio file.
        processor: the fields of Hugging Face's `preprocessor_config.json`, those with default values included.
        digest: the sha256 of the steps and the sampling rate as JSON; without steps, of the file. An adapter whose task
            names another digest was trained on other values, and its images or audio are refused.
        sampling_rate: of audio, in Hz; other rates are refused. Null for images.
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
    def modality(self) -> FileModality:
        """The modality of the files."""
        return FILE_MODALITIES[self.medium]

    def read(self, file: MediaFile, where: object) -> np.ndarray:
        """Return the contents of a file; raises as `FileModality.contents`."""
        return self.modality.contents(file, self.sampling_rate, where)

    @property
    def refusal(self) -> str:
        """The message of a client that is given a file where `steps` is null."""
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
    """The answer of an adapter to a sample.

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
    """Images or audio files, the values that the model's own library makes of them, and the answers of the reference.

    This is `golden/media.json`. Specified in docs/reference/format.md.

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
    unknown = [one.sample for each in media.sets for one in each.answers if one.sample not in names]
    if unknown:
        raise FormatError("an answer to no sample", where="`$.sets`", found=f"`{unknown[0]}`")


@dataclass(frozen=True)
class CapturedMedia:
    """The processor of a base: the record, the text of its file, and golden media if steps say it."""

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


def archived_medium(path: Path) -> Medium | None:
    """Return the modality by the processor in a torch archive, of which nothing else is read; `None` for texts.

    Raises:
        FileError: the file cannot be read.
        FormatError: it is no archive, or the record of the processor breaks the format.
    """

    def refusal(reason: str) -> FormatError:
        return FormatError("is no archive that can be read", where=path, found=reason)

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
    """Return `MediaRecord.digest`; `file` is the text of the processor's file."""
    said = {"sampling_rate": sampling_rate, "steps": None if steps is None else [asdict(step) for step in steps]}
    return hashlib.sha256(canonical_json({"file": file} if steps is None else said)).hexdigest()


def said(steps: tuple[Step, ...]) -> str:
    """Return steps in words, for people."""
    return " → ".join(asdict(step)["op"] for step in steps) or "nothing"
