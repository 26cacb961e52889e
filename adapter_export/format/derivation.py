"""Origin of each constant in the graph with slots, `derivation.json`. Specified in `docs/reference/format.md`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from adapter_export.errors import within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import SEMVER, Count, Sha256, record_from_json, version_checked
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output

DERIVATION_VERSION = "1.0.0"
"""Version of the format written, and the newest supported."""

DERIVATION_FILE = "derivation.json"


@dataclass(frozen=True)
class ConstantRecord:
    """A constant of the graph: an initializer that is not an input of the graph, or a tensor in a node.

    Attributes:
        name: its name in the graph; for a tensor in a node, the output name of the node.
        how: the operation on `sources`, after transposing those marked in `transposed`. `made` marks tensors written
            by an exporter or a quantiser: numbers, shapes, folded and quantised tensors.
        sources: the model's tensors, by name; empty for `made`.
        transposed: whether each source is a transposed matrix.
        axis: axis of a slice or concatenation.
        start: start of a slice.
        sha256: for `made`, the SHA-256 of the bytes, row-major and little-endian.
    """

    name: str
    how: Literal["as is", "transposed", "reshaped", "sliced", "concatenated", "made"]
    sources: tuple[str, ...] = ()
    transposed: bool = False
    axis: Count | None = None
    start: Count | None = None
    sha256: Sha256 | None = None


@dataclass(frozen=True)
class Derivation:
    """The derivation of the constants in the graph with slots from the tensors of the model.

    Attributes:
        version: the version of this format. Readers reject another major version.
        program: the SHA-256 of the model's program: the text of a torch program, or an ONNX file.
        made_by: versions of the libraries involved. The same versions reproduce the graph.
        optimized: whether operators were fused before slots were inserted.
        constants: every constant of the graph.
        golden: names of the golden vector cases.
    """

    version: Annotated[str, SEMVER]
    program: Sha256
    made_by: Mapping[str, str]
    optimized: bool
    constants: tuple[ConstantRecord, ...]
    golden: tuple[str, ...]


def write_derivation(derivation: Derivation, path: Path) -> None:
    """Write a derivation; the bytes are deterministic. Raises WriteError."""
    with Output(path).file() as temporary:
        temporary.write_bytes(canonical_json(asdict(derivation)))


def read_derivation(path: Path) -> Derivation:
    """Read a derivation.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file violates the format; the message contains the JSON path. `VersionError` is a subclass.
    """
    document = read_json(path)
    with version_checked(document, DERIVATION_VERSION, path), within(path):
        return record_from_json(Derivation, document)
