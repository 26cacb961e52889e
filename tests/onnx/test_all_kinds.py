"""Every kind in one graph: each computes what its reference computes, and leaves no trace for the next."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from random_kinds import random_of_kind
from tiny_onnx import save_tiny, token_inputs

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import KINDS, BottleneckConfig, Kind, bottleneck_config
from adapter_export.onnx.base import open_onnx
from adapter_export.onnx.bundle import build_bundle
from adapter_export.onnx.cut_runner import CutRunner
from adapter_export.reference.inputs import input_cases
from adapter_export.runtime import Bundle

ODD = BottleneckConfig(
    True,
    True,
    {"0": 4, "default": 2},
    "mish",
    original_ln_before=True,
    residual_before_ln=True,
    ln_before=True,
    ln_after=True,
    use_gating=True,
    scaling="channel",
    inv_adapter="nice",
    inv_adapter_reduction_factor=2.0,
)
"""A configuration with everything that can lie idle."""


def kinds() -> dict[str, Kind]:
    """Every published kind, and one with many options, at widths that fit a base of width 16."""
    made = {name.replace("+", "p"): maker() for name, maker in KINDS.items()}
    narrow = {name: kind.with_widths(b=8) if "b" in kind.parts[0].widths else kind for name, kind in made.items()}
    return {**narrow, "odd": bottleneck_config(ODD)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CutRunner, dict[str, Adapter]]:
    folder = tmp_path_factory.mktemp("kinds")
    base = open_onnx(save_tiny(folder))
    adapters = {
        name: random_of_kind(name, kind, base.sites, base.fingerprint, labels=("a", "b")[: 2 * (seed % 2)], seed=seed)
        for seed, (name, kind) in enumerate(kinds().items())
    }
    runner = CutRunner(base)
    cases = input_cases(base.inputs, seed=1, shapes=[{"batch": 2, "tokens": 5}])
    build_bundle(base, list(adapters.values()), folder / "bundle", references=runner, cases=cases)
    return folder / "bundle", runner, adapters


def test_each_kind_computes_what_the_reference_computes(built) -> None:
    bundle, runner, adapters = built
    session, inputs = Bundle.open(bundle).session(), token_inputs(4, 6, seed=3)
    plain = session.run(inputs)["hidden"]
    for name, adapter in adapters.items():
        found, expected = session.run(inputs, adapter=name), runner.run(inputs, adapter)
        assert np.abs(found["hidden"] - plain).max() > 0.05, f"`{name}` changes nothing"
        for output, values in expected.items():
            np.testing.assert_allclose(found[output], values, atol=1e-4, rtol=1e-4, err_msg=f"{name}, {output}")


def test_after_any_kind_any_other_is_as_in_a_fresh_session(built) -> None:
    bundle, _, adapters = built
    inputs = token_inputs(3, 5, seed=5)
    alone = {name: Bundle.open(bundle).session().run(inputs, adapter=name) for name in adapters}
    session = Bundle.open(bundle).session()
    for before, after in itertools.permutations(adapters, 2):
        session.run(inputs, adapter=before)
        found = session.run(inputs, adapter=after)
        assert found.keys() == alone[after].keys()
        assert all(np.array_equal(found[name], alone[after][name]) for name in found), f"{before} before {after}"
