"""The published kinds of adapter, each a function that returns its graphs and where they act."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adapter_export.graph.kinds.bottleneck import (
    BottleneckOptions,
    bottleneck,
    classification_head,
    houlsby,
    parallel,
    pfeiffer,
)
from adapter_export.graph.kinds.kind import DEFAULT_BOTTLENECK, Kind, KindPart, Place, Places, Share, Width

__all__ = [
    "DEFAULT_BOTTLENECK",
    "KINDS",
    "BottleneckOptions",
    "Kind",
    "KindPart",
    "Place",
    "Places",
    "Share",
    "Width",
    "bottleneck",
    "classification_head",
    "houlsby",
    "parallel",
    "pfeiffer",
]

KINDS: Mapping[str, Callable[[BottleneckOptions | None], Kind]] = {
    "houlsby": houlsby,
    "pfeiffer": pfeiffer,
    "parallel": parallel,
}
