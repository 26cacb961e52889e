"""Adapter files with fewer bits: rounded once, exact from then on, and reported as such."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_bundle import Built, make_adapter

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.change import add_adapters
from adapter_export.bundle.proof.exact_tensors import check_slots
from adapter_export.bundle.proof.invariants import check_files
from adapter_export.dtypes import AdapterPrecision, narrowed, widened
from adapter_export.errors import TensorError
from adapter_export.graph.slot_form import rounded
from adapter_export.onnx_backend.onnx_runner import CutRunner

TENSORS = {
    "down": np.random.default_rng(0).normal(0, 0.2, (48, 16)).astype(np.float32),
    "stacked": np.random.default_rng(1).normal(0, 20, (3, 5, 7)).astype(np.float32),
    "bias": np.random.default_rng(2).normal(0, 0.2, 16).astype(np.float32),
    "idle": np.zeros((8, 1), np.float32),
    "tiny": np.full((4, 2), 3e-38, np.float32),
}


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_adapters_are_rounded_only_once(precision: AdapterPrecision) -> None:
    stored = narrowed(TENSORS, precision)
    once = widened(stored)
    again = narrowed(once, precision)
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {n: t.tobytes() for n, t in stored.items()}
    assert once.keys() == TENSORS.keys()
    assert {tensor.dtype for tensor in once.values()} == {np.dtype(np.float32)}


def test_integers_times_their_scale_are_exact_in_float32() -> None:
    stored = narrowed(TENSORS, "int8")
    assert stored["bias"].dtype == np.float32
    for name in ("down", "stacked"):
        scale, steps = stored[f"{name}.scale"], stored[name]
        assert scale.shape == (1,) * (steps.ndim - 1) + steps.shape[-1:]
        assert np.array_equal(np.abs(steps).max(axis=tuple(range(steps.ndim - 1))), np.full(steps.shape[-1], 127))
        exact = steps.astype(np.float64) * scale.astype(np.float64)
        assert np.array_equal(widened(stored)[name], exact)
        assert np.all(np.abs(exact - TENSORS[name]) <= scale * 0.5001)


def test_unstorable_or_incomplete_tensors_are_refused() -> None:
    with pytest.raises(TensorError, match=r"`big` exceeds the range of float16; found 7e\+04"):
        narrowed({"big": np.array([70000.0, 1], np.float32)}, "float16")
    with pytest.raises(TensorError, match=r"two tensors would have the same name; found `a\.scale`"):
        narrowed({"a": np.ones((2, 2), np.float32), "a.scale": np.ones((2, 2), np.float32)}, "int8")
    stored = narrowed({"a": np.ones((2, 3), np.float32)}, "int8")
    for scale in (None, np.ones((1, 2), np.float32), np.ones((1, 3), np.float16)):
        wrong = {"a": stored["a"]} | ({} if scale is None else {"a.scale": scale})
        with pytest.raises(TensorError, match=r"tensor without its scale; found `a` \[2, 3\].*float32 \[1, 3\]"):
            widened(wrong)


def test_an_adapter_in_int8_is_the_users_own_rounded(built: Built, copy: Path) -> None:
    """Its factor of 2 is folded into the weights before they are rounded; all of its files are smaller."""
    given = {name: make_adapter(name, "pfeiffer", "relu", 2, built.base, 2.0) for name in ("small", "tone")}
    manifest = add_adapters(copy, [given["small"]], references=CutRunner(built.base), precision="int8")
    (record,) = (one for one in manifest.adapters if one.name == "small")
    assert (record.precision, manifest.adapters[0].precision) == ("int8", "float32")
    opened = OpenedBundle.open(copy)
    shown = list(check_slots(opened, ["small", "tone"], given))
    assert {each.id: each.status for each in shown} == dict.fromkeys(
        ("slots/small", "source/small", "slots/tone", "source/tone"), "exact"
    )
    assert _files_agree(opened)
    opened.manifest = replace(manifest, adapters=tuple(replace(one, precision="float16") for one in manifest.adapters))
    assert not _files_agree(opened)
    inputs = {record.name: np.ones((2, 5), np.int64) for record in manifest.inputs}
    found = ae.open_bundle(copy).session().run(inputs, "small")["logits"]
    expected = CutRunner(built.base).run(inputs, rounded(given["small"], "int8"))["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(found - CutRunner(built.base).run(inputs, given["small"])["logits"]).max() > 1e-4


def _files_agree(bundle: OpenedBundle) -> bool:
    (found,) = (one for one in check_files(bundle, ["slots"], ["small"]) if one.check == "adapter files")
    return found.passed
