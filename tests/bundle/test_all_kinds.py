"""All kinds in one bundle: in each graph, each matches its reference, and switching has no side effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from random_kinds import random_of_kind
from tiny_onnx import save_tiny, token_inputs

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.format.manifest import Manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import KINDS, BottleneckConfig, Kind, bottleneck_config
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
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
"""A configuration with everything that can be idle."""

CLASSES = ((), ("a", "b"), ("a", "b", "c"), (), ("a", "b", "c", "d"))


def kinds() -> dict[str, Kind]:
    """Return every published kind, one with many options, and some again at other widths, for a base of width 16."""
    made = {name.replace("+", "p"): maker() for name, maker in KINDS.items()}
    narrow = {name: _with_width(kind, 8) for name, kind in made.items()}
    again = {f"{name}_4": _with_width(made[name], 4) for name in ("houlsby", "seq_bn", "adapter_plus", "compacter")}
    thin = {"lora_3": made["lora"].with_widths(r=3)}
    return {**narrow, "odd": bottleneck_config(ODD), **again, **thin}


def _with_width(kind: Kind, bottleneck: int) -> Kind:
    return kind.with_widths(b=bottleneck) if "b" in kind.components[0].widths else kind


@dataclass(frozen=True)
class Built:
    folder: Path
    manifest: Manifest
    runner: CutRunner
    adapters: dict[str, Adapter]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("kinds")
    base = open_onnx(save_tiny(folder))
    adapters = {
        name: random_of_kind(name, kind, base.sites, base.fingerprint, labels=CLASSES[seed % len(CLASSES)], seed=seed)
        for seed, (name, kind) in enumerate(kinds().items())
    }
    runner = CutRunner(base)
    cases = input_cases(base.inputs, seed=1, shapes=[{"batch": 2, "tokens": 5}])
    baked = ["nice", "odd", "compacterpp"]
    manifest = build_bundle(
        base, list(adapters.values()), folder / "bundle", references=runner, cases=cases, bake=baked
    )
    return Built(folder / "bundle", manifest, runner, adapters)


def test_each_kind_computes_what_the_reference_computes(built: Built) -> None:
    session, inputs = Bundle.open(built.folder).session(), token_inputs(4, 6, seed=3)
    plain = session.run(inputs)["hidden"]
    for name, adapter in built.adapters.items():
        found, expected = session.run(inputs, adapter=name), built.runner.run(inputs, adapter)
        assert np.abs(found["hidden"] - plain).max() > 0.05, f"`{name}` has no effect"
        for output, values in expected.items():
            np.testing.assert_allclose(found[output], values, atol=1e-4, rtol=1e-4, err_msg=f"{name}, {output}")


def test_switching_between_kinds_leaves_no_trace(built: Built) -> None:
    inputs, bundle = token_inputs(3, 5, seed=5), Bundle.open(built.folder)
    alone = {name: bundle.session().run(inputs, adapter=name) for name in built.adapters}
    session, before = bundle.session(), None
    for after in in_all_orders(list(built.adapters)):
        found = session.run(inputs, adapter=after)
        assert found.keys() == alone[after].keys()
        assert all(np.array_equal(found[name], alone[after][name]) for name in found), f"{before} before {after}"
        before = after


def in_all_orders(names: Sequence[str]) -> list[str]:
    """Return a sequence in which each name directly follows each other name once: 0 1 0 2 1 2 0."""
    walk = [name for at, first in enumerate(names) for second in names[at + 1 :] for name in (first, second)]
    return [*walk, names[0]]


def test_rows_of_all_kinds_in_one_batch_equal_single_runs(built: Built) -> None:
    """Compare row by row, in two orders, with padding of every length."""
    assert built.manifest.bank is not None
    names = list(built.manifest.bank.rows)
    assert names == [None, *built.adapters]
    inputs = token_inputs(*(1 + at % 7 for at in range(len(names))), seed=7)
    session = Bundle.open(built.folder).session()
    bank = Graph(OpenedBundle(Bundle(built.folder, built.manifest, verified=False)), "bank", "model.bank.onnx")
    alone = {name: session.run(inputs, adapter=name) for name in names}
    for chosen in (names, names[::-1]):
        found = bank.run(inputs, chosen)
        for row, name in enumerate(chosen):
            expected = {output: value[row] for output, value in alone[name].items()}
            np.testing.assert_allclose(found["hidden"][row], expected["hidden"], atol=2e-5, err_msg=str(name))
            if "logits" in expected:
                width = len(expected["logits"])
                np.testing.assert_allclose(found["logits"][row, :width], expected["logits"], atol=2e-5)
                assert (found["logits"][row, width:] < -1e30).all()


def test_a_check_of_all_kinds_in_all_graphs_passes(built: Built) -> None:
    report = prove(plan_check(built.folder), None)
    assert report.passed
    seen = {(result.variant, result.adapter) for result in report.outputs}
    graphs = ("slots", "inputs", "bank")
    assert set(built.manifest.graphs) == set(graphs)
    assert seen >= {(form, name) for form in graphs for name in (None, *built.adapters)}
    assert {name for form, name in seen if form == "baked"} == {"nice", "odd", "compacterpp"}
