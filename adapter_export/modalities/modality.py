"""Base classes of modalities: names for messages, and the way from a file to an input."""

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
"""A file by its path, the bytes of one, or its contents as an array."""

_NO_STEPS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "data_format", "input_data_format"),
    *("return_tensors", "disable_grouping", "device", "default_to_square", "do_convert_rgb", "padding_side"),
    *("return_attention_mask", "feature_size", "image_seq_length", "num_channels"),
}
"""Fields of processors that do not change what is computed of one file."""


class UnknownStepsError(ValueError):
    """Raised if no steps express a processor; the text completes "this processor …"."""


@dataclass(frozen=True)
class Step(ABC):
    """One step from the contents of a file to an input: a frozen dataclass, which manifests hold as a record."""

    @abstractmethod
    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return what the step makes of values."""


class Modality:
    """A modality of rows. Each module beside this one defines one as `MODALITY`.

    Attributes:
        name: of the modality.
        inputs: the inputs of tasks that are of it.
        word: what messages call one row; the plural has an `s`.
        is_file: whether rows are files.
        extra: the optional dependencies that read rows, if there are any.
        pipeline: the task of the Hugging Face Hub that gives labels to files.
    """

    name: str
    inputs: tuple[str, ...]
    word: str
    is_file: bool = False
    extra: str | None = None
    pipeline: str | None = None


class FileModality(Modality, ABC):
    """Files that become an input by steps; each file is a row.

    Attributes:
        form: the type and the shape of the contents of a file.
        option: the help of the command line's option.
        steps: the steps that it may have.
        has_rate: whether files have a sampling rate.
        processor_field: the field by which a file of Hugging Face says that its processor reads this modality.
        processor_inputs: the inputs that such processors make.
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
    def read(self, data: bytes, rate: int | None, where: object) -> np.ndarray:
        """Return the contents of a file.

        Raises:
            DataError: it cannot be read, or has another form or sampling rate.
            MissingExtraError: a library is not installed.
        """

    def contents(self, file: MediaFile, rate: int | None, where: object) -> np.ndarray:
        """Return the contents of a file; an array is checked.

        Raises:
            FileError: there is no file, or it cannot be read.
            DataError, MissingExtraError: as `read`.
            RequestError: an array of another form.
        """
        if not isinstance(file, np.ndarray):
            return self.read(file if isinstance(file, bytes) else read_bytes(Path(os.fspath(file))), rate, where)
        if not self.is_contents(file) or 0 in file.shape:
            found = f"{file.dtype} {list(file.shape)}"
            raise RequestError(f"is no {self.word}", where=where, found=found, expected=self.form)
        return file

    def apply(self, contents: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
        """Return what steps make of the contents of a file, float32.

        Raises:
            MissingExtraError: a library is not installed.
        """
        values = contents
        for step in steps:
            values = step.apply(values)
        return np.ascontiguousarray(self.arranged(values), np.float32)

    def arranged(self, values: np.ndarray) -> np.ndarray:
        """Return values with their axes as bases take them."""
        return values

    def limit(self, steps: Sequence[Step]) -> int | None:  # noqa: ARG002 — for modalities that cut
        """Return how many values of a file are read at most; `None` if all are."""
        return None

    def steps_of(self, fields: Mapping[str, Any]) -> tuple[Step, ...]:
        """Return the steps that the fields of a processor of Hugging Face name.

        Raises:
            UnknownStepsError: they name something else.
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
        """Return the fields of a processor whose meaning is known."""

    @abstractmethod
    def named_steps(self, fields: Mapping[str, Any]) -> Iterator[Step]:
        """Yield the steps that the known fields name."""

    @abstractmethod
    def samples(self, rate: int | None) -> dict[str, bytes]:
        """Return small files by name, on which clients are compared with the model's own library."""

    @abstractmethod
    def noise(self, number: int, rate: int | None) -> np.ndarray:
        """Return contents of noise; the first two, 0 and 1, differ in every length that files may have."""
