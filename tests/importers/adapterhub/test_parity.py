"""What AdapterHub's library computes with its adapters, and what is computed here with what was imported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, import_adapterhub
from safetensors.numpy import load_file

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.slot_form import KEEP, slot_form
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate_adapter import evaluate_head
from adapter_export.numerics.runner import Arrays
from adapter_export.onnx_backend.graft.insert import insert_slots
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.slots import plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.site import SiteMap

REFUSED = {"bert/compacter_bare_without_rule", "bert/head_pooler", "bert/plugin_seq_bn"}
CASES = sorted(
    str(path.parent.relative_to(FIXTURES))
    for base in ("bert", "roberta", "distilbert", "gpt2", "llama", "vit", "bart")
    for path in (FIXTURES / base).glob("*/adapter_config.json")
    if str(path.parent.relative_to(FIXTURES)) not in REFUSED
)
FUSIONS = sorted(str(path.relative_to(FIXTURES)) for path in (FIXTURES / "bert").glob("fusion_*"))
IN_NUMPY = [case for case in CASES if not case.startswith(("llama", "vit", "bart"))]

ROUNDED_ONCE = {
    "bert/phm_factorized_rule",
    "bert/phm_factorized_rule_per_layer",
    "bert/dora",
    "bert/dvora",
    "bert/mtl_lora",
    "bert/vera",
}
"""A product of several tensors is one parameter here, and rounded to float32."""

SWITCHED = {
    "bert/everything",
    "bert/fusion_residual_before",
    "bert/ia3_gated",
    "bert/norms___residual_false",
    "bert/norms___residual_true",
    "bert/norms_before__residual_post_add",
    "bert/norms_before__residual_true",
    "bert/norms_before_after_residual_false",
    "bert/norms_before_after_residual_post_add",
    "bert/parallel_without_norm",
    "bert/residual_before_ln_after",
    "gpt2/norms_before",
    "gpt2/without_residual",
}
"""No parameters make them the base: they lose `x`, or normalise the sum, or are a gate of nothing else."""

EXACT, ROUNDED, SINGLE = 1e-10, 1e-7, 2e-5


def imported(case: str, sites: SiteMap, fingerprint: str) -> Adapter:
    """ViT's modules have other names since transformers 5."""
    vit = case.startswith("vit")
    return import_adapterhub(FIXTURES / case, sites, name="imported", base=fingerprint, by_number=vit).adapter


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Relative to the largest number, where that is above 1: blocks without a norm behind them are not near it."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("case", IN_NUMPY)
def test_numpy_computes_it_in_float64(case: str, made: Callable[[str], Made]) -> None:
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")
    adapter = imported(case, base.sites, base.source.fingerprint)
    hidden = base.float64.run(base.inputs, adapter)
    tolerance = ROUNDED if case in ROUNDED_ONCE else EXACT
    assert_close(hidden, expected["hidden_f64"], tolerance)
    assert (adapter.head is not None) == ("logits_f64" in expected)
    if adapter.head is not None:
        logits = evaluate_head(adapter, hidden, base.inputs["attention_mask"])
        assert_close(logits, expected["logits_f64"], tolerance)


@pytest.mark.parametrize("case", CASES)
def test_torch_computes_it(case: str, made: Callable[[str], Made]) -> None:
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")
    adapter = imported(case, base.sites, base.source.fingerprint)
    found = base.torch.run(base.inputs, adapter)
    assert_close(found["last_hidden_state"], expected["hidden"], SINGLE)
    if adapter.head is not None:
        assert_close(found[adapter.head.output], expected["logits"], SINGLE)


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_computes_it(case: str, made: Callable[[str], Made]) -> None:
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")
    adapter = imported(case, base.onnx.sites, base.onnx.fingerprint)
    found = _with_slots(base, adapter)
    assert_close(found["last_hidden_state"], expected["hidden"], SINGLE)
    if adapter.head is not None:
        assert_close(found[adapter.head.output], expected["logits"], SINGLE)


@pytest.mark.parametrize("case", CASES)
def test_those_that_are_never_neutral_have_a_switch(case: str, made: Callable[[str], Made]) -> None:
    base = made(case.partition("/")[0])
    adapter = imported(case, base.sites, base.source.fingerprint)
    forms = [slot_form(graph) for graph in adapter.graphs.values()]
    assert any(KEEP in form.parameters for form in forms) == (case in SWITCHED)


@pytest.mark.parametrize("case", sorted(SWITCHED - set(FUSIONS)))
def test_at_its_sites_it_is_computed_as_well(case: str, made: Callable[[str], Made]) -> None:
    """By the base in ONNX Runtime, cut at the sites, and the reference there."""
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")
    adapter = imported(case, base.onnx.sites, base.onnx.fingerprint)
    found = CutRunner(base.onnx).run(base.inputs, adapter)
    assert_close(found["last_hidden_state"], expected["hidden"], SINGLE)


@pytest.mark.parametrize(
    ("case", "task"),
    [
        ("head_two_layers", {"type": "single_label", "labels": 3}),
        ("head_multilabel", {"type": "multi_label", "labels": 3, "activation": "sigmoid"}),
        ("head_question_answering", {"type": "span", "input": "pair"}),
        ("head_tagging", {"type": "token", "labels": 3}),
        ("head_regression", {"type": "regression", "activation": "identity"}),
    ],
)
def test_what_a_head_answers(case: str, task: dict[str, Any], bert: Made) -> None:
    head = imported(f"bert/{case}", bert.sites, bert.source.fingerprint).head
    assert head is not None
    assert head.task is not None
    facts = {name: getattr(head.task, name) for name in task}
    assert facts == task | ({"labels": head.labels} if "labels" in task else {})
    assert len(head.labels) == task.get("labels", 0)


