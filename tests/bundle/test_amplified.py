"""Budgets grow where rounding is amplified, but golden vectors still expose faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, adapterhub_base, import_adapterhub
from building import build_bundle
from random_kinds import random_of_kind

from adapter_export.bundle.golden.golden_vectors import Allowance, Case, Golden, GoldenMaker, case_of
from adapter_export.bundle.proof.compare_arrays import compare
from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.dtypes import Weights
from adapter_export.format.manifest import GRAPH_VARIANTS
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose import FusionOptions, adapter_fusion
from adapter_export.graph.compose.members import own_tensors
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds import KINDS, BottleneckOptions
from adapter_export.numerics.budget import Extent
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.base.torch_base import TorchBase, load_base
from adapter_export.torch_backend.torch_runner import TorchRunner

Change = Callable[[Adapter], Adapter]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return adapterhub_base(tmp_path_factory, "bert")


def imported(base: Made, name: str) -> Adapter:
    return import_adapterhub(FIXTURES / "bert" / name, base.sites, name=name, base=base.source.fingerprint).adapter


def sharp(base: Made) -> Adapter:
    """Make a fusion that selects rather than mixes: scores of some units, divided by 0.01."""
    members = [
        random_of_kind(
            name,
            KINDS["houlsby"](BottleneckOptions(name)).with_widths(b=4),
            base.sites,
            base.source.fingerprint,
            seed=seed,
        )
        for seed, name in enumerate(("gelu", "relu", "tanh"))
    ]
    made = adapter_fusion(*members, name="sharp", options=FusionOptions(temperature=0.01))
    rng = np.random.default_rng(9)
    drawn = {name: rng.normal(0, 0.2, made.weights[name].shape).astype(np.float32) for name in own_tensors(made)}
    return replace(made, weights={**made.weights, **drawn})


def maker(base: TorchBase, runner: TorchRunner, cases: list[Case], inner: int, depth: int) -> GoldenMaker:
    names = [record.name for record in base.outputs]
    return GoldenMaker(runner, cases, names, Allowance.of(Extent(inner, depth), cases), base.fingerprint)


def of_bert(base: Made) -> GoldenMaker:
    inputs = base.source.inputs
    made = input_cases(inputs, seed=0, max_tokens=base.source.max_tokens)
    return maker(base.source, base.torch, [case_of(case.name, case.arrays, inputs) for case in made], 64, 19)


def faults(vectors: Golden, run: Callable[[Mapping[str, np.ndarray]], Arrays]) -> list[str]:
    """Return the faults of a program."""
    found = []
    for case, outputs in zip(vectors.cases, vectors.outputs, strict=True):
        given = run(case.arrays)
        found += [compare(given[name], value, vectors.budgets[name]).faults for name, value in outputs.items()]
    return [fault for each in found for fault in each]


def weights(adapter: Adapter, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Adapter:
    """Change one tensor of an adapter."""
    return replace(adapter, weights={**adapter.weights, name: change(adapter.weights[name])})


def first(adapter: Adapter, ending: str) -> str:
    return next(name for name in adapter.weights if name.endswith(ending))


def last(adapter: Adapter, ending: str) -> str:
    return [name for name in adapter.weights if name.endswith(ending)][-1]


def graphs(adapter: Adapter, change: Callable[[AdapterGraph], AdapterGraph]) -> Adapter:
    return replace(adapter, graphs={name: change(graph) for name, graph in adapter.graphs.items()})


def without_residual(graph: AdapterGraph) -> AdapterGraph:
    """Remove the residual: the result is the value that was to be added."""
    added = next(name for name in graph.nodes[-1].inputs if name != "h")
    return replace(graph, nodes=graph.nodes[:-1], result=added)


def with_epsilon(epsilon: float) -> Callable[[AdapterGraph], AdapterGraph]:
    def change(graph: AdapterGraph) -> AdapterGraph:
        nodes = [
            replace(node, attributes={"epsilon": epsilon}) if node.op == "layer_norm" else node for node in graph.nodes
        ]
        assert tuple(nodes) != graph.nodes
        return replace(graph, nodes=tuple(nodes))

    return change


def exchanged(adapter: Adapter) -> Adapter:
    """Swap the tensors of two sites."""
    one, other, *_ = adapter.placements
    taken: Weights = dict(adapter.weights)
    for name in adapter.weights:
        for here, there in ((one, other), (other, one)):
            if name.startswith(f"{here}."):
                taken[name] = adapter.weights[there + name.removeprefix(here)]
    return replace(adapter, weights=taken)


def transposed(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.swapaxes(-1, -2))


WRONG: dict[str, tuple[str, Change]] = {
    "scaled by 1.001 at the first site": (
        "compacter",
        lambda a: weights(a, first(a, "up.left"), lambda w: w * np.float32(1.001)),
    ),
    "scaled by 1.001 at the last site": (
        "compacter",
        lambda a: weights(a, last(a, "up.left"), lambda w: w * np.float32(1.001)),
    ),
    "a weight transposed": ("compacter", lambda a: weights(a, first(a, ".rule"), transposed)),
    "two sites exchanged": ("compacter", exchanged),
    "no residual": ("compacter", lambda a: graphs(a, without_residual)),
    "another epsilon": ("ln_before", lambda a: graphs(a, with_epsilon(1e-3))),
}


def test_all_forms_of_a_bundle_match_the_amplified_reference(bert: Made, tmp_path: Path) -> None:
    """Deviations reach three times the formula's budget; one adapter has a switch in its slots, one is sharp."""
    adapters = [*(imported(bert, name) for name in ("compacter", "norms_before__residual_post_add")), sharp(bert)]
    names = [adapter.name for adapter in adapters]
    cases = input_cases(bert.onnx.inputs, seed=0, max_tokens=bert.source.max_tokens)
    graphs = {"variants": list(GRAPH_VARIANTS), "bake": names}
    build_bundle(bert.onnx, adapters, tmp_path / "bundle", references=bert.torch, cases=cases, **graphs)
    report = prove(plan_check(tmp_path / "bundle"), Reference("model", bert.torch))
    assert report.passed
    of = {(result.variant, result.adapter) for result in report.outputs if result.adapter is not None}
    assert of == {(variant, name) for variant in (*GRAPH_VARIANTS, "baked") for name in names}


