"""Bundles of embedders, measured on anchors and their documents: each anchor ranks all documents of the table."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from once import once
from served import made_app
from small_encoder import BAD, GOOD, OTHER, load_encoder

import adapter_export as ae
from adapter_export.commands.bundles.run import run
from adapter_export.errors import AdapterError, RequestError, UsageError
from adapter_export.graph.tasks import Task
from adapter_export.plugins.lab.evaluation import Evaluation
from adapter_export.runtime import Bundle
from adapter_export.runtime.answerer import asked_of
from adapter_export.text import SidedText

COLUMNS: dict[str, Any] = {"text": "query", "pair": "passage"}
QUERY, DOCUMENT = "the film ", "this play "


def rows() -> list[dict[str, str]]:
    """Three telling words in each query and its passage, two of them in the passage that does not belong to it."""
    rng = np.random.default_rng(0)
    found = []
    for own in combinations([*GOOD, *BAD], 3):
        other = rng.choice([word for word in (*GOOD, *BAD) if word not in own])
        texts = [" ".join(rng.permutation([*words, *rng.choice(OTHER, 3)])) for words in (own, own, (*own[:2], other))]
        found.append(dict(zip(("query", "passage", "wrong"), texts, strict=True)))
    return [found[at] for at in rng.permutation(len(found))]


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl`, `test.jsonl`, and `bundle`: `search`, tested on the latter, and `plain`, it without prefixes."""

    def make(folder: Path) -> None:
        load_encoder(folder / "model.pt")
        for name, part in (("train", rows()[16:]), ("test", rows()[:16])):
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
        adapter = ae.train(
            folder / "model.pt",
            folder / "train.jsonl",
            folder / "search",
            task="embedding",
            **COLUMNS,
            negative=["wrong"],
            test_data=folder / "test.jsonl",
            widths=(8, 4),
            l2_normalise=True,
            query_prefix=QUERY,
            document_prefix=DOCUMENT,
            bottleneck=4,
            epochs=3,
            batch_size=8,
            learning_rate=0.03,
        )
        head = adapter.head
        assert head is not None
        assert head.task is not None
        plain = replace(head, task=replace(head.task, query_prefix="", document_prefix=""))
        ae.build(folder / "model.pt", {"search": adapter, "plain": replace(adapter, head=plain)}, folder / "bundle")

    return once(tmp_path_factory, "searched", make)


def evaluate(bundle: Path, data: Path, **options: Any) -> Evaluation:
    return ae.evaluate(bundle, data, adapter="search", **options)


def test_an_evaluation_confirms_the_training_record(searched: Path) -> None:
    found = evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, negative=["wrong"], resamples=50)
    record = found.training_record
    assert record is not None
    assert record.passed
    assert set(record.scores) == {"ndcg_at_10", "mrr", "recall_at_1", "recall_at_5", "recall_at_10"}
    assert (found.task, found.rows, found.metrics[0].name) == ("embedding", 16, "ndcg_at_10")
    interval = found.scores["recall_at_1"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < interval.value < interval.high
    assert "over anchors" in "".join(found.remarks())


def test_retrieval_metrics_match_values_by_hand(searched: Path) -> None:
    """Ranks from vectors that the session gives; the documents are all passages, and with `wrong` those as well."""
    test = rows()[:16]
    texts = Bundle.open(searched / "bundle").texts()
    for negatives in ([], ["wrong"]):
        documents = list(dict.fromkeys(row[name] for name in ("passage", *negatives) for row in test))
        queries, known = (
            np.stack([one.answer.vector for one in texts.answer(asked, "plain")])
            for asked in ([QUERY + row["query"] for row in test], [DOCUMENT + one for one in documents])
        )
        ranked = (-(queries @ known.T)).argsort(-1)
        ranks = [
            list(order).index(documents.index(row["passage"])) + 1 for order, row in zip(ranked, test, strict=True)
        ]
        found = evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, negative=negatives, resamples=0)
        values = {name: score.value for name, score in found.scores.items()}
        assert values["mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
        assert values["recall_at_5"] == np.mean(np.array(ranks) <= 5)
        gains = [1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]
        assert values["ndcg_at_10"] == pytest.approx(np.mean(gains))


def test_vectors_of_another_width_are_measured(searched: Path) -> None:
    test, texts = rows()[:16], Bundle.open(searched / "bundle").texts()
    queries, known = (
        np.stack([one.answer.vector[:4] for one in texts.answer([before + row[name] for row in test], "plain")])
        for name, before in (("query", QUERY), ("passage", DOCUMENT))
    )
    cosines = queries @ known.T / np.linalg.norm(known, axis=1)
    found = evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, dimensions=4, resamples=0)
    assert found.scores["recall_at_1"].value == np.mean(cosines.argmax(-1) == np.arange(16))
    assert found.training_record is None
    with pytest.raises(RequestError, match="not trained at this width; found 5; expected one of 16, 8, 4"):
        evaluate(searched / "bundle", searched / "test.jsonl", **COLUMNS, dimensions=5)


def test_training_rows_are_named(searched: Path) -> None:
    found = evaluate(searched / "bundle", searched / "train.jsonl", **COLUMNS, resamples=0)
    assert found.seen is not None
    assert found.seen.is_training


