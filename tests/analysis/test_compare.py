"""Contestants on the same rows: tests against values worked out by hand, and graphs against torch."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from answering import TASKS, InTorch, sentences, write
from heads import with_head
from heard import Heard
from small_encoder import WIDTH, save_encoder
from small_task import make_adapter, with_random_weights

import adapter_export as ae
from adapter_export.errors import DataError, RequestError, UsageError
from adapter_export.graph.adapter import BASE_HEAD, Adapter
from adapter_export.graph.compose import adapter_fusion
from adapter_export.graph.heads import make_head
from adapter_export.graph.kinds import BottleneckOptions
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.metrics import Judged, judge_classes, judge_numbers, judge_spans
from adapter_export.plugins.lab.comparison import MOST_PAIRED, Comparison, ContestantRecord, Setting, comparison, holm
from adapter_export.tables import one_line
from adapter_export.torch_backend.base.torch_base import load_base, write_base
from schemas import validate

SETTING = Setting("single_label", "rows.tsv", "0" * 64, 200, 0, 0, None)


def contestant(name: str) -> ContestantRecord:
    return ContestantRecord(name, name, name, "houlsby", "fp32", 10, 100, 1000)


def classes(*answers: list[int]) -> list[Judged]:
    """Sides that answer classes 0 and 1; all that is right is 0."""
    return [judge_classes(np.eye(2)[own], np.zeros(len(own), int), ("right", "wrong")) for own in answers]


def compared(judged: list[Judged], setting: Setting = SETTING) -> Comparison:
    rows = [(line, f"text {line}") for line in range(len(judged[0].answers))]
    names = [contestant(f"c{at}") for at in range(len(judged))]
    return comparison(setting, names, judged, rows, "onnxruntime 1")


def test_accuracy_is_tested_by_mcnemar() -> None:
    """9 rows that only the first answers right, 1 that only the second does: 2·(1 + 10)/2¹⁰."""
    first, second = [0] * 9 + [1] + [0] * 30, [1] * 9 + [0] + [0] * 30
    found = next(one for one in compared(classes(first, second)).differences if one.metric == "accuracy")
    assert (found.test, found.only_first, found.only_second) == ("exact McNemar", 9, 1)
    assert found.p == pytest.approx(22 / 1024)
    assert found.adjusted == found.p, "there is one pair"
    assert found.value == pytest.approx(8 / 40)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 8 / 40 < found.high
    alike = compared(classes(first, first))
    assert {one.p for one in alike.differences} == {1.0}
    assert alike.differing == ()


def test_means_are_tested_by_permutation() -> None:
    """All 2⁶ exchanges of six rows, counted here."""
    right = ["the red moon", "a b", "c", "d e f", "g", "h i"]
    judged = [
        judge_spans(own, [[one] for one in right])
        for own in (["red moon", "a", "c", "d e", "g", "h i"], ["moon", "x", "c", "d e", "g", "h"])
    ]
    found = next(one for one in compared(judged).differences if one.metric == "f1")
    apart = judged[0].each["f1"] - judged[1].each["f1"]
    sums = [float(np.dot(signs, apart)) for signs in itertools.product((1, -1), repeat=6)]
    expected = sum(abs(one) >= abs(apart.sum()) - 1e-12 for one in sums) / len(sums)
    assert found.test == "paired permutation"
    assert found.p == pytest.approx(expected)


def test_other_metrics_are_tested_by_bootstrap() -> None:
    """The draws of both sides are the same, so that a side that is always a little better differs beyond chance."""
    rng = np.random.default_rng(0)
    right = rng.normal(size=(200, 1))
    noise = rng.normal(size=(200, 1))
    near, far, same = (judge_numbers(right + scale * noise, right) for scale in (0.1, 0.5, 0.1))
    tests = {one.metric: one for one in compared([near, far], SETTING).differences}
    assert tests["pearson"].test == "paired bootstrap"
    assert tests["pearson"].p is not None
    assert tests["pearson"].p == pytest.approx(2 / 201), "no draw of 200 is beyond 0"
    assert tests["mean_absolute_error"].test == "paired permutation"
    even = compared([near, same])
    assert {one.p for one in even.differences} == {1.0}
    assert even.agreements[0].value == 1.0
    none = {one.metric: one for one in compared([near, far], replace(SETTING, resamples=0)).differences}
    assert (none["pearson"].p, none["pearson"].low) == (None, None)


def test_p_values_of_equal_contestants_are_rarely_small() -> None:
    """Two sides that are right in 80 % of the rows by chance: p is below 0.05 in at most 5 % of 150 samples."""
    rng, below = np.random.default_rng(0), 0
    for _ in range(150):
        sides = classes(*(rng.random((2, 50)) > 0.8).astype(int).tolist())
        found = comparison(replace(SETTING, resamples=0), [contestant("a"), contestant("b")], sides, [(1, "")] * 50, "")
        p = found.differences[0].p
        assert p is not None
        below += p < 0.05
    assert below / 150 <= 0.05


def test_holm_corrects_p_values_and_skips_missing_tests() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_compare_counts_agreements_and_differing_rows() -> None:
    found = compared(classes([0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]))
    assert [(one.first, one.second, one.value) for one in found.agreements] == [
        ("c0", "c1", 0.75),
        ("c0", "c2", 0.75),
        ("c1", "c2", 0.5),
    ]
    assert [(row.line, row.right, row.answers) for row in found.differing] == [
        (1, "right", ("right", "right", "wrong")),
        (3, "right", ("right", "wrong", "right")),
    ]
    assert found.differing_rows == 2
    best = found.best
    assert best is not None
    assert best.name == "c0"


def test_many_contestants_are_compared_with_the_first() -> None:
    rng = np.random.default_rng(1)
    found = compared(classes(*rng.integers(0, 2, (MOST_PAIRED + 1, 20)).tolist()), replace(SETTING, resamples=20))
    assert {one.first for one in found.differences} == {"c0"}
    assert len(found.agreements) == MOST_PAIRED
    text = str(found)
    assert f"with more than {MOST_PAIRED} contestants, each is compared only with the first, `c0`" in text
    assert "right: `c" in text, "who answers what, in one column"


def test_control_characters_of_foreign_text_are_escaped() -> None:
    assert one_line("a\x1b[31m\u202eb\n c") == "a\\x1b[31m\\u202eb c"
    assert one_line("👩\u200d🚀 é", 4) == "👩\u200d🚀…"


LABELS = ("red", "green", "blue")


class Bench:
    """A small encoder with a bundle of adapters, and the results of plain torch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.bundle = folder, folder / "model.pt", folder / "bundle"
        self.base = ae.open_base(save_encoder(self.model))
        self.alone = InTorch(self.base)
        plain = make_adapter(self.base.torch, options=BottleneckOptions("relu"), labels=None)
        rng = np.random.default_rng(5)
        self.adapters: dict[str, Adapter] = {}
        for seed, (name, task) in enumerate(
            {
                "one": Task("single_label", LABELS),
                "two": Task("single_label", LABELS[::-1]),
                "tone": Task("single_label", ("good", "bad")),
                "grade": TASKS["grade"],
                "mark": TASKS["grade"],
            }.items()
        ):
            adapter = with_head(with_random_weights(plain, seed), name, make_head(task, width=WIDTH))
            own = dict(adapter.weights)
            if task.labels:  # without this, one class would be the answer to everything
                results = np.array([self.alone.result(adapter, text) for text in sentences(20)])
                own["head.classifier.bias"] = own["head.classifier.bias"] - np.median(results, axis=0)
            self.adapters[name] = replace(adapter, weights=own)
        fused = adapter_fusion(self.adapters["one"], self.adapters["two"], name="fused", head="one")
        drawn = {
            name: rng.normal(0, 0.2, tensor.shape).astype(np.float32) if "fusion." in name else tensor
            for name, tensor in fused.weights.items()
        }
        self.adapters["fused"] = replace(fused, weights=drawn)
        self.adapters["bare"] = replace(plain, name="bare")
        ae.build(self.base, list(self.adapters.values()), self.bundle, variants=("slots",))

    def answer(self, name: str, text: str) -> str:
        adapter = self.adapters[name]
        assert adapter.head is not None
        assert adapter.head.task is not None
        return adapter.head.task.labels[int(self.alone.result(adapter, text).argmax())]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def topics(bench: Bench) -> Path:
    """20 texts, each with what `one` says of it; the first has markup in a further column and signs of terminals."""
    rows = [{"text": text, "label": bench.answer("one", text)} for text in sentences(20)]
    rows[0]["text"] = f"<b>\x1b[31m {rows[0]['text']}"
    rows[0]["label"] = next(one for one in LABELS if one != rows[0]["label"])
    return write(bench.folder / "topics.jsonl", rows)


