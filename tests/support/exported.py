"""Adapters as exports of another library: random ones, and the files of an export."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.kinds import Kind
from adapter_export.plugins.formats.exporters import FORMATS
from adapter_export.plugins.formats.exporters.export_format import ExportRequest, Written
from adapter_export.plugins.formats.exporters.proof import compare_with_export
from adapter_export.sites.site import SiteMap

FINGERPRINT = f"sha256:{0:064}"


def random_for_sites(kind: Kind, sites: SiteMap, name: str = "task", seed: int = 0) -> Adapter:
    """An adapter of a kind at the sites of a map, with weights of standard deviation 0.2."""
    graphs, placements = {}, {}
    for site in sites:
        component = kind.component_at(site)
        if component is not None:
            graphs[component.graph_name] = component.graph
            widths = {**component.widths_at(site), "d": site.width, "d_in": site.width_in}
            known = {symbol: widths[symbol] for symbol in component.graph.symbols()}
            placements[site.name] = Placement(component.graph_name, known)
    random = np.random.default_rng(seed)
    bare = _Shapes(name, kind.name, FINGERPRINT, graphs, placements, {})
    weights = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in bare.tensor_shapes().items()}
    return Adapter(name, kind.name, FINGERPRINT, graphs, placements, weights)


class _Shapes(Adapter):
    """An adapter whose weights are still to be drawn."""

    def __post_init__(self) -> None:
        """Check nothing."""


@dataclass(frozen=True)
class Exported:
    """A written folder, and the error of the adapter that was read back."""

    written: Written
    error: float
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]


def exported(request: ExportRequest, to: str, folder: Path) -> Exported:
    """Export an adapter, and compare it with the result of reading it back."""
    folder.mkdir()
    chosen = FORMATS[to]
    written = chosen.write(request, folder)
    error = compare_with_export(request, chosen.read_back(request, folder), chosen.allowed)
    (file,) = (path for path in folder.glob("*.safetensors") if "head" not in path.name)
    config = json.loads((folder / "adapter_config.json").read_text())
    return Exported(written, error, config, read_tensors(file))


def with_factor(adapter: Adapter, factor: float) -> Adapter:
    """The adapter with another factor in each `scale`."""
    graphs = {
        name: replace(
            graph,
            nodes=tuple(
                replace(node, attributes={"factor": factor}) if node.op == "scale" else node for node in graph.nodes
            ),
        )
        for name, graph in adapter.graphs.items()
    }
    return replace(adapter, graphs=graphs)
