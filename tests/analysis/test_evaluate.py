"""The shipped graph evaluated from text: rows of each task type, with correct answers from plain torch."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering import TAGS, World, make_world, sentences, write
from deployment import write_over
from heard import Heard
from small_task import reviews

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.errors import (
    DataError,
    MissedGateError,
    MissingExtraError,
    OutputExistsError,
    RequestError,
    UsageError,
)
from adapter_export.format.tabular.eval_data import DataOptions, EvalData
from adapter_export.format.tabular.labelled import Columns
from adapter_export.graph.tasks import Task
from adapter_export.plugins.lab.commands._contestants import contestants_of
from adapter_export.plugins.lab.contest import Contestant, Measured
from adapter_export.plugins.lab.eval_rows import judge
from adapter_export.plugins.lab.evaluation import Evaluation, versus
from adapter_export.plugins.lab.record_check import compare_with_training_record
from adapter_export.reporting import Reporter
from adapter_export.text import Pair


def values(found: Evaluation) -> dict[str, float | None]:
    return {name: score.value for name, score in found.scores.items()}


def measured(world: World, adapter: str, data: Path, **options: Any) -> Evaluation:
    return ae.evaluate(world.bundle, data, adapter=adapter, **{"resamples": 20, **options})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def topics(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 texts; the labels of the last ten are not what the model says."""
    labels, rows = ("red", "green", "blue"), []
    for at, text in enumerate(sentences(40)):
        answer = int(world.torch("topic", text).argmax())
        rows.append({"text": text, "label": labels[answer if at < 30 else (answer + 1) % 3], "half": f"h{at // 20}"})
    return write(tmp_path_factory.mktemp("topics") / "topics.jsonl", rows)


def test_single_label_rows_are_scored_with_slices_and_calibration(world: World, topics: Path) -> None:
    heard = Heard()
    found = measured(world, "topic", topics, slices="half", reporter=heard)
    assert found.scores["accuracy"].value == 0.75
    assert (found.rows, found.task, found.metrics[0].name) == (40, "single_label", "accuracy")
    assert found.confusion is not None
    counts = np.array(found.confusion)
    assert np.trace(counts) == 30
    assert counts.sum() == 40
    assert (counts.sum(0) > 5).all(), "all classes are among the answers"
    assert [(one.value, one.rows, one.scores["accuracy"].value) for one in found.slices] == [
        ("h0", 20, 1.0),
        ("h1", 20, 0.5),
    ]
    assert heard.counts[0] == (0, 40)
    assert heard.counts[-1] == (40, 40)
    assert found.notes == ()
    assert found.calibration is not None
    assert sum(one.count for one in found.calibration.bins) == 40


def test_files_overwritten_during_an_evaluation_change_nothing(world: World, topics: Path, tmp_path: Path) -> None:
    """Files that are written over while texts are answered change nothing."""
    one, two = (shutil.copytree(world.bundle, tmp_path / name) for name in ("one", "two"))
    found = measured(world, "topic", topics)
    assert found.bundle == str(world.bundle)

    class Spoiler(Reporter):
        def __init__(self, bundle: Path) -> None:
            self.bundle = bundle

        def step(self, label: str, done: int = 0, total: int | None = None) -> None:
            if label.startswith("answering"):
                write_over(self.bundle)

    changed = ae.evaluate(one, topics, adapter="topic", resamples=20, reporter=Spoiler(one))
    assert changed == replace(found, bundle=str(one))
    options = {"only": ["topic"], "rounds": 1, "resamples": 20}
    compared = ae.compare(two, world.bundle, data=topics, reporter=Spoiler(two), **options)
    assert [side.scores for side in compared.contestants] == [found.scores] * 2


def test_limit_draws_rows_at_random(world: World, topics: Path) -> None:
    found = measured(world, "topic", topics, limit=30)
    accuracy = found.scores["accuracy"].value
    assert accuracy is not None
    assert (found.rows, 20 / 30 <= accuracy < 1.0) == (30, True), "the first 30 rows alone are all right"
    assert any("rows were drawn at random" in note for note in found.notes)