def run(bench: Bench, data: Path, *only: str, **options: Any) -> Comparison:
    return ae.compare(bench.bundle, data=data, only=only, **{"resamples": 20, "rounds": 0, **options})


def test_answers_are_those_of_torch_and_of_evaluate(bench: Bench, topics: Path, tmp_path: Path) -> None:
    heard = Heard()
    page = tmp_path / "page.html"
    found = run(bench, topics, "one", "two", "fused", rounds=2, report=page, reporter=heard)
    assert [one.name for one in found.contestants] == ["one", "two", "fused"]
    for one in found.contestants:
        alone = ae.evaluate(bench.bundle, topics, adapter=one.name, resamples=20)
        assert one.scores == alone.scores
        assert one.latency is not None
        assert 0 < one.latency.low <= one.latency.milliseconds <= one.latency.high
        assert one.adapter_bytes > 0
        assert one.graph_bytes > 16 * WIDTH
    assert found.contestants[0].latency is not None
    assert found.contestants[0].latency.ratio == 1
    texts = [row["text"] for row in map(json.loads, topics.read_text("utf-8").splitlines())]
    answers = {name: [bench.answer(name, text) for text in texts] for name in ("one", "two", "fused")}
    shares = {
        (first, second): np.mean([mine == theirs for mine, theirs in zip(answers[first], answers[second], strict=True)])
        for first, second in itertools.combinations(answers, 2)
    }
    assert {(one.first, one.second): one.value for one in found.agreements} == pytest.approx(shares)
    apart = [line for line, own in enumerate(zip(*answers.values(), strict=True), 1) if len(set(own)) > 1]
    assert found.differing_rows == len(apart) > 1
    assert {row.line for row in found.differing} <= set(apart)
    assert heard.steps[-1] == "drawing rows for the intervals"
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    validate(document, "comparison")
    assert (document["contestants"][2]["kind"], document["metrics"]) == ("fusion", ["accuracy", "macro_f1"])

    text = page.read_text("utf-8")
    assert not re.search(r"<(script|link|img|iframe|b)\b|url\(|src=|href=|\x1b", text)
    assert "default-src 'none'" in text
    assert text.count("<svg") == 3 * 3, "three contestants, two metrics and the latency"
    for said in (
        "exact McNemar",
        "fused",
        "mean attention weight",
        "layers.0",
        "Holm",
        "prefers-color-scheme",
        "@media print",
    ):
        assert said in text
    if 1 in {row.line for row in found.differing}:
        assert "&lt;b&gt;\\x1b[31m" in text