@pytest.fixture(scope="module")
def golden(bert: Made) -> Callable[[str], tuple[Adapter, Golden]]:
    known: dict[str, tuple[Adapter, Golden]] = {}

    def get(name: str) -> tuple[Adapter, Golden]:
        if name not in known:
            adapter = imported(bert, name)
            known[name] = adapter, of_bert(bert).make(adapter)
        return known[name]

    return get


@pytest.mark.parametrize("what", WRONG)
def test_golden_vectors_expose_faults_under_amplification(
    bert: Made, golden: Callable[[str], tuple[Adapter, Golden]], what: str
) -> None:
    name, change = WRONG[what]
    adapter, vectors = golden(name)
    assert faults(vectors, lambda inputs: bert.torch.run(inputs, adapter)) == []
    wrong = change(adapter)
    assert "exceeds the budget" in faults(vectors, lambda inputs: bert.torch.run(inputs, wrong))[0]


def test_the_reasons_say_what_was_measured(golden: Callable[[str], tuple[Adapter, Golden]]) -> None:
    _, vectors = golden("compacter")
    assert "move the reference" in vectors.budgets["last_hidden_state"].reason


def of_minilm(base: TorchBase) -> GoldenMaker:
    (made,) = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "sequence": 7}])[:1]
    return maker(base, TorchRunner(base), [case_of(made.name, made.arrays, base.inputs)], 1536, 74)


@pytest.fixture(scope="module")
def minilm(minilm_archive: Path) -> GoldenMaker:
    return of_minilm(load_base(minilm_archive))


def test_trained_bases_keep_the_budget_of_the_formula(minilm: GoldenMaker) -> None:
    """MiniLM without adapters, and with an adapter as small as trained ones."""
    sites: SiteMap = minilm.references.sites
    adapter = random_of_kind("a", KINDS["houlsby"](None), sites, minilm.base)
    small = replace(adapter, weights={name: tensor / 10 for name, tensor in adapter.weights.items()})
    for each in (None, small):
        found = minilm.make(each)
        assert not any("move the reference" in allowed.reason for allowed in found.budgets.values())


def test_a_scaling_of_1_001_in_minilm_fails(minilm: GoldenMaker) -> None:
    """Scale any one of twelve sites."""
    adapter = random_of_kind("a", KINDS["houlsby"](None), minilm.references.sites, minilm.base)
    vectors = minilm.make(adapter)
    for site in adapter.placements:
        wrong = weights(adapter, f"{site}.up.weight", lambda w: w * np.float32(1.001))
        assert faults(vectors, lambda inputs, wrong=wrong: minilm.references.run(inputs, wrong)), site