def test_a_head_for_multiple_choice(bert: Made, tmp_path: Path) -> None:
    """Its config says `num_choices` and no `num_labels`; its layers are those of a head with one number."""
    folder = tmp_path / "choice"
    shutil.copytree(FIXTURES / "bert/head_regression", folder)
    path = folder / "head_config.json"
    document = json.loads(path.read_text())
    config = {key: value for key, value in document["config"].items() if key != "num_labels"}
    document["config"] = config | {"head_type": "multiple_choice", "num_choices": 3, "label2id": None}
    path.write_text(json.dumps(document))
    found = import_adapterhub(folder, bert.sites, name="choice", base=bert.source.fingerprint).adapter
    assert found.head is not None
    assert found.head.task == Task("multiple_choice", input="pair")
    expected = load_file(FIXTURES / "bert/head_regression/expected.safetensors")
    assert_close(bert.torch.run(bert.inputs, found)["logits"], expected["logits"], SINGLE)


@pytest.mark.parametrize("case", FUSIONS)
def test_fusions(case: str, bert: Made) -> None:
    """In NumPy, torch and ONNX Runtime."""
    expected, path = load_file(FIXTURES / case / "expected.safetensors"), FIXTURES / case
    adapter = import_adapterhub(path, bert.sites, name="fused", base=bert.source.fingerprint).adapter
    assert_close(bert.float64.run(bert.inputs, adapter), expected["hidden_f64"], EXACT)
    assert_close(bert.torch.run(bert.inputs, adapter)["last_hidden_state"], expected["hidden"], SINGLE)
    adapter = import_adapterhub(path, bert.onnx.sites, name="fused", base=bert.onnx.fingerprint).adapter
    assert_close(_with_slots(bert, adapter)["last_hidden_state"], expected["hidden"], SINGLE)


def _with_slots(base: Made, adapter: Adapter, inputs: Arrays | None = None) -> dict[str, np.ndarray]:
    """The exported graph in ONNX Runtime."""
    plan = plan_slots([adapter], base.onnx.sites)
    session = open_session(insert_slots(base.onnx, plan), base.onnx.folder)
    return run_session(session, {**(inputs or base.inputs), **slot_tensors(plan, adapter)})


def test_the_given_fusion(bert: Made) -> None:
    path = FIXTURES / "given/fusion"
    with np.load(path / "io.npz") as expected:
        inputs = {
            name: expected[name] if name in expected else np.zeros_like(expected["input_ids"]) for name in bert.inputs
        }
        adapter = import_adapterhub(path / "setup", bert.sites, name="fused", base=bert.source.fingerprint).adapter
        assert_close(bert.float64.run(inputs, adapter), expected["last_hidden_state_f64"], EXACT)
        assert_close(bert.torch.run(inputs, adapter)["last_hidden_state"], expected["last_hidden_state"], SINGLE)
        adapter = import_adapterhub(path / "setup", bert.onnx.sites, name="fused", base=bert.onnx.fingerprint).adapter
        found = _with_slots(bert, adapter, inputs)
        assert_close(found["last_hidden_state"], expected["last_hidden_state"], SINGLE)


@pytest.mark.parametrize("case", ["seq_bn", "double_seq_bn", "lora"])
@pytest.mark.parametrize("folder", ["task", "task_safetensors", "task_from_BertModel"])
def test_the_given_adapters(case: str, folder: str, bert: Made) -> None:
    path = FIXTURES / "given" / case / folder
    if not path.exists():
        assert folder == "task_from_BertModel"
        return
    with np.load(path.parent / "io.npz") as expected:
        inputs = {
            name: expected[name] if name in expected else np.zeros_like(expected["input_ids"]) for name in bert.inputs
        }
        adapter = import_adapterhub(path, bert.sites, name="given", base=bert.source.fingerprint).adapter
        assert_close(bert.float64.run(inputs, adapter), expected["last_hidden_state_f64"], EXACT)
        exported = import_adapterhub(path, bert.onnx.sites, name="given", base=bert.onnx.fingerprint).adapter
        for found in (bert.torch.run(inputs, adapter), _with_slots(bert, exported, inputs)):
            assert_close(found["last_hidden_state"], expected["last_hidden_state"], SINGLE)
            if adapter.head is not None:
                assert_close(found["logits"], expected["logits"], SINGLE)


def test_the_bases_in_numpy_are_right(made: Callable[[str], Made]) -> None:
    """Without an adapter they give what torch gives, so that parity says something of adapters."""
    for name in ("bert", "roberta", "distilbert", "gpt2"):
        base = made(name)
        assert_close(base.float64.run(base.inputs), base.torch.run(base.inputs)["last_hidden_state"], SINGLE)


def test_every_fixture_is_used() -> None:
    folders = {path.parent for path in FIXTURES.glob("*/*/expected.safetensors")}
    fused = {FIXTURES / case for case in FUSIONS}
    alone = {FIXTURES / case for case in (*CASES, *REFUSED)}
    assert {path.name.partition("_")[0] for path in folders - alone - fused} == {"setup"}
