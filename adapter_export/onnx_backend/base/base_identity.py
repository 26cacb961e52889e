"""Match of an onnxruntime-genai folder to the trained model it was converted from: `base_identity.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from adapter_export.errors import BaseModelError, within
from adapter_export.format.files import IDENTITY_FILE, canonical_json
from adapter_export.format.records import SEMVER, record_from_json, version_checked
from adapter_export.numerics.paired_sites import SitePairs
from adapter_export.numerics.weight_match import Counterpart
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.safe_io.documents import read_json
from adapter_export.tables import number_of
from adapter_export.version import __version__
from adapter_export.words import command, quoted

IDENTITY_VERSION = "1.0.0"
"""Format version that is written, and the newest that can be read."""


@dataclass(frozen=True)
class BaseIdentity:
    """Evidence that a graph contains the weights of a trained model, each within its rounding.

    Attributes:
        version: format version.
        graph: fingerprint of the graph's weights.
        base: fingerprint of the trained model, which adapters name.
        model_type: name of its architecture in transformers.
        weights: the rows of each weight with their trained rows, and the differences.
        renamed: names of sites in the trained model, by their names in the graph.
        paths: module paths of sites in the trained model.
        producer: the program that compared them.
    """

    version: Annotated[str, SEMVER]
    graph: str
    base: str
    model_type: str | None
    weights: tuple[Counterpart, ...]
    renamed: Mapping[str, str]
    paths: Mapping[str, str]
    producer: str = f"adapter-export {__version__}"

    def to_json(self) -> bytes:
        """Return the text of the file."""
        return canonical_json(asdict(self))

    def applied(self, graph: OnnxBase) -> OnnxBase:
        """Return the graph with the fingerprint, names and paths of the trained model.

        Raises:
            BaseModelError: the record belongs to another graph, or two sites would have the same name.
        """
        if graph.fingerprint != self.graph:
            raise BaseModelError(
                "has changed since it was compared with a trained model",
                where=graph.path.with_name(IDENTITY_FILE),
                found=graph.fingerprint,
                expected=self.graph,
                fix="delete the file, or compare again with "
                + command("identify(FOLDER, MODEL, force=True)", "identify FOLDER --weights MODEL --force"),
            )
        sites = SitePairs(self.renamed, self.paths).applied(graph.sites)
        twice = [name for name, count in Counter(site.name for site in sites).items() if count > 1]
        if twice:
            raise BaseModelError(
                "assigns the same name to several sites",
                where=graph.path.with_name(IDENTITY_FILE),
                found=quoted(twice),
                expected="a unique name for each site",
                fix="delete the file, and compare again",
            )
        weights = number_of(len(self.weights), "weight")
        note = f"`{IDENTITY_FILE}`: {weights} of {self.base} found, each within its rounding"
        return replace(graph, fingerprint=self.base, sites=sites, notes=(*graph.notes, note))


def read_identity(path: Path) -> BaseIdentity:
    """Read a record.

    Raises:
        FileError: it cannot be read.
        FormatError: it breaks the format; the message has the JSON path. `VersionError` is a subclass.
    """
    document = read_json(path)
    with version_checked(document, IDENTITY_VERSION, path), within(path):
        return record_from_json(BaseIdentity, document)
