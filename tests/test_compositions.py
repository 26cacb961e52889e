"""Compositions of adapters: torch, ONNX Runtime and NumPy against formulas, with and without their members."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnxruntime as ort
import pytest
from random_kinds import random_of_kind
from slotted import in_slots
from small_encoder import ExportedEncoder, inputs
from tiers import some_quick

from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import STATIC, FusionOptions, adapter_fusion, average, stack, weighted_fusion
from adapter_export.graph.compose.members import own_tensors
from adapter_export.graph.compose.sums import MIX
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import SlotPlan, plan_slots, slot_tensors, topology_key
from adapter_export.runtime.graphs import run_session
from adapter_export.torch_backend.torch_runner import TorchRunner

TOLERANCE = 2e-5
ARRAYS = {name: tensor.numpy() for name, tensor in inputs().items()}


MEMBERS: dict[str, tuple[str, int, object, tuple[str, ...]]] = {
    "a": ("houlsby", 1, None, ("no", "yes")),
    "b": ("houlsby", 2, None, ("bad", "good", "neither")),
    "seq": ("seq_bn", 3, None, ()),
    "parallel": ("parallel", 4, None, ()),
    "plus": ("adapter_plus", 5, None, ()),
    "compacter": ("compacter", 6, None, ()),
    "gated": ("houlsby", 7, BottleneckOptions(gate=True, norm_after=True), ()),
    "lora": ("lora", 8, None, ()),
    "nice": ("nice", 9, None, ()),
}


class Bases(ExportedEncoder):
    def member(self, name: str, kind: str, seed: int, options: object = None, labels: tuple[str, ...] = ()) -> Adapter:
        made = KINDS[kind](options)
        if "b" in made.components[0].widths:
            made = made.with_widths(b=4)
        return random_of_kind(name, made, self.in_onnx.sites, self.in_onnx.fingerprint, labels=labels, seed=seed)


@pytest.fixture(scope="module", params=some_quick(["post_norm", "pre_norm"], "pre_norm"))
def bases(request: pytest.FixtureRequest, exported_encoder: Callable[[bool], ExportedEncoder]) -> Bases:
    return Bases(**vars(exported_encoder(request.param == "pre_norm")))


@pytest.fixture(scope="module")
def members(bases: Bases) -> dict[str, Adapter]:
    """Adapters that read and replace different values, at different sites, of different widths."""
    return {name: bases.member(name, *facts) for name, facts in MEMBERS.items()}


COOL = FusionOptions(temperature=20.0, value_before_softmax=False)
BEFORE = FusionOptions(residual_before=True, query_before_norm=True)


def drawn(one: Adapter) -> Adapter:
    """With projections of the fusion of standard deviation 0.2."""
    rng = np.random.default_rng(9)
    fresh = {name: rng.normal(0, 0.2, one.weights[name].shape).astype(np.float32) for name in own_tensors(one)}
    return replace(one, weights={**one.weights, **fresh})


COMPOSITIONS: dict[str, Callable[[dict[str, Adapter]], Adapter]] = {
    "stack_two": lambda m: stack(m["a"], m["b"], name="stack_two", head="b"),
    "stack_all": lambda m: stack(*m.values(), name="stack_all", head="a"),
    "stack_norms": lambda m: stack(m["plus"], m["seq"], m["a"], name="stack_norms"),
    "average_two": lambda m: average(m["a"], m["b"], name="average_two", weights={"a": 0.3, "b": 0.7}, head="a"),
    "average_all": lambda m: average(*m.values(), name="average_all"),
    "weighted_two": lambda m: weighted_fusion(m["a"], m["b"], name="weighted_two", weights=[0.6, -1.5]),
    "weighted_all": lambda m: weighted_fusion(*m.values(), name="weighted_all"),
    "literal": lambda m: weighted_fusion(m["seq"], m["a"], name="literal", residual="literal", weights=[0.2, 0.4]),
    "fusion_two": lambda m: drawn(adapter_fusion(m["a"], m["b"], name="fusion_two", head="a")),
    "fusion_static": lambda m: drawn(adapter_fusion(m["seq"], m["b"], m["lora"], name="fusion_static", options=STATIC)),
    "fusion_all": lambda m: drawn(adapter_fusion(*m.values(), name="fusion_all", options=COOL)),
    "fusion_residual": lambda m: drawn(adapter_fusion(m["a"], m["plus"], name="fusion_residual", options=BEFORE)),
    "of_compositions": lambda m: average(
        weighted_fusion(m["a"], m["b"], name="ab"), stack(m["seq"], m["b"], name="sb"), m["a"], name="of_compositions"
    ),
}
each_composition = pytest.mark.parametrize("name", COMPOSITIONS)


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE * max(1.0, np.abs(value).max()))


@pytest.fixture(scope="module")
def alone(bases: Bases) -> np.ndarray:
    """The final hidden state of the base without an adapter."""
    return TorchRunner(bases.in_torch).run(ARRAYS, None)["hidden"]


@each_composition
def test_composing_commutes_with_export(
    bases: Bases, members: dict[str, Adapter], alone: np.ndarray, name: str
) -> None:
    adapter = COMPOSITIONS[name](members)
    in_torch = TorchRunner(bases.in_torch).run(ARRAYS, adapter)
    assert np.abs(in_torch["hidden"] - alone).max() > 0.01
    close(CutRunner(bases.in_onnx).run(ARRAYS, adapter), in_torch)
    close(in_slots(bases.in_onnx, adapter)(ARRAYS), in_torch)


@dataclass(frozen=True)
class Together:
    """One graph with slots for all members and compositions."""

    adapters: dict[str, Adapter]
    plan: SlotPlan
    tensors: dict[str, Weights]
    session: ort.InferenceSession

    def run(self, name: str, **others: np.ndarray) -> dict[str, np.ndarray]:
        return run_session(self.session, {**ARRAYS, **self.tensors[name], **others})

    def slots_of_weights(self, name: str) -> list[str]:
        keys = {topology_key(graph) for graph in self.adapters[name].graphs.values()}
        return list(dict.fromkeys(group.slot(MIX) for group in self.plan.groups if group.key in keys))


@pytest.fixture(scope="module")
def together(bases: Bases, members: dict[str, Adapter]) -> Together:
    made = {name: make(members) for name, make in COMPOSITIONS.items()}
    averages = {f"only_{name}": average(one, name=f"only_{name}") for name, one in members.items()}
    adapters = {**members, **made, **averages}
    plan = plan_slots(list(adapters.values()), bases.in_onnx.sites)
    tensors = {name: slot_tensors(plan, adapter) for name, adapter in adapters.items()}
    return Together(adapters, plan, tensors, open_session(insert_slots(bases.in_onnx, plan), bases.in_onnx.folder))


def test_compositions_swap_beside_their_members_without_trace(bases: Bases, together: Together) -> None:
    first = {name: together.run(name) for name in (*COMPOSITIONS, "a", "b")}
    for name, found in first.items():
        close(found, TorchRunner(bases.in_torch).run(ARRAYS, together.adapters[name]))
    for before, after in itertools.pairwise(every_pair(list(first))):
        found = together.run(after)
        assert all(np.array_equal(found[output], value) for output, value in first[after].items()), (before, after)


def every_pair(names: list[str]) -> list[str]:
    """A walk in which each name directly follows each other one."""
    walk: list[str] = []
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            walk += [one, other]
        walk.append(one)
    return walk


def test_the_walk_has_every_pair() -> None:
    names = [str(number) for number in range(15)]
    assert set(itertools.permutations(names, 2)) <= set(itertools.pairwise(every_pair(names)))


@pytest.mark.parametrize("name", MEMBERS)
def test_an_average_of_one_is_the_one(together: Together, name: str) -> None:
    close(together.run(f"only_{name}"), {"hidden": together.run(name)["hidden"]})


@pytest.mark.parametrize("name", MEMBERS)
def test_a_fusion_with_one_hot_weights_is_that_adapter(together: Together, name: str) -> None:
    """The same weights go to every slot for weights: there is one for each different set of graphs at a site."""
    hot = np.array([[float(other == name) for other in MEMBERS]], np.float32)
    slots = dict.fromkeys(together.slots_of_weights("weighted_all"), hot)
    assert len(slots) > 1
    close(together.run("weighted_all", **slots), {"hidden": together.run(name)["hidden"]})


def test_literally_h_counts_once_more_for_each_weight(bases: Bases, members: dict[str, Adapter]) -> None:
    once, literal = (
        weighted_fusion(members["a"], name="fused", weights=[1.0], residual=residual)
        for residual in ("once", "literal")
    )
    found, wanted = (in_slots(bases.in_onnx, one)(ARRAYS)["hidden"] for one in (literal, once))
    assert np.abs(found - wanted).max() > 0.01


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_stack_of_neutral_adapters_is_the_base_bit_for_bit(bases: Bases, number: int) -> None:
    idle = [bases.member(f"idle{at}", "houlsby", at) for at in range(number)]
    idle = [replace(one, weights={name: 0 * tensor for name, tensor in one.weights.items()}) for one in idle]
    stacked = stack(*idle, name="stacked")
    plan = plan_slots([stacked], bases.in_onnx.sites)
    session = open_session(insert_slots(bases.in_onnx, plan), bases.in_onnx.folder)
    found, alone = (run_session(session, {**ARRAYS, **one}) for one in (slot_tensors(plan, stacked), {}))
    np.testing.assert_array_equal(found["hidden"], alone["hidden"])


def test_each_row_of_a_batch_may_have_its_own_weights(bases: Bases, members: dict[str, Adapter]) -> None:
    """Use plain ONNX Runtime: feed [batch, 3] to one slot."""
    fused = weighted_fusion(members["a"], members["b"], members["gated"], name="fused")
    plan = plan_slots([fused, members["a"]], bases.in_onnx.sites)
    session = open_session(insert_slots(bases.in_onnx, plan), bases.in_onnx.folder)
    slots = [slot.name for slot in plan.slots if slot.parameter == MIX]
    assert slots == ["adapter.shared.weighted_fusion.mix.weights"]
    tensors, rows = slot_tensors(plan, fused), len(ARRAYS["input_ids"])
    weights = np.random.default_rng(0).normal(0, 0.7, (rows, 3)).astype(np.float32)
    found = run_session(session, {**ARRAYS, **tensors, slots[0]: weights})["hidden"]
    for row in range(rows):
        one = run_session(session, {**ARRAYS, **tensors, slots[0]: weights[row : row + 1]})["hidden"]
        np.testing.assert_allclose(found[row], one[row], rtol=0, atol=TOLERANCE)
    fixed = weighted_fusion(members["a"], members["b"], members["gated"], name="fixed", weights=weights[0].tolist())
    close({"row": found[0]}, {"row": TorchRunner(bases.in_torch).run(ARRAYS, fixed)["hidden"][0]})


def test_fusion_weights_are_stored_per_group_of_places(bases: Bases, members: dict[str, Adapter]) -> None:
    fused = weighted_fusion(members["a"], members["seq"], name="fused")
    assert [name for name in fused.weights if name.endswith(MIX)] == [
        "shared.weighted_fusion_2.mix.weights",
        "shared.weighted_fusion.mix.weights",
    ]
    assert all(fused.weights[name].shape == (1, 2) for name in fused.weights if name.endswith(MIX))