def test_a_fusion_shows_which_layer_listens_to_which_member(bench: Bench, topics: Path) -> None:
    """Weights from what torch reads at the sites, by the published formula (Pfeiffer et al. 2021, §3.2)."""
    found = run(bench, topics, "one", "fused").fusions
    assert [one.adapter for one in found] == ["fused"]
    fused = bench.adapters["fused"]
    model = bench.alone.attached(fused)
    texts = [row["text"] for row in map(json.loads, topics.read_text("utf-8").splitlines())]
    sums: dict[str, np.ndarray] = {site: np.zeros(2) for site in fused.placements}
    tokens = 0
    for text in texts:
        with torch.inference_mode(), model.observed() as calls:
            model(**bench.alone.tokens(text))
        for site in fused.placements:
            own = {name: np.asarray(tensor, np.float64) for name, tensor in fused.parameters(site).items()}
            h = calls[site].read["h"].double().numpy()[0]
            query, scores = h @ own["fusion.query.weight"] + own["fusion.query.bias"], []
            for member in ("one", "two"):
                inner = np.maximum(h @ own[f"{member}.down.weight"] + own[f"{member}.down.bias"], 0)
                added = inner @ own[f"{member}.up.weight"] + own[f"{member}.up.bias"]
                scores.append((query * (added @ own["fusion.key.weight"] + own["fusion.key.bias"])).sum(-1))
            powers = np.exp(np.stack(scores) - np.max(scores, axis=0))
            sums[site] = sums[site] + (powers / powers.sum(0)).sum(1)
        tokens += len(h)
    assert found[0].members == ("one", "two")
    assert found[0].tokens == tokens
    for site, weights in found[0].weights.items():
        np.testing.assert_allclose(np.array(weights, float), sums[site] / tokens, atol=1e-5)
    assert np.ptp([one[0] for one in found[0].weights.values()]) > 0.01, "layers differ"
    heads = [table.title for table in found[0].tables()]
    assert len(heads) == 2, "one table for each role of sites"


