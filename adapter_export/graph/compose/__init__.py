"""Composition: adapters made of adapters, which train, export, swap and check like any other."""

from __future__ import annotations

from adapter_export.graph.compose.attention import DYNAMIC, STATIC, FusionOptions, adapter_fusion
from adapter_export.graph.compose.members import COMPOSITION
from adapter_export.graph.compose.sums import average, stack, weighted_fusion

__all__ = ["COMPOSITION", "DYNAMIC", "STATIC", "FusionOptions", "adapter_fusion", "average", "stack", "weighted_fusion"]
