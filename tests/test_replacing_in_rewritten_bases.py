"""Adapters that replace `u`, `h` or `y` in bases of other precisions and in fused ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from building import build_bundle, in_precision
from replacing import LINEARS, OTHERS, SUBLAYERS, adapted, adapter_at, behind_the_norm, scaled, scaled_plus
from small_encoder import Encoder, ExportedEncoder, inputs
from tiers import some_quick

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.proof.site_probe import SiteProbe
from adapter_export.format.manifest import Manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.quantise.optimize import optimize_base
from adapter_export.onnx_backend.rewrite.insert import exposed, insert_slots, with_site_outputs
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.view import FlowIndex

INPUTS = inputs()
ARRAYS = {name: tensor.numpy() for name, tensor in INPUTS.items()}
CASES: Mapping[str, tuple[AdapterGraph, list[str]]] = {
    **{replaced: (scaled_plus(replaced, other), SUBLAYERS) for replaced, other in OTHERS.items()},
    "norm_h": (behind_the_norm("h"), SUBLAYERS),
    "norm_y": (behind_the_norm("y"), SUBLAYERS),
    "linear_u": (scaled("u"), LINEARS),
    "linear_h": (scaled_plus("h", "u"), LINEARS),
    "embeddings": (scaled_plus("h", "h"), ["embeddings"]),
}
FUSED = ("fused", "pre-norm fused")
REWRITTEN = (*FUSED, "fp16", "int8", "pre-norm int8", "int8-weights", "int4-weights")


@dataclass(frozen=True)
class Rewritten:
    """A base that was rewritten, and the encoder that it was made of."""

    encoder: Encoder
    base: OnnxBase
    adapters: Mapping[str, Adapter]


@pytest.fixture(
    scope="module",
    params=["int8", *(pytest.param(how, marks=pytest.mark.extended) for how in REWRITTEN if how != "int8")],
)
def rewritten(
    request: pytest.FixtureRequest,
    exported_encoder: Callable[[bool], ExportedEncoder],
    tmp_path_factory: pytest.TempPathFactory,
) -> Rewritten:
    _, pre_norm, how = request.param.rpartition("pre-norm ")
    made_of = exported_encoder(bool(pre_norm))
    base, folder = made_of.in_onnx, tmp_path_factory.mktemp("rewritten")
    made = optimize_base(base, folder)[0] if how == "fused" else in_precision(base, how, folder)
    there = {site.name for site in made.sites}
    adapters = {
        name: adapter_at(name, graph, [site for site in sites if site in there], made.sites, made.fingerprint)
        for name, (graph, sites) in CASES.items()
        if not there.isdisjoint(sites)
    }
    return Rewritten(made_of.encoder, made, adapters)


@pytest.fixture(scope="module")
def bundle(rewritten: Rewritten, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """One bundle with all adapters in every form; building it holds each against the cut base, row by row."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    cases = input_cases(rewritten.base.inputs, seed=1, shapes=[{"batch": 3, "sequence": 7}])
    adapters, runner = list(rewritten.adapters.values()), CutRunner(rewritten.base)
    return folder, build_bundle(rewritten.base, adapters, folder, references=runner, cases=cases)


def test_sites_of_rewritten_bases_match_numpy(rewritten: Rewritten, bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    opened = OpenedBundle.open(folder)
    probe, case = SiteProbe.of(opened), opened.golden(None).cases[-1]
    for record in manifest.adapters:
        adapter = rewritten.adapters[record.name]
        results = probe.check(case, adapter, record, opened.tensors(record.name))
        assert {result.name for result in results} >= set(adapter.placements)
        assert [result.name for result in results if not result.passed] == []


# fusions hide it in the next operator
@pytest.mark.parametrize("rewritten", some_quick(REWRITTEN[len(FUSED) :], "int8"), indirect=True)
def test_layers_end_behind_their_bias(rewritten: Rewritten) -> None:
    """Quantisers drop the path of a product and keep that of its bias; IA3 would scale an output without it."""
    index = FlowIndex(flow_graph(rewritten.base.model))
    ends = [index.producer(site.h) for site in rewritten.base.sites.of_roles(("linear",))]
    assert {None if node is None else node.epilogue for node in ends} == {"bias"}


def test_each_adapter_acts_and_its_absence_leaves_no_trace(rewritten: Rewritten, bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    session = open_session(ir.load(folder / manifest.graphs["slots"]), folder)
    alone = run_session(session, ARRAYS)["hidden"]
    for record in manifest.adapters:
        acting = run_session(session, {**ARRAYS, **read_tensors(folder / record.safetensors)})["hidden"]
        assert np.abs(acting - alone).max() > 0.01
        np.testing.assert_array_equal(run_session(session, ARRAYS)["hidden"], alone)


@pytest.mark.parametrize("rewritten", FUSED, indirect=True)  # the others round
def test_fused_bases_compute_what_is_written_by_hand(rewritten: Rewritten, bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    session = open_session(ir.load(folder / manifest.graphs["slots"]), folder)
    for record in manifest.adapters:
        found = run_session(session, {**ARRAYS, **read_tensors(folder / record.safetensors)})["hidden"]
        wanted = adapted(rewritten.encoder, rewritten.adapters[record.name], INPUTS)["hidden"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, np.abs(wanted).max()))


def test_replaced_input_of_one_projection_leaves_the_others(rewritten: Rewritten) -> None:
    """Three projections of 8 bits read one quantised tensor."""
    names = [f"layers.0.attention.{name}" for name in ("query", "key", "value")]
    base = rewritten.base
    reading = adapter_at("reading", scaled_plus("u", "u"), names[:1], base.sites, base.fingerprint)
    watching = adapter_at("watching", scaled_plus("h", "h"), names, base.sites, base.fingerprint)
    plan = plan_slots([reading, watching], base.sites)
    session = open_session(with_site_outputs(insert_slots(base, plan)), base.folder, optimize=False)
    shown = [exposed(name, "h") for name in names]
    alone = run_session(session, ARRAYS, shown)
    acting = run_session(session, {**ARRAYS, **slot_tensors(plan, reading)}, shown)
    assert [np.array_equal(acting[name], alone[name]) for name in shown] == [False, True, True]
