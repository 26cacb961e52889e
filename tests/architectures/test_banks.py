"""Banks of many architectures: rows of one batch run through different adapters at every place of the base."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from banks import assert_fans_out, assert_rows_are_those_of_slots
from exported_bases import ExportedBase
from replacing import OTHERS, adapter_at, scaled, scaled_plus
from tiny_onnx import random_adapter

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import houlsby, pfeiffer
from adapter_export.onnx_backend.base.onnx_base import OnnxBase

CHOSEN = ("gpt2", "gpt_neox", "llama", "deberta_v2", "albert", "t5_encoder", "vit", "whisper_encoder", "swiglu_block")
"""Rows of tokens in one axis; parallel sublayers; RMS norms; shared layers; images and sound; a bare stream."""


def every_place(base: OnnxBase) -> list[Adapter]:
    """Two bottlenecks of different widths, and adapters that replace every value of every site."""
    names = {role: [site.name for site in base.sites.of_roles((role,))] for role in ("linear", "embeddings")}
    sublayers = [site.name for site in base.sites.sublayers]
    graphs = [(scaled_plus(replaced, other), sublayers) for replaced, other in OTHERS.items()]
    graphs += [(scaled("u"), names["linear"]), (scaled_plus("h", "u"), names["linear"])]
    graphs += [(scaled_plus("h", "h"), names["embeddings"])] if names["embeddings"] else []
    return [
        random_adapter("wide", houlsby(), base, bottleneck=4),
        random_adapter("narrow", pfeiffer(), base, bottleneck=2),
        *(adapter_at(f"a{at}", graph, sites, base.sites, base.fingerprint) for at, (graph, sites) in enumerate(graphs)),
    ]


@pytest.mark.parametrize("name", CHOSEN)
def test_rows_of_a_batch_run_through_different_adapters_at_every_place(
    name: str, exported: Callable[[str], ExportedBase]
) -> None:
    base, inputs = exported(name).in_onnx, exported(name).architecture.arrays(3, 5)
    assert_rows_are_those_of_slots(base, every_place(base), inputs, tolerance=1e-4)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_text_is_computed_once_below_its_adapters(name: str, exported: Callable[[str], ExportedBase]) -> None:
    base, inputs = exported(name).in_onnx, exported(name).architecture.arrays(2, 5)
    last = [base.sites.sublayers[-1].name]
    adapters = [adapter_at(f"a{at}", scaled(at_), last, base.sites, base.fingerprint) for at, at_ in enumerate("hh")]
    assert_fans_out(base, adapters, inputs, tolerance=1e-5)
