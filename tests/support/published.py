"""The graphs of every published kind, with the base's norm bound, and numbers for all of their widths."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.graph.graph import AdapterGraph, bind_base_norm
from adapter_export.graph.kinds import KINDS, BottleneckOptions, bottleneck
from adapter_export.sites.site import Norm

WIDTHS = {"d": 24, "d_in": 24, "b": 6, "n": 2, "p": 12, "k": 1, "q": 3, "r": 4, "f": 5, "g": 7}

PUBLISHED: Mapping[str, AdapterGraph] = {
    f"{name}-{part.graph_name}": bind_base_norm(part.graph, Norm("layer", 1e-12, "weight", "bias"))
    for name, kind in KINDS.items()
    for part in kind().components
}
"""With the options that each has by itself."""

OPTIONS: Mapping[str, AdapterGraph] = {
    "scaled": bottleneck("h", BottleneckOptions(scaling=-2.5, dropout=0.1)),
    "norms": bottleneck("u", BottleneckOptions(norm_before=True, norm_after=True)),
    "no bias": bottleneck("h", BottleneckOptions(no_bias=True, scaling="learned", drop_path=0.1)),
    "gate": bottleneck("x", BottleneckOptions(gate=True, scaling="channel")),
    "rms": bind_base_norm(bottleneck("normed", BottleneckOptions()), Norm("rms", 1e-6, "weight", None)),
    "kronecker": bottleneck("h", BottleneckOptions(phm_dim=4, phm_shared_weights=True, scaling=0.5)),
}
"""Further options of kinds."""
