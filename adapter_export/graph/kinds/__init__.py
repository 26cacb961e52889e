"""The published kinds of adapter, each a function that returns its graphs and where they act."""

from __future__ import annotations

from adapter_export.graph.heads import classification_head
from adapter_export.graph.kinds.adapterhub import (
    BottleneckConfig,
    activation_named,
    adapter_plus,
    bottleneck_config,
    compacter,
    compacter_plus_plus,
    double_seq_bn,
    par_bn,
    scaled_par_bn,
    seq_bn,
)
from adapter_export.graph.kinds.bottleneck import (
    BottleneckOptions,
    PhmOptions,
    Wiring,
    bottleneck,
    houlsby,
    parallel,
    pfeiffer,
    wired,
)
from adapter_export.graph.kinds.ia3 import Ia3Options, ia3, ia3_graph
from adapter_export.graph.kinds.kind import DEFAULT_BOTTLENECK, Kind, KindPart, Place, Places, Share, Width, per_layer
from adapter_export.graph.kinds.lora import LoraOptions, lora, lora_graph
from adapter_export.graph.kinds.nice import NiceOptions, nice, nice_graph
from adapter_export.graph.kinds.table import BOTTLENECK_KINDS, KINDS, REFUSED, Maker, kind_named

__all__ = [
    "BOTTLENECK_KINDS",
    "DEFAULT_BOTTLENECK",
    "KINDS",
    "REFUSED",
    "BottleneckConfig",
    "BottleneckOptions",
    "Ia3Options",
    "Kind",
    "KindPart",
    "LoraOptions",
    "Maker",
    "NiceOptions",
    "PhmOptions",
    "Place",
    "Places",
    "Share",
    "Width",
    "Wiring",
    "activation_named",
    "adapter_plus",
    "bottleneck",
    "bottleneck_config",
    "classification_head",
    "compacter",
    "compacter_plus_plus",
    "double_seq_bn",
    "houlsby",
    "ia3",
    "ia3_graph",
    "kind_named",
    "lora",
    "lora_graph",
    "nice",
    "nice_graph",
    "par_bn",
    "parallel",
    "per_layer",
    "pfeiffer",
    "scaled_par_bn",
    "seq_bn",
    "wired",
]
