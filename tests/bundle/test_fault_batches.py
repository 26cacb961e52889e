"""Sets of tensors as rows of one batch in the graph with a bank: outputs as of one run for each set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from once import once
from tiny_onnx import random_adapter, save_tiny

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.fault_batches import first_row, run_sets
from adapter_export.dtypes import Weights
from adapter_export.graph.kinds import BottleneckOptions, pfeiffer
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner


def build(folder: Path) -> None:
    base = open_onnx(save_tiny(folder))
    adapters = [
        random_adapter(name, pfeiffer(BottleneckOptions("relu")), base, bottleneck=width)
        for name, width in (("narrow", 2), ("wide", 4))
    ]
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 3, "tokens": 5}])
    build_bundle(base, adapters, folder / "bundle", references=CutRunner(base), cases=cases)


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory) -> OpenedBundle:
    return OpenedBundle.open(once(tmp_path_factory, "fault_batches", build) / "bundle")


def sets_of(bundle: OpenedBundle) -> list[Weights]:
    wide = bundle.tensors("wide")
    name = next(iter(wide))
    return [wide, bundle.tensors(None), bundle.tensors("narrow"), {**wide, name: np.zeros_like(wide[name])}]


def test_rows_of_a_batch_equal_runs_of_one_set(bundle: OpenedBundle) -> None:
    case, sets = bundle.golden("wide").cases[0], sets_of(bundle)
    outputs = run_sets(bundle, case, sets)
    assert outputs is not None
    alone = bundle.run_slots([{**case.arrays, **tensors} for tensors in sets], bundle.stored)
    for actual, expected in zip(outputs, alone, strict=True):
        for name in bundle.base_outputs:
            np.testing.assert_allclose(actual[name], expected[name], atol=1e-5)
    assert np.abs(outputs[0]["hidden"] - outputs[3]["hidden"]).max() > 1e-3


def test_first_row_of_a_case_is_the_row(bundle: OpenedBundle) -> None:
    golden = bundle.golden("wide")
    case, expected = first_row(golden.cases[0], golden.outputs[0], bundle.manifest.inputs)
    assert case.batch == 1
    (outputs,) = run_sets(bundle, case, [bundle.tensors("wide")]) or [{}]
    np.testing.assert_allclose(outputs["hidden"], expected["hidden"], atol=1e-5)


def test_dependent_rows_do_not_share_a_batch(bundle: OpenedBundle) -> None:
    case, sets = bundle.golden("wide").cases[0], sets_of(bundle)
    bundle.manifest = replace(bundle.manifest, batch_invariant=False)
    assert run_sets(bundle, case, sets) is None
