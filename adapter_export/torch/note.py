"""What `save_base` notes in an archive beside the program (`extra/adapter_export.json`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from adapter_export import __version__
from adapter_export.errors import BaseModelError, InputError
from adapter_export.format.canonical import canonical_json, parse_json
from adapter_export.format.manifest import Axis, Positive
from adapter_export.format.records import record_from_json
from adapter_export.format.version import version_checked

NOTE = "adapter_export.json"
TOKENIZER = "tokenizer.json"
"""The names of the files beside the program."""

_VERSION = "1.0.0"


@dataclass(frozen=True)
class CaptureNote:
    """The names that torch does not keep.

    Attributes:
        inputs: the shape of each input, with the names of its dynamic axes.
        max_tokens: the longest input that the model was made for, if known.
        version: of this note, semver.
        producer: the tool and version that wrote it.
    """

    inputs: Mapping[str, tuple[Axis, ...]]
    max_tokens: Positive | None = None
    version: str = _VERSION
    producer: str = f"adapter-export {__version__}"

    def to_text(self) -> str:
        """The note as JSON."""
        return canonical_json(asdict(self)).decode()


def read_note(text: str, where: object) -> CaptureNote:
    """Read a note.

    Raises:
        BaseModelError: it breaks its format.
    """
    try:
        document = parse_json(text.encode(), where)
        with version_checked(document, _VERSION, where):
            return record_from_json(CaptureNote, document)
    except InputError as error:
        raise BaseModelError(
            f"holds a note that cannot be read ({error.what})",
            where=where,
            found=error.found,
            expected=error.expected,
            fix="save the base again with `save_base`",
        ) from error