def test_numbers_are_compared_by_correlation(bench: Bench, tmp_path: Path) -> None:
    texts = sentences(12)
    rng = np.random.default_rng(0)
    rows = [{"a": one, "b": two, "label": float(rng.normal())} for one, two in itertools.pairwise(texts)]
    found = run(bench, write(tmp_path / "grades.jsonl", rows), "grade", "mark", text="a", pair="b")
    assert found.metrics[0].name == "pearson"
    assert found.differing_rows == 11
    value = found.agreements[0].value
    assert value is not None
    answers = np.array([row.answers for row in found.differing], float)[..., 0]
    assert (np.diff(np.ptp(answers, 1)) <= 0).all(), "those that lie farthest apart come first"
    assert "correlation of answers" in str(found)
    validate(json.loads(json.dumps(found.to_json())), "comparison")


def test_compare_accepts_adapters_bundles_and_models(bench: Bench, topics: Path) -> None:
    """The same adapter in a bundle, from its folder in two precisions, and a model with a head of its own."""
    ae.save(bench.adapters["one"], bench.folder / "one")
    two = bench.adapters["two"]
    weights = {name: tensor for name, tensor in two.weights.items() if name.startswith("head.")}
    head = replace(two, name=BASE_HEAD, kind="base_head", graphs={}, placements={}, weights=weights)
    student = bench.folder / "student.pt"
    write_base(replace(bench.base.torch, base_head=head), student)
    found = ae.compare(
        bench.bundle,
        bench.folder / "one",
        student,
        data=topics,
        base=bench.base,
        only=["one", BASE_HEAD],
        precisions=("fp32", "int8-weights"),
        resamples=0,
        rounds=0,
    )
    assert [(one.name, one.precision) for one in found.contestants] == [
        ("one", "fp32"),
        ("one (fp32)", "fp32"),
        ("one (int8-weights)", "int8-weights"),
        ("student (fp32)", "fp32"),
        ("student (int8-weights)", "int8-weights"),
    ]
    shares = {(one.first, one.second): one.value for one in found.agreements}
    assert shares["one", "one (fp32)"] == 1.0
    assert load_base(student).base_head is not None
    assert found.contestants[0].scores["accuracy"].value == found.contestants[1].scores["accuracy"].value == 0.95


def refused(kind: type[Exception], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_compare_refuses_incomparable_contestants(bench: Bench, topics: Path) -> None:
    adapter = bench.adapters["one"]
    refused(UsageError, "`one` only", lambda: run(bench, topics, "one"))
    refused(UsageError, "different tasks.*`grade` answers `regression`", lambda: run(bench, topics))
    refused(UsageError, "unknown adapter", lambda: run(bench, topics, "one", "nine"))
    refused(DataError, r"line 1: .*`tone` has no .*only=\[\"one\"\]", lambda: run(bench, topics, "one", "tone"))
    refused(UsageError, "given twice", lambda: ae.compare(bench.bundle, bench.bundle, data=topics))
    refused(UsageError, "needs its model", lambda: ae.compare(adapter, bench.adapters["two"], data=topics))
    refused(UsageError, "a bundle already has one", lambda: run(bench, topics, "one", "two", precisions=("int8",)))
    refused(DataError, "does not exist", lambda: run(bench, bench.folder / "none.tsv", "one", "two"))
    refused(UsageError, "`one` only", lambda: ae.compare(adapter, data=topics, base=bench.base))
    refused(UsageError, "precisions must be distinct", lambda: run(bench, topics, precisions=("fp64",)))
    refused(UsageError, "at least two contestants are needed; found no adapter", lambda: ae.compare(data=topics))
    refused(RequestError, "no head with a task", lambda: ae.compare(bench.model, bench.bundle, data=topics))
    refused(RequestError, "has no task", lambda: run(bench, topics, "one", "bare"))
    empty = write(bench.folder / "empty.jsonl", [{"text": "", "label": "red"}])
    refused(DataError, "no text or no label", lambda: run(bench, empty, "one", "two"))


def test_notes_mention_repeated_rows_and_a_single_class(bench: Bench, tmp_path: Path) -> None:
    data = write(tmp_path / "red.jsonl", [{"text": text, "label": "red"} for text in (*sentences(3), *sentences(2))])
    found = run(bench, data, "one", "two")
    assert "2 rows repeat an earlier one, and the tests take rows as independent of each other" in found.notes
    assert "`one`: every row has the label `red`: the scores say nothing of the other classes" in found.notes
    alone = run(bench, write(tmp_path / "one.jsonl", [{"text": "good film", "label": "red"}]), "one", "two")
    assert alone.contestants[0].scores["accuracy"].low is None
    assert math.isfinite(alone.contestants[0].scores["accuracy"].value or 0)
