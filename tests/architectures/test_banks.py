"""Banks of many architectures: rows of one batch run through different adapters at every place of the base."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bank_rows import assert_fans_out, assert_rows_are_those_of_slots
from exported_bases import ExportedBase, by_architecture
from replacing import adapter_at, at_every_place, scaled
from tiny_onnx import random_adapter

from adapter_export.graph.kinds import houlsby, pfeiffer

CHOSEN = ("gpt2", "gpt_neox", "llama", "deberta_v2", "albert", "t5_encoder", "vit", "whisper_encoder", "swiglu_block")
"""Rows of tokens in one axis; parallel sublayers; RMS norms; shared layers; images and sound; a bare stream."""


@pytest.mark.parametrize("name", by_architecture(CHOSEN))
def test_rows_of_a_batch_run_through_different_adapters_at_every_place(
    name: str, exported: Callable[[str], ExportedBase]
) -> None:
    base, inputs = exported(name).in_onnx, exported(name).architecture.arrays(3, 5)
    adapters = [
        random_adapter("wide", houlsby(), base, bottleneck=4),
        random_adapter("narrow", pfeiffer(), base, bottleneck=2),
        *at_every_place(base.sites, base.fingerprint),
    ]
    assert_rows_are_those_of_slots(base, adapters, inputs, tolerance=1e-4)


@pytest.mark.parametrize("name", by_architecture(CHOSEN))
def test_a_text_is_computed_once_below_its_adapters(name: str, exported: Callable[[str], ExportedBase]) -> None:
    base, inputs = exported(name).in_onnx, exported(name).architecture.arrays(2, 5)
    last = [base.sites.sublayers[-1].name]
    adapters = [adapter_at(f"a{at}", scaled(at_), last, base.sites, base.fingerprint) for at, at_ in enumerate("hh")]
    assert_fans_out(base, adapters, inputs, tolerance=1e-5)
