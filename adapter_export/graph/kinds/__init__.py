"""The published kinds of adapter, each declared once: what it computes, where it acts, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapter_export.errors import UsageError, quoted
from adapter_export.graph.heads import classification_head
from adapter_export.graph.kinds.adapterhub import (
    BottleneckConfig,
    NiceOptions,
    adapter_plus,
    bottleneck_config,
    compacter,
    compacter_plus_plus,
    double_seq_bn,
    nice,
    par_bn,
    scaled_par_bn,
    seq_bn,
)
from adapter_export.graph.kinds.bottleneck import BottleneckOptions, PhmOptions, bottleneck, houlsby, parallel, pfeiffer
from adapter_export.graph.kinds.kind import Kind, Maker
from adapter_export.graph.kinds.linear import Ia3Options, LoraOptions, ia3, ia3_graph, lora, lora_graph

__all__ = [
    "BOTTLENECK_KINDS",
    "KINDS",
    "REFUSED",
    "BottleneckConfig",
    "BottleneckOptions",
    "Ia3Options",
    "Kind",
    "LoraOptions",
    "Maker",
    "NiceOptions",
    "PhmOptions",
    "bottleneck",
    "bottleneck_config",
    "classification_head",
    "houlsby",
    "ia3",
    "ia3_graph",
    "kind_named",
    "lora",
    "lora_graph",
    "nice",
    "parallel",
    "pfeiffer",
]

_MAKERS = (
    *(houlsby, pfeiffer, parallel),
    *(seq_bn, double_seq_bn, par_bn, scaled_par_bn, adapter_plus, compacter, compacter_plus_plus),
    *(nice, lora, ia3),
)

KINDS: Mapping[str, Maker[Any]] = {maker.name: maker for maker in _MAKERS}

BOTTLENECK_KINDS = tuple(maker.name for maker in _MAKERS if isinstance(maker.defaults, BottleneckOptions))

REFUSED: Mapping[str, str] = {
    "dora": "normalises the base's own weights, which no graph reads",
    "vera": "shares frozen random projections, which would have to be stored",
    "loha": "multiplies products of matrices element by element",
    "lokr": "multiplies the weights by Kronecker products",
    "prefix_tuning": "adds keys and values to attention, which no site holds",
    "prompt_tuning": "makes the text longer",
    "loreft": "acts at some tokens only",
}
"""Published kinds that have no graph here yet, and why."""


def kind_named(name: str) -> Maker[Any]:
    """The kind of a name; a `UsageError` says why one is unknown or cannot be expressed."""
    if name in KINDS:
        return KINDS[name]
    why = REFUSED.get(name.lower().replace("-", "_"))
    raise UsageError(
        "unknown kind" if why is None else f"`{name}` cannot be expressed yet: it {why}",
        found=None if why else f"`{name}`",
        expected=quoted(KINDS),
    )