def test_contestants_are_compared_on_pairs(searched: Path) -> None:
    """The bundle, and the adapter that it was built of."""
    found = ae.compare(
        searched / "bundle",
        searched / "search",
        only=["search"],
        data=searched / "test.jsonl",
        base=searched / "model.pt",
        **COLUMNS,
        rounds=0,
        resamples=20,
    )
    one, other = (dict(each.scores) for each in found.contestants)
    assert one["ndcg_at_10"].value == pytest.approx(other["ndcg_at_10"].value)
    assert found.metrics[0].name == "ndcg_at_10"


def test_evaluate_refuses_negatives_without_pairs_and_unknown_metrics(searched: Path) -> None:
    bundle, data = searched / "bundle", searched / "test.jsonl"
    with pytest.raises(UsageError, match="negatives need pairs"):
        evaluate(bundle, data, text="query", negative=["wrong"])
    with pytest.raises(UsageError, match="is not a metric of this task"):
        evaluate(bundle, data, **COLUMNS, gate={"spearman": 0.5})


class TestSides:
    """Texts of an adapter with prefixes of both sides, beside those of `plain` with the prefix in them."""

    def test_each_side_has_its_prefix(self, searched: Path) -> None:
        texts = Bundle.open(searched / "bundle").texts()
        asked = [SidedText("good", "query"), SidedText("good", "document"), asked_of({"text": "a", "side": "query"})]
        found = [one.answer.vector for one in texts.answer(asked, "search")]
        wanted = texts.answer([f"{QUERY}good", f"{DOCUMENT}good", f"{QUERY}a"], "plain")
        for vector, one in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(vector, one.answer.vector)
        assert not np.allclose(found[0], found[1])
        (same,) = texts.answer([SidedText("good", "document")], "plain")  # nothing is put before either side
        np.testing.assert_array_equal(same.answer.vector, texts.answer(["good"], "plain")[0].answer.vector)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ("good", "text 0, adapter `search`: does not say whether it is a query or a document"),
            (SidedText("good", "passage"), "is no side of a search; found `passage`"),  # type: ignore[arg-type]
            (["good", "film"], "does not say whether it is a query or a document"),
        ],
    )
    def test_a_text_without_its_side_is_refused(self, searched: Path, asked: Any, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            Bundle.open(searched / "bundle").texts().answer([asked], "search")

    def test_other_tasks_have_no_sides(self) -> None:
        with pytest.raises(RequestError, match="`single_label` gives no vectors"):
            Task("single_label", ("a", "b")).prefix_of("query")
        with pytest.raises(AdapterError, match="only an embedding has `query_prefix`"):
            Task("regression", query_prefix="q: ")
        with pytest.raises(AdapterError, match="a prefix of all rows, and one of queries"):
            Task("embedding", prefix="p: ", query_prefix="q: ")

    def test_every_interface_adds_the_prefix_of_a_side(self, searched: Path) -> None:
        bundle, text = searched / "bundle", "good film"
        (wanted,) = Bundle.open(bundle).texts().answer([f"{QUERY}{text}"], "plain")
        (row,) = run(bundle, texts=[text], adapter="search", side="query").rows
        np.testing.assert_array_equal(row.answer.answer.vector, wanted.answer.vector)
        with made_app(bundle, quiet=True) as client:
            calls = [
                ("/answer", {"model": "search", "text": text, "side": "query"}),
                ("/answer", {"model": "search", "texts": [{"text": text, "side": "query"}]}),
                ("/v1/embeddings", {"model": "search", "input": text, "input_type": "query"}),
            ]
            for path, call in calls:
                given = client.post(path, json=call)
                assert given.status_code == 200, given.text
                (found,) = given.json().get("rows") or given.json()["data"]
                vector = found["vector"] if "vector" in found else found["embedding"]
                np.testing.assert_array_equal(np.float32(vector), wanted.answer.vector)
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
            call = {"inputs": [tensor], "parameters": {"side": "query"}}
            outputs = client.post("/v2/models/search/infer", json=call).json()["outputs"]
            (answer,) = [json.loads(one["data"][0]) for one in outputs if one["name"] == "answer"]
            np.testing.assert_array_equal(np.float32(answer["vector"]), wanted.answer.vector)
            for path, call in (
                ("/answer", {"model": "search", "text": text}),
                ("/v1/embeddings", {"model": "search", "input": text}),
                ("/answer", {"model": "search", "text": text, "side": "passage"}),
                ("/answer", {"model": "search", "texts": ["a"], "side": "query"}),
            ):
                assert client.post(path, json=call).status_code == 400

    def test_golden_texts_have_sides(self, searched: Path) -> None:
        document = json.loads((searched / "bundle" / "golden" / "texts.json").read_text(encoding="utf-8"))
        (own,) = [one for one in document["sets"] if one["adapter"] == "search"]
        assert {text["side"] for text in own["texts"]} == {"query", "document"}
        assert ae.verify(searched / "bundle").passed

    def test_a_layout_without_sides_refuses_the_adapter(self, searched: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="adapter `search`: has prefixes of queries and of documents"):
            ae.ship(searched / "bundle", tmp_path / "shipped", layout="transformers.js")

    def test_prefixes_of_sides_need_pairs(self, searched: Path) -> None:
        options = {"task": "embedding", "query_prefix": "q: "}
        with pytest.raises(UsageError, match="only pairs have queries and documents"):
            ae.train(searched / "model.pt", searched / "train.jsonl", text="query", label="passage", **options)
        with pytest.raises(UsageError, match="exclude each other"):
            ae.train(searched / "model.pt", searched / "train.jsonl", **COLUMNS, prefix="p: ", **options)
