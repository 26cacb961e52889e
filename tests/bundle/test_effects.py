"""Adapters without effect, overall or at some sites, are named; others are not."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from heard import Heard
from random_kinds import random_of_kind
from tiny_onnx import random_adapter

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.change import add_adapters
from adapter_export.bundle.golden.ablation import effects, note_of, site_change
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.format.check_report import EffectRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import KINDS, BottleneckConfig, bottleneck_config, houlsby
from adapter_export.graph.slot_form import has_neutral_parameters, neutral_parameters
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.sites.site import Norm
from schemas import validate

NORM = Norm("layer", 1e-5, "weight", "bias")


def scaled(adapter: Adapter, name: str, factor: float, site: str = "") -> Adapter:
    """Multiply the up-projections of an adapter by a factor, at one site or all."""
    weights = {
        key: tensor * np.float32(factor) if key.startswith(site) and ".up." in key else tensor
        for key, tensor in adapter.weights.items()
    }
    return replace(adapter, name=name, weights=weights)


@pytest.fixture(scope="module")
def built(base: OnnxBase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Build a bundle with adapters that change all, nothing, nothing at one site, less than rounding; its notes."""
    alive = random_adapter("alive", houlsby(), base, labels=("a", "b"))
    head = {key: tensor for key, tensor in alive.weights.items() if key.startswith("head.")}
    adapters = [
        alive,
        scaled(alive, "zeros", 0.0),
        scaled(alive, "dead", 0.0, "layers.0.ffn"),
        scaled(alive, "faint", 1e-9),
        replace(alive, name="head_alone", graphs={}, placements={}, weights=head),
    ]
    folder, heard = tmp_path_factory.mktemp("effects") / "bundle", Heard()
    cases = input_cases(base.inputs, seed=1, shapes=[{"batch": 2, "tokens": 5}])
    build_bundle(base, adapters, folder, references=CutRunner(base), cases=cases, reporter=heard)
    return folder, heard.notes


def test_build_names_adapters_without_effect(built: tuple[Path, list[str]]) -> None:
    nothing = "has no effect: at each of its sites its result equals the replaced value"
    assert built[1] == [
        f"adapter `zeros` {nothing}",
        "adapter `dead` has no effect at `layers.0.ffn`",
        f"adapter `faint` {nothing}",
    ]


def test_add_names_adapters_without_effect(built: tuple[Path, list[str]], base: OnnxBase, tmp_path: Path) -> None:
    folder, heard = shutil.copytree(built[0], tmp_path / "bundle"), Heard()
    alive = random_adapter("more", houlsby(), base, labels=("a", "b"))
    adapters = [alive, scaled(alive, "silent", 0.0)]
    add_adapters(folder, adapters, references=CutRunner(base), reporter=heard)
    assert heard.notes == ["adapter `silent` has no effect: at each of its sites its result equals the replaced value"]


def test_check_reports_the_effect_of_each_adapter_by_site(built: tuple[Path, list[str]]) -> None:
    report = prove(plan_check(built[0]), None)
    assert report.passed, "an adapter without effect is not a fault of the bundle"
    found = {effect.adapter: effect for effect in report.effects}
    assert list(found) == ["alive", "zeros", "dead", "faint"]
    sites = ["layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn"]
    assert all(list(effect.sites) == sites for effect in found.values())
    assert min(found["alive"].sites.values()) > 0.1
    assert found["alive"].change > 0.1
    assert set(found["zeros"].sites.values()) == {0.0}
    assert (found["zeros"].change, found["zeros"].beyond_rounding) == (0.0, False)
    assert [site for site, change in found["dead"].sites.items() if not change] == ["layers.0.ffn"]
    assert found["dead"].idle == ("layers.0.ffn",)
    assert found["dead"].beyond_rounding
    assert 0 < max(found["faint"].sites.values()) < 1e-7
    validate(report.to_json(), "check-report")


def test_effect_is_the_relative_norm_of_the_difference(built: tuple[Path, list[str]]) -> None:
    bundle = OpenedBundle.open(built[0])
    (effect,) = effects(bundle, ["alive"])
    session = bundle.runtime_session()
    pairs = [
        (session.run(case.arrays, "alive")["hidden"], session.run(case.arrays)["hidden"])
        for case in bundle.golden(None).cases
    ]
    moved = np.sqrt(sum(float(((one - other) ** 2).sum()) for one, other in pairs))
    assert effect.output == "hidden"
    assert effect.change == pytest.approx(moved / np.sqrt(sum(float((other**2).sum()) for _, other in pairs)), rel=1e-4)


def test_notes_describe_effects_within_rounding_and_idle_sites() -> None:
    effect = EffectRecord("a", "hidden", 1e-8, False, {"layers.0.ffn": 0.2, "layers.1.ffn": 0.0}, ("layers.1.ffn",))
    assert note_of(effect) == ("adapter `a` has no effect: it changes `hidden` by 1.0e-08, which is within rounding")
    many = tuple(f"layers.{layer}.ffn" for layer in range(9))
    some = replace(effect, beyond_rounding=True, sites=dict.fromkeys([*many, "x"], 0.0), idle=many)
    assert str(note_of(some)).endswith("`layers.5.ffn` and 3 more")
    assert note_of(replace(effect, beyond_rounding=True, idle=())) is None


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_acts_with_random_weights_and_not_with_neutral_ones(name: str, base: OnnxBase) -> None:
    kind = KINDS[name]()
    kind = kind.with_widths(b=8) if "b" in kind.components[0].widths else kind
    acting = random_of_kind("acting", kind, base.sites, base.fingerprint)
    for site in acting.placements:
        change, beyond = site_change(acting, site, NORM)
        assert beyond
        assert change > 1e-3
    if all(has_neutral_parameters(graph) for graph in acting.graphs.values()):
        weights = dict(acting.weights)
        for site, placement in acting.placements.items():
            neutral = neutral_parameters(acting.graphs[placement.graph], placement.widths)
            weights |= {acting.tensor_names(site)[key]: tensor for key, tensor in neutral.items()}
        idle = replace(acting, weights=weights)
        assert {site_change(idle, site, NORM) for site in idle.placements} == {(0.0, False)}


@pytest.mark.parametrize("norm", [NORM, Norm("rms", 1e-5, "weight", None), None], ids=["layer", "rms", "none"])
def test_a_block_whose_bottleneck_is_dead_gives_the_norm_of_the_sum(norm: Norm | None, base: OnnxBase) -> None:
    kind = bottleneck_config(BottleneckConfig(False, True, 4, "relu", True, False, residual_before_ln=False))
    alive = random_of_kind("block", kind, base.sites, base.fingerprint)
    assert all(graph.replaces == "y" for graph in alive.graphs.values())
    dead = scaled(alive, "dead", 0.0)
    assert not any(site_change(dead, site, norm)[1] for site in dead.placements)
    assert all(site_change(alive, site, norm)[1] for site in alive.placements)
