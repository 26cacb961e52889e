"""Parity of imported adapters with AdapterHub's library."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from adapterhub_bases import FIXTURES, Made, import_adapterhub
from safetensors.numpy import load_file
from slotted import Slotted, in_slots
from tiers import some_quick

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.slot_form import KEEP, slot_form
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate_adapter import evaluate_head
from adapter_export.onnx_backend.onnx_runner import CutRunner

NOT_IN_NUMPY = ("llama", "vit", "bart")
BASES = ("bert", "roberta", "distilbert", "gpt2", *NOT_IN_NUMPY)
QUICK = ("bert", "gpt2")
REFUSED = {"bert/compacter_bare_without_rule", "bert/head_pooler", "bert/plugin_seq_bn"}
CASES = sorted(
    str(path.parent.relative_to(FIXTURES))
    for base in BASES
    for path in (FIXTURES / base).glob("*/adapter_config.json")
    if str(path.parent.relative_to(FIXTURES)) not in REFUSED
)
FUSIONS = sorted(str(path.relative_to(FIXTURES)) for path in (FIXTURES / "bert").glob("fusion_*"))

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


def imported(case: str, base: Made, form: Literal["torch", "onnx"] = "torch") -> Adapter:
    """ViT's modules have other names since transformers 5."""
    sites, source = (base.sites, base.source) if form == "torch" else (base.onnx.sites, base.onnx)
    vit = case.startswith("vit")
    return import_adapterhub(FIXTURES / case, sites, name="imported", base=source.fingerprint, by_number=vit).adapter


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Relative to the largest number, where that is above 1: blocks without a norm behind them are not near it."""
    allowed = tolerance * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=what)


@pytest.mark.parametrize("case", some_quick(CASES, *(case for case in CASES if case.startswith(QUICK))))
def test_torch_and_numpy_compute_what_adapterhub_computes(case: str, made: Callable[[str], Made]) -> None:
    """Adapters that are never neutral have a switch."""
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")
    adapter = imported(case, base)
    found = base.torch.run(base.inputs, adapter)
    assert_close(found["last_hidden_state"], expected["hidden"], SINGLE)
    assert (adapter.head is not None) == ("logits" in expected)
    if adapter.head is not None:
        assert_close(found[adapter.head.output], expected["logits"], SINGLE)
    assert any(KEEP in slot_form(graph).parameters for graph in adapter.graphs.values()) == (case in SWITCHED)
    if case.startswith(NOT_IN_NUMPY):
        return
    hidden, tolerance = base.float64.run(base.inputs, adapter), ROUNDED if case in ROUNDED_ONCE else EXACT
    assert_close(hidden, expected["hidden_f64"], tolerance)
    if adapter.head is not None:
        logits = evaluate_head(adapter, hidden, base.inputs["attention_mask"])
        assert_close(logits, expected["logits_f64"], tolerance)


@pytest.mark.parametrize("name", some_quick(BASES, *QUICK))
def test_onnxruntime_computes_many_adapters_in_one_graph(name: str, made: Callable[[str], Made]) -> None:
    """A dozen in one: a slot for every tensor of a hundred takes longer."""
    base, cases = made(name), [case for case in CASES if case.startswith(f"{name}/")]
    for start in range(0, len(cases), 12):
        adapters = {case: imported(case, base, "onnx") for case in cases[start : start + 12]}
        slotted = Slotted(base.onnx, list(adapters.values()))
        for case, adapter in adapters.items():
            found, expected = slotted.run(base.inputs, adapter), load_file(FIXTURES / case / "expected.safetensors")
            assert_close(found["last_hidden_state"], expected["hidden"], SINGLE, case)
            if adapter.head is not None:
                assert_close(found[adapter.head.output], expected["logits"], SINGLE, case)


@pytest.mark.parametrize("case", sorted(SWITCHED - set(FUSIONS)))
def test_cut_base_computes_switched_adapters_as_adapterhub_does(case: str, made: Callable[[str], Made]) -> None:
    """Run with the base in ONNX Runtime, split at the sites, and the reference there."""
    base, expected = made(case.partition("/")[0]), load_file(FIXTURES / case / "expected.safetensors")
    found = CutRunner(base.onnx).run(base.inputs, imported(case, base, "onnx"))
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
def test_imported_heads_keep_task_and_labels(case: str, task: dict[str, Any], bert: Made) -> None:
    head = imported(f"bert/{case}", bert).head
    assert head is not None
    assert head.task is not None
    facts = {name: getattr(head.task, name) for name in task}
    assert facts == task | ({"labels": head.labels} if "labels" in task else {})
    assert len(head.labels) == task.get("labels", 0)


def test_multiple_choice_head_is_imported(bert: Made, tmp_path: Path) -> None:
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
def test_fusions_compute_what_adapterhub_computes(case: str, bert: Made) -> None:
    """In NumPy, torch and ONNX Runtime."""
    expected, path = load_file(FIXTURES / case / "expected.safetensors"), FIXTURES / case
    adapter = import_adapterhub(path, bert.sites, name="fused", base=bert.source.fingerprint).adapter
    assert_close(bert.float64.run(bert.inputs, adapter), expected["hidden_f64"], EXACT)
    assert_close(bert.torch.run(bert.inputs, adapter)["last_hidden_state"], expected["hidden"], SINGLE)
    adapter = import_adapterhub(path, bert.onnx.sites, name="fused", base=bert.onnx.fingerprint).adapter
    assert_close(in_slots(bert.onnx, adapter)(bert.inputs)["last_hidden_state"], expected["hidden"], SINGLE)


def test_recorded_fusion_computes_what_adapterhub_computed(bert: Made) -> None:
    path = FIXTURES / "given/fusion"
    with np.load(path / "io.npz") as expected:
        inputs = {
            name: expected[name] if name in expected else np.zeros_like(expected["input_ids"]) for name in bert.inputs
        }
        adapter = import_adapterhub(path / "setup", bert.sites, name="fused", base=bert.source.fingerprint).adapter
        assert_close(bert.float64.run(inputs, adapter), expected["last_hidden_state_f64"], EXACT)
        assert_close(bert.torch.run(inputs, adapter)["last_hidden_state"], expected["last_hidden_state"], SINGLE)
        adapter = import_adapterhub(path / "setup", bert.onnx.sites, name="fused", base=bert.onnx.fingerprint).adapter
        found = in_slots(bert.onnx, adapter)(inputs)
        assert_close(found["last_hidden_state"], expected["last_hidden_state"], SINGLE)


@pytest.mark.parametrize("case", ["seq_bn", "double_seq_bn", "lora"])
@pytest.mark.parametrize("folder", ["task", "task_safetensors", "task_from_BertModel"])
def test_recorded_adapters_compute_what_adapterhub_computed(case: str, folder: str, bert: Made) -> None:
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
        for found in (bert.torch.run(inputs, adapter), in_slots(bert.onnx, exported)(inputs)):
            assert_close(found["last_hidden_state"], expected["last_hidden_state"], SINGLE)
            if adapter.head is not None:
                assert_close(found["logits"], expected["logits"], SINGLE)


@pytest.mark.parametrize("name", some_quick(sorted(set(BASES) - {*NOT_IN_NUMPY}), *QUICK))
def test_the_bases_in_numpy_are_right(name: str, made: Callable[[str], Made]) -> None:
    """Without an adapter they give what torch gives, so that parity says something of adapters."""
    base = made(name)
    assert_close(base.float64.run(base.inputs), base.torch.run(base.inputs)["last_hidden_state"], SINGLE)


def test_every_fixture_is_used() -> None:
    folders = {path.parent for path in FIXTURES.glob("*/*/expected.safetensors")}
    folders = {path for path in folders if not path.parent.name.endswith("_square")}  # of test_square_layers.py
    fused = {FIXTURES / case for case in FUSIONS}
    alone = {FIXTURES / case for case in (*CASES, *REFUSED)}
    assert {path.name.partition("_")[0] for path in folders - alone - fused} == {"setup"}
