"""Golden data of wide outputs: small, and as sharp as the outputs themselves."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from once import once
from tampering import edit_adapter, rehash, scaled, unrecorded
from wide_bundle import WORDS, build_wide, wide_adapter

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.change import add_adapters
from adapter_export.bundle.golden.golden_vectors import Case, case_of, choose_sketches
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.errors import FormatError, ParityError
from adapter_export.format.manifest import InputRecord, Manifest, OutputRecord
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Bundle, check_session


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the base and the bundle; shared, so read-only."""
    return once(tmp_path_factory, "wide_bundle", build_wide)


@pytest.fixture
def copy(wide: Path, tmp_path: Path) -> Path:
    return shutil.copytree(wide / "bundle", tmp_path / "bundle")


def change_words(folder: Path, change: Callable[[np.ndarray], None]) -> None:
    """Change the matrix [width, words] of the vocabulary in the weights, and mend the hashes.

    Recorded runs are dropped, as on another machine: otherwise their bits show any change.
    """
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = next(one for one in model.graph.initializer if list(one.dims) == [16, WORDS])
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset = int(entries.get("offset", 0))
    weights = np.memmap(folder / entries["location"], np.float32, "r+", offset, (16, WORDS))
    change(weights)
    weights.flush()
    rehash(folder, unrecorded)


def test_vocabulary_is_stored_as_a_sketch(wide: Path) -> None:
    manifest = read_manifest(wide / "bundle")
    assert list(manifest.sketches) == ["logits"]
    tensors = read_tensors(wide / "bundle" / manifest.golden.path)
    shapes = {name: tensor.shape for name, tensor in tensors.items() if "logits" in name}
    width = manifest.sketches["logits"].width
    assert shapes["batch3_tokens65.output.logits"] == (3, 65, width)
    assert width < WORDS / 10
    assert (wide / "bundle" / manifest.golden.path).stat().st_size < 1_000_000


def test_bundle_passes_against_its_golden_data_and_its_model(wide: Path) -> None:
    bundle = OpenedBundle.open(wide / "bundle")
    prove(plan_check(bundle, quick=True), None).raise_for_failure()
    base = open_onnx(wide / "tiny.onnx")
    reference = Reference("tiny.onnx", CutRunner(base), inputs=base.inputs, lengths=base.lengths)
    plan = plan_check(OpenedBundle.open(wide / "bundle"), brief=True)
    prove(plan, reference).raise_for_failure()


def test_session_passes_its_golden_data(copy: Path) -> None:
    rehash(copy, unrecorded)
    bundle = Bundle.open(copy)
    check_session(bundle, bundle.session(threads=1))


def exchange(words: np.ndarray) -> None:
    words[:, [77, 4321]] = words[:, [4321, 77]]


def weaken(words: np.ndarray) -> None:
    words[:, 1234] *= 0.9


def shift(words: np.ndarray) -> None:
    words[:] = np.roll(words, 1, axis=1)


@pytest.mark.parametrize("change", [exchange, weaken, shift])
def test_changed_words_are_seen_by_verify_and_by_sessions(copy: Path, change: Callable[[np.ndarray], None]) -> None:
    change_words(copy, change)
    with pytest.raises(ParityError, match="logits"):
        prove(plan_check(copy, quick=True), None).raise_for_failure()
    bundle = Bundle.open(copy)
    with pytest.raises(FormatError, match="does not compute what the reference computed"):
        check_session(bundle, bundle.session(threads=1))


def test_adapter_of_another_scale_is_seen(copy: Path) -> None:
    edit_adapter(copy, "a", scaled("adapter.layers.1.ffn.up.weight", 1.01))
    rehash(copy, unrecorded)
    with pytest.raises(ParityError):
        prove(plan_check(copy, quick=True), None).raise_for_failure()


def test_sketches_separate_adapters_from_partial_ones(wide: Path) -> None:
    for record in read_manifest(wide / "bundle").adapters:
        assert record.golden.separation is not None
        assert record.golden.separation.least > 100
        assert record.golden.separation.outputs["logits"] > 100


