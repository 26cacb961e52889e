"""Adapters that replace `u`, `h` or `y` at any site: torch, ONNX Runtime and NumPy against a forward pass by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from building import build_bundle
from replacing import LINEARS, OTHERS, SUBLAYERS, adapted, adapter_at, behind_the_norm, scaled, scaled_plus
from slotted import in_slots
from small_encoder import ExportedEncoder, inputs
from tiers import some_quick
from torch import Tensor

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.proof.site_probe import SiteProbe
from adapter_export.errors import AdapterError, NotNeutralError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.discover import discover
from adapter_export.torch_backend.attach import AdaptedModel, attach
from adapter_export.torch_backend.fx_view import flow_graph
from adapter_export.torch_backend.torch_runner import TorchRunner

TOLERANCE = 2e-5
INPUTS = inputs()
ARRAYS = {name: tensor.numpy() for name, tensor in INPUTS.items()}


class Bases(ExportedEncoder):
    def adapter(self, name: str, graph: AdapterGraph, sites: list[str]) -> Adapter:
        return adapter_at(name, graph, sites, self.in_onnx.sites, self.in_onnx.fingerprint)


@pytest.fixture(scope="module", params=some_quick(["post_norm", "pre_norm"], "pre_norm"))
def bases(request: pytest.FixtureRequest, exported_encoder: Callable[[bool], ExportedEncoder]) -> Bases:
    return Bases(**vars(exported_encoder(request.param == "pre_norm")))


def graphs_and_sites() -> Iterator[tuple[str, AdapterGraph, list[str]]]:
    for replaced, other in OTHERS.items():
        yield f"{replaced} of sublayers", scaled_plus(replaced, other), SUBLAYERS
        yield f"{replaced} of one sublayer", scaled_plus(replaced, other), SUBLAYERS[2:3]
        yield f"{replaced} of the last sublayer", scaled_plus(replaced, other), SUBLAYERS[3:]
    for replaced in ("h", "y"):
        yield f"{replaced} behind the base's norm", behind_the_norm(replaced), SUBLAYERS
    yield "u of linear layers", scaled("u"), LINEARS
    yield "u of values", scaled_plus("u", "u"), [name for name in LINEARS if name.endswith("value")]
    yield "h of linear layers", scaled_plus("h", "u"), LINEARS
    yield "h of queries and values", scaled("h"), [name for name in LINEARS if name.endswith(("query", "value"))]
    yield "shared", scaled_plus("h", "u", shared=True), SUBLAYERS
    yield "embeddings", scaled_plus("h", "h"), ["embeddings"]


CASES = list(graphs_and_sites())
each_case = pytest.mark.parametrize(("name", "graph", "sites"), CASES, ids=[name for name, _, _ in CASES])


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE * max(1.0, np.abs(value).max()))


@each_case
def test_torch_onnxruntime_and_numpy_compute_what_is_written_by_hand(
    bases: Bases, name: str, graph: AdapterGraph, sites: list[str]
) -> None:
    adapter = bases.adapter(name.replace(" ", "_").replace("'", ""), graph, sites)
    wanted = adapted(bases.encoder, adapter, INPUTS)
    assert np.abs(wanted["hidden"] - adapted(bases.encoder, None, INPUTS)["hidden"]).max() > 0.01
    close(CutRunner(bases.in_onnx).run(ARRAYS, adapter), wanted)
    close(in_slots(bases.in_onnx, adapter)(ARRAYS), wanted)
    model = attach(bases.in_torch, adapter)
    found = model(**INPUTS)
    close({key: value.detach().numpy() for key, value in found.items()}, wanted)
    assert_that_it_learns(model, adapter, found["hidden"])


def assert_that_it_learns(model: AdaptedModel, adapter: Adapter, hidden: Tensor) -> None:
    """Gradients reach every tensor of the adapter, and those of the base stay frozen."""
    assert model.tensors().keys() == adapter.weights.keys()
    hidden.square().sum().backward()
    for tensor in model.tensors().values():
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0
    assert {id(tensor) for tensor in model.parameters() if tensor.requires_grad} == {
        id(tensor) for tensor in model.tensors().values()
    }
    for tensor, given in zip(model.to_adapter().weights.values(), adapter.weights.values(), strict=True):
        np.testing.assert_array_equal(tensor, given)


@pytest.fixture(scope="module")
def everything(bases: Bases) -> list[Adapter]:
    """An adapter of each case; together they replace everything everywhere."""
    return [bases.adapter(f"case_{at}", graph, sites) for at, (_, graph, sites) in enumerate(CASES)]


def test_adapters_share_one_graph_without_trace(bases: Bases, everything: list[Adapter]) -> None:
    plan = plan_slots(everything, bases.in_onnx.sites)
    session = open_session(insert_slots(bases.in_onnx, plan), bases.in_onnx.folder)

    def run(adapter: Adapter | None) -> dict[str, np.ndarray]:
        return run_session(session, {**ARRAYS, **(slot_tensors(plan, adapter) if adapter else {})})

    alone = run(None)
    close(alone, adapted(bases.encoder, None, INPUTS))
    for adapter in everything:
        close(run(adapter), adapted(bases.encoder, adapter, INPUTS))
        for name, value in run(None).items():
            np.testing.assert_array_equal(value, alone[name])


def test_idle_slots_change_no_bit(bases: Bases, everything: list[Adapter]) -> None:
    base = bases.in_onnx
    idle = open_session(insert_slots(base, plan_slots(everything, base.sites)), base.folder, optimize=False)
    untouched = run_session(open_session(base.model, base.folder, optimize=False), ARRAYS)
    for name, value in run_session(idle, ARRAYS).items():
        np.testing.assert_array_equal(value, untouched[name])


@pytest.fixture(scope="module")
def bundle(bases: Bases, everything: list[Adapter], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of all of them, held against torch when it is built."""
    cases = input_cases(bases.in_onnx.inputs, seed=0, shapes=[{"batch": 2, "sequence": 5}])
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    build_bundle(bases.in_onnx, everything, folder, references=TorchRunner(bases.in_torch), cases=cases)
    return folder


