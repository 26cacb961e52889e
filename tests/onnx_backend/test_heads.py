"""Adapters with heads of every task and shape in one graph: each has its own result at its own output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from building import build_bundle
from heads import TAGS, TOPICS, heads, with_head
from tiny_onnx import WIDTH, random_adapter, save_tiny, token_inputs

from adapter_export.bundle.proof.proof_plan import Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.report import failures
from adapter_export.bundle.write import model_version
from adapter_export.errors import AdapterError, RequestError, UsageError
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.kinds import BottleneckOptions, houlsby
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate_adapter import evaluate_head
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.onnx_backend.slots import head_sums, plan_slots, slot_tensors
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.adapter_file import write_adapter_file

INPUTS = token_inputs(7, 3, 5)
MASK = INPUTS["attention_mask"]
NAMES = tuple(heads(WIDTH))
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OnnxBase:
    return open_onnx(save_tiny(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def adapters(base: OnnxBase) -> dict[str, Adapter]:
    plain = random_adapter("plain", houlsby(BottleneckOptions("gelu")), base)
    return {"plain": plain, **{name: with_head(plain, name, head) for name, head in heads(WIDTH).items()}}


@pytest.fixture(scope="module")
def bundle(base: OnnxBase, adapters: dict[str, Adapter], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 1, "tokens": 1}, {"batch": 3, "tokens": 7}])
    build_bundle(base, list(adapters.values()), folder, references=CutRunner(base), cases=cases)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Session:
    return bundle.session(threads=1)


def test_manifest_records_task_and_output_of_each_adapter(bundle: Bundle) -> None:
    found = {record.name: (record.task and record.task.type, record.output) for record in bundle.manifest.adapters}
    sequence, tokens, vector = "single_label", "token", "embedding"
    assert found["plain"] == (None, None)
    assert {name: found[name] for name in ("topic", "tone", "hub", "deep")} == dict.fromkeys(
        ("topic", "tone", "hub", "deep"), (sequence, "logits")
    )
    assert found["tag"] == found["entity"] == (tokens, "token_logits")
    assert found["grade"] == found["axes"] == ("regression", "logits")
    assert {name: found[name][0] for name in ("mean", "unit", "small", "wide")} == dict.fromkeys(
        ("mean", "unit", "small", "wide"), vector
    )
    assert found["small"][1] == found["wide"][1]
    assert len({found[name][1] for name in ("mean", "unit", "small")}) == 3
    assert "logits" in {head.output for head in bundle.manifest.heads}
    assert [record.task.labels for record in bundle.manifest.adapters if record.name in ("topic", "grade")] == [
        TOPICS,
        (),
    ]


def test_heads_of_one_topology_share_their_slots(base: OnnxBase, adapters: dict[str, Adapter]) -> None:
    one = [slot.name for slot in plan_slots([adapters["topic"]], base.sites).slots]
    three = [adapters[name] for name in ("topic", "tone", "grade")]
    assert [slot.name for slot in plan_slots(three, base.sites).slots] == one


@pytest.mark.parametrize("name", ["plain", *NAMES])
def test_onnxruntime_gives_what_the_reference_gives(
    name: str, session: Session, base: OnnxBase, adapters: dict[str, Adapter]
) -> None:
    found, expected = session.run(INPUTS, name), CutRunner(base).run(INPUTS, adapters[name])
    assert [array.shape for array in found.values()] == [array.shape for array in expected.values()]
    for one, other in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)
    head = adapters[name].head
    if head is not None:
        output = session.output(name)
        assert output is not None
        result = evaluate_head(adapters[name], found["hidden"], MASK)
        np.testing.assert_allclose(found[output], result, rtol=0, atol=TOLERANCE)
        assert np.abs(found[output]).max() > 0.01


def test_switching_leaves_no_trace(session: Session) -> None:
    fresh = {name: session.run(INPUTS, name) for name in NAMES}
    for first in NAMES:
        for second in NAMES:
            session.run(INPUTS, first)
            again = session.run(INPUTS, second)
            assert again.keys() == fresh[second].keys()
            assert all(np.array_equal(again[output], fresh[second][output]) for output in again)


def test_check_compares_classes_only_for_heads_with_classes(bundle: Bundle, base: OnnxBase) -> None:
    plan = plan_check(bundle.folder, only=["tag", "grade", "unit"])
    report = prove(plan, Reference("tiny.onnx", CutRunner(base)))
    assert failures(report) == ()
    assert report.passed
    classes = {
        (found.adapter, found.name, found.part): found.top_class
        for found in report.outputs
        if found.case.endswith("padded") and found.against == "reference" and found.level == "none"
    }
    assert {key[:2] for key, top in classes.items() if top is not None} == {("tag", "token_logits")}
    real, padding = (classes["tag", "token_logits", part] for part in ("tokens", "padding"))
    assert real is not None
    assert padding is not None
    case = next(case for case in plan.cases if case.real is not None)
    assert case.real is not None
    assert (real.rows, padding.rows) == (case.real.sum(), (~case.real).sum())
    assert real.agree == real.rows


class TestTheRuntime:
    def test_classes_of_tokens_stand_where_the_tokens_stand(self, session: Session) -> None:
        found = session.classify_tokens(INPUTS, "tag")
        logits = session.run(INPUTS, "tag")["token_logits"]
        for row, kept, numbers in zip(found, MASK, logits, strict=True):
            assert [one is not None for one in row] == [bool(real) for real in kept]
            assert [one.label for one in row if one] == [TAGS[k] for k in numbers[kept == 1].argmax(-1)]

    def test_classify_returns_the_most_likely_label(self, session: Session) -> None:
        logits = session.run(INPUTS, "hub")["logits"]
        assert [one.label for one in session.classify(INPUTS, "hub")] == ["abcd"[k] for k in logits.argmax(-1)]

    def test_predict_returns_the_logits_of_regression(self, session: Session) -> None:
        assert session.predict(INPUTS, "grade").shape == (3, 1)
        np.testing.assert_array_equal(session.predict(INPUTS, "axes"), session.run(INPUTS, "axes")["logits"])

    def test_embed_returns_vectors_of_the_head(self, session: Session) -> None:
        assert session.embed(INPUTS, "mean").shape == (3, WIDTH)
        assert session.embed(INPUTS, "wide").shape == (3, 20)
        for name in ("unit", "small"):
            np.testing.assert_allclose(np.linalg.norm(session.embed(INPUTS, name), axis=-1), 1, rtol=1e-6)

    def test_predict_and_embed_take_an_adapter_per_row(self, session: Session) -> None:
        for method, name in (("predict", "grade"), ("embed", "small")):
            alone, rows = getattr(session, method)(INPUTS, name), getattr(session, method)(INPUTS, adapters=[name] * 3)
            np.testing.assert_allclose(rows, alone, rtol=0, atol=TOLERANCE)
        with pytest.raises(RequestError, match=r"have different widths; found `small`: .*, `wide`: 20"):
            session.embed(INPUTS, adapters=["small", "wide", "small"])
        with pytest.raises(UsageError, match="no adapter is named; found adapters that answer: `topic`"):
            session.embed(INPUTS)
        with pytest.raises(RequestError, match="no adapter given"):
            session.embed(INPUTS, "base")
        with pytest.raises(TypeError, match="allow_mixed"):
            session.embed(INPUTS, "small", allow_mixed=True)  # type: ignore[call-arg]

    @pytest.mark.parametrize(
        ("method", "name", "words"),
        [
            ("classify", "tag", "found the problem type `token`. Call `classify_tokens`"),
            ("classify", "grade", "found the problem type `regression`. Call `predict`"),
            ("classify_tokens", "topic", "found the problem type `single_label`. Call `classify`"),
            ("predict", "topic", "cannot do `regression`"),
            ("embed", "axes", "cannot do `embedding`"),
            ("embed", "plain", "found no head"),
        ],
    )
    def test_calls_for_another_task_are_refused(self, session: Session, method: str, name: str, words: str) -> None:
        with pytest.raises(RequestError) as caught:
            getattr(session, method)(INPUTS, name)
        assert words in str(caught.value)

    def test_loaded_files_take_their_task_from_the_arguments(
        self, bundle: Bundle, base: OnnxBase, adapters: dict[str, Adapter], tmp_path: Path
    ) -> None:
        session = bundle.session(threads=1)
        tag, grade = (bundle.folder / f"adapters/{name}.onnx_adapter" for name in ("tag", "grade"))
        session.load("labelled", tag, labels=TAGS)
        session.load("numbers", grade, task="regression")
        session.load("unknown", grade)
        found = [session.task(name) for name in ("labelled", "numbers", "unknown")]
        assert found == [Task("token", TAGS), Task("regression"), None]
        np.testing.assert_array_equal(session.predict(INPUTS, "numbers"), session.predict(INPUTS, "grade"))
        np.testing.assert_array_equal(session.run(INPUTS, "unknown")["logits"], session.predict(INPUTS, "grade"))

    def test_a_task_that_the_head_cannot_do(self, bundle: Bundle) -> None:
        session = bundle.session(threads=1)
        with pytest.raises(AdapterError, match="has no head for `embedding`; found a head that gives `logits`"):
            session.load("more", bundle.folder / "adapters/grade.onnx_adapter", task="embedding")
        with pytest.raises(AdapterError, match="has no head for `single_label`; found a head that gives `embedding`"):
            session.load("more", bundle.folder / "adapters/small.onnx_adapter", labels=["a"])

    def test_a_file_that_fills_two_heads_is_refused(self, bundle: Bundle, tmp_path: Path) -> None:
        one, other = (read_tensors(bundle.folder / f"adapters/{name}.safetensors") for name in ("topic", "tag"))
        mixed = {slot: other[slot] if other[slot].any() else tensor for slot, tensor in one.items()}
        write_adapter_file(tmp_path / "mixed.onnx_adapter", mixed, bundle.manifest.model_version)
        with pytest.raises(AdapterError, match="fills several heads"):
            bundle.session(threads=1).load("mixed", tmp_path / "mixed.onnx_adapter")

    def test_heads_without_tensors_load_if_unambiguous(self, base: OnnxBase, tmp_path: Path) -> None:
        plain = random_adapter("plain", houlsby(BottleneckOptions("gelu")), base)
        mean = with_head(plain, "mean", heads(WIDTH)["mean"])
        plan = plan_slots([mean], base.sites)
        cases = input_cases(base.inputs, seed=0, shapes=[{"batch": 2, "tokens": 3}])
        build_bundle(base, [mean], tmp_path / "bundle", references=CutRunner(base), cases=cases)
        write_adapter_file(tmp_path / "other.onnx_adapter", slot_tensors(plan, mean), model_version(base, plan))
        session = Bundle.open(tmp_path / "bundle").session(threads=1)
        session.load("other", tmp_path / "other.onnx_adapter", task="embedding")
        np.testing.assert_array_equal(session.embed(INPUTS, "other"), session.embed(INPUTS, "mean"))


def test_second_outputs_are_numbered_beside_those_of_the_base(base: OnnxBase, adapters: dict[str, Adapter]) -> None:
    plan = plan_slots([adapters["mean"], adapters["unit"], adapters["topic"]], base.sites)
    assert sorted(found.output for found in head_sums(plan, ["embedding", "logits"])) == [
        "adapter_embedding",
        "adapter_embedding_2",
        "adapter_logits",
    ]