def test_a_limit_samples_a_sorted_file_and_keeps_groups_whole(tmp_path: Path) -> None:
    rows = [{"text": f"text {at}", "label": "a" if at < 50 else "b", "group": at // 5} for at in range(100)]
    options = DataOptions(Columns(), None, False, 20)
    found = options.read(write(tmp_path / "sorted.jsonl", rows), Task("single_label", ("a", "b")))
    assert len(found.rows) == 20
    assert {row.answer for row in found.rows} == {"a", "b"}
    assert [row.line for row in found.rows] == sorted(row.line for row in found.rows)
    assert found.rows == options.read(tmp_path / "sorted.jsonl", Task("single_label", ("a", "b"))).rows
    pairs = [{"text": f"query {at // 5}", "pair": f"text {at}", "label": at % 2} for at in range(100)]
    ranked = DataOptions(Columns(pair="pair"), None, False, 22)
    found = ranked.read(write(tmp_path / "ranked.jsonl", pairs), Task("ranking", input="pair"))
    assert sorted(Counter(found.groups).values()) == [5, 5, 5, 5]


def test_pairs_are_read_from_the_selected_columns(world: World, tmp_path: Path) -> None:
    pairs = list(pairwise(sentences(12)))
    answers = [("yes", "no")[int(world.torch("nli", Pair(*pair)).argmax())] for pair in pairs]
    rows = [{"a": one, "b": two, "label": answer} for (one, two), answer in zip(pairs, answers, strict=True)]
    found = measured(world, "nli", write(tmp_path / "nli.jsonl", rows), text="a", pair="b")
    assert found.scores["accuracy"].value == 1.0
    swapped = measured(world, "nli", write(tmp_path / "nli.jsonl", rows), text="b", pair="a")
    truth = [
        ("yes", "no")[int(world.torch("nli", Pair(two, one)).argmax())] == answer
        for (one, two), answer in zip(pairs, answers, strict=True)
    ]
    assert swapped.scores["accuracy"].value == pytest.approx(np.mean(truth))


def test_label_sets_are_scored_at_their_thresholds(world: World, tmp_path: Path) -> None:
    rows, names = [], np.array(["x", "y", "z"])
    for text in sentences(20):
        shares = 1 / (1 + np.exp(-world.torch("tags", text).astype(np.float64)))
        rows.append({"text": text, "label": names[shares >= (0.4, 0.5, 0.6)].tolist()})
    found = measured(world, "tags", write(tmp_path / "tags.jsonl", rows))
    assert values(found)["subset_accuracy"] == 1.0
    assert values(found)["micro_f1"] == 1.0
    rows[0]["label"] = sorted({"x", "y", "z"} - set(rows[0]["label"]))
    assert values(measured(world, "tags", write(tmp_path / "tags.jsonl", rows)))["subset_accuracy"] == 0.95


def test_choices_of_a_row_are_scored_by_accuracy(world: World, tmp_path: Path) -> None:
    texts, rows = sentences(40), []
    for at in range(0, 40, 4):
        question, *choices = texts[at : at + 4]
        scores = [float(world.torch("choice", Pair(question, choice))[0]) for choice in choices]
        rows.append({"text": question, "choices": choices, "label": int(np.argmax(scores))})
    rows[0]["label"] = (rows[0]["label"] + 1) % 3
    found = measured(world, "choice", write(tmp_path / "choices.jsonl", rows), pair="choices")
    assert values(found) == {"accuracy": 0.9}


def test_word_labels_are_scored_and_truncated_words_skipped(world: World, tmp_path: Path) -> None:
    rows = []
    for text in sentences(20):
        logits = world.torch("entity", text.split())[1:-1]
        rows.append({"text": text.split(), "label": [TAGS[at] for at in logits.argmax(-1)]})
    found = measured(world, "entity", write(tmp_path / "words.jsonl", rows))
    assert [metric.name for metric in found.metrics] == ["f1", "precision", "recall", "accuracy", "macro_f1"]
    assert set(values(found).values()) == {1.0}
    long = [{"text": ["good"] * 30, "label": ["O"] * 30}]
    cut = measured(world, "entity", write(tmp_path / "long.jsonl", long))
    assert cut.notes == (
        "1 text is longer than 24 tokens and cut there, as every client cuts it (line 1)",
        "8 truncated words were skipped",
    )


def test_spans_are_scored_by_exact_match_and_f1(world: World, tmp_path: Path) -> None:
    rows = []
    for question, context in pairwise(sentences(15)):
        first, words = len(question.split()) + 2, context.split()
        logits = world.torch("answer", Pair(question, context))[first : first + len(words)]
        best = max(
            ((one, other) for one in range(len(words)) for other in range(one, len(words))),
            key=lambda ends: logits[ends[0], 0] + logits[ends[1], 1],
        )
        answer = " ".join(words[best[0] : best[1] + 1])
        start = len(" ".join(words[: best[0]])) + (best[0] > 0)
        rows.append({"text": question, "context": context, "label": {"text": [answer], "answer_start": [start]}})
    found = measured(world, "answer", write(tmp_path / "answers.jsonl", rows), pair="context")
    assert values(found) == {"exact_match": 1.0, "f1": 1.0}


def test_numbers_are_scored_by_correlation_and_error(world: World, tmp_path: Path) -> None:
    rows = [
        {"text": one, "pair": two, "label": float(world.torch("grade", Pair(one, two))[0]) + 0.25}
        for one, two in pairwise(sentences(15))
    ]
    found = measured(world, "grade", write(tmp_path / "numbers.jsonl", rows), pair="pair", gate={"pearson": 0.9})
    assert values(found)["mean_absolute_error"] == pytest.approx(0.25, abs=1e-5)
    assert values(found)["pearson"] == pytest.approx(1.0)
    assert found.passed


def test_similarities_of_pairs_are_scored_by_correlation(world: World, tmp_path: Path) -> None:
    rows = []
    for one, two in pairwise(sentences(15)):
        first, second = (world.torch("vector", text).astype(np.float64) for text in (one, two))
        rows.append({"text": one, "pair": two, "label": float(first @ second) ** 3})  # Spearman uses only the order
    found = measured(world, "vector", write(tmp_path / "pairs.jsonl", rows), pair="pair", label="label")
    assert values(found)["spearman"] == pytest.approx(1.0)
    assert (values(found)["pearson"] or 1.0) < 1.0


def test_vectors_are_scored_by_their_nearest_neighbour(world: World, tmp_path: Path) -> None:
    texts = sentences(20)
    rows = [{"text": text, "label": "odd" if at % 2 else "even"} for at, text in enumerate(texts)]
    vectors = np.stack([world.torch("vector", text) for text in texts]).astype(np.float64)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    found = measured(world, "vector", write(tmp_path / "classes.jsonl", rows))
    assert values(found)["neighbour_accuracy"] == pytest.approx(np.mean(cosines.argmax(-1) % 2 == np.arange(20) % 2))


def test_rankings_are_scored_per_query(world: World, tmp_path: Path) -> None:
    texts, rows = sentences(40), []
    for group in range(8):
        query, *documents = texts[5 * group : 5 * group + 5]
        scores = [float(world.torch("rank", Pair(query, document))[0]) for document in documents]
        order = np.argsort(scores)[::-1]
        right = order[1 if group == 0 else 0]  # of one query, the second best is right
        rows += [
            {"text": query, "pair": document, "label": float(at == right), "id": f"q{group}"}
            for at, document in enumerate(documents)
        ]
    data = write(tmp_path / "rankings.jsonl", rows)
    expected = {"mrr": 1 - 0.5 / 8, "ndcg_at_10": (7 + 1 / math.log2(3)) / 8}
    assert values(measured(world, "rank", data, pair="pair")) == pytest.approx(expected)
    assert values(measured(world, "rank", data, pair="pair", group="id")) == pytest.approx(expected)


def test_the_model_answers_the_same_rows(world: World, topics: Path) -> None:
    found = measured(world, "topic", topics, against=world.base)
    assert found.versus is not None
    assert found.versus.reference.startswith("torch ")
    assert found.versus.differing == ()
    assert 0 < found.versus.largest < found.versus.allowed < 1e-3
    assert found.versus.scores["accuracy"].value == 0.75
    assert "reference" in str(found.table())


def test_rows_where_two_sides_part_are_shown_with_both_answers(world: World, tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(sentences(3), ("red", "green", "blue"), strict=True)]
    own = contestant(world.bundle, "topic")
    asked = own.read(read(write(tmp_path / "three.jsonl", rows), own))
    ours = [[np.array([1.0, 0.0, 0.0])], [np.array([0.0, 1.0, 0.0])], [np.array([0.0, 0.0, 1.0])]]
    theirs = [ours[0], [np.array([0.0, 0.99, 1.0])], ours[2]]
    first, second = (Measured(own, asked, results, judge(asked, results)) for results in (ours, theirs))
    found = versus(first, second, 0.1)
    (row,) = found.differing
    assert (row.text, row.right, row.answers) == (asked.rows[1].text, "green", ("green", "blue"))
    assert found.largest == 1.0
    assert row.line == 2


def contestant(bundle: Path, name: str) -> Contestant:
    (found,) = contestants_of(OpenedBundle.open(bundle), [name], str(bundle))
    return found


def read(path: Path, own: Contestant, limit: int | None = None) -> EvalData:
    return DataOptions(Columns(), None, False, limit).read(path, own.task)


REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "adapter": (UsageError, "no adapter is named; found adapters that answer: `topic`", {"adapter": None}),
    "unknown": (UsageError, "unknown adapter", {"adapter": "nobody"}),
    "slices": (UsageError, "no such column", {"slices": "nothing"}),
    "many": (UsageError, "too many values to slice by", {"slices": "id"}),
    "group": (UsageError, "only a ranking has a `group`", {"group": "id"}),
    "gate": (UsageError, "is not a metric of this task", {"gate": {"f1": 0.5}}),
    "pair": (UsageError, "adapter `topic` answers one text", {"pair": "id"}),
    "column": (DataError, "column", {"text": "nothing"}),
    "labels": (DataError, "contains labels that the adapter does not have", {"label": "other"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_evaluate_refuses_data_that_cannot_be_scored(name: str, world: World, tmp_path: Path) -> None:
    error, words, options = REFUSED[name]
    rows = [{"text": text, "label": "red", "other": "pink", "id": f"i{at}"} for at, text in enumerate(sentences(60))]
    with pytest.raises(error, match=words) as caught:
        measured(world, **{"adapter": "topic", **options}, data=write(tmp_path / "rows.jsonl", rows))
    assert len(str(caught.value)) < 2000


def test_a_pair_that_is_needed_is_asked_for(world: World, topics: Path) -> None:
    with pytest.raises(UsageError, match="answers a pair of texts"):
        measured(world, "nli", topics)


def test_a_library_that_is_missing_is_named(world: World, topics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "seqeval", None)
    with pytest.raises(MissingExtraError, match=r"adapter-export\[evaluate\]"):
        measured(world, "topic", topics)


class Page(HTMLParser):
    """Contents of a page: tags, text, and external resources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.words, self.loaded = list[str](), list[str](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_is_complete_in_itself(world: World, topics: Path, tmp_path: Path) -> None:
    page = tmp_path / "evaluation.html"
    data = shutil.copy(topics, tmp_path / "<b>topics.jsonl")
    measured(world, "topic", data, report=page, slices="half", against=world.base, gate={"accuracy": 0.9})
    text = page.read_text("utf-8")
    found = Page(text)
    assert found.loaded == []
    assert not {"script", "link", "img", "iframe", "b"} & set(found.tags)
    assert "url(" not in text
    assert {"svg", "table"} <= set(found.tags)
    words = " ".join(found.words)
    for said in ("macro-F1", "0.7500", "Slices by", "failed", "misses its gate", "<b>topics.jsonl"):
        assert said in words
    with pytest.raises(OutputExistsError):
        measured(world, "topic", data, report=page)
    measured(world, "topic", data, report=page, force=True)


def test_evaluation_is_valid_json_with_gates(world: World, topics: Path) -> None:
    found = measured(world, "topic", topics, slices="half", gate={"accuracy": 0.9}, against=world.base)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["passed"] is False
    assert document["scores"]["accuracy"]["value"] == 0.75
    assert document["gates"] == [{"metric": "accuracy", "bound": 0.9, "value": 0.75, "passed": False}]
    assert document["metrics"] == ["accuracy", "macro_f1"]
    reached = measured(world, "topic", topics, gate={"accuracy": 0.7})
    assert "gate passed: `accuracy` 0.7500, bound 0.7." in list(reached.remarks())
    with pytest.raises(MissedGateError, match=r"`accuracy` misses its gate; found 0\.7500; expected at least 0\.9"):
        found.raise_for_failure()


# The record of training.


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `test.tsv`, and the bundle of an adapter whose record says how it did on that file."""
    folder = tmp_path_factory.mktemp("trained")
    for name, seed in (("train", 0), ("test", 1)):
        rows = reviews(120 if name == "train" else 60, seed)
        lines = [f"{text}\t{label}" for text, label in rows]
        lines += lines[:3] if name == "test" else []  # rows that are repeated
        (folder / f"{name}.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    heard = Heard()
    ae.train(
        world.base,
        folder / "train.tsv",
        folder / "trained",
        test_data=folder / "test.tsv",
        kind="pfeiffer",
        bottleneck=4,
        epochs=2,
        reporter=heard,
    )
    assert heard.notes[0] == "3 rows of the test data repeat another row and were skipped (lines 62, 63, 64)"
    ae.build(world.base, [folder / "trained"], folder / "bundle", variants=("slots",))
    return folder


def test_the_record_of_training_is_confirmed_on_its_own_file(trained: Path) -> None:
    found = ae.evaluate(trained / "bundle", trained / "test.tsv", resamples=0)
    assert found.training_record is not None
    assert (found.training_record.part, found.training_record.passed, found.rows) == ("test", True, 63)
    recorded = ae.load_adapter(trained / "trained").training["test"]
    assert found.training_record.scores == {name: recorded[name] for name in ("accuracy", "macro_f1")}
    assert found.training_record.found["accuracy"] == pytest.approx(recorded["accuracy"], abs=1e-9)
    assert found.passed
    assert not [note for note in found.notes if "training record" in note]


def test_evaluation_reports_baselines_beside_the_scores(trained: Path) -> None:
    found = ae.evaluate(trained / "bundle", trained / "test.tsv", training_data=trained / "train.tsv")
    (linear,) = found.baselines
    assert (linear.name, found.majority is not None) == ("linear", True)
    assert linear.meaning == "logistic regression on the frozen base, learnt from train.tsv"
    recorded = ae.load_adapter(trained / "trained").training["baseline"]["test"]
    assert linear.scores["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.05)
    assert f"  {linear.scores['accuracy']:.4f}" in str(found.table())
    noted = [note for note in found.notes if "of logistic regression on the frozen base" in note]
    assert bool(noted) != linear.beaten
    (known,) = ae.evaluate(trained / "bundle", trained / "test.tsv").baselines
    assert known.scores["accuracy"] == pytest.approx(recorded["accuracy"])
    assert known.meaning.endswith("as recorded by training")


def test_an_adapter_at_the_level_of_its_baselines_is_noted(world: World, tmp_path: Path) -> None:
    labels = ("red", "green", "blue")
    rows = [{"text": text, "label": labels[at % 3]} for at, text in enumerate(sentences(60))]
    notes = measured(world, "topic", write(tmp_path / "random.jsonl", rows)).notes
    assert any("is not clearly better than 0.333 of always answering `red`" in note for note in notes)


def test_labels_rotated_after_training_contradict_the_record(trained: Path, world: World) -> None:
    adapter = ae.load_adapter(trained / "trained")
    assert adapter.head is not None
    assert adapter.head.task is not None
    task = replace(adapter.head.task, labels=adapter.head.task.labels[::-1])
    rotated = replace(adapter, head=replace(adapter.head, task=task))
    bundle = ae.build(world.base, [rotated], trained / "rotated", variants=("slots",))
    found = ae.evaluate(bundle, trained / "test.tsv", resamples=0)
    assert found.training_record is not None
    assert not found.training_record.passed
    with pytest.raises(MissedGateError, match="`accuracy` does not match the training record for this very file"):
        found.raise_for_failure()


def test_a_record_of_other_data_says_nothing(trained: Path, tmp_path: Path) -> None:
    data = tmp_path / "more.tsv"
    data.write_text((trained / "test.tsv").read_text("utf-8") + "the dull film\tbad\n", encoding="utf-8")
    found = ae.evaluate(trained / "bundle", data, resamples=0)
    assert found.training_record is None
    assert "training record not compared: its scores were measured on `test.tsv` (test)" in found.notes
    assert found.passed


def test_partial_evaluations_skip_the_training_record(trained: Path) -> None:
    found = ae.evaluate(trained / "bundle", trained / "test.tsv", resamples=0, limit=10)
    assert found.training_record is None
    assert "10 of 63 rows were drawn at random" in found.notes


def test_rows_that_rounding_may_decide_are_named_and_allowed(trained: Path) -> None:
    """A record that differs by one row passes if that row is within the budget, and fails otherwise."""
    own = contestant(trained / "bundle", "trained")
    data = replace(read(trained / "test.tsv", own, 4), is_part=False)
    asked = own.read(data)
    right = [asked.task.labels.index(row.answer) for row in asked.rows]
    results = [[np.array([1.0, -1.0]) if at == 0 else np.array([-1.0, 1.0])] for at in right]
    results[2] = [np.array([1e-6, -1e-6]) if right[2] == 0 else np.array([-1e-6, 1e-6])]
    training = {"data": {"test": {"sha256": data.sha256, "rows": 4, "file": "f"}}, "test": {"accuracy": 0.75}}
    measured = Measured(own, asked, results, judge(asked, results))
    held, _ = compare_with_training_record(training, data, measured, 1e-4)
    assert held is not None
    assert (held.passed, held.uncertain, held.found) == (True, (asked.rows[2].line,), {"accuracy": 1.0})
    held, _ = compare_with_training_record(training, data, measured, 1e-8)
    assert held is not None
    assert (held.passed, held.uncertain) == (False, ())
    assert own.record.golden.absolute["logits"] < 1e-4


# Adapters that change nothing.


def test_an_adapter_that_changes_nothing_is_named(world: World, topics: Path, tmp_path: Path) -> None:
    topic = world.adapters["topic"]
    weights = {name: tensor * (0 if ".up." in name else 1) for name, tensor in topic.weights.items()}
    heard = Heard()
    bundle = ae.build(
        world.base, [replace(topic, weights=weights)], tmp_path / "bundle", variants=("slots",), reporter=heard
    )
    said = "adapter `topic` has no effect: at each of its sites its result equals the replaced value"
    assert heard.notes == [said]
    assert ae.evaluate(bundle, topics, resamples=0).notes[0] == said


def test_a_head_without_a_task_is_refused(world: World, topics: Path, tmp_path: Path) -> None:
    topic = world.adapters["topic"]
    assert topic.head is not None
    unknown = replace(topic, head=replace(topic.head, task=None))
    bundle = ae.build(world.base, [unknown], tmp_path / "bundle", variants=("slots",))
    with pytest.raises(RequestError, match="has no task"):
        ae.evaluate(bundle, topics)
