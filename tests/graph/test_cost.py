"""Costs of adapters, counted by hand."""

from __future__ import annotations

import pytest

from adapter_export.graph.graph import Cost, cost
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.kinds.kind import DEFAULT_BOTTLENECK


@pytest.mark.parametrize(("width", "projections"), [(16, 131_072), (64, 524_288), (256, 2_097_152)])
def test_cost_counts_both_projections_at_width_4096(width: int, projections: int) -> None:
    found = cost(bottleneck("h", BottleneckOptions(no_bias=True)), {"d": 4096, "b": width})
    assert found == Cost(projections, 4 * projections, projections)


def test_biases_are_stored_but_not_multiplied() -> None:
    found = cost(bottleneck("h", BottleneckOptions()), {"d": 4096, "b": 64})
    assert found.parameters == 524_288 + 64 + 4096
    assert found.multiply_accumulates == 524_288


def test_norms_are_stored_but_are_no_products() -> None:
    options = BottleneckOptions(no_bias=True, norm_before=True, norm_after=True)
    found = cost(bottleneck("h", options), {"d": 10, "b": 3})
    assert (found.parameters, found.multiply_accumulates) == (60 + 4 * 10, 60)


def test_a_head_counts_its_classes() -> None:
    assert cost(classification_head(), {"d": 384, "classes": 6}) == Cost(384 * 6 + 6, 4 * (384 * 6 + 6), 384 * 6)


def test_the_default_bottleneck_is_64() -> None:
    assert DEFAULT_BOTTLENECK == 64
