"""Base classes of modalities: names for messages, and conversion of files to inputs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.safe_io.regular_files import read_bytes

MediaFile = Path | str | bytes | np.ndarray
"""A path, the bytes of a file, or its contents as an array."""

_NO_STEPS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "data_format", "input_data_format"),
    *("return_tensors", "disable_grouping", "device", "default_to_square", "do_convert_rgb", "padding_side"),
    *("return_attention_mask", "feature_size", "image_seq_length", "num_channels"),
}
"""Fields of processors without effect on single files."""


class UnknownStepsError(ValueError):
    """Raised if a processor cannot be expressed as steps; the text completes "this processor …"."""


@dataclass(frozen=True)
class Step(ABC):
    """One processing step from file contents to an input: a frozen dataclass, stored in manifests as a record."""

    @abstractmethod
    def apply(self, values: np.ndarray) -> np.ndarray:
        """Apply the step to values."""


class Modality:
    """A modality of rows. Each other module of this folder defines one as `MODALITY`.

    Attributes:
        name: name of the modality.
        inputs: task inputs of the modality.
        word: name of a row in messages; the plural adds an `s`.
        is_file: whether rows are files.
        extra: optional dependencies for reading rows, if any.
        pipeline: task of the Hugging Face Hub that classifies files.
    """

    name: str
    inputs: tuple[str, ...]
    word: str
    is_file: bool = False
    extra: str | None = None
    pipeline: str | None = None


class FileModality(Modality, ABC):
    """Files converted to an input by steps; each file is a row.

    Attributes:
        form: type and shape of a file's contents.
        option: help text of the command-line option.
        steps: supported steps.
        has_rate: whether files have a sampling rate.
        processor_field: field of a Hugging Face config that identifies processors of this modality.
        processor_inputs: inputs produced by such processors.
    """

    is_file = True
    form: str
    option: str
    steps: tuple[type[Step], ...]
    has_rate: bool = False
    processor_field: str
    processor_inputs: tuple[str, ...]

    @abstractmethod
    def is_contents(self, array: np.ndarray) -> bool:
        """Return whether an array is the contents of a file."""

    @abstractmethod
    def size(self, data: bytes, rate: int | None, where: object) -> int:
        """Return the pixels of an image or the samples of an audio file without decoding it; errors as of `read`."""

    @abstractmethod
    def read(self, data: bytes, rate: int | None, where: object, most: int | None = None) -> np.ndarray:
        """Return the contents of a file; of audio, at most the first `most` samples.

        Raises:
            DataError: the file cannot be decoded, or has another form or sampling rate.
            MissingExtraError: a library is not installed.
        """

    def contents(self, file: MediaFile, rate: int | None, where: object, most: int | None = None) -> np.ndarray:
        """Return the contents of a file, at most the first `most` samples of audio, or check an array.

        Raises:
            FileError: the file does not exist or cannot be read.
            DataError, MissingExtraError: as `read`.
            RequestError: the array has another form.
        """
        if not isinstance(file, np.ndarray):
            return self.read(data_of(file), rate, where, most)
        if not self.is_contents(file) or 0 in file.shape:
            found = f"{file.dtype} {list(file.shape)}"
            raise RequestError(f"is not a valid {self.word}", where=where, found=found, expected=self.form)
        return file

    def apply(self, contents: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
        """Apply steps to the contents of a file, float32.

        Raises:
            MissingExtraError: a library is not installed.
        """
        values = contents
        for step in steps:
            values = step.apply(values)
        return np.ascontiguousarray(self.arranged(values), np.float32)

    def arranged(self, values: np.ndarray) -> np.ndarray:
        """Return values with their axes in the order of bases."""
        return values

    def limit(self, steps: Sequence[Step]) -> int | None:  # noqa: ARG002 — for modalities that cut
        """Return the maximum number of values read from a file; `None` for all."""
        return None

    def without_limit(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Return steps that read the whole file."""
        return steps

    def steps_of(self, fields: Mapping[str, Any]) -> tuple[Step, ...]:
        """Return the steps of a Hugging Face processor from its fields.

        Raises:
            UnknownStepsError: the fields describe other steps.
        """
        known = self.known_fields(fields) | _NO_STEPS | {self.processor_field}
        others = {name: value for name, value in fields.items() if name not in known and not name.startswith("_")}
        strange = [name for name, value in others.items() if value not in (None, False)]
        if strange:
            raise UnknownStepsError(f"has the field `{strange[0]}`")
        try:
            return tuple(self.named_steps(fields))
        except UnknownStepsError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UnknownStepsError(f"has fields that cannot be read ({type(error).__name__}: {error})") from error

    @abstractmethod
    def known_fields(self, fields: Mapping[str, Any]) -> set[str]:
        """Return the supported fields of a processor."""

    @abstractmethod
    def named_steps(self, fields: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the steps of the supported fields."""

    @abstractmethod
    def samples(self, rate: int | None) -> dict[str, bytes]:
        """Return small sample files by name, to compare clients with the model's library."""

    @abstractmethod
    def noise(self, number: int, rate: int | None) -> np.ndarray:
        """Return random contents; numbers 0 and 1 differ in every dynamic length."""


def data_of(file: Path | str | bytes) -> bytes:
    """Return the bytes of a file; FileError if it does not exist or cannot be read."""
    return file if isinstance(file, bytes) else read_bytes(Path(os.fspath(file)))
