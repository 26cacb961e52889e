"""Facts that `build` measures once and records in the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from heard import Heard
from inner_norm import with_inner_norm
from tampering import rehash
from tiny_onnx import random_adapter, save_tiny, tiny_model

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.change import add_adapters
from adapter_export.bundle.proof.invariants import _measure_padding, check_proofs
from adapter_export.errors import RequestError
from adapter_export.format.manifest import Manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner

GATED = pfeiffer(BottleneckOptions(gate=True))


def _built(base: OnnxBase, adapters: list[Adapter], folder: Path) -> Manifest:
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 5}])
    return build_bundle(base, adapters, folder / "bundle", references=CutRunner(base), cases=cases)


def test_usual_adapters_do_not_count_padding_or_zeros(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    manifest = _built(base, [random_adapter("a", pfeiffer(), base, labels="ab")], tmp_path)
    assert (manifest.padding_neutral, manifest.counts_padding) == (True, ())
    assert manifest.bank is not None
    assert manifest.bank.fillable


def test_a_graph_that_counts_padding_is_named_and_the_others_are_not(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    adapters = [random_adapter("gated", GATED, base, labels="ab"), random_adapter("plain", pfeiffer(), base)]
    manifest = _built(base, adapters, tmp_path)
    (counting,) = manifest.counts_padding
    gated = {slot.graph for slot in manifest.slots if slot.parameter.startswith("gate")}
    assert (manifest.padding_neutral, {counting}) == (True, gated)


def test_a_norm_over_the_bottleneck_minds_zeros(tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    manifest = _built(base, [with_inner_norm(random_adapter("a", pfeiffer(), base, labels="ab"))], tmp_path)
    assert manifest.bank is not None
    assert not manifest.bank.fillable


def test_a_base_without_a_mask_cannot_be_padded(tmp_path: Path) -> None:
    mask = """
    zeros = Sub(input_ids, input_ids)
    penalty = Cast <to = 1> (zeros)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
    """
    base = open_onnx(save_tiny(tmp_path, tiny_model(inputs="int64[batch, tokens] input_ids", mask=mask)))
    manifest = _built(base, [random_adapter("a", pfeiffer(), base, labels="ab")], tmp_path)
    assert (manifest.padding_neutral, manifest.counts_padding) == (False, ())


def test_rows_that_share_a_scale_are_detected_by_measurement(tmp_path: Path) -> None:
    mask = """
    numbers = Cast <to = 1> (input_ids)
    largest = ReduceMax <axes = [0, 1]> (numbers)
    penalty = Div(numbers, largest)
    axis = Constant <value = int64[1] {1}> ()
    bias = Unsqueeze(penalty, axis)
    """
    base = open_onnx(save_tiny(tmp_path, tiny_model(inputs="int64[batch, tokens] input_ids", mask=mask)))
    adapters, bundle = [random_adapter(name, pfeiffer(), base, labels="ab") for name in "ab"], tmp_path / "bundle"
    assert not _built(base, adapters[:1], tmp_path).batch_invariant
    rehash(bundle, lambda said: replace(said, batch_invariant=True, padding_neutral=True))
    assert any("batch_invariant" in owed.where for owed in ae.verify(bundle).findings if owed.status == "failed")
    # a bundle of an earlier release, which measured less, is corrected when it is changed
    rehash(bundle, lambda said: replace(said, producer="adapter-export 0.0.1"))
    heard = Heard()
    manifest = add_adapters(bundle, adapters[1:], references=CutRunner(base), reporter=heard)
    assert (manifest.batch_invariant, manifest.padding_neutral) == (False, False)
    assert sum("is False as measured now" in note for note in heard.notes) == 2
    assert all(owed.status != "failed" for owed in ae.verify(bundle).findings)


class TestRuns:
    """Facts derived from a graph's outputs, without a graph."""

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Manifest:
        base = open_onnx(save_tiny(tmp_path))
        return _built(base, [random_adapter("a", pfeiffer(), base, labels="ab")], tmp_path)

    def test_bases_that_count_padding_are_recorded(self, manifest: Manifest) -> None:
        def run(requests: Sequence[Arrays]) -> list[Arrays]:
            counted = [np.float32(feeds["input_ids"].shape[1]) for feeds in requests]
            return [{record.name: np.full((1, 5), count) for record in manifest.outputs} for count in counted]

        assert not _measure_padding(manifest, run).padding_neutral

    def test_rounding_to_16_bits_explains_no_difference_in_runs_of_one_shape(self, manifest: Manifest) -> None:
        """A sum over all ids, including padding: zeros do not change it, and other ids change it by less than 1 %."""

        def run(requests: Sequence[Arrays]) -> list[Arrays]:
            sums = [1 + 1e-4 * np.float32(feeds["input_ids"].sum()) for feeds in requests]
            return [{record.name: np.full((1, 5), one) for record in manifest.outputs} for one in sums]

        assert not _measure_padding(replace(manifest, base_precision="fp16"), run).padding_neutral

    def test_bases_that_reject_probe_lengths_are_not_padding_neutral(self, manifest: Manifest) -> None:
        def run(requests: Sequence[Arrays]) -> list[Arrays]:
            raise RequestError(f"{len(requests)} requests that are too long")

        assert not _measure_padding(manifest, run).padding_neutral

    def test_not_a_number_is_no_equality(self, manifest: Manifest) -> None:
        def run(requests: Sequence[Arrays]) -> list[Arrays]:
            return [{record.name: np.full((1, 5), np.nan) for record in manifest.outputs} for _ in requests]

        assert not _measure_padding(manifest, run).padding_neutral


class TestCheck:
    @pytest.fixture
    def gated(self, tmp_path: Path) -> Path:
        """Build a graph that counts padding, with a norm over a bottleneck."""
        base = open_onnx(save_tiny(tmp_path))
        normed = with_inner_norm(random_adapter("normed", pfeiffer(), base, labels="ab"))
        _built(base, [random_adapter("gated", GATED, base, labels="ab"), normed], tmp_path)
        return tmp_path / "bundle"

    def test_recorded_facts_pass_the_check(self, gated: Path) -> None:
        assert [result.passed for result in check_proofs(OpenedBundle.open(gated))] == [True, True]

    def test_a_manifest_that_promises_more_is_found(self, gated: Path) -> None:
        bundle = OpenedBundle.open(gated)
        assert bundle.manifest.bank is not None
        bank = replace(bundle.manifest.bank, fillable=True)
        bundle.manifest = replace(bundle.manifest, counts_padding=(), bank=bank)
        assert [result.passed for result in check_proofs(bundle)] == [False, False]

    def test_a_manifest_that_promises_less_is_found(self, gated: Path) -> None:
        bundle = OpenedBundle.open(gated)
        bundle.manifest = replace(bundle.manifest, padding_neutral=False, counts_padding=())
        assert [result.passed for result in check_proofs(bundle)] == [False, True]