def test_added_adapter_has_the_same_form(wide: Path, copy: Path) -> None:
    base = open_onnx(wide / "tiny.onnx")
    manifest = add_adapters(copy, [wide_adapter("c", base)], references=CutRunner(base))
    first, last = manifest.adapters[0].golden, manifest.adapters[-1].golden
    shapes = [{key: tensor.shape for key, tensor in read_tensors(copy / one.path).items()} for one in (first, last)]
    assert shapes[0] == shapes[1]
    prove(plan_check(copy, quick=True), None).raise_for_failure()


@pytest.mark.parametrize("axes", [3, 4])
def test_manifest_with_an_impossible_sketch_is_refused(copy: Path, axes: int) -> None:
    def change(manifest: Manifest) -> Manifest:
        return replace(manifest, sketches={"logits": replace(manifest.sketches["logits"], axes=axes)})

    with pytest.raises(FormatError, match=r"sketches.logits.axes.*has as many axes as the output"):
        rehash(copy, change)


class TestChoice:
    """Choice of the outputs that become sketches."""

    IDS = InputRecord("ids", "int64", ("batch", "tokens"), "ids", 9)
    PAST = InputRecord("past", "float32", ("batch", 8, "old", 64), "cache", next="present")
    PRESENT = OutputRecord("present", "float32", ("batch", 8, "old + tokens", 64))

    def case(self, tokens: int, past: int = 0) -> Case:
        arrays = {"ids": np.zeros((1, tokens), np.int64), "past": np.zeros((1, 8, past, 64), np.float32)}
        return case_of("one", arrays, (self.IDS, self.PAST))

    def sketched(self, output: OutputRecord, tokens: int, past: int = 0) -> list[int]:
        sketches = choose_sketches([output, self.PRESENT], (self.IDS, self.PAST), [self.case(tokens, past)])
        return [sketches[output.name].axes, sketches[output.name].width] if output.name in sketches else []

    def test_small_outputs_stay_whole(self) -> None:
        assert self.sketched(OutputRecord("logits", "float32", ("batch", "tokens", 5000)), 50) == []
        assert self.sketched(self.PRESENT, 100) == []

    def test_wide_rows_have_more_sums(self) -> None:
        assert self.sketched(OutputRecord("logits", "float32", ("batch", "tokens", 5000)), 60) == [2, 327]
        assert self.sketched(OutputRecord("logits", "float32", ("batch", "tokens", 151936)), 60) == [2, 579]
        assert self.sketched(OutputRecord("hidden", "float32", ("batch", "tokens", 2048)), 140) == [2, 197]

    def test_long_outputs_have_rows_of_more_axes(self) -> None:
        assert self.sketched(OutputRecord("hidden", "float32", ("batch", 3000, 512)), 1) == [1, 5119]
        assert self.sketched(OutputRecord("mask", "float32", ("batch", 40, 512, 512)), 1) == [2, 579]

    def test_all_outputs_together_are_bounded(self) -> None:
        layers = [OutputRecord(f"layer{at}", "float32", ("batch", "tokens", 768)) for at in range(25)]
        cases = [self.case(tokens) for tokens in (1, 7, 65, 250)]
        sketches = choose_sketches(layers, (self.IDS, self.PAST), cases)
        shapes = [(1, case.axes["tokens"], 768) for case in cases]
        kept = [
            sketches[each.name].shape_of(shape) if each.name in sketches else shape
            for each in layers
            for shape in shapes
        ]
        assert sum(4 * math.prod(shape) for shape in kept) < 2_000_000
        assert {each.axes for each in sketches.values()} <= {1, 2}

    def test_cache_is_one_row_for_each_text(self) -> None:
        assert self.sketched(self.PRESENT, 1, past=600) == [1, 149]

    def test_integers_and_rows_below_the_width_of_a_sketch_stay_whole(self) -> None:
        assert self.sketched(OutputRecord("best", "int64", ("batch", "tokens", 5000)), 600) == []
        assert self.sketched(OutputRecord("hidden", "float32", ("batch", "tokens", 128)), 3000) == []