@pytest.fixture(scope="module")
def opened(bundle: Path) -> OpenedBundle:
    return OpenedBundle.open(bundle)


@pytest.fixture(scope="module")
def probe(opened: OpenedBundle) -> SiteProbe:
    return SiteProbe.of(opened)


@pytest.mark.parametrize("at", range(len(CASES)), ids=[name for name, _, _ in CASES])
def test_a_wrong_tensor_is_reported_at_its_place_alone(
    opened: OpenedBundle, probe: SiteProbe, everything: list[Adapter], at: int
) -> None:
    adapter, record, case = everything[at], probe.manifest.adapters[at], opened.golden(None).cases[-1]
    tensors = dict(opened.tensors(record.name))
    assert [result.name for result in probe.check(case, adapter, record, tensors) if not result.passed] == []
    site = list(adapter.placements)[-1]
    slot = next(
        s.name for s in probe.manifest.slots if s.site == site and np.ptp(tensors[s.name]) > 0
    )  # idle: constant
    tensors[slot] = tensors[slot] * np.float32(1.01)
    results = probe.check(case, adapter, record, tensors)
    assert [result.name for result in results if not result.passed] == [site]


def test_values_read_and_returned_by_each_site_are_recorded(bases: Bases) -> None:
    adapter = bases.adapter("a", behind_the_norm("y"), SUBLAYERS)
    model = attach(bases.in_torch, adapter)
    with model.observed() as calls:
        model(**INPUTS)
    assert list(calls) == SUBLAYERS
    assert set(calls[SUBLAYERS[0]].read) == {"y", "h", "x"}
    assert torch.equal(calls[SUBLAYERS[1]].read["x"], calls[SUBLAYERS[0]].result)


def test_both_views_find_these_sites(bases: Bases) -> None:
    found = [site.name for site in bases.in_onnx.sites]
    assert found == [site.name for site in discover(flow_graph(bases.in_torch.flat))]
    assert set(found) == {*SUBLAYERS, *LINEARS, "tokens", "embeddings", "pooler"}


class TestRefusals:
    def test_values_that_a_site_lacks_are_refused(self, bases: Bases) -> None:
        adapter = bases.adapter("a", scaled_plus("h", "x"), ["layers.0.attention.query"])
        with pytest.raises(AdapterError, match=r"reads `x`, which does not exist at `layers\.0\.attention\.query`"):
            plan_slots([adapter], bases.in_onnx.sites)
        with pytest.raises(AdapterError, match="reads `x`"):
            attach(bases.in_torch, adapter)
        replacing = bases.adapter("a", scaled("y"), ["embeddings"])
        with pytest.raises(AdapterError, match="reads `y`, which does not exist at `embeddings`"):
            plan_slots([replacing], bases.in_onnx.sites)

    def test_shared_tensors_at_idle_places_are_refused(self, bases: Bases) -> None:
        nodes = (Node("linear", ("h",), "p", {"weight": "w"}), Node("add", ("h", "p"), "r"))
        graph = AdapterGraph(("h",), {"w": ("d", "d")}, nodes, "r", shared=("w",))
        one, other = (bases.adapter(name, graph, [site]) for name, site in (("a", SUBLAYERS[0]), ("b", SUBLAYERS[1])))
        plan = plan_slots([one, other], bases.in_onnx.sites)
        with pytest.raises(NotNeutralError, match="would have an effect at other sites"):
            slot_tensors(plan, one)
        alone = plan_slots([one], bases.in_onnx.sites)  # according to the message
        assert list(slot_tensors(alone, one)) == ["adapter.shared.graph.w"]


def test_shared_parameters_have_one_slot_and_one_tensor(bases: Bases) -> None:
    adapter = bases.adapter("a", scaled_plus("h", "u", shared=True), SUBLAYERS)
    plan = plan_slots([adapter], bases.in_onnx.sites)
    assert [slot.name for slot in plan.slots if "down" in slot.name] == ["adapter.shared.graph.down.weight"]
    model = attach(bases.in_torch, adapter)
    shared = model.tensors()["shared.graph.down.weight"]
    assert sum(tensor is shared for tensor in model.parameters()) == 1
    torch.manual_seed(0)
    model(**INPUTS)["hidden"].square().sum().backward()
    assert shared.grad is not None
