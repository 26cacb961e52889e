"""Site maps as JSON, schema `site-map`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from adapter_export.errors import within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import (
    SEMVER,
    Count,
    OrAbsent,
    Pattern,
    Positive,
    Text,
    record_from_json,
    version_checked,
)
from adapter_export.safe_io.documents import read_json
from adapter_export.safe_io.output import Output
from adapter_export.sites.site import SiteMap
from adapter_export.sites.site_map import GivenSite, GivenSites, SiteValues, View

SITE_MAP_VERSION = "1.1.0"
"""Version of the site map format."""

_SiteName = Annotated[
    str,
    Pattern(
        "siteName",
        "(?!head$)[A-Za-z0-9_][A-Za-z0-9_.-]*",
        "a name of letters, digits, `_`, `.`, `-`, a letter, digit or `_` first, that is not `head`",
    ),
]


@dataclass(frozen=True)
class SublayerValuesRecord:
    """Values of a sublayer, by name in one view of the base.

    Attributes:
        h: the sublayer's output before the residual add.
        x: the residual stream at the sublayer's start.
        u: the sublayer's input. Default: `x`.
        y: the block's output after the add, and after the norm that follows. Default: detected.
    """

    h: Text
    x: Text
    u: OrAbsent[Text] = None
    y: OrAbsent[Text] = None


@dataclass(frozen=True)
class LinearValuesRecord:
    """Values of a linear layer, by name in one view of the base.

    Attributes:
        h: its output with its bias.
        u: its input.
    """

    h: Text
    u: Text


@dataclass(frozen=True)
class EmbeddingsValuesRecord:
    """Value of the embeddings, by name in one view of the base.

    Attributes:
        h: the input of the first sublayer.
    """

    h: Text


_ValuesRecord = SublayerValuesRecord | LinearValuesRecord | EmbeddingsValuesRecord


@dataclass(frozen=True)
class SublayerRecord:
    """A sublayer.

    Attributes:
        role: role of the sublayer.
        layer: layer number, from 0.
        torch: the values by the names of FX nodes.
        onnx: the values by their names in the ONNX graph.
    """

    AT_LEAST_ONE_OF: ClassVar = ("torch", "onnx")

    role: Literal["attention", "cross_attention", "ffn"]
    layer: Count
    torch: OrAbsent[SublayerValuesRecord] = None
    onnx: OrAbsent[SublayerValuesRecord] = None


@dataclass(frozen=True)
class LinearRecord:
    """A linear layer inside or outside of sublayers.

    Attributes:
        role: role of the layer.
        layer: layer number of the sublayer, from 0; absent outside of sublayers.
        parts: slices [start, end) of a fused linear layer's output, such as `query`; each is an additional site.
        blocks: number of equal blocks of a fused linear layer's output, such as one per head; `parts` are slices of
            each block.
        torch: the values by the names of FX nodes.
        onnx: the values by their names in the ONNX graph.
    """

    AT_LEAST_ONE_OF: ClassVar = ("torch", "onnx")

    role: Literal["linear"]
    layer: OrAbsent[Count] = None
    parts: Mapping[str, tuple[Count, Count]] = field(default_factory=dict)
    blocks: Positive = 1
    torch: OrAbsent[LinearValuesRecord] = None
    onnx: OrAbsent[LinearValuesRecord] = None


@dataclass(frozen=True)
class EmbeddingsRecord:
    """The input of the first sublayer.

    Attributes:
        role: role of the site.
        torch: the value by the name of an FX node.
        onnx: the value by its name in the ONNX graph.
    """

    AT_LEAST_ONE_OF: ClassVar = ("torch", "onnx")

    role: Literal["embeddings"]
    torch: OrAbsent[EmbeddingsValuesRecord] = None
    onnx: OrAbsent[EmbeddingsValuesRecord] = None


@dataclass(frozen=True)
class FinalRecord:
    """The final hidden state, the input of heads, in each view of the base.

    Attributes:
        torch: the name of an FX node.
        onnx: a name in the ONNX graph.
    """

    AT_LEAST_ONE_OF: ClassVar = ("torch", "onnx")

    torch: OrAbsent[Text] = None
    onnx: OrAbsent[Text] = None


@dataclass(frozen=True)
class SiteMapDocument:
    """Sites of a base that override or complete the detected ones.

    Attributes:
        version: the version of this format. Readers reject another major version.
        sites: sites by name; null removes a detected site.
        final: the final hidden state. Default: detected.
    """

    version: Annotated[str, SEMVER]
    sites: Mapping[_SiteName, SublayerRecord | LinearRecord | EmbeddingsRecord | None]
    final: OrAbsent[FinalRecord] = None


def read_site_map(path: Path) -> GivenSites:
    """Read a site map, without checking it against a base.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file violates the format; `VersionError` is a subclass.
    """
    document = read_json(path)
    with version_checked(document, SITE_MAP_VERSION, path), within(path):
        record = record_from_json(SiteMapDocument, document)
    digest = hashlib.sha256(canonical_json(document)).hexdigest()
    sites = {name: None if site is None else _given_site(site) for name, site in record.sites.items()}
    final: dict[View, str | None] = {}
    if record.final is not None:
        final = {"torch": record.final.torch, "onnx": record.final.onnx}
    return GivenSites(str(path), f"sha256:{digest}", sites, {view: name for view, name in final.items() if name})


def write_site_map(views: Mapping[View, SiteMap], path: Path, *, force: bool = False) -> None:
    """Write the sites of a base, with the names of their values in each view, for editing.

    Raises:
        OutputExistsError: the path exists and `force` is false.
        WriteError: the operating system refused a write.
    """
    sites: dict[str, dict[str, object]] = {}
    for view, site_map in views.items():
        for site in (site for site in site_map.sites if site.role != "lookup"):  # always detected
            values = {"h": site.h, "x": site.x, "u": site.u, "y": site.y}
            described = {
                "role": site.role,
                "layer": site.layer,
                "parts": {name: list(bounds) for name, bounds in site.parts.items()} or None,
                "blocks": site.blocks if site.blocks > 1 else None,
            }
            entry = sites.setdefault(site.name, {key: value for key, value in described.items() if value is not None})
            entry[view] = {key: value for key, value in values.items() if value is not None}
    final = {view: site_map.final for view, site_map in views.items()}
    with Output(path, force).file() as temporary:
        temporary.write_bytes(canonical_json({"version": SITE_MAP_VERSION, "sites": sites, "final": final}))


def _given_site(site: SublayerRecord | LinearRecord | EmbeddingsRecord) -> GivenSite:
    views: dict[View, _ValuesRecord | None] = {"torch": site.torch, "onnx": site.onnx}
    values = {view: SiteValues(**vars(named)) for view, named in views.items() if named is not None}
    values = {view: replace(named, u=named.u or named.x) for view, named in values.items()}
    if isinstance(site, EmbeddingsRecord):
        return GivenSite(site.role, None, values)
    if isinstance(site, LinearRecord):
        return GivenSite(site.role, site.layer, values, site.parts, site.blocks)
    return GivenSite(site.role, site.layer, values)
