"""The origin of each constant in a bundle's graph with slots, `derivation.json`.

Specified in `docs/reference/format.md`.
"""

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
"""The version of the format that is written, and the newest that is read."""

DERIVATION_FILE = "derivation.json"


@dataclass(frozen=True)
class ConstantRecord:
    """A constant of the graph: an initializer that is not an input of the graph, or a tensor in a node.

    Attributes:
        name: its name in the graph; of a tensor in a node the name of what the node gives.
        how: the operation on `sources`, after transposing those marked in `transposed`. `made` marks tensors written
            by an exporter or a quantiser: numbers, shapes, folded and quantised tensors.
        sources: the tensors of the model, by their names there; none of one that was made.
        transposed: whether each source is a matrix that is read the other way around.
        axis: of one that is sliced or concatenated: along which axis.
        start: of one that is sliced: where it begins.
        sha256: of one that was made: of its bytes, row-major and little-endian.
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
        version: the version of this format. A reader refuses another major version.
        program: the sha256 of what the model does with its tensors: of the text of a torch program, or of an ONNX file.
        made_by: the version of each library that had a part in it. The same versions make the same graph again.
        optimized: whether operators were fused before the slots went in.
        constants: every constant of the graph.
        golden: the names of the cases of the golden vectors.
    """

    version: Annotated[str, SEMVER]
    program: Sha256
    made_by: Mapping[str, str]
    optimized: bool
    constants: tuple[ConstantRecord, ...]
    golden: tuple[str, ...]


def write_derivation(derivation: Derivation, path: Path) -> None:
    """Write a derivation; the same one always gives the same bytes. `WriteError`: the operating system refused."""
    with Output(path).file() as temporary:
        temporary.write_bytes(canonical_json(asdict(derivation)))


def read_derivation(path: Path) -> Derivation:
    """Read a derivation.

    Raises:
        FileError: it cannot be read.
        FormatError: it breaks the format; the message gives the JSON path. `VersionError` is a kind of it.
    """
    document = read_json(path)
    with version_checked(document, DERIVATION_VERSION, path), within(path):
        return record_from_json(Derivation, document)
