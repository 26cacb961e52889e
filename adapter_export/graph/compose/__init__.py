"""Composition: adapters made of adapters, which train, export, swap and check like any other."""

from __future__ import annotations

from adapter_export.graph.compose.attention import DYNAMIC, STATIC, FusionOptions, adapter_fusion
from adapter_export.graph.compose.members import COMPOSITION, data_of
from adapter_export.graph.compose.sums import average, stack, weighted_fusion

__all__ = [
    "COMPOSITION",
    "DYNAMIC",
    "STATIC",
    "FusionOptions",
    "adapter_fusion",
    "average",
    "data_of",
    "stack",
    "weighted_fusion",
]
