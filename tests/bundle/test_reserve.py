"""Slots reserved for future adapters: a bundle of two adapters accepts every kind later."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import build_bundle
from random_kinds import random_of_kind
from tiny_onnx import save_tiny

import adapter_export as ae
from adapter_export.bundle.change import add_adapters
from adapter_export.commands.bundles.build import reserved_by
from adapter_export.errors import UsageError
from adapter_export.graph.kinds import KINDS
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner


def test_every_kind_goes_into_a_bundle_that_was_built_with_two(tmp_path: Path) -> None:
    """The added adapters have 8 bits."""
    base = open_onnx(save_tiny(tmp_path))
    made = {}
    for seed, (name, maker) in enumerate(KINDS.items()):
        kind, plain = maker(), name.replace("+", "p")
        narrow = kind.with_widths(b=8) if "b" in kind.components[0].widths else kind
        labels = ("x", "y", "z")[: 2 + seed % 2]
        made[plain] = random_of_kind(plain, narrow, base.sites, base.fingerprint, labels=labels, seed=seed)
    first, runner = [made["seq_bn"], made["houlsby"]], CutRunner(base)
    manifest = build_bundle(
        base,
        first,
        tmp_path / "bundle",
        references=runner,
        cases=input_cases(base.inputs, seed=1, shapes=[{"batch": 2, "tokens": 5}]),
        variants=("bank",),
        reserved=reserved_by(("all", "pfeiffer:silu", "head:mean"), base.sites),
    )
    assert any("silu" in slot.graph for slot in manifest.slots)
    later = [adapter for adapter in made.values() if adapter not in first]
    manifest = add_adapters(tmp_path / "bundle", later, references=runner, precision="int8")
    assert {record.name: record.precision for record in manifest.adapters} == {
        name: "float32" if adapter in first else "int8" for name, adapter in made.items()
    }


def test_unknown_kinds_cannot_be_reserved(tmp_path: Path) -> None:
    base = ae.open_base(save_tiny(tmp_path))
    lora = random_of_kind("lora", KINDS["lora"](), base.sites.complete, base.fingerprint)
    for name, words in (("dora", "dora"), ("lora:relu", "no such option"), ("head:middle", "middle")):
        with pytest.raises(UsageError, match=words):
            ae.build(base, [lora], tmp_path / "b", reserve=(name,), max_tokens=16)
    assert not (tmp_path / "b").exists()
